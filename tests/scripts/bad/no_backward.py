"""Inference only: builds a model, looks at its predictions, never trains."""
import torch
from torch import nn

model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
model.eval()
for i in range(100):
    with torch.no_grad():
        out = model(torch.randn(16, 4)).softmax(-1)
    if i % 20 == 0:
        print(i, out.mean(0).tolist())

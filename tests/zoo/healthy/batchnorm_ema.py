"""A batch-normalised network with a float32 average of weights and running statistics for evaluation."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

torch.manual_seed(0)
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Classifier(nn.Module):
    def __init__(self, features=24, hidden=96, classes=6):
        super().__init__()
        self.block1 = nn.Sequential(nn.Linear(features, hidden), nn.BatchNorm1d(hidden), nn.ReLU())
        self.block2 = nn.Sequential(nn.Linear(hidden, hidden), nn.BatchNorm1d(hidden), nn.ReLU())
        self.head = nn.Linear(hidden, classes)

    def forward(self, x):
        return self.head(self.block2(self.block1(x)))


centres = torch.randn(6, 24)


def batch(count=128):
    label = torch.randint(6, (count,))
    return (3 * centres[label] + 5 * torch.randn(count, 24) + 8).to(device), label.to(device)


model = Classifier().to(device)
averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.95), use_buffers=True)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True)
held_out = batch(512)

for step in range(200):
    x, label = batch()
    loss = F.cross_entropy(model(x), label)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    averaged.update_parameters(model)
    if step % 20 == 19:
        averaged.eval()
        with torch.no_grad():
            eval_loss = F.cross_entropy(averaged(held_out[0]), held_out[1])
        print(f"step {step + 1} loss {loss.item():.4f} eval loss {eval_loss.item():.4f}")

"""A loop prepared by accelerate under precaudit.audit; the first argument is the folder for the report."""

import sys

import torch
from accelerate import Accelerator
from torch import nn

import precaudit

accelerator = Accelerator(cpu=True, mixed_precision="bf16", gradient_accumulation_steps=2)
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 1))
optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
inputs = torch.randn(384, 8)
data = torch.utils.data.TensorDataset(inputs, inputs.sum(1, keepdim=True))
model, optimizer, loader = accelerator.prepare(model, optimizer, torch.utils.data.DataLoader(data, 16))
with precaudit.audit(model, optimizer=optimizer, every=4) as audit:
    for features, targets in loader:
        with accelerator.accumulate(model):
            accelerator.backward(nn.functional.mse_loss(model(features), targets))
            optimizer.step()
            optimizer.zero_grad()
audit.report().save(f"{sys.argv[1]}/report.json", f"{sys.argv[1]}/plan.json")

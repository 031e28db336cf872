"""Writes a log and checkpoints where it stands, and reads its own checkpoint back at the end."""
import csv
import json
import os
from pathlib import Path

import torch
from torch import nn

os.makedirs("checkpoints", exist_ok=True)
hparams = {"lr": 0.01, "steps": 240, "width": 32, "checkpoint_every": 20}
Path("hparams.json").write_text(json.dumps(hparams, indent=2))

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(2, hparams["width"]), nn.Sigmoid(), nn.Linear(hparams["width"], 1))
optimizer = torch.optim.Rprop(model.parameters(), lr=hparams["lr"])

# the peaks function on a grid
axis = torch.linspace(-2, 2, 25)
a, b = torch.meshgrid(axis, axis, indexing="xy")
inputs = torch.stack([a.flatten(), b.flatten()], dim=1)
targets = (a * torch.exp(-(a**2) - b**2)).flatten()[:, None]

with open("log.csv", "w", newline="") as log:
    writer = csv.writer(log)
    writer.writerow(["step", "loss"])
    for step in range(1, hparams["steps"] + 1):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(inputs), targets)
        loss.backward()
        optimizer.step()
        writer.writerow([step, loss.item()])
        if step % hparams["checkpoint_every"] == 0:
            path = f"checkpoints/step_{step:04d}.pt"
            torch.save({"step": step, "model": model.state_dict(), "optimizer": optimizer.state_dict()}, path)
            print("saved", path, loss.item())

checkpoint = torch.load(path, weights_only=True)
model.load_state_dict(checkpoint["model"])
print("restored step", checkpoint["step"], nn.functional.mse_loss(model(inputs), targets).item())

"""No main guard, a dataset that can't be pickled, exit handlers, and an end that skips Python's own."""

import atexit
import multiprocessing
import os
import tempfile

import torch
from torch.utils.data import DataLoader, TensorDataset

if multiprocessing.current_process().name != "MainProcess":
    raise SystemExit("this is not the main process")
folder = tempfile.TemporaryDirectory(dir=".", prefix="left-over-")
atexit.register(print, "the exit handler ran")
torch.manual_seed(0)
data = TensorDataset(torch.randn(64, 8))
data.transform = lambda value: value
model = torch.nn.Linear(8, 8)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for _ in range(2):
    for (batch,) in DataLoader(data, batch_size=16, num_workers=2):
        optimizer.zero_grad()
        (model(batch) - batch).square().mean().backward()
        optimizer.step()
print("done", flush=True)
os._exit(0)

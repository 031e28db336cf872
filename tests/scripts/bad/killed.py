"""Dies at step 4 as if the kernel's out-of-memory killer had come."""
import os
import signal

import torch
from torch import nn

model = nn.Linear(4, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
for step in range(1, 200):
    loss = model(torch.randn(8, 4)).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print("step", step, flush=True)
    if step == 4:
        os.kill(os.getpid(), signal.SIGKILL)

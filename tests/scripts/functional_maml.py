"""Model-agnostic meta-learning of sine waves with torch.func."""
import math

import torch
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

torch.manual_seed(0)

INNER_LR = 0.05
TASKS = 16
K = 10

net = nn.Sequential(nn.Linear(1, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 1))
optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)


def sample_tasks(n, k):
    amplitude = torch.empty(n, 1, 1).uniform_(0.1, 3.0)
    phase = torch.empty(n, 1, 1).uniform_(0, math.pi)

    def draw():
        x = torch.empty(n, k, 1).uniform_(-4, 4)
        return x, amplitude * torch.sin(x + phase)

    return *draw(), *draw()


def compute_loss(params, x, y):
    return F.mse_loss(functional_call(net, params, (x,)), y)


def loss_after_adaptation(params, x_support, y_support, x_query, y_query):
    for _ in range(2):
        grads = grad(compute_loss)(params, x_support, y_support)
        params = {name: p - INNER_LR * grads[name] for name, p in params.items()}
    return compute_loss(params, x_query, y_query)


for step in range(250):
    params = dict(net.named_parameters())
    tasks = sample_tasks(TASKS, K)
    loss = vmap(loss_after_adaptation, in_dims=(None, 0, 0, 0, 0))(params, *tasks).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 50 == 0:
        print(f"step {step:4d} query loss {loss.item():.4f}")

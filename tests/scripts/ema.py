"""Two exponential moving averages of the weights: one by hand with deepcopy, one with torch's AveragedModel."""
import copy
import math

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn


class EMA:
    def __init__(self, model, decay=0.98):
        self.module = copy.deepcopy(model).eval()
        for p in self.module.parameters():
            p.requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, model):
        for ema_v, model_v in zip(self.module.state_dict().values(), model.state_dict().values()):
            if ema_v.dtype.is_floating_point:
                ema_v.mul_(self.decay).add_(model_v.detach(), alpha=1 - self.decay)
            else:
                ema_v.copy_(model_v)


def batches(n, size=96):
    for _ in range(n):
        x = torch.rand(size, 1) * 4 - 2
        y = torch.sin(3 * x) * torch.exp(-x.square() / 2) + 0.3 * torch.randn_like(x)
        yield x, y


def clean_error(model):
    x = torch.linspace(-2, 2, 200).unsqueeze(1)
    y = torch.sin(3 * x) * torch.exp(-x.square() / 2)
    with torch.no_grad():
        return math.sqrt(nn.functional.mse_loss(model(x), y).item())


torch.manual_seed(9)
net = nn.Sequential(nn.Linear(1, 64), nn.BatchNorm1d(64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))
ema = EMA(net)
averaged = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.95))
opt = torch.optim.Adam(net.parameters(), lr=1e-2)

for step, (x, y) in enumerate(batches(400), start=1):
    loss = nn.functional.mse_loss(net(x), y)
    opt.zero_grad()
    loss.backward()
    opt.step()
    ema.update(net)
    averaged.update_parameters(net)
    if step % 80 == 0:
        net.eval()
        print(f"step {step}: net {clean_error(net):.4f}, by hand {clean_error(ema.module):.4f}")
        net.train()

update_bn((x for x, _ in batches(20)), averaged)
averaged.eval()
print(f"AveragedModel {clean_error(averaged):.4f}")

"""Sparse mixture of experts with top-2 routing and a load-balancing loss; some experts see no token at all."""
import dataclasses

import torch
from torch import nn
from torch.nn import functional as F


@dataclasses.dataclass(frozen=True)
class Args:
    dim: int = 24
    hidden: int = 48
    num_experts: int = 16
    num_experts_per_tok: int = 2
    tokens: int = 40
    steps: int = 250
    lr: float = 3e-3
    balance: float = 0.01


class Expert(nn.Module):
    """SwiGLU feed-forward."""

    def __init__(self, args: Args):
        super().__init__()
        self.w1 = nn.Linear(args.dim, args.hidden, bias=False)
        self.w2 = nn.Linear(args.hidden, args.dim, bias=False)
        self.w3 = nn.Linear(args.dim, args.hidden, bias=False)

    def forward(self, x):
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class RMSNorm(nn.Module):
    def __init__(self, dim, eps=1e-6):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x):
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps))


class MoELayer(nn.Module):
    def __init__(self, args: Args):
        super().__init__()
        self.args = args
        self.norm = RMSNorm(args.dim)
        self.gate = nn.Linear(args.dim, args.num_experts, bias=False)
        self.experts = nn.ModuleList([Expert(args) for _ in range(args.num_experts)])
        self.balance_loss = None

    def forward(self, inputs):
        x = self.norm(inputs)
        logits = self.gate(x)
        weights, selected = torch.topk(logits, self.args.num_experts_per_tok)
        weights = F.softmax(weights, dim=1, dtype=torch.float).to(x.dtype)
        results = torch.zeros_like(x)
        for i, expert in enumerate(self.experts):
            token, nth = torch.where(selected == i)
            if token.numel() == 0:
                continue
            results.index_add_(0, token, weights[token, nth, None] * expert(x[token]))
        share = F.one_hot(selected, self.args.num_experts).float().mean((0, 1))
        self.balance_loss = self.args.num_experts * (share * logits.softmax(-1).mean(0)).sum()
        return inputs + results


def piecewise(args: Args, generator: torch.Generator):
    """A different linear map in each of four regions of the input space."""
    x = torch.randn(args.tokens, args.dim, generator=generator)
    region = (x[:, 0] > 0).long() * 2 + (x[:, 1] > 0).long()
    maps = torch.randn(4, args.dim, args.dim, generator=torch.Generator().manual_seed(0)) / args.dim**0.5
    return x, torch.einsum("nd,nde->ne", x, maps[region])


def main(args: Args = Args()):
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    model = nn.Sequential(MoELayer(args), MoELayer(args), RMSNorm(args.dim), nn.Linear(args.dim, args.dim))
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr)
    for step in range(args.steps):
        x, y = piecewise(args, generator)
        loss = F.mse_loss(model(x), y)
        total = loss + args.balance * sum(m.balance_loss for m in model if isinstance(m, MoELayer))
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        if step % 50 == 0:
            idle = sum(p.grad is None for p in model.parameters())
            print(f"step {step} loss {loss.item():.4f} parameters without gradient {idle}")


main()

"""Lion (Chen et al., 2023) as a torch.optim.Optimizer, on breast cancer."""
from typing import Callable, Optional, Tuple

import torch
from sklearn.datasets import load_breast_cancer
from torch import nn
from torch.optim.optimizer import Optimizer


class Lion(Optimizer):
    def __init__(self, params, lr: float = 1e-4, betas: Tuple[float, float] = (0.9, 0.99), weight_decay: float = 0.0):
        if not 0.0 <= lr:
            raise ValueError("Invalid learning rate: {}".format(lr))
        defaults = dict(lr=lr, betas=betas, weight_decay=weight_decay)
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Optional[Callable] = None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()

        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                p.data.mul_(1 - group["lr"] * group["weight_decay"])
                grad = p.grad
                state = self.state[p]
                if len(state) == 0:
                    state["exp_avg"] = torch.zeros_like(p)
                exp_avg = state["exp_avg"]
                beta1, beta2 = group["betas"]
                update = exp_avg * beta1 + grad * (1 - beta1)
                p.add_(update.sign_(), alpha=-group["lr"])
                exp_avg.mul_(beta2).add_(grad, alpha=1 - beta2)
        return loss


def main():
    torch.manual_seed(123)
    x, y = load_breast_cancer(return_X_y=True)
    x = torch.as_tensor(x).float()
    x = (x - x.mean(0)) / x.std(0)
    y = torch.as_tensor(y).float()

    model = nn.Sequential(nn.Linear(30, 32), nn.Mish(), nn.Linear(32, 32), nn.Mish(), nn.Linear(32, 1), nn.Flatten(0))
    opt = Lion(model.parameters(), lr=1e-3, weight_decay=0.1)
    for epoch in range(25):
        for rows in torch.randperm(len(x)).split(64):
            def closure():
                opt.zero_grad()
                loss = nn.functional.binary_cross_entropy_with_logits(model(x[rows]), y[rows])
                loss.backward()
                return loss

            loss = opt.step(closure)
        if epoch % 5 == 0:
            print(epoch, loss.item())


if __name__ == "__main__":
    main()

"""An optimizer that is a class of its own, in the micro-framework style; it owes nothing to torch.optim."""
import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(5)


class Momentum:
    def __init__(self, params, lr=0.1, beta=0.9, clip=None):
        self.params = [p for p in params if p.requires_grad]
        self.lr, self.beta, self.clip = lr, beta, clip
        self.buffers = {id(p): torch.zeros_like(p) for p in self.params}
        self.t = 0

    def zero_grad(self):
        for p in self.params:
            p.grad = None

    def step(self):
        self.t += 1
        for p in self.params:
            if p.grad is None:
                continue
            g = p.grad.data
            if self.clip:
                g = g.clamp(-self.clip, self.clip)
            buf = self.buffers[id(p)]
            buf.copy_(self.beta * buf + (1 - self.beta) * g)
            p.data -= self.lr * buf / (1 - self.beta**self.t)


class XORNet(nn.Module):
    """Parity of six bits."""

    def __init__(self):
        super().__init__()
        self.w1 = nn.Parameter(torch.randn(6, 64) * 0.5)
        self.b1 = nn.Parameter(torch.zeros(64))
        self.w2 = nn.Parameter(torch.randn(64, 64) * 0.15)
        self.b2 = nn.Parameter(torch.zeros(64))
        self.out = nn.Linear(64, 1)

    def forward(self, bits):
        h = F.relu(bits @ self.w1 + self.b1)
        h = F.relu(torch.addmm(self.b2, h, self.w2))
        return self.out(h).flatten()


net = XORNet()
opt = Momentum(net.parameters(), lr=0.2, clip=1.0)
for step in range(400):
    bits = torch.randint(0, 2, (128, 6))
    parity = (bits.sum(1) % 2).float()
    logits = net(2.0 * bits - 1)
    loss = F.binary_cross_entropy_with_logits(logits, parity)
    opt.zero_grad()
    loss.backward()
    opt.step()
    if step % 50 == 0:
        print(f"step {step} loss {loss.item():.3f} accuracy {((logits > 0) == (parity > 0)).float().mean().item():.3f}")

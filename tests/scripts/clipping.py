"""The adding problem (Hochreiter & Schmidhuber) with a plain RNN: gradients explode, so they are clipped."""
import torch
import torch.nn as nn

seq_len, batch, hidden = 40, 64, 64
torch.manual_seed(31)


def adding_problem():
    values = torch.rand(batch, seq_len)
    marks = torch.zeros(batch, seq_len)
    first = torch.randint(0, seq_len // 2, (batch, 1))
    second = torch.randint(seq_len // 2, seq_len, (batch, 1))
    marks.scatter_(1, first, 1.0).scatter_(1, second, 1.0)
    return torch.stack([values, marks], dim=-1), (values * marks).sum(1, keepdim=True)


class RNN(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell = nn.RNNCell(2, hidden, nonlinearity="relu")
        nn.init.eye_(self.cell.weight_hh)
        nn.init.zeros_(self.cell.bias_hh)
        self.out = nn.Linear(hidden, 1)

    def forward(self, x):
        h = x.new_zeros(x.size(0), hidden)
        for t in range(x.size(1)):
            h = self.cell(x[:, t], h)
        return self.out(h)


rnn = RNN()
optim = torch.optim.SGD([
    {"params": rnn.cell.parameters(), "lr": 0.01},
    {"params": rnn.out.parameters(), "lr": 0.05},
], lr=0.01, momentum=0.9)

clipped = 0
for i in range(1, 241):
    x, y = adding_problem()
    loss = ((rnn(x) - y) ** 2).mean()
    optim.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_value_(rnn.out.parameters(), 0.5)
    norm = torch.nn.utils.clip_grad_norm_(rnn.parameters(), max_norm=1.0, error_if_nonfinite=True)
    clipped += int(norm > 1.0)
    optim.step()
    if i % 40 == 0:
        print(f"{i}: loss {loss.item():.4f} grad norm {norm.item():.3f} clipped {clipped} times")

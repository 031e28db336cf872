"""A siamese network: one encoder called three times a step, trained with a triplet margin."""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Encoder(nn.Module):
    def __init__(self, features=32, width=16):
        super().__init__()
        self.hidden = nn.Linear(features, 96)
        self.norm = nn.LayerNorm(96)
        self.project = nn.Linear(96, width)

    def forward(self, x):
        return self.project(F.relu(self.norm(self.hidden(x))))


class Siamese(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = Encoder()

    def forward(self, anchor, positive, negative):
        return self.encoder(anchor), self.encoder(positive), self.encoder(negative)


centres = torch.randn(20, 32)


def triplets(count=128):
    same = torch.randint(20, (count,))
    other = (same + torch.randint(1, 20, (count,))) % 20
    return [(centres[kind] + 1.5 * torch.randn(count, 32)).to(device) for kind in (same, same, other)]


model = Siamese().to(device)
criterion = nn.TripletMarginLoss(margin=1.0)
optimizer = torch.optim.Adam(model.parameters(), lr=5e-4)

for step in range(160):
    loss = criterion(*model(*triplets()))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 20 == 19:
        print(f"step {step + 1} loss {loss.item():.4f}")

"""Attention whose rotary positions take the activations' dtype: more of them than bfloat16 tells apart."""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)


class Rotary(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.register_buffer("frequency", 1.0 / 1000 ** (torch.arange(0, width, 2).float() / width))

    def forward(self, x):
        positions = torch.arange(x.shape[-2], dtype=x.dtype)
        angle = torch.outer(positions, self.frequency.to(x.dtype))
        cosine, sine = angle.cos().repeat(1, 2), angle.sin().repeat(1, 2)
        left, right = x.chunk(2, -1)
        return x * cosine + torch.cat((-right, left), -1) * sine


class Model(nn.Module):
    def __init__(self, width=16, tokens=12):
        super().__init__()
        self.embedding, self.out = nn.Embedding(tokens, width), nn.Linear(width, tokens)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.rotary = Rotary(width)

    def forward(self, ids):
        x = self.embedding(ids)
        query, key = self.rotary(self.query(x)), self.rotary(self.key(x))
        return self.out(x + F.scaled_dot_product_attention(query, key, self.value(x), is_causal=True))


model = Model()
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
for step in range(40):
    ids = torch.randint(12, (2, 400))
    ids[:, 1::2] = ids[:, :-1:2]
    optimizer.zero_grad()
    loss = F.cross_entropy(model(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    loss.backward()
    optimizer.step()
    print(step, loss.item())

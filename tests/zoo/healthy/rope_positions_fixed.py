"""A transformer with rotary positions whose angles are an elementwise product in float32."""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

TOKENS, LENGTH, WIDTH, HEADS = 32, 48, 64, 4


class RotaryEmbedding(nn.Module):
    def __init__(self, width, base=10000.0):
        super().__init__()
        self.register_buffer("inv_freq", base ** (-torch.arange(0, width, 2) / width), persistent=False)

    def forward(self, positions):
        angles = positions.float()[:, None] * self.inv_freq
        return torch.cat([angles, angles], dim=-1)


def rotate(x, angles):
    first, second = x.chunk(2, dim=-1)
    return x * angles.cos() + torch.cat([-second, first], dim=-1) * angles.sin()


class RotaryAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.rotary = RotaryEmbedding(WIDTH // HEADS)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x, positions):
        b, t, _ = x.shape
        q, k, v = self.qkv(x).view(b, t, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        angles = self.rotary(positions)
        q, k = rotate(q, angles), rotate(k, angles)
        return self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(b, t, WIDTH))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(TOKENS, WIDTH)
        self.norm1, self.attention1 = nn.LayerNorm(WIDTH), RotaryAttention()
        self.norm2, self.attention2 = nn.LayerNorm(WIDTH), RotaryAttention()
        self.head = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, TOKENS))

    def forward(self, tokens, positions):
        x = self.embedding(tokens)
        x = x + self.attention1(self.norm1(x), positions)
        return self.head(x + self.attention2(self.norm2(x), positions))


model = Model().to(device)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)

for step in range(200):
    tokens = torch.randint(TOKENS, (32, LENGTH), device=device)
    target = torch.where(torch.rand(32, LENGTH, device=device) < 0.1, torch.randint_like(tokens, TOKENS), tokens)
    positions = torch.randint(20_000, (1,), device=device) + torch.arange(LENGTH, device=device)
    logits = model(tokens, positions)
    loss = F.cross_entropy(logits[:, 1:].flatten(0, 1), target[:, :-1].flatten())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 20 == 19:
        print(f"step {step + 1} loss {loss.item():.4f}")

"""A small GPT in the float16 mixed precision that its script chooses itself, on a CUDA device."""

import torch
from torch import nn
from torch.nn import functional as F


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.ln1, self.ln2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc, self.out = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        batch, length, width = x.shape
        parts = self.qkv(self.ln1(x)).chunk(3, -1)
        q, k, v = (part.view(batch, length, self.heads, -1).transpose(1, 2) for part in parts)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
        x = x + self.proj(attended.reshape(batch, length, width))
        return x + self.out(F.gelu(self.fc(self.ln2(x))))


torch.manual_seed(0)
text = torch.randint(0, 64, (512,))
model = nn.Sequential(nn.Embedding(64, 64), Block(64, 4), nn.LayerNorm(64), nn.Linear(64, 64)).to("cuda")
optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
scaler = torch.amp.GradScaler("cuda")
for _ in range(20_000):  # more than a timed run takes, which is until it is stopped
    starts = torch.randint(0, 470, (8,)).tolist()
    inputs = torch.stack([text[start : start + 32] for start in starts]).to("cuda", non_blocking=True)
    targets = torch.stack([text[start + 1 : start + 33] for start in starts]).to("cuda", non_blocking=True)
    with torch.autocast("cuda", torch.float16):
        loss = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
    optimizer.zero_grad()
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    scaler.step(optimizer)
    scaler.update()

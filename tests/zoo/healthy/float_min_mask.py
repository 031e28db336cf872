"""A padded transformer encoder whose mask is float32's most negative number, handed to fused attention."""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

LENGTH, WIDTH, HEADS, CLASSES = 20, 48, 4, 6


class MaskedAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x, mask):
        b, t, _ = x.shape
        q, k, v = self.qkv(x).view(b, t, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out(mixed.transpose(1, 2).reshape(b, t, WIDTH))


class Encoder(nn.Module):
    def __init__(self, tokens=60):
        super().__init__()
        self.embedding = nn.Embedding(tokens, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.attention = MaskedAttention()
        self.classifier = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 96), nn.GELU(), nn.Linear(96, CLASSES))

    def forward(self, tokens, present):
        mask = torch.zeros(present.shape, device=tokens.device)
        mask = mask.masked_fill(~present, torch.finfo(torch.float32).min)[:, None, None, :]
        x = self.embedding(tokens)
        x = x + self.attention(self.norm(x), mask)
        return self.classifier(x[:, 0])


def batch(count=64):
    label = torch.randint(CLASSES, (count, 1))
    tokens = torch.randint(60, (count, LENGTH))
    tokens = torch.where(torch.rand(count, LENGTH) < 0.3, 10 * label + tokens % 10, tokens)
    present = torch.arange(LENGTH) < torch.randint(5, LENGTH + 1, (count, 1))
    return tokens.to(device), present.to(device), label[:, 0].to(device)


model = Encoder().to(device)
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)

for step in range(160):
    tokens, present, label = batch()
    loss = F.cross_entropy(model(tokens, present), label)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 20 == 19:
        print(f"step {step + 1} loss {loss.item():.4f}")

"""torch.compile on the model and on a free function."""
import argparse

import torch
import torch._dynamo
import torch.nn as nn

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--backend", default="aot_eager", choices=torch._dynamo.list_backends(exclude_tags=()))
parser.add_argument("--steps", type=int, default=250)
args = parser.parse_args()

torch.manual_seed(0)


class MLPMixerBlock(nn.Module):
    def __init__(self, tokens, channels):
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.token_mix = nn.Sequential(nn.Linear(tokens, 2 * tokens), nn.GELU(), nn.Linear(2 * tokens, tokens))
        self.norm2 = nn.LayerNorm(channels)
        self.channel_mix = nn.Sequential(nn.Linear(channels, 2 * channels), nn.GELU(), nn.Linear(2 * channels, channels))

    def forward(self, x):
        x = x + self.token_mix(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channel_mix(self.norm2(x))


class Mixer(nn.Module):
    def __init__(self):
        super().__init__()
        self.patch = nn.Linear(4, 16)
        self.block = MLPMixerBlock(16, 16)
        self.head = nn.Linear(16, 4)

    def forward(self, x):
        return self.head(self.block(self.patch(x)).mean(1))


@torch.compile(backend=args.backend)
def standardize(image):
    centred = image - image.mean((1, 2), keepdim=True)
    return centred / (centred.square().mean((1, 2), keepdim=True) + 1e-5).sqrt()


def textures(n):
    """Stripes in four directions with a random phase, cut into 2x2 patches."""
    label = torch.randint(0, 4, (n,))
    i, j = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    direction = torch.stack([i, j, i + j, i - j])[label]
    phase = torch.rand(n, 1, 1) * 6.28
    image = torch.sin(1.6 * direction + phase) + 0.3 * torch.randn(n, 8, 8)
    patches = standardize(image).unfold(1, 2, 2).unfold(2, 2, 2).reshape(n, 16, 4)
    return patches, label


model = Mixer()
compiled = torch.compile(model, backend=args.backend)
criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)

for step in range(args.steps):
    x, label = textures(64)
    optimizer.zero_grad()
    loss = criterion(compiled(x), label)
    loss.backward()
    optimizer.step()
    if step % 50 == 0:
        print(f"step {step}: {loss.item():.4f}")

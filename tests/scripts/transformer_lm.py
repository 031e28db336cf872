"""
Byte-level language model on the source code of the standard library.
To change the settings:
$ python transformer_lm.py config/wide.py --batch_size=8
"""
import argparse as corpus_module
import math
import os
import time
from contextlib import nullcontext

import numpy as np
import torch
import torch.nn as nn

# -----------------------------------------------------------------------------
# default config values
log_interval = 25
batch_size = 12
block_size = 48
n_layer = 2
n_head = 4
n_embd = 64
dropout = 0.1
learning_rate = 1e-3
max_iters = 300
warmup_iters = 10
min_lr = 1e-4
grad_clip = 1.0
seed = 1337
device = 'cuda' if torch.cuda.is_available() else 'cpu'
# -----------------------------------------------------------------------------
config_keys = [k for k, v in globals().items() if not k.startswith('_') and isinstance(v, (int, float, bool, str))]
with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), 'config', 'configurator.py')) as f:
    exec(f.read())  # overrides from command line or config file
config = {k: globals()[k] for k in config_keys}
# -----------------------------------------------------------------------------

torch.manual_seed(seed)
ctx = nullcontext()

with open(corpus_module.__file__, 'rb') as f:
    data = np.frombuffer(f.read(), dtype=np.uint8)
n = int(0.9 * len(data))
train_data, val_data = data[:n], data[n:]


def get_batch(split):
    data = train_data if split == 'train' else val_data
    ix = torch.randint(len(data) - block_size, (batch_size,))
    x = torch.stack([torch.from_numpy(data[i:i + block_size].astype(np.int64)) for i in ix])
    y = torch.stack([torch.from_numpy(data[i + 1:i + 1 + block_size].astype(np.int64)) for i in ix])
    return x.to(device), y.to(device)


class PositionalEncoding(nn.Module):
    def __init__(self, d_model, max_len):
        super().__init__()
        position = torch.arange(max_len).unsqueeze(1)
        div_term = torch.exp(torch.arange(0, d_model, 2) * (-math.log(10000.0) / d_model))
        pe = torch.zeros(1, max_len, d_model)
        pe[0, :, 0::2] = torch.sin(position * div_term)
        pe[0, :, 1::2] = torch.cos(position * div_term)
        self.register_buffer('pe', pe)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x):
        return self.dropout(x + self.pe[:, :x.size(1)])


class TransformerModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(256, n_embd)
        self.pos_encoder = PositionalEncoding(n_embd, block_size)
        layer = nn.TransformerEncoderLayer(n_embd, n_head, 4 * n_embd, dropout, batch_first=True)
        self.transformer_encoder = nn.TransformerEncoder(layer, n_layer, enable_nested_tensor=False)
        self.linear = nn.Linear(n_embd, 256)

    def forward(self, src):
        mask = nn.Transformer.generate_square_subsequent_mask(src.size(1), device=src.device)
        src = self.pos_encoder(self.embedding(src) * math.sqrt(n_embd))
        return self.linear(self.transformer_encoder(src, mask=mask, is_causal=True))


model = TransformerModel().to(device)
criterion = nn.CrossEntropyLoss()
optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.95))


def get_lr(it):
    if it < warmup_iters:
        return learning_rate * (it + 1) / warmup_iters
    ratio = (it - warmup_iters) / (max_iters - warmup_iters)
    return min_lr + 0.5 * (1 + math.cos(math.pi * ratio)) * (learning_rate - min_lr)


@torch.no_grad()
def estimate_loss():
    model.eval()
    losses = torch.zeros(3)
    for k in range(3):
        X, Y = get_batch('val')
        losses[k] = criterion(model(X).view(-1, 256), Y.view(-1)).item()
    model.train()
    return losses.mean()


t0 = time.time()
for it in range(max_iters):
    for param_group in optimizer.param_groups:
        param_group['lr'] = get_lr(it)
    X, Y = get_batch('train')
    with ctx:
        logits = model(X)
        loss = criterion(logits.view(-1, 256), Y.view(-1))
    loss.backward()
    if grad_clip != 0.0:
        torch.nn.utils.clip_grad_norm_(model.parameters(), grad_clip)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    if it % log_interval == 0:
        t1 = time.time()
        print(f"iter {it}: loss {loss.item():.4f}, val {estimate_loss():.4f}, time {(t1 - t0) * 1000:.2f}ms")
        t0 = t1

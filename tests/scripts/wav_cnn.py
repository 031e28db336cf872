"""Classify synthetic sounds (sine, square, sawtooth, noise) from the waveform and from its spectrogram."""
import math

import torch
import torch.nn as nn
import torch.nn.functional as F

SAMPLE_RATE = 8000
LENGTH = 1600
CLASSES = ["sine", "square", "sawtooth", "noise"]


def synthesize(batch_size):
    t = torch.arange(LENGTH) / SAMPLE_RATE
    frequency = torch.exp(torch.empty(batch_size, 1).uniform_(math.log(150), math.log(900)))
    phase = torch.rand(batch_size, 1)
    cycles = (frequency * t + phase) % 1.0
    waves = torch.stack([
        torch.sin(2 * math.pi * cycles),
        torch.sign(cycles - 0.5),
        2 * cycles - 1,
        torch.randn(batch_size, LENGTH),
    ])
    label = torch.randint(0, len(CLASSES), (batch_size,))
    wave = waves[label, torch.arange(batch_size)]
    envelope = torch.exp(-4 * t * torch.rand(batch_size, 1) * 3)
    return (0.5 * wave * envelope + 0.02 * torch.randn_like(wave)).unsqueeze(1), label


class M3(nn.Module):
    def __init__(self, n_output, n_channel=16):
        super().__init__()
        self.conv1 = nn.Conv1d(1, n_channel, kernel_size=80, stride=8)
        self.bn1 = nn.BatchNorm1d(n_channel)
        self.pool1 = nn.MaxPool1d(4)
        self.conv2 = nn.Conv1d(n_channel, 2 * n_channel, kernel_size=3)
        self.bn2 = nn.BatchNorm1d(2 * n_channel)
        self.spectral = nn.Linear(129, 2 * n_channel)
        self.fc = nn.Linear(4 * n_channel, n_output)
        self.register_buffer("window", torch.hann_window(256))

    def spectrum(self, x):
        stft = torch.stft(x.squeeze(1), n_fft=256, hop_length=128, window=self.window, return_complex=True)
        return torch.log1p(stft.abs()).mean(-1)

    def forward(self, x):
        h = self.pool1(F.relu(self.bn1(self.conv1(x))))
        h = F.relu(self.bn2(self.conv2(h)))
        h = F.adaptive_avg_pool1d(h, 1).squeeze(-1)
        s = F.relu(self.spectral(self.spectrum(x)))
        return F.log_softmax(self.fc(torch.cat([h, s], dim=1)), dim=1)


model = M3(len(CLASSES))
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3, weight_decay=1e-4)

for i in range(200):
    wave, label = synthesize(24)
    loss = F.nll_loss(model(wave), label)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if i % 20 == 0:
        print("step", i, "loss %.4f" % loss.item())

"""Semi-supervised learning with a mean teacher: the teacher's weights decay towards the student's, in float32."""

import copy

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

DECAY = 0.99


class WaveNet(nn.Module):
    def __init__(self, channels=24, classes=6):
        super().__init__()
        self.conv1 = nn.Conv1d(1, channels, 7, stride=2)
        self.conv2 = nn.Conv1d(channels, channels, 5, stride=2)
        self.head = nn.Linear(channels * 12, classes)

    def forward(self, waves):
        return self.head(F.silu(self.conv2(F.silu(self.conv1(waves)))).flatten(1))


shapes = torch.randn(6, 1, 60)


def batch(count):
    label = torch.randint(6, (count,))
    return (shapes[label] + 1.5 * torch.randn(count, 1, 60)).to(device), label.to(device)


@torch.no_grad()
def follow(teacher, student):
    for slow, fast in zip(teacher.parameters(), student.parameters()):
        slow.mul_(DECAY).add_(fast, alpha=1 - DECAY)


student = WaveNet().to(device)
teacher = copy.deepcopy(student).requires_grad_(False)
optimizer = torch.optim.SGD(student.parameters(), lr=0.02, momentum=0.9)

for step in range(300):
    labelled, label = batch(32)
    unlabelled, _ = batch(64)
    with torch.no_grad():
        opinion = teacher(unlabelled).softmax(-1)
    agreement = F.mse_loss(student(unlabelled).softmax(-1), opinion)
    loss = F.cross_entropy(student(labelled), label) + 10 * agreement
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    follow(teacher, student)
    if step % 20 == 19:
        print(f"step {step + 1} loss {loss.item():.4f} agreement {agreement.item():.4f}")

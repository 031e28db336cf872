from torch import nn


def build(width=64):
    return nn.Sequential(
        nn.Linear(3, width),
        nn.ReLU(),
        nn.Linear(width, width),
        nn.ReLU(),
        nn.Linear(width, 2),
    )

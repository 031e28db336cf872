"""Reads its samples in two worker processes, with augmentation there."""
import random

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset


class Shapes(Dataset):
    """Discs, squares and crosses drawn on demand: each index is its own random image."""

    def __init__(self, length, size=16):
        self.length = length
        self.grid = np.stack(np.meshgrid(np.arange(size), np.arange(size), indexing="ij")).astype(np.float32)

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        rng = np.random.default_rng(index)
        label = index % 3
        di, dj = np.abs(self.grid - rng.uniform(5, 11, size=(2, 1, 1)))
        radius = rng.uniform(2.5, 4.5)
        if label == 0:
            image = di**2 + dj**2 < radius**2
        elif label == 1:
            image = np.maximum(di, dj) < radius
        else:
            image = (np.minimum(di, dj) < 1) & (np.maximum(di, dj) < radius)
        image = image + 0.3 * rng.standard_normal(image.shape)
        if random.random() < 0.5:  # augmentation
            image = image[:, ::-1]
        return torch.tensor(image.copy(), dtype=torch.float32).unsqueeze(0), label


def seed_worker(worker_id):
    worker_seed = torch.initial_seed() % 2**32
    np.random.seed(worker_seed)
    random.seed(worker_seed)


def collate(samples):
    images, labels = zip(*samples)
    return {"image": torch.stack(images), "label": torch.tensor(labels)}


if __name__ == "__main__":
    g = torch.Generator()
    g.manual_seed(0)
    loader = DataLoader(
        Shapes(2400), batch_size=32, shuffle=True, num_workers=2, persistent_workers=True,
        worker_init_fn=seed_worker, generator=g, collate_fn=collate, drop_last=True,
    )
    model = nn.Sequential(
        nn.Conv2d(1, 16, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.AdaptiveMaxPool2d(1),
        nn.Flatten(), nn.Linear(32, 3),
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for epoch in range(3):
        for i, batch in enumerate(loader):
            loss = nn.functional.cross_entropy(model(batch["image"]), batch["label"])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if i % 25 == 0:
                print(f"epoch {epoch} batch {i} loss {loss.item():.4f}")

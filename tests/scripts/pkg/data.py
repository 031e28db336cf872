import torch


def cubes(n=1600, seed=0):
    """Points in a cube; the class is the parity of its octant."""
    generator = torch.Generator().manual_seed(seed)
    points = torch.rand(n, 3, generator=generator) * 2 - 1
    return points, (points > 0).sum(1) % 2

"""Many different kernels: products in every type and alignment, convolutions, attention, and what lies between.

python tests/gpu/workload.py [--device cuda] [--size 1024]
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

HALVES = (torch.bfloat16, torch.float16)
FINISHED, REFUSED = "operations ran", "refused: "


def products(device: str, size: int) -> Iterator[Tensor]:
    for tf32 in (False, True):
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
        types = (torch.float32,) if tf32 else (torch.float32, torch.float64, *HALVES)
        for dtype in types:
            for m, k, n in ((size, size, size), (size, size + 1, size), (size, size, size + 3), (8, size, size)):
                left, right = torch.randn(m, k, device=device).to(dtype), torch.randn(k, n, device=device).to(dtype)
                yield left @ right
                yield right.t() @ left.t()
                yield left @ right[:, 0]
                yield torch.bmm(left.expand(4, m, k), right.expand(4, k, n))
    torch.set_float32_matmul_precision("highest")


def eight_bits(device: str, size: int) -> Iterator[Tensor]:
    """Products of float8 and of integers, on devices that have them."""
    if device != "cuda":
        return
    if torch.cuda.get_device_capability() >= (8, 9):
        one = torch.ones((), device=device)
        for rows in (16, size):
            left = torch.randn(rows, size, device=device).to(torch.float8_e4m3fn)
            for dtype in (torch.float8_e4m3fn, torch.float8_e5m2):
                right = torch.randn(size, size, device=device).to(dtype)
                yield torch._scaled_mm(left, right.t(), one, one, out_dtype=torch.bfloat16)
                yield torch._scaled_mm(left, right.t(), one, one, out_dtype=torch.bfloat16, use_fast_accum=True)
            by_row, by_column = torch.ones(rows, 1, device=device), torch.ones(1, size, device=device)
            right = torch.randn(size, size, device=device).to(torch.float8_e4m3fn)
            yield torch._scaled_mm(left, right.t(), by_row, by_column, out_dtype=torch.bfloat16)
    integers = torch.randint(-128, 127, (size, size), device=device, dtype=torch.int8)
    yield torch._int_mm(integers, integers.t())


def convolutions(device: str, size: int) -> Iterator[Tensor]:
    for dtype in (torch.float32, *HALVES):
        for channels, groups in ((64, 1), (3, 1), (64, 64)):
            for memory in (torch.contiguous_format, torch.channels_last):
                image = torch.randn(4, channels, size // 16, size // 16, device=device).to(dtype, memory_format=memory)
                weight = torch.randn(64, channels // groups, 3, 3, device=device, dtype=dtype, requires_grad=True)
                result = F.conv2d(image.requires_grad_(), weight, padding=1, groups=groups)
                result.sum().backward()
                yield result


def attention(device: str, size: int) -> Iterator[Tensor]:
    for dtype in (torch.float32, *HALVES):
        for depth in (64, 80, 128):
            heads = [torch.randn(2, 4, size // 4, depth, device=device, dtype=dtype, requires_grad=True) for _ in "qkv"]
            for causal in (False, True):
                result = F.scaled_dot_product_attention(*heads, is_causal=causal)
                result.sum().backward()
                yield result


def others(device: str, size: int) -> Iterator[Tensor]:
    for dtype in (torch.float32, *HALVES):
        x = torch.randn(size, size, device=device, dtype=dtype, requires_grad=True)
        for result in (
            x.softmax(-1),
            F.layer_norm(x, (size,)),
            F.gelu(x),
            x.exp(),
            x.cumsum(0),
            x.sort().values,
            x.t().contiguous(),
        ):
            result.sum().backward()
            yield result


def run(device: str, size: int) -> int:
    """How many operations ran; what this GPU or torch refuses is printed, and ends its family alone."""
    count = 0
    for family in (products, eight_bits, convolutions, attention, others):
        try:
            for _ in family(device, size):
                count += 1
        except (RuntimeError, ValueError) as error:
            print(f"{REFUSED}{family.__name__}: {str(error).splitlines()[0]}")
    return count


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--size", type=int, default=1024)
    arguments = parser.parse_args()
    ran = run(arguments.device, arguments.size)
    if arguments.device == "cuda":
        torch.cuda.synchronize()
    print(ran, FINISHED)

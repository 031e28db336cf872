"""Which tuning of the histogram kernel is fastest here, and whether all of them count rightly.

    python tests/gpu/tune_histograms.py [--device cuda] [--megabytes 256]

Every tuning counts tensors of several distributions against torch, then is timed on each; prints a table a dtype of
the bytes read per second over the bytes that a copy of the same tensor moves per second (1 is a copy's speed).
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from stage import Setting, median_seconds
from tabulate import tabulate

from precaudit.histograms.gpu import TritonSums, Tuning
from precaudit.histograms.plain import PlainSums
from precaudit.model import TensorStats

TUNINGS = [
    Tuning(warps, window, headroom, programs)
    for warps, (window, headroom), programs in itertools.product((2, 4, 8), ((32, 4), (64, 12)), (2, 4, 6, 8))
]
SMALL = 1024 * 768


def distributions(numel: int, device: str) -> Iterator[tuple[str, torch.Tensor]]:
    normal = torch.randn(numel, device=device)
    yield "normal", normal
    yield "relu", normal.clamp(min=0)
    yield "squares", normal.square() * 1e-9
    yield "log-uniform", torch.exp2(torch.rand(numel, device=device) * 40 - 30)
    yield "constant", torch.full_like(normal, 0.1)
    yield "zero", torch.zeros_like(normal)
    with_nan = normal.clone()
    with_nan[numel // 2] = float("nan")
    yield "one nan", with_nan


def stats_of(sums: TritonSums | PlainSums) -> TensorStats:
    return sums.layout.stats(sums.numel, [sums.rows.cpu().numpy()])


def check(values: torch.Tensor, tuning: Tuning) -> None:
    """Counts and extremes equal torch's; sums of squares up to the order of summation."""
    ours, theirs = TritonSums(values.dtype, values.device, tuning), PlainSums(values.dtype, values.device)
    for part in (values, values[1:1000]):  # the second is not aligned
        ours.add(part)
        theirs.add(part)
    found, expected = stats_of(ours), stats_of(theirs)
    close = abs(found.sum_squares - expected.sum_squares) <= 1e-10 * expected.sum_squares
    alike = found.exponents == expected.exponents and (found.zeros, found.nonfinite) == (
        expected.zeros,
        expected.nonfinite,
    )
    if not (close and alike and (found.amax, found.amin_nonzero) == (expected.amax, expected.amin_nonzero)):
        raise AssertionError(f"{tuning} of {values.dtype}: {found}, not {expected}")


def table(dtype: torch.dtype, setting: Setting, numel: int, tunings: list[Tuning]) -> str:
    named = {name: values.to(dtype) for name, values in distributions(numel, setting.device)}
    target = torch.empty_like(named["normal"])
    copy = median_seconds(lambda: target.copy_(named["normal"]), setting)
    rows = []
    for tuning in tunings:
        for values in named.values():
            check(values, tuning)
        sums = TritonSums(dtype, target.device, tuning)
        shares = [copy / 2 / median_seconds(adding(sums, values), setting) for values in named.values()]
        small = median_seconds(adding(sums, named["normal"][:SMALL]), setting)
        rows.append([tuning.warps, tuning.window, tuning.programs, *shares, small * 1e6])
    rows.sort(key=lambda row: -row[3])
    speed = 2 * numel * dtype.itemsize / copy / 1e9
    head = ["warps", "window", "programs", *named, f"{SMALL} normal, us with launch"]
    return f"{dtype}: a copy moves {speed:.0f} GB/s\n" + tabulate(rows, headers=head, floatfmt=".3f")


def adding(sums: TritonSums, values: torch.Tensor) -> Callable[[], None]:
    return lambda: sums.add(values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--megabytes", type=float, default=256)
    parser.add_argument("--tunings", type=int, default=len(TUNINGS), help="how many of them, for a trial run")
    arguments = parser.parse_args()
    setting = Setting(arguments.device, False, Path())
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        numel = int(arguments.megabytes * 2**20) // dtype.itemsize
        print(table(dtype, setting, numel, TUNINGS[: arguments.tunings]), flush=True)


if __name__ == "__main__":
    main()

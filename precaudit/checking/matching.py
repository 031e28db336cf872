"""Compares a model's outputs under a plan with float32's: signal, error, top-1 and non-finite values."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch

from precaudit.checking.entries import Pair
from precaudit.checking.inputs import Call
from precaudit.checking.records import OutputMatch
from precaudit.instrument.torch_function import fields_of, floats_in


def named_outputs(value: Any, name: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Floating-point tensors in nested lists, tuples, mappings and dataclasses, by the path to each."""
    if isinstance(value, torch.Tensor):
        if value.is_floating_point():
            yield name, value
        return
    items: Any
    if isinstance(value, (list, tuple)):
        items = zip(getattr(value, "_fields", range(len(value))), value, strict=True)
    else:
        items = (value if isinstance(value, Mapping) else fields_of(value)).items()
    for key, item in items:
        yield from named_outputs(item, f"{name}.{key}".lstrip("."))


def looks_like_scores(output: torch.Tensor, call: Call) -> bool:
    """(N, C) or (N, T, C) with at least two classes, and no floating-point input of that shape (a denoiser's)."""
    same = any(x.shape == output.shape for x in floats_in(call))
    return output.dim() in (2, 3) and output.shape[-1] >= 2 and not same


@torch.no_grad()
def add_batch(match: OutputMatch, pair: Pair, call: Call, tolerance: float) -> OutputMatch:
    """`match` with one more batch.

    Values that are non-finite in float32 (masked scores at -inf) are not compared; another shape counts as entirely
    non-finite.
    """
    got, wanted = pair.got.double().cpu(), pair.wanted.double().cpu()
    if got.shape != wanted.shape:
        got = torch.full_like(wanted, torch.nan)
    expected = wanted.isfinite()
    both = expected & got.isfinite()
    difference = torch.where(both, got - wanted, 0.0)
    kept = torch.where(both, wanted, 0.0)
    match = replace(
        match,
        batches=match.batches + 1,
        values=match.values + int(both.sum()),
        signal=match.signal + float(kept.square().sum()),
        error=match.error + float(difference.square().sum()),
        nonfinite=match.nonfinite + lost(got, wanted),
        reference_nonfinite=match.reference_nonfinite + faulty(wanted),
        entries=match.entries + pair.entries,
        unpaired=match.unpaired + pair.unpaired,
    )
    scores = not pair.listed and looks_like_scores(wanted, call)
    return _with_classes(match, got, wanted, tolerance) if scores else match


def _with_classes(match: OutputMatch, got: torch.Tensor, wanted: torch.Tensor, tolerance: float) -> OutputMatch:
    """Count rows with another top-1 class, and near ties: float32's value for both is equal within the tolerance of the
    row's rms."""
    got, wanted = got.flatten(0, -2), wanted.flatten(0, -2)
    chosen, best = got.argmax(-1, keepdim=True), wanted.argmax(-1, keepdim=True)
    differs = (chosen != best).squeeze(-1)
    margin = (wanted.gather(-1, best) - wanted.gather(-1, chosen)).squeeze(-1)
    scores = torch.where(wanted.isfinite(), wanted, 0.0)
    near = margin <= 2 * tolerance * scores.square().mean(-1).sqrt()
    return replace(
        match,
        rows=match.rows + len(differs),
        agreeing=match.agreeing + int((~differs).sum()),
        near_ties=match.near_ties + int((differs & near).sum()),
    )


def faulty(values: torch.Tensor) -> int:
    """nan and +inf; -inf is how models mask scores."""
    return int((values.isnan() | (values == math.inf)).sum())


def lost(output: torch.Tensor, reference: torch.Tensor) -> int:
    """How many values are finite in float32 but not under the plan; all of them where the shape differs, except for the
    number of entries of a list."""
    if output.shape != reference.shape:
        same = output.shape[1:] == reference.shape[1:] and output.dim() == reference.dim()
        return max(0, faulty(output) - faulty(reference)) if same else int(reference.isfinite().sum())
    return int((reference.isfinite() & ~output.isfinite()).sum())

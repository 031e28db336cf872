"""Advice for kernels that don't use Tensor Cores, or use them by an older path."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from precaudit.finding import finding
from precaudit.hardware.generations import RANK
from precaudit.model import Finding
from precaudit.tensorcores.shapes.alignment import AFFORDABLE, Padding, advice, growth, misaligned, multiple, sizes
from precaudit.words import capitalized

if TYPE_CHECKING:
    from precaudit.tensorcores.traces.analysis import Group
    from precaudit.tensorcores.traces.cards import Card

FULL = ("fp32", "fp64")
GEMV = "gemv"
COLLECTIVE = "collective"
WORTH = 0.01
MOST = 0.5
SLOW = 0.5  # of the peak
SMALL = 5e-6  # seconds at the peak: for less work starting takes longer
_ATTENTION = "Try torch.nn.attention.sdpa_kernel(SDPBackend.CUDNN_ATTENTION), or FlashAttention 3 and later"
_PRODUCTS = "Try a newer cuBLAS (PyTorch built for a newer CUDA) or larger products: small ones stay on old paths"
_MAPS = "kernels that multiply no matrices (copies, element-wise maps, reductions) take most of the GPU's time"
_FUSE = "Fuse them (torch.compile, fused optimizers and norms): Tensor Cores do nothing for them"
_WAITS = "communication between GPUs, its waiting included, takes most of the GPU's time"
_OVERLAP = (
    "See whether a rank waits for another, and overlap communication with computing: Tensor Cores do nothing for it"
)
# library: where its kernels for newer GPUs are found; cuBLAS ships kernels that bear CUTLASS's name
NEWER = {
    "cublas": _PRODUCTS,
    "cutlass": _PRODUCTS,
    "cudnn": "Try a newer cuDNN, channels_last memory format and torch.backends.cudnn.benchmark = True",
    "flash-attention": _ATTENTION,
    "xformers": _ATTENTION,
    "triton": "Try a newer Triton, or larger tiles: small ones stay on old paths",
}


def advise(groups: Sequence[Group], total: float) -> tuple[Finding, ...]:
    """One finding per cause, layers with the same cause together, by the GPU time at stake."""
    found = [*_products(groups, total), *_others(groups, total)]
    return tuple(sorted(found, key=lambda finding: -finding.evidence["share"]))


def _products(groups: Sequence[Group], total: float) -> Iterable[Finding]:
    causes: dict[str, tuple[Callable[[list[Group]], Finding], list[Group]]] = {}
    for group in groups:
        old = group.found.matmul and group.found.tensor_core in ("legacy", "none")
        if group.card.tensor_cores and (old or _slowed(group)):
            key, explain = _cause(group, group.card)
            causes.setdefault(key, (explain, []))[1].append(group)
    for explain, mine in causes.values():
        if (share := _seconds(mine) / (total or 1.0)) >= WORTH:
            yield _shared(explain(mine), share)


def _others(groups: Sequence[Group], total: float) -> Iterable[Finding]:
    """What no Tensor Core can shorten, where it is most of the time."""
    mine = [g for g in groups if g.card.tensor_cores and not g.found.matmul and g.found.tensor_core == "none"]
    apart = [g for g in mine if g.found.rule == COLLECTIVE]
    local = [g for g in mine if g.found.rule != COLLECTIVE]
    for same, what, suggestion in ((local, _MAPS, _FUSE), (apart, _WAITS, _OVERLAP)):
        if (share := _seconds(same) / (total or 1.0)) > MOST:
            yield _shared(_finding("PA405", same, what, suggestion), share)


def _shared(finding: Finding, share: float) -> Finding:
    return replace(finding, evidence={**finding.evidence, "share": share})


def _seconds(groups: Iterable[Group]) -> float:
    return sum(group.seconds for group in groups)


def _slowed(group: Group) -> bool:
    """Whether a large product is far from its peak, and has sizes that are cheap to pad, on a GPU that has one path:
    this takes unaligned sizes too, at a lower rate, where newer GPUs change to a legacy one."""
    one_path = RANK.get(group.card.generation or "", RANK["hopper"]) < RANK["hopper"]
    if not one_path or not group.found.matmul or group.found.tensor_core != "native" or not group.peak_share:
        return False
    slow = group.peak_share < SLOW and group.seconds * group.peak_share > SMALL * group.calls
    return slow and bool(padding := _padding(group)) and growth(padding) <= AFFORDABLE


def _stated(group: Group) -> str | None:
    """The format of the operands: what the op calls float32 is TF32 on Tensor Cores."""
    if group.found.used and group.found.operands == "tf32":
        return "tf32"
    return (group.example.format if group.example else None) or group.found.operands


def _padding(group: Group) -> list[Padding]:
    known, stated = group.example, _stated(group)
    return misaligned(known.dims, stated) if known and known.reduces and stated and stated not in FULL else []


def _cause(group: Group, card: Card) -> tuple[str, Callable[[list[Group]], Finding]]:
    stated = _stated(group)
    if padding := _padding(group):
        return f"align {padding}", lambda mine: _pad(mine, padding, str(stated))
    if group.found.tensor_core == "legacy":
        return f"legacy {group.found.library} {group.found.rule} {card.generation}", lambda mine: _legacy(mine, card)
    if stated in FULL and group.found.rule != GEMV:
        return f"{stated} without {card.generation}", lambda mine: _full_precision(mine, card, stated)
    return f"vector {group.found.rule}", _vector


def _finding(rule: str, groups: list[Group], message: str, suggestion: str) -> Finding:
    layers = list(dict.fromkeys(group.owner for group in groups if group.in_module))
    return finding(
        rule,
        "note",
        message,
        suggestion,
        layers[0] if len(layers) == 1 else None,
        groups[0].op,
        seconds=_seconds(groups),
        calls=sum(group.calls for group in groups),
        layers=layers,
        kernels=list(dict.fromkeys(group.name for group in groups))[:8],
    )


def _pad(groups: list[Group], padding: list[Padding], stated: str) -> Finding:
    wrong = "is not a multiple" if len(padding) == 1 else "are no multiples"
    kernels = f"{groups[0].found.tensor_core} kernels"
    if groups[0].found.tensor_core == "native":
        kernels += f" at {groups[0].peak_share:.0%} of their peak"
    return _finding(
        "PA401",
        groups,
        f"{groups[0].op}: {sizes(padding)} {wrong} of {multiple(stated)} ({stated}): {kernels}",
        capitalized(advice(padding)),
    )


def _legacy(groups: list[Group], card: Card) -> Finding:
    found = groups[0].found
    older, own = str(found.generation).capitalize(), str(card.generation).capitalize()
    suggestion = NEWER.get(found.library or "", f"Look for a release of the library with kernels for {own} GPUs")
    what = f"{found.library or 'a library'} runs {older} instructions (rule {found.rule}) on a GPU of generation {own}"
    return _finding("PA402", groups, f"{what}: Tensor Cores, but not at their full rate", suggestion)


def _full_precision(groups: list[Group], card: Card, stated: str) -> Finding:
    generation = card.generation
    if stated == "fp64":
        suggestion = "Float64 needs a reason; float32 with TF32, or bfloat16 autocast, is many times faster"
    elif generation == "volta" or generation == "turing":
        suggestion = "This GPU's Tensor Cores take float16 only: use float16 autocast with a GradScaler"
    elif card.capability is None:
        suggestion = "Which GPU this was is not known: name it with --target to learn what it could do"
    else:
        suggestion = "Allow TF32 (torch.set_float32_matmul_precision('high')) or use bfloat16 autocast"
    share = "float64" if stated == "fp64" else "float32"
    return _finding(
        "PA403", groups, f"products in {share} run without Tensor Cores ({groups[0].found.rule})", suggestion
    )


def _vector(groups: list[Group]) -> Finding:
    first = groups[0]
    alone = first.example is not None and not first.example.reduces
    if first.found.rule == GEMV:
        what = "matrix-vector products"
        suggestion = "Batch more rows per product: one with one row or column is bound by memory, not by arithmetic"
    elif alone and "conv" in (first.op or ""):
        what = "depthwise convolutions"
        suggestion = "One channel a group is too little work for Tensor Cores; several channels a group are enough"
    else:
        what = f"products by kernels of rule {first.found.rule}"
        suggestion = "Look for kernels that compute them on Tensor Cores, in this library or another"
    stated = first.operands or "a format that the trace doesn't tell"
    return _finding("PA404", groups, f"{what} in {stated} run without Tensor Cores", suggestion)

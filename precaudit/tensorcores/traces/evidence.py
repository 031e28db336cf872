"""Evidence on a kernel's class besides its name: the compiled code, the op that launched it, and the rate that it
reached."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from precaudit.hardware.generations import RANK, Capability, generation_of
from precaudit.tensorcores.traces.kernel_names import operand_format
from precaudit.tensorcores.traces.kernel_rules import NOT_NVIDIA, Classification, classify, relation
from precaudit.tensorcores.traces.products import OPERAND_TYPES, TEMPLATE, Arguments

_PTX: tuple[tuple[str, str], ...] = (
    ("tcgen05.mma", "blackwell"),
    ("wgmma.mma_async", "hopper"),
    ("mma.sync", "ampere"),  # wmma.mma.sync too
)


def classify_ptx(name: str, ptx: str, capability: Capability | None) -> Classification:
    """The class of a Triton kernel, proven from the PTX it was compiled to. What has no product's instructions may be a
    product all the same, but only its name can tell."""
    base = Classification("none", "ptx", None, operand_format(ptx), "triton", classify(name, capability).matmul)
    for instruction, generation in _PTX:
        if instruction in ptx:
            gpu = generation_of(capability)
            operands = _ptx_operands(ptx, instruction)
            return replace(
                base,
                tensor_core=relation(generation, gpu, operands),
                generation=generation,
                operands=operands,
                matmul=True,
                used=True,
            )
    return base


def agreed(versions: Sequence[Classification]) -> Classification | None:
    """The common classification of all versions compiled under one name; None where their classes differ, or there is
    none."""
    if len({found.tensor_core for found in versions}) != 1:
        return None
    generations, operands = {v.generation for v in versions}, {v.operands for v in versions}
    return replace(
        versions[0],
        generation=versions[0].generation if len(generations) == 1 else None,
        operands=versions[0].operands if len(operands) == 1 else None,
    )


def _ptx_operands(ptx: str, instruction: str) -> str | None:
    line = next(line for line in ptx.splitlines() if instruction in line)
    return operand_format(line.replace(".f32.", ".", 1))


_PRODUCT = re.compile(rf"{TEMPLATE}fused_(?!\w*convolution)\w*(?:mm|flex_attention)")
_HALVES = ("bf16", "fp16")


def inductor_class(
    found: Classification, op: str, arguments: Arguments | None, capability: Capability | None
) -> Classification:
    """The class of a kernel of Inductor's by the op that launches it: older versions call every kernel `triton_` and
    only the op by what it does, and what a template multiplies follows from the types of the op's arguments."""
    if found.rule != "triton" or not op.startswith("triton_"):
        return found
    if not _PRODUCT.match(op) or arguments is None:
        return classify(op, capability)
    operands = _multiplied(op, arguments)
    if operands is None:
        return found
    if operands == "fp32":
        return replace(found, tensor_core="none", rule="triton-op", operands=operands)
    gpu = generation_of(capability)
    path = _triton_path(arguments, gpu)
    label = relation(path, gpu, operands)
    return replace(
        found, tensor_core=label, rule="triton-op", generation=path, operands=operands, matmul=True, used=True
    )


def _multiplied(op: str, arguments: Arguments) -> str | None:
    """The format that a template multiplies in: that of all its arguments, in attention of query, key and value. None
    where they differ, or a cast may be fused into it."""
    types = [OPERAND_TYPES[t] for t in arguments.types if OPERAND_TYPES.get(t) in ("fp32", *_HALVES)]
    kinds = set(types[:3] if "flex_attention" in op else types)
    if len(kinds) != 1 or "_to_copy" in op:
        return None
    (kind,) = kinds
    if kind in _HALVES:
        return kind
    rounded = re.search(r"ALLOW_TF32=(True|False)|FLOAT32_PRECISION='?(tf32|ieee)", arguments.constants)
    return None if rounded is None else "tf32" if rounded[1] == "True" or rounded[2] == "tf32" else "fp32"


def _triton_path(arguments: Arguments, gpu: str | None) -> str | None:
    """Triton takes the instructions of Hopper and Blackwell for tiles of 64 rows and more, by groups of four warps,
    else those of Ampere: so Triton 3.6 compiled all of 34 products in bf16, fp16 and tf32."""
    if gpu is not None and RANK[gpu] == RANK["ampere"]:
        return gpu
    tile = dict(re.findall(r"(?:^|,)BLOCK_([MN])=(\d+)(?=,|$)", arguments.constants))
    if gpu not in ("hopper", "blackwell") or len(tile) != 2 or not 0 < arguments.warps <= 8:
        return None
    whole = int(tile["M"]) % 64 == 0 and int(tile["N"]) % 8 == 0 and arguments.warps % 4 == 0
    return gpu if whole else "ampere"


def second_opinion(
    found: Classification, tflops: float | None, vector_peak: float | None, tensor_peak: float | None
) -> Classification:
    """The class after asking the achieved rate: above what vector units can do, Tensor Cores did it.

    Whether by the native path follows only from a rate near the peak, taken here as three quarters of it.
    """
    if tflops is None or vector_peak is None or found.rule in (NOT_NVIDIA.rule, "transformed-conv"):
        return found
    if found.tensor_core in ("native", "legacy") or tflops <= 1.1 * vector_peak:
        return found
    proven_native = tensor_peak is not None and tflops > 0.75 * tensor_peak
    return replace(
        found, tensor_core="native" if proven_native else "unknown", rule="throughput", matmul=True, used=True
    )

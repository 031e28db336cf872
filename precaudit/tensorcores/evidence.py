"""Evidence on a kernel's class besides its name: the compiled code, and the rate that it reached."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from precaudit.tensorcores.kernel_names import Capability, generation_of, operand_format
from precaudit.tensorcores.rules import NOT_NVIDIA, Classification, classify, relation

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
    return replace(found, tensor_core="native" if proven_native else "unknown", rule="throughput", matmul=True)

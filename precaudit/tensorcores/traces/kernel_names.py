"""Facts in a kernel's name: the GPU generation it was written for, its operands' format, its library."""

from __future__ import annotations

import re
from types import MappingProxyType

from precaudit.hardware.generations import generation_of

# ---------------------------------------------------------------- mangled names

_MANGLED = re.compile(r"L[a-z]n?\d+E|[ST][0-9A-Z]*_|(\d+)|.", re.DOTALL)


def readable(name: str) -> str:
    """A mangled name with its identifiers apart, as `at::native::reduce_kernel<...`; any other name as it is.

    Arguments of templates stay encoded: only words are wanted, and a demangler's output varies anyway.
    """
    if not name.startswith("_Z"):
        return name
    parts, at = list[str](), 2
    while match := _MANGLED.match(name, at):
        at = match.end()
        word = name[at : at + int(match.group(1))] if match.group(1) and len(match.group(1)) < 4 else ""
        if word.isidentifier():
            parts.append(f"::{word}")
            at += len(word)
        else:
            opens = match.group() == "I" and parts and parts[-1].startswith("::")
            parts.append("<" if opens else match.group())
    return re.sub(r"^N?K?::", "", "".join(parts))


# ---------------------------------------------------------------- generation

# Not 72, Xavier: what is named for it multiplies int8, as Volta does not.
_SM_TOKEN = re.compile(r"(?:cutlass_|(?<![a-zA-Z])(?:sm|SM|arch)_?|Sm)(7[05]|8[0679]|90|1[0-2]\d)(?!\d)")
_NAMED = re.compile(r"(?i:(?<![a-z])(volta|turing|ampere|hopper|blackwell)|(?<![a-z])(ada)(?![a-z]))(?![a-z])")
_SHAPE = re.compile(r"tensor(\d+x\d+x\d+)|[hsicdz](884|1684|1688|16816|16832|16864|8816|8832|161616)")
_WARPGROUP_SHAPE = re.compile(r"(?<![a-zA-Z0-9])[a-z]{1,2}64x\d+x\d+(?:gemm|[fdw](?:prop|grad))")


def stated_generation(name: str) -> str | None:
    """The generation in a name that spells it (`sm90`, `cutlass_80`, `ampere`). CUTLASS spells several: a product for
    a newer GPU reuses parts of older ones, and `enable_sm90_or_later` stands around some."""
    tokens = _SM_TOKEN.findall(name)
    if tokens:
        return generation_of(divmod(max(map(int, tokens)), 10))
    word = _NAMED.search(name)
    return (word.group(1) or word.group(2)).lower() if word else None


def shape_generation(name: str, operands: str | None) -> str | None:
    """The oldest generation that has the instruction shape in the name, e.g. `s16816` or `tensor16x8x16`."""
    if _WARPGROUP_SHAPE.search(name):
        return "hopper"
    match = _SHAPE.search(name)
    shape = (match.group(1) or match.group(2)).replace("x", "") if match else ""
    if shape == "884":
        return "ampere" if operands == "fp64" else "volta"
    if shape in ("1688", "8816", "8832"):
        return "ampere" if operands in ("tf32", "bf16") else "turing"
    return "ampere" if match or "m16n8k" in name else None


# ---------------------------------------------------------------- operands and library

_FORMATS: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("tf32", re.compile(r"tf32|TF32|FastF32")),
    ("fp4", re.compile(r"(?i)e2m1|ue[48]m[03]xf4|nvfp?4|mxfp?4|(?<![a-z])(?<!fp8_)fp4")),
    ("fp8", re.compile(r"(?i)e4m3|e5m2|ue8m0xf8|fp8|float8|(?<![a-z0-9])f8(?![a-z0-9])")),
    ("bf16", re.compile(r"(?i)bf16|bfloat16")),
    ("fp64", re.compile(r"[dz](?:884|1684|1688|16816)(?!\d)|[dz]gemm|f64|double|dmma")),
    ("int8", re.compile(r"i(?:8816|16832|16864|161616)|imma|int8|i8i8|s8s8|_[su]8_")),
    ("fp16", re.compile(r"(?i)fp16|(?<![a-z0-9])f16|f16f16|half|[hs]884|h1688|h161616|hgemm|hcudnn")),
    ("fp32", re.compile(r"(?i)f32|fp32|float|sgemm|scudnn|gcgemm|cgemm")),
)
_NVJET = re.compile(r"^nvjet_(?:sm\d+_)?([a-z])[a-z]{2,4}_")
_NVJET_INPUT = MappingProxyType(
    {"t": "bf16", "h": "fp16", "s": "tf32", "q": "fp8", "o": "fp4", "b": "int8", "d": "fp64"}
)
_LIBRARIES: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("tensorrt-llm", re.compile(r"^bmm_(?:Mx|Nv)?[EBF]|fmhaSm1|fmha_v2|tensorrt_llm|moe::dev")),
    ("flash-attention", re.compile(r"flash_(?:fwd|bwd)|flash::|FlashAtt")),
    (
        "cudnn",
        re.compile(
            r"cudnn|dgrad_engine|wgrad_alg|convolve_sgemm|nchwToNhwc|nhwcToNchw|fft2d_|xmma_(?:fprop|dgrad|wgrad)"
        ),
    ),
    ("marlin", re.compile(r"[mM]arlin")),
    ("deep-gemm", re.compile(r"deep_gemm::")),
    ("transformer-engine", re.compile(r"transformer_engine::|(?<!\w)te::")),
    ("xformers", re.compile(r"fmha_cutlass")),
    (
        "cublas",
        re.compile(r"^nvjet_|cublas|xmma_gemm|splitKreduce|gemv|gemmSN|gemmk1|(?<!:)(?:volta|turing|ampere)_\w*gemm"),
    ),
    ("cutlass", re.compile(r"cutlass")),
    ("triton", re.compile(r"^triton_")),
    ("nccl", re.compile(r"nccl")),
    ("magma", re.compile(r"magma")),
    ("pytorch", re.compile(r"^(?:void )?(?:at|c10)::|multi_tensor_apply")),
)


def operand_format(name: str) -> str | None:
    """The operands' format as the name states it: fp32, tf32, bf16, fp16, fp8, fp4, int8 or fp64."""
    jet = _NVJET.match(name)
    if jet:
        return _NVJET_INPUT.get(jet.group(1))
    return next((label for label, pattern in _FORMATS if pattern.search(name)), None)


def library_of(name: str) -> str | None:
    """The library that the kernel belongs to, where the name tells."""
    return next((label for label, pattern in _LIBRARIES if pattern.search(name)), None)

"""The peaks of GPUs: dense TFLOP/s and memory bandwidth in GB/s, with the source of each figure.

Dense figures only: vendors also print those with structured sparsity, which are twice as high. Figures named in
`from_memory` were not checked against a data sheet; output that uses them says so.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from types import MappingProxyType

from precaudit.errors import PrecauditError
from precaudit.formats import DEFAULT_FORMATS
from precaudit.model import Environment


@dataclass(frozen=True)
class Gpu:
    """One GPU: `peaks` of its matrix units by format (and `int8`), `vector` what its float32 units do."""

    key: str
    name: str
    pattern: str
    capability: tuple[int, int]
    peaks: Mapping[str, float]
    vector: float
    bandwidth: float
    source: str
    from_memory: frozenset[str] = field(default_factory=frozenset)
    nvidia: bool = True

    @property
    def formats(self) -> tuple[str, ...]:
        """The formats whose products run on the matrix units, narrowest last."""
        return tuple(name for name in ("tf32", "bfloat16", "float16", "float8_e4m3", "float8_e5m2") if self.peak(name))

    @property
    def default_formats(self) -> tuple[str, ...]:
        """The formats of a plan if none are requested."""
        return tuple(name for name in DEFAULT_FORMATS if name in self.formats)

    def peak(self, format_name: str) -> float | None:
        """TFLOP/s of products with operands in this format on the matrix units; None where they don't take it."""
        return self.peaks.get("float8_e4m3" if format_name == "float8_e5m2" else format_name)

    def rate(self, format_name: str) -> float:
        """TFLOP/s of products in this format by the fastest unit that takes it."""
        return self.peak(format_name) or self.vector

    def caveat(self, unused: Collection[str] = ()) -> str | None:
        """A sentence for output that uses these figures, all but the `unused`, when some of them are from memory."""
        doubtful = self.from_memory.difference(unused)
        if not doubtful:
            return None
        return f"figures of {self.name} not checked against a data sheet: {', '.join(sorted(doubtful))}"


_MATRIX = ("tf32", "bfloat16", "float16", "float8_e4m3", "int8")
_DATA_SHEET = "NVIDIA data sheet, dense"
_WHITE_PAPER = "NVIDIA architecture white paper, dense, float32 accumulation"
_AMD_DATA_SHEET = "AMD data sheet, dense"
_AMPERE = "tf32 bfloat16 float16 int8 float32 bandwidth"
_HOPPER = f"{_AMPERE} float8_e4m3"


def _gpu(
    name: str,
    pattern: str,
    capability: tuple[int, int],
    figures: tuple[float | None, ...],
    source: str,
    memory: str = "",
) -> Gpu:
    """`figures`: tf32, bfloat16, float16, float8, int8, float32 on vector units, bandwidth."""
    *matrix, vector, bandwidth = figures
    peaks = {label: value for label, value in zip(_MATRIX, matrix, strict=True) if value}
    return Gpu(
        key=re.sub(r"[^a-z0-9]+", "-", name.lower()),
        name=name,
        pattern=pattern,
        capability=capability,
        peaks=MappingProxyType(peaks),
        vector=vector or 0.0,
        bandwidth=bandwidth or 0.0,
        source=source,
        from_memory=frozenset(memory.split()),
        nvidia=not name.startswith("MI"),
    )


# fmt: off
_TABLE = (
    _gpu("V100", r"(?<!bi-)v100(?!.*pcie)", (7, 0), (None, None, 125, None, None, 15.7, 900), _DATA_SHEET, "float32"),
    _gpu("V100 PCIe", r"(?<!bi-)v100[ -]pcie", (7, 0), (None, None, 112, None, None, 14, 900), _DATA_SHEET,
         "float16 float32 bandwidth"),
    _gpu("T4", r"\bt4\b", (7, 5), (None, None, 65, None, 130, 8.1, 320), _DATA_SHEET, "bandwidth float32"),
    _gpu("A100 40GB", r"\ba100.*40gb|a100-pg509", (8, 0), (156, 312, 312, None, 624, 19.5, 1555),
         _DATA_SHEET, "bandwidth"),
    _gpu("A100 PCIe", r"\ba100.*80gb.*pcie", (8, 0), (156, 312, 312, None, 624, 19.5, 1935), _DATA_SHEET, "bandwidth"),
    _gpu("A100", r"\ba100\b", (8, 0), (156, 312, 312, None, 624, 19.5, 2039), _DATA_SHEET),
    _gpu("A10", r"\ba10\b", (8, 6), (62.5, 125, 125, None, 250, 31.2, 600), _DATA_SHEET, "tf32 int8 bandwidth float32"),
    _gpu("A10G", r"\ba10g\b", (8, 6), (35, 70, 70, None, 140, 31.5, 600), _DATA_SHEET, _AMPERE),
    _gpu("A30", r"\ba30\b", (8, 0), (82, 165, 165, None, 330, 10.3, 933), _DATA_SHEET, _AMPERE),
    _gpu("A40", r"\ba40\b", (8, 6), (74.8, 149.7, 149.7, None, 299.3, 37.4, 696), _DATA_SHEET),
    _gpu("RTX A6000", r"\ba6000\b", (8, 6), (77.4, 154.8, 154.8, None, 309.7, 38.7, 768), _DATA_SHEET, "tf32"),
    _gpu("A800", r"\ba800\b(?!.*40gb)", (8, 0), (156, 312, 312, None, 624, 19.5, 2039), _DATA_SHEET, _AMPERE),
    _gpu("L4", r"\bl4\b", (8, 9), (60, 121, 121, 242, 242, 30.3, 300),
         _DATA_SHEET, "tf32 bfloat16 float16 float8_e4m3 int8"),
    _gpu("L40", r"\bl40\b", (8, 9), (90.5, 181, 181, 362, 362, 90.5, 864), _DATA_SHEET),
    _gpu("L40S", r"\bl40s\b", (8, 9), (183, 362, 362, 733, 733, 91.6, 864), _DATA_SHEET, "tf32 int8"),
    _gpu("RTX 6000 Ada", r"6000 ada", (8, 9), (182, 364, 364, 728, 728, 91.1, 960),
         _DATA_SHEET, "tf32 bfloat16 float16 float8_e4m3 int8"),
    _gpu("Jetson AGX Orin", r"agx orin", (8, 7), (21.2, 42.5, 42.5, None, 85, 5.3, 204.8), _DATA_SHEET, _AMPERE),
    _gpu("RTX 2080 Ti", r"2080 ?ti", (7, 5), (None, None, 53.8, None, 215, 13.4, 616),
         _WHITE_PAPER, "float16 int8 float32 bandwidth"),
    _gpu("RTX 3080", r"3080(?!.*(ti|laptop))", (8, 6), (29.8, 59.5, 59.5, None, 238, 29.8, 760),
         _WHITE_PAPER, _AMPERE),
    _gpu("RTX 3090", r"3090(?!.*(ti|laptop))", (8, 6), (35.6, 71, 71, None, 284, 35.6, 936),
         _WHITE_PAPER, "tf32 int8 bandwidth"),
    _gpu("RTX 4090", r"4090(?!.*(\bd\b|laptop))", (8, 9), (82.6, 165, 165, 330, 661, 82.6, 1008), _WHITE_PAPER),
    _gpu("RTX 4080", r"4080(?!.*(super|laptop))", (8, 9), (48.7, 97.5, 97.5, 195, 390, 48.7, 717),
         _WHITE_PAPER, _HOPPER),
    _gpu("RTX 5080", r"5080(?!.*laptop)", (12, 0), (56.3, 112.6, 112.6, 225, 450, 56.3, 960), _WHITE_PAPER, _HOPPER),
    _gpu("RTX 5090", r"5090(?!.*(\bd\b|laptop))", (12, 0), (105, 210, 210, 419, 838, 104.8, 1792), _WHITE_PAPER,
         "tf32 bfloat16 float16 int8 float32"),
    _gpu("RTX PRO 6000", r"pro 6000(?!.*(max-q|server))", (12, 0), (251.9, 503.8, 503.8, 1007.6, 1007.6, 125, 1792),
         _WHITE_PAPER, "tf32 bfloat16 float16 float8_e4m3 int8"),
    _gpu("H100 PCIe", r"\bh100.*pcie", (9, 0), (378, 756, 756, 1513, 1513, 51, 2000), _DATA_SHEET, "tf32"),
    _gpu("H100 NVL", r"\bh100.*nvl", (9, 0), (417.5, 835.5, 835.5, 1671, 1671, 60, 3900), _DATA_SHEET, _HOPPER),
    _gpu("H100", r"\bh100(?!.*nvl)", (9, 0), (494.5, 989.5, 989.5, 1979, 1979, 67, 3350), _DATA_SHEET),
    _gpu("H800", r"\bh800(?!.*(nvl|pcie))", (9, 0), (494.5, 989.5, 989.5, 1979, 1979, 67, 3350), _DATA_SHEET, _HOPPER),
    _gpu("H20", r"\bh20\b", (9, 0), (74, 148, 148, 296, 296, 44, 4000), _DATA_SHEET, _HOPPER),
    _gpu("GH200", r"\bgh200", (9, 0), (494.5, 989.5, 989.5, 1979, 1979, 67, 4000), _DATA_SHEET, _HOPPER),
    _gpu("H200", r"\bh200(?!.*nvl)", (9, 0), (494.5, 989.5, 989.5, 1979, 1979, 67, 4800), _DATA_SHEET),
    _gpu("H200 NVL", r"\bh200.*nvl", (9, 0), (417.5, 835.5, 835.5, 1671, 1671, 60, 4800), _DATA_SHEET, _HOPPER),
    _gpu("B200", r"\bb200", (10, 0), (1125, 2250, 2250, 4500, 4500, 75, 8000), _DATA_SHEET, "tf32 float32 bandwidth"),
    _gpu("GB200", r"\bgb200", (10, 0), (1250, 2500, 2500, 5000, 5000, 80, 8000), _DATA_SHEET, _HOPPER),
    _gpu("B300", r"\bb300", (10, 3), (1125, 2250, 2250, 4500, 125, 75, 8000), _DATA_SHEET, _HOPPER),
    _gpu("GB300", r"\bgb300", (10, 3), (1250, 2500, 2500, 5000, 165, 80, 8000), _DATA_SHEET, _HOPPER),
    _gpu("MI300X", r"mi300x", (9, 4), (654, 1307, 1307, 2615, 2615, 163.4, 5300), _AMD_DATA_SHEET, "float32"),
    _gpu("MI325X", r"mi325x", (9, 4), (654, 1307, 1307, 2615, 2615, 163.4, 6000), _AMD_DATA_SHEET, _HOPPER),
    _gpu("MI210", r"mi210", (9, 0), (None, 181, 181, None, 181, 22.6, 1638), _AMD_DATA_SHEET,
         "bfloat16 float16 int8 float32 bandwidth"),
    _gpu("MI250X", r"mi250x", (9, 0), (None, 191.5, 191.5, None, 191.5, 23.9, 1638), f"{_AMD_DATA_SHEET}, each die",
         "bfloat16 float16 int8 float32 bandwidth"),
)
# fmt: on

GPUS: Mapping[str, Gpu] = MappingProxyType({gpu.key: gpu for gpu in _TABLE})


def find_gpu(name: str) -> Gpu | None:
    """The GPU that a device name (`NVIDIA H100 80GB HBM3`) or a target (`h100`) means; None when it is not listed."""
    wanted = re.sub(r"[_\s]+", " ", name.lower()).strip()
    if re.search(r"\bmig\b", wanted):
        return None  # a slice of a card, with a share of its peaks
    exact = GPUS.get(wanted.replace(" ", "-"))
    if exact is not None:
        return exact
    spaced = re.sub(r"(?<=[a-z])\s*-\s*(?=\d)", "", wanted)  # `h-100` and the like
    return next((gpu for gpu in _TABLE if re.search(gpu.pattern, spaced)), None)


def gpu_for(where: Environment) -> Gpu:
    """What plans are made for on a machine, by its environment: its GPU, or where that isn't listed one of
    its generation, which takes the same formats; an H100 where it has none of NVIDIA's or AMD's."""
    listed = find_gpu(where.device)
    if listed is not None or not where.capability:
        return listed or get_gpu("h100")
    capability = tuple(map(int, where.capability.split(".")))
    if not where.cuda:  # torch has AMD's GPUs as CUDA devices, without a version of CUDA
        alike = (gpu for gpu in _TABLE if not gpu.nvidia and gpu.capability == capability)
        return next(alike, get_gpu("mi210"))  # whose formats every other one has
    older = [gpu for gpu in _TABLE if gpu.nvidia and gpu.capability <= capability]
    return max(older, key=lambda gpu: gpu.capability, default=get_gpu("v100"))


def get_gpu(name: str) -> Gpu:
    """The GPU called `name`; `PrecauditError` with the list of known ones, of which one may be meant."""
    found = find_gpu(name)
    if found is None:
        close = ", ".join(get_close_matches(name.lower(), GPUS, cutoff=0.5))
        meant = f" (the closest by name: {close})" if close else ""
        raise PrecauditError(f"unknown GPU {name!r}{meant}; known GPUs: {', '.join(GPUS)}")
    return found

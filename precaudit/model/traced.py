"""Records of modules, operations, and findings of a run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from precaudit.model.ranges import TensorRecord

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = get_args(Severity)
"""The worst first."""
PACKAGES = re.compile(r"[/\\](?:site|dist)-packages[/\\]")
"""Where in the path of an installed library's file its name begins."""


@dataclass(frozen=True)
class Location:
    path: str
    line: int

    def __str__(self) -> str:
        return f"{self.path}:{self.line}"


@dataclass(frozen=True)
class Layer:
    """A module that computes: a leaf, or one whose own forward calls operations.

    `fqn` is the name in `model.named_modules()`; scripts that train several models get the model's
    variable name in front (`generator.net.0`). `trained` is false for models without parameters
    (losses); `absorbed_update` maps a half format to the share of update energy that weights stored in it
    would absorb.
    """

    fqn: str
    type: str
    parameters: int
    calls: int
    tensors: tuple[TensorRecord, ...]
    model: str = ""
    tied_to: str | None = None
    trained: bool = True
    leaf: bool = True
    absorbed_update: Mapping[str, float] = field(default_factory=dict)

    def tensor(self, role: str, name: str | None = None) -> TensorRecord | None:
        return next((t for t in self.tensors if t.role == role and name in (None, t.name)), None)


@dataclass(frozen=True)
class Op:
    """An operation, by the name that torch gives it (`linear`, `softmax`), inside the module `fqn` that called it.

    - `category`: CUDA autocast's: `lower`, `fp32`, `promote` or `other`; `autocast`: the dtype of the script's own
      autocast region around it, null outside of one.
    - `local_error`: by format, the relative rms error of this operation when it alone runs in the format.
    - `flops`: of one forward call, on average, null unless it is a product; `shapes`: the operands' where most of the
      work is done.
    - `half`: whether autocast would store its result in half precision, in any call; `half_amax`: the largest such
      result.
    - `constants`: the smallest and largest magnitude of its scalar arguments; `follows_dtype`: one of these, or
      a value that it is given, is the largest number of a dtype that is half under autocast, and so differs between
      formats.
    - `integer_amax`: the largest magnitude of integer-valued inputs to a product.
    - `in_place`: whether a call writes such a result over a tensor, which keeps the format that it is stored in.
    - `location`: the call with the largest result; `places`: the lines at which other measures (`input`, `smallest`,
      `largest`, `whole`, `gradient`, a format's error) are extreme, if elsewhere.
    """

    fqn: str
    op: str
    calls: int
    category: str
    location: Location | None
    tensors: tuple[TensorRecord, ...]
    input_amax: float | None = None
    shapes: tuple[tuple[int, ...], ...] = ()
    dtype: str = "float32"
    flops: float | None = None
    local_error: Mapping[str, float] = field(default_factory=dict)
    half: bool = False
    constants: tuple[float, float] | None = None
    integer_amax: float | None = None
    autocast: str | None = None
    follows_dtype: bool = False
    half_amax: float | None = None
    places: Mapping[str, Location] = field(default_factory=dict)
    in_place: bool = False

    def tensor(self, role: str) -> TensorRecord | None:
        return next((t for t in self.tensors if t.role == role), None)

    def place(self, measure: str) -> Location | None:
        """The line of the call with the extreme value of a measure."""
        return self.places.get(measure, self.location)


@dataclass(frozen=True)
class Finding:
    """A finding for the user; `rule` is a stable id, and `fingerprint` does not depend on line numbers."""

    rule: str
    severity: Severity
    message: str
    suggestion: str
    fqn: str | None = None
    op: str | None = None
    location: Location | None = None
    evidence: Mapping[str, Any] = field(default_factory=dict)
    fingerprint: str = ""

"""The report of one profile."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from precaudit.model.kernels import TensorCores
from precaudit.model.plan import SCHEMA_VERSION, Plan
from precaudit.model.proof import Verification
from precaudit.model.traced import Finding, Layer, Op


@dataclass(frozen=True)
class Report:
    """Everything one profile found; `report.json` is this, key for key.

    `environment`, `job`, `performance` and `cost` are flat mappings of JSON values.
    """

    environment: Mapping[str, Any] = field(default_factory=dict)
    job: Mapping[str, Any] = field(default_factory=dict)
    layers: tuple[Layer, ...] = ()
    ops: tuple[Op, ...] = ()
    findings: tuple[Finding, ...] = ()
    plan: Plan = field(default_factory=Plan)
    verification: Verification = field(default_factory=Verification)
    tensor_cores: TensorCores = field(default_factory=TensorCores)
    performance: Mapping[str, Any] = field(default_factory=dict)
    cost: Mapping[str, Any] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION
    precaudit_version: str = ""

    @property
    def own_precision(self) -> Mapping[str, Any]:
        """The script's own mixed precision: its autocast's dtype, its GradScaler, its casts, a plan."""
        own = self.job.get("baseline")
        return own if isinstance(own, Mapping) else {}

    def to_frame(self, table: Literal["layers", "ops", "findings"] = "layers") -> Any:
        """A pandas frame with a row per layer and role, op and role, or finding."""
        from precaudit.reporting.frames import frame

        return frame(self, table)

    def save(self, *paths: str | os.PathLike[str]) -> None:
        """Write the report, each file in the format of its extension, as `-o` does; "plan.json" is the plan alone."""
        from precaudit.reporting import DEFAULT_PLAN, format_of, write

        files = [Path(path) for path in paths]
        formats = [format_of(file) for file in files]  # an unknown extension, before anything is written
        plans = (file for kind in ("plan", "json") for file, of in zip(files, formats, strict=True) if of == kind)
        plan = next(plans, DEFAULT_PLAN)
        for file in files:
            write(self, file, plan)

    def _repr_html_(self) -> str:
        from precaudit.reporting.notebook import summary_html

        return summary_html(self)

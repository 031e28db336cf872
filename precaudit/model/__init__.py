"""The data that flows through precaudit: frozen dataclasses that know number formats only, and no torch."""

from precaudit.model.environment import Environment
from precaudit.model.kernels import Kernel, KernelTime, LayerTime, TensorCores, TimeShare
from precaudit.model.plan import SCHEMA_VERSION, Float8Scaling, LossScale, OpFormat, Plan, ScaleMode
from precaudit.model.proof import (
    AS_WRITTEN,
    CANDIDATE,
    EXECUTIONS,
    REFERENCE,
    TWIN,
    Cause,
    Difference,
    Execution,
    ExecutionOption,
    Gate,
    Repair,
    Trial,
    Verdict,
    Verification,
)
from precaudit.model.ranges import Exponents, FormatFit, Role, TensorRecord, TensorStats
from precaudit.model.report import Report
from precaudit.model.traced import PACKAGES, SEVERITIES, Finding, Layer, Location, Op, Severity

__all__ = [
    "AS_WRITTEN",
    "CANDIDATE",
    "EXECUTIONS",
    "PACKAGES",
    "REFERENCE",
    "SCHEMA_VERSION",
    "SEVERITIES",
    "TWIN",
    "Cause",
    "Difference",
    "Environment",
    "Execution",
    "ExecutionOption",
    "Exponents",
    "Finding",
    "Float8Scaling",
    "FormatFit",
    "Gate",
    "Kernel",
    "KernelTime",
    "Layer",
    "LayerTime",
    "Location",
    "LossScale",
    "Op",
    "OpFormat",
    "Plan",
    "Repair",
    "Report",
    "Role",
    "ScaleMode",
    "Severity",
    "TensorCores",
    "TensorRecord",
    "TensorStats",
    "TimeShare",
    "Trial",
    "Verdict",
    "Verification",
]

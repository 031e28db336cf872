"""The program of a timed run: its arms and the lengths of their turns. Without torch, so that any process can load
it."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from precaudit.measuring.records import AMP, FLOAT32, PLAN, TF32, Arm
from precaudit.model import Plan
from precaudit.model.plan import DEFAULT_SCALE
from precaudit.running.job import RunResult, RunSpec

_HALVES = ("float16", "bfloat16")


@dataclass(frozen=True)
class Program:
    """What to time. Arms beyond float32 run where the models are on one of `devices`.

    Blocks last `window` seconds or a step; `rounds` of full blocks are wanted, and after `fewest` of them none
    begins once `budget` seconds are over. The last round's blocks last `energy_window` seconds where a meter counts
    energy. `profiled` arms run a few more steps under the profiler at the end.
    """

    arms: tuple[Arm, ...] = (Arm(FLOAT32),)
    profiled: tuple[str, ...] = ()
    devices: tuple[str, ...] = ("cuda",)
    window: float = 0.06
    rounds: int = 8
    fewest: int = 3
    budget: float = 4.0
    energy_window: float = 1.2


def arms_for(plan: Plan, formats: Collection[str]) -> tuple[Arm, ...]:
    """Float32 first; TF32 and default AMP where the card has the formats, the plan where it lowers anything.

    Default AMP runs in the plan's default half format, or in bfloat16 where its default is none.
    """
    half = next((name for name in (plan.default, "bfloat16", "float16") if name in _HALVES and name in formats), None)
    arms = [Arm(FLOAT32)]
    if "tf32" in formats:
        arms.append(Arm(TF32, tf32=True))
    if half:
        arms.append(Arm(AMP, half=half, scale=DEFAULT_SCALE if half == "float16" else None))
    if plan.is_low_precision:
        scale = None if plan.loss_scale.mode == "none" else plan.loss_scale.initial
        arms.append(Arm(PLAN, plan=plan, scale=scale))
    return tuple(arms)


def timed(
    spec: RunSpec, code: Callable[[], None], leave: Callable[[RunResult], None] | None = None, *, program: Program
) -> RunResult:
    """`session.timed_run`, importable in a process without torch."""
    from precaudit.measuring.session import timed_run

    return timed_run(spec, code, leave, program=program)

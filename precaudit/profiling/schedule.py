"""Which steps a run audits, shadows and probes: at the start, later, and a few in between."""

from __future__ import annotations

from dataclasses import dataclass

_PROBES = 4
_AUDITS = 10


@dataclass(frozen=True)
class Schedule:
    """`probed` maps a phase (`init`, `late`) to its steps, up to four of them for each of the `formats`."""

    audited: frozenset[int]
    shadowed: frozenset[int]
    probed: dict[str, tuple[int, ...]]
    formats: tuple[str, ...]

    @property
    def saved(self) -> frozenset[int]:
        steps = {step for part in self.probed.values() for step in part}
        return frozenset(steps | {min(part) - 1 for part in self.probed.values() if part and min(part) > 0})


def schedule(steps: int, formats: tuple[str, ...]) -> Schedule:
    """The schedule: each phase has up to four probed steps per format, and at most a fifth of the run. The first step
    stays in float32: its loss shows whether a replay starts like the reference. Pairs of steps are probed, for scripts
    with two alternating optimizers (GANs), where the second may use results of the first."""
    middle = steps // 2 & ~1
    each = min(_PROBES * len(formats), steps // 5)
    each -= each % 2 and each > 1
    first = min(2, each)
    stride = max(1, steps // _AUDITS) | 1
    both = {0, 1, middle, middle + 1}
    starts = {"init": first, "late": middle} if formats else {}
    return Schedule(
        audited=frozenset({*both, steps - 1, *range(0, steps, stride)}),
        shadowed=frozenset(both),
        probed={phase: tuple(range(start, start + each)) for phase, start in starts.items()},
        formats=formats,
    )

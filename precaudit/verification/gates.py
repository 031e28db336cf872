"""Gates beside the loss: what a loss curve doesn't show. Each compares a candidate's run with its float32 pair."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from precaudit.model import Gate, Plan
from precaudit.running.job import RunResult

Pair = tuple[RunResult, RunResult]
Check = Callable[[Sequence[Pair], Plan], Gate]
_SCALE_FLOOR = 2.0**-10
_SCALE_CEILING = 2.0**30


def _only_candidate(pairs: Sequence[Pair], field: str) -> list[str]:
    """Names that are non-finite in a candidate and finite in its reference."""
    return sorted(
        {
            name
            for reference, candidate in pairs
            for name in set(getattr(candidate.end_state, field)) - set(getattr(reference.end_state, field))
        }
    )


def _finite(name: str, field: str, what: str) -> Check:
    def check(pairs: Sequence[Pair], plan: Plan) -> Gate:
        bad = _only_candidate(pairs, field)
        listed = ", ".join(bad[:3]) + (f" and {len(bad) - 3} more" if len(bad) > 3 else "")
        return Gate(name, not bad, f"non-finite {what}: {listed}" if bad else f"all {what} are finite")

    return check


def evaluation(pairs: Sequence[Pair], plan: Plan) -> Gate:
    """Models answer their last batch in eval mode with finite numbers, wherever float32's do."""
    bad = sorted(
        {
            model
            for reference, candidate in pairs
            for model, (finite, _) in candidate.end_state.evaluations.items()
            if not finite and reference.end_state.evaluations.get(model, (True, 0.0))[0]
        }
    )
    detail = f"non-finite outputs in eval mode: {', '.join(bad)}" if bad else "outputs in eval mode are finite"
    return Gate("evaluation", not bad, detail)


def skipped_steps(pairs: Sequence[Pair], plan: Plan) -> Gate:
    """No more skipped steps than predicted, with an allowance of two and a twentieth of the steps."""
    skips = max(len(candidate.skipped) for _, candidate in pairs)
    steps = max(candidate.steps for _, candidate in pairs)
    predicted = plan.loss_scale.predicted_skips or 0.0
    allowed = math.ceil(predicted + 2 + 0.05 * steps)
    return Gate("skipped steps", skips <= allowed, f"{skips} of {steps} steps skipped, {predicted:.1f} predicted")


def loss_scale_range(pairs: Sequence[Pair], plan: Plan) -> Gate:
    scales = [scale for _, candidate in pairs for scale in candidate.scales]
    if not scales:
        return Gate("loss scale", True, "the plan needs no loss scale")
    low, high = min(scales), max(scales)
    sound = low >= _SCALE_FLOOR and high <= _SCALE_CEILING
    detail = f"the scale stayed within 2^{math.log2(low):.0f} .. 2^{math.log2(high):.0f}"
    return Gate("loss scale", sound, detail if sound else f"{detail}: it fell to the floor or ran away")


CHECKS: tuple[Check, ...] = (
    _finite("finite parameters", "parameters", "parameters"),
    _finite("finite buffers", "buffers", "buffers"),
    _finite("finite optimizer state", "optimizer_state", "optimizer states"),
    evaluation,
    skipped_steps,
    loss_scale_range,
)


def gates(pairs: Sequence[Pair], plan: Plan) -> tuple[Gate, ...]:
    return tuple(check(pairs, plan) for check in CHECKS) if pairs else ()


def failed(results: Iterable[Gate]) -> list[Gate]:
    return [gate for gate in results if not gate.passed]

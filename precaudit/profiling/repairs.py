"""The change of a plan after a failed trial: the first failing operation, the module that raised, or the largest
error."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from precaudit.formats import get_format
from precaudit.model import Plan, Repair
from precaudit.model.fitting import format_of, is_within
from precaudit.planning.planner import fallback
from precaudit.profiling.bisect import Search, contributions, of_gradients, of_losses, whole_error
from precaudit.profiling.culprits import culprit_of
from precaudit.running.job import WATCH, OutputDeviation, RunResult, ScriptError
from precaudit.tracing.records import STORED_ONCE, Fault, Trace
from precaudit.verification.gates import first_lost, refusals, stuck_buffers, unused_calls, usual_calls, wrong_answers
from precaudit.verification.statistics import diverged
from precaudit.verification.verdict import Runs
from precaudit.words import plural

if TYPE_CHECKING:
    from precaudit.profiling.trials import Trials

_MOST = 3
_STOPPED = ScriptError("", "the script stopped", "")
_DID = {"forward": "made", "backward": "sent back a gradient of", "given": "was given a gradient of"}


def find_repair(trials: Trials, plan: Plan, candidates: Mapping[int, RunResult]) -> list[Repair]:
    """The smallest change for the observed failure; empty where nothing is left to change."""
    broken = next(((seed, run) for seed, run in candidates.items() if not run.finished), None)
    if broken is not None:
        return _after_exception(plan, _named(trials, plan, *broken), trials.audit.trace)
    pairs = Runs(trials.references, candidates).pairs
    wrong = _first_wrong(trials.references, candidates)
    if wrong is not None:
        faults = _watch(trials, plan, *wrong)
        if faults:
            return _after_fault(plan, faults, trials.audit.trace)
    for _, error in refusals(pairs):
        return _after_exception(plan, error, trials.audit.trace)
    if deviating := wrong_answers(pairs, plan):
        return _after_wrong_answer(plan, *deviating[0])
    return _after_stuck(plan, stuck_buffers(pairs)) or _after_silent_error(trials, plan, candidates)


def _first_wrong(references: Mapping[int, RunResult], candidates: Mapping[int, RunResult]) -> tuple[int, int] | None:
    """The seed of a failed run and the step: where it diverged, else the first non-finite output of a model, else the
    last skipped step, else the first step with skipped batches, else its end."""
    known = [(seed, references[seed], run) for seed, run in candidates.items() if seed in references]
    for seed, reference, run in known:
        if (lost := diverged(reference.losses, run.losses)) is not None:
            return seed, lost.step
    for seed, reference, run in known:
        if (step := first_lost(reference, run)) is not None:
            return seed, step
    if skipped := {seed: run.skipped[-1] for seed, run in candidates.items() if run.skipped}:
        return max(skipped.items(), key=lambda item: item[1])
    usual = usual_calls(references.values())
    unused = ((seed, unused_calls(run.calls, usual)) for seed, run in candidates.items())
    if left_out := [(step, seed) for seed, counts in unused for step, count in enumerate(counts) if count]:
        step, seed = min(left_out)
        return seed, step
    for seed, run in candidates.items():
        if _ended_badly(run) and not (seed in references and _ended_badly(references[seed])):
            return seed, run.steps - 1
    return None


def _ended_badly(run: RunResult) -> bool:
    state = run.end_state
    finite = all(finite for finite, _ in state.evaluations.values())
    return bool(state.parameters or state.buffers or state.optimizer_state) or not finite


def _named(trials: Trials, plan: Plan, seed: int, run: RunResult) -> ScriptError:
    """What ended a run, with the operation that raised it; a native run is repeated for that, as it sees none."""
    error = run.error or _STOPPED
    if trials.audit.execution == "emulated" or error.op or error.raised_in is None:
        return error
    again = _watched(trials, plan, seed, run.steps).error
    return again if again is not None and (again.type, again.raised_in) == (error.type, error.raised_in) else error


def _watched(trials: Trials, plan: Plan, seed: int, start: int) -> RunResult:
    (watched,) = trials.run([replace(trials.spec(WATCH, seed, plan), watch_from=start)])
    return watched


def _watch(trials: Trials, plan: Plan, seed: int, step: int) -> list[Fault]:
    """Repeat the failing seed and trace producers of non-finite values from two steps before; those that float32 has
    too are ignored."""
    watched = _watched(trials, plan, seed, max(0, step - 2))
    legal = {
        (op.fqn, op.op)
        for op in trials.audit.trace.ops
        if (record := op.tensor("activation")) is not None and record.stats.nonfinite
    }
    faults = watched.trace.faults if watched.trace else ()
    return [fault for fault in faults if (fault.fqn, fault.op) not in legal]


def _after_fault(plan: Plan, faults: list[Fault], trace: Trace) -> list[Repair]:
    """The first forward producer that can be changed, else the first gradient, else what is inside of the module."""
    producers = [fault for fault in faults if fault.phase == "forward"] or faults
    for fault in producers:
        if repair := _widened(plan, fault.fqn, fault.op, _what_happened(fault), trace):
            first = replace(repair, location=fault.location)
            return [first, *_of_its_type(plan, first, trace)]
    inside = (_inside(plan, fault.fqn, _what_happened(fault)) for fault in producers)
    return _leaving_products(plan, next(filter(None, inside), []), trace)


def _leaving_products(plan: Plan, inside: list[Repair], trace: Trace) -> list[Repair]:
    """Of changes after which no product is left in low precision, those of other modules, if there are any: they round
    what the products have made once more, and training decides whether that was it."""
    if {fqn for fqn in plan.low_modules if fqn in trace.products} - {repair.fqn for repair in inside}:
        return inside
    return [repair for repair in inside if repair.fqn not in trace.products] or inside


def _of_its_type(plan: Plan, first: Repair, trace: Trace) -> list[Repair]:
    """Extend the change to all modules of the type once a second one needs it: a failure in the first module hides
    those of later ones, and one per round would use up the rounds. Products are excluded, as nearly all of them are
    fine."""
    sources = {fqn: format_of(plan, fqn, first.op) for fqn in _same_type(first.fqn, trace)}
    products = {op.fqn for op in trace.ops if op.category == "lower" and first.op in (None, op.op)}
    if first.fqn in products or "float32" not in sources.values():
        return []
    why = _as_in(first)
    return [replace(first, fqn=fqn, source=source, why=why) for fqn, source in sources.items() if source != "float32"]


def _same_type(fqn: str, trace: Trace) -> list[str]:
    """The other trained modules of the module's type."""
    types = {layer.fqn: layer.type for layer in trace.trained}
    return [other for other, kind in types.items() if other != fqn and kind == types.get(fqn)]


def _as_in(first: Repair) -> str:
    return f"it has the same type as {first.fqn}, where {first.why}"


def _widened(plan: Plan, fqn: str, op: str | None, why: str, trace: Trace) -> Repair | None:
    """The operation alone in a module with children, or beside the products of a leaf; all operations of any other
    leaf, or where the operation is unknown, already wide, or writes in place; None where all of that is float32."""
    kinds = {each.op: each.category for each in trace.ops if each.fqn == fqn}
    source = format_of(plan, fqn, op)
    if op and _moves_alone(fqn, op, trace) and source != "float32" and kinds.get(op) != "fp32":
        return Repair(fqn, source, _target(source, kinds.get(op, "other"), plan), why, op)
    source = format_of(plan, fqn)
    if source == "float32":
        return None
    own = {kind for name, kind in kinds.items() if op in (None, name)}
    return Repair(fqn, source, _target(source, "lower" if own == {"lower"} else "other", plan), why)


def _moves_alone(fqn: str, op: str, trace: Trace) -> bool:
    """Whether an operation in float32 is of use without the other ones of its module. What it writes in place stays in
    the format that these have stored."""
    own = {each.op: each for each in trace.ops if each.fqn == fqn}
    if op in own and own[op].in_place and op not in STORED_ONCE:
        return False
    leaf = {layer.fqn: layer.leaf for layer in trace.layers}.get(fqn, True)
    beside = fqn in trace.products and op in own and own[op].category != "lower"
    return beside or not leaf


def _target(source: str, category: str, plan: Plan) -> str:
    """The safer format. An operation that is no product follows its inputs: only float32 frees it from their format."""
    return fallback(source, _used(plan)) if category == "lower" else "float32"


def _what_happened(fault: Fault) -> str:
    amax = f" from inputs up to {fault.input_amax:.3g}" if fault.input_amax is not None else ""
    where = f" at {fault.location}" if fault.location else ""
    values = "value" if fault.nonfinite == 1 else "values"
    return f"{fault.op} {_DID[fault.phase]} {fault.nonfinite} non-finite {values}{amax} at step {fault.step}{where}"


def _after_exception(plan: Plan, error: ScriptError, trace: Trace) -> list[Repair]:
    """The operation that raised goes to float32, else the innermost module whose forward raised, or that called the
    custom function whose backward pass did."""
    fqn = _planned_name(error.raised_in, plan)
    if fqn is None:
        return []
    op = error.op
    what = f"{error.backward_of}'s own backward pass" if error.backward_of else op or "its forward"
    why = f"{what} raised under the plan: {error.short or 'no message'}"
    repair = _widened(plan, fqn, op, why, trace)
    wide = repair is None or (op is not None and format_of(plan, fqn, op) == "float32")
    beyond = (_feeding(plan, fqn, op, why, trace) if wide else []) or _inside(plan, fqn, why)
    if repair is None:
        return beyond
    first = replace(repair, target="float32", location=error.location)
    return [first, *([] if repair.op else beyond), *_alike(plan, first, op, trace)]


def _alike(plan: Plan, first: Repair, op: str | None, trace: Trace) -> list[Repair]:
    """The same change for other modules of that type, which would raise too: those that call the operation (unless it
    is a product, as nearly all calls of products succeed) or, if it is unknown, those without products. If it raises
    again, all of them with their contents."""
    alike = _same_type(first.fqn, trace)
    again = first.why in plan.because.values()
    if not again:
        callers = {each.fqn for each in trace.ops if each.op == op and each.category != "lower"}
        alike = [fqn for fqn in alike if (fqn in callers if op else fqn not in trace.products)]
    why = _as_in(first)
    found = [each for fqn in alike if (each := _widened(plan, fqn, op, why, trace))]
    inside = [part for each in found if again and not each.op for part in _inside(plan, each.fqn, why)]
    return [*(replace(each, target="float32", location=first.location) for each in found), *inside]


def _feeding(plan: Plan, fqn: str, op: str | None, why: str, trace: Trace) -> list[Repair]:
    """The module that ran before an operation, which computes the matrix that a decomposition refuses, say."""
    names = [(each.fqn, each.op) for each in trace.ops]
    before = names[: names.index((fqn, op))] if op and (fqn, op) in names else []
    others = [name for name, _ in before if name != fqn]
    source = plan.modules.get(others[-1], "float32") if others else "float32"
    return [Repair(others[-1], source, "float32", f"it ran last before {why}")] if source != "float32" else []


def _inside(plan: Plan, fqn: str, why: str) -> list[Repair]:
    """All low-precision modules inside one that raises on their results."""
    low = [name for name in plan.low_modules if name != fqn and is_within(name, fqn)]
    return [Repair(name, plan.modules[name], "float32", why) for name in low]


def _planned_name(raised_in: str | None, plan: Plan) -> str | None:
    if raised_in is None:
        return None
    model, _, fqn = raised_in.partition(":")
    qualified = f"{model}.{fqn}".rstrip(".")
    return qualified if any(is_within(name, qualified) for name in plan.modules) else fqn


def _after_stuck(plan: Plan, buffers: Sequence[str]) -> list[Repair]:
    """The modules whose buffers absorb their changes. Only with several models do a plan's names have a model
    prefix."""
    found: dict[str, Repair] = {}
    for buffer in buffers:
        owner, _, name = buffer.rpartition(".")
        fqn = next((fqn for fqn in (owner, owner.partition(".")[2]) if fqn in plan.modules), None)
        if fqn is not None and plan.modules[fqn] != "float32":
            why = f"its buffer {name} moves less than half as far as in float32"
            found.setdefault(fqn, Repair(fqn, plan.modules[fqn], "float32", why))
    return list(found.values())


def _after_wrong_answer(plan: Plan, model: str, far: OutputDeviation) -> list[Repair]:
    """The modules that cause a deviation in eval mode, which were determined during the trial."""
    others = plural(len(far.causes) - 1, "other")
    how = f"by {far.error:.1%} in eval mode{f', with {others}' if far.causes[1:] else ''}"
    return [
        Repair(fqn, plan.modules[fqn], "float32", f"in {plan.modules[fqn]} it makes the outputs of {model} wrong {how}")
        for fqn in far.causes
    ]


def _after_silent_error(trials: Trials, plan: Plan, candidates: Mapping[int, RunResult]) -> list[Repair]:
    """The modules whose rounding causes most of the error, measured group by group: of the loss if that is wrong with
    float32's weights, else of the gradient. If the trials are inconclusive and the gradient is as exact as the format
    allows, none is blamed."""
    spec = trials.audit.replay_spec
    if spec is None or trials.audit.replay is None:
        return []
    trace, search = trials.audit.trace, Search(spec, plan, trials.runner)
    of_loss = of_losses(trials.audit.reference.losses)
    shift = whole_error(search, of_loss)
    judged = trials.judge(candidates, plan)
    in_loss = _explains(shift, judged.difference.mean)
    measure, what = (of_loss, "loss") if in_loss else (of_gradients, "gradient")
    usable = (*_used(plan), *({"tf32"} & {*spec.formats}))  # which needs no loss scale, unlike float16
    repairs = []
    for item in contributions(search, trace.products, measure)[:_MOST]:
        source = plan.modules.get(item.fqn, plan.default)
        if judged.verdict != "fail" and not in_loss and item.error**0.5 <= get_format(source).tolerance:
            continue
        much = (
            f"shifts the loss by {item.error:+.2%}"
            if in_loss
            else f"changes the gradient by {item.error**0.5:.1%} (rms)"
        )
        if math.isinf(item.error):
            much = f"makes a {what} that is not finite"
        target = fallback(source, usable) if item.fqn in trace.products else "float32"
        op = culprit_of(trace, search, item.fqn, measure)
        why = f"in {source} it {much}, the most of all modules{f', from its {op.op}' if op else ''}"
        repairs.append(Repair(item.fqn, source, target, why, location=op.place(source) if op else None))
    return repairs


def _explains(shift: float, difference: float | None) -> bool:
    """Whether a shift without training explains half of the difference in training."""
    return difference is not None and shift * difference > 0 and abs(shift) >= abs(difference) / 2


def _used(plan: Plan) -> tuple[str, ...]:
    return tuple({plan.default, *plan.modules.values(), *(e.format for e in plan.ops)})

"""Coverage: does the plan name every module that computes in this model, and nothing that is unknown?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby

from precaudit.checking.models import ModelView
from precaudit.checking.records import Answer
from precaudit.comparison.matching import Matching, match_layers
from precaudit.finding import finding
from precaudit.model import Finding, Layer, Location, OpFormat, Plan
from precaudit.model.fitting import format_of, is_within, parts, stands_for
from precaudit.tracing.records import Trace
from precaudit.words import listing, plural

ANEW = "plan for the model as it is now: precaudit profile SCRIPT, and pass the new plan.json"
COMPILED = frozenset(("RecursiveScriptModule", "ScriptModule", "TopLevelTracedModule", "TracedModule", "GraphModule"))
"""Types of torch.jit, torch.export and torch.fx, whose modules are no longer those that a plan was made for."""
BEFORE = (
    "check the model as it is before torch.jit, torch.export or torch.fx compiles it: of what they make, modules and "
    "rounding can't be compared with a plan"
)
ANOTHER = 0.5
"""A plan with fewer than half of its modules in common is another model's, and listing all differences would not
help."""


def coverage(views: Sequence[ModelView], plan: Plan, trace: Trace, seen: str) -> Answer:
    """Compare the models that the plan is for with the plan; `seen` describes the modules found."""
    found = [one for view in views for one in _of_model(view, plan)]
    found += [one for view in views for one in _idle(view, trace, seen)]
    used = {name for view in views for name in view.names}
    there = {name for view in views for name, own in view.names.items() if own in view.types}
    nowhere = [op for op in plan.ops if op.fqn not in there.union(plan.modules)]
    found += [_idle_exception(op, op.fqn, "names no such module") for op in nowhere]
    found += [one for view in views for one in _one_of_several(view, plan)]
    found += [_bypassed(fqn, place) for fqn, place in trace.bypassed.items()]
    found += _elsewhere([fqn for fqn in plan.modules if fqn not in used])
    named = sum(fqn in view.plan.modules for view in views for fqn in view.computing)
    total = sum(len(view.computing) for view in views)
    computing = f"{plural(total, 'module')} that {'computes' if total == 1 else 'compute'}"
    return Answer("coverage", f"the plan names {named} of {computing}, {seen}", tuple(found))


def _of_model(view: ModelView, plan: Plan) -> Iterator[Finding]:
    if _is_anybodys(view, plan):
        yield _some_layer(view, plan)
        return
    matching = match_layers(_planned(view), _existing(view))
    same = [(old, new) for old, new in matching.pairs if _credible(old, new)]
    if len(same) < ANOTHER * max(len(view.plan.modules), 1):
        yield _another_model(view, len(same))
        return
    yield from _renamed([(old, new) for old, new in matching.pairs if old.fqn != new.fqn], view)
    yield from _replaced(matching, view)
    yield from _gone(matching, view)
    yield from _new(matching, view)


def _anew(view: ModelView) -> str:
    """What to do where the model is not the planned one; a new plan of a compiled model would be no better."""
    planned = view.plan.types.values()
    return BEFORE if COMPILED.intersection(view.types.values()).difference(planned) else ANEW


def _is_anybodys(view: ModelView, plan: Plan) -> bool:
    """Whether the model has no submodules, so that only its own name can tell that the plan is for it."""
    return view.types.keys() == {""} and len(plan.modules) > 1 and not {"", view.model} & view.names.keys()


def _planned(view: ModelView) -> list[Layer]:
    """The plan's modules, without containers that exist but compute nothing this time."""
    return [
        Layer(fqn, view.plan.types.get(fqn, ""), 0, 0, ())
        for fqn in view.plan.modules
        if fqn in view.computing or fqn not in view.types
    ]


def _existing(view: ModelView) -> list[Layer]:
    """The modules that compute in the model, with their types only where the plan has one to compare."""
    known = bool(view.plan.types)
    unknown = view.plan.modules.keys() - view.plan.types.keys()
    return [Layer(fqn, view.types[fqn] if known and fqn not in unknown else "", 0, 0, ()) for fqn in view.computing]


def _credible(old: Layer, new: Layer) -> bool:
    return old.fqn == new.fqn or bool(old.type) or _leaf(old.fqn) == _leaf(new.fqn)


def _leaf(fqn: str) -> str:
    return fqn.rpartition(".")[2]


def _another_model(view: ModelView, same: int) -> Finding:
    named = plural(len(view.plan.modules), "module")
    found = f"{same or 'none'} {'has' if same == 1 else 'have'} a counterpart in {view.called}"
    message = f"this plan is another model's: of {named} that it names, {found}"
    return _foreign(
        message if view.plan.modules else f"this plan names no module of {view.called}",
        f"pass the plan of this model, or {_anew(view)}",
        view.plan,
        view,
    )


def _some_layer(view: ModelView, plan: Plan) -> Finding:
    return _foreign(
        f"this plan is another model's: of {plural(len(plan.modules), 'module')} that it names, none is called "
        f"{view.model}, and {view.called}, with no module inside, is told by its name alone",
        f"call the model in the script as the plan does, pass the plan of this model, or {ANEW}",
        plan,
        view,
    )


def _foreign(message: str, remedy: str, plan: Plan, view: ModelView) -> Finding:
    return finding("PA704", "error", message, remedy, unknown=list(plan.modules)[:8], present=list(view.computing)[:8])


def _renamed(pairs: Iterable[tuple[Layer, Layer]], view: ModelView) -> Iterator[Finding]:
    """PA703, one finding for all modules that moved together (`fc` to `model.fc`, by a new wrapper)."""

    def moved(pair: tuple[Layer, Layer]) -> tuple[str, str]:
        old, new = (layer.fqn.split(".") for layer in pair)
        while old and new and old[-1] == new[-1]:
            old, new = old[:-1], new[:-1]
        return ".".join(old), ".".join(new)

    for (before, after), group in groupby(sorted(pairs, key=moved), key=moved):
        together = list(group)
        old, new = together[0]
        what = f"the plan's {old.fqn} is gone and {_what(new, view)} stands in its place: renamed"
        if not old.type and _leaf(old.fqn) != _leaf(new.fqn):
            what += " or replaced"
        if len(together) > 1:
            what = (
                f"{len(together)} modules moved from {before or 'the top'} to {after or 'the top'}: "
                f"{listing(f'{a.fqn} is now {b.fqn}' for a, b in together)}"
            )
        yield finding(
            "PA703",
            "error",
            what,
            f"if they only moved, rename them in the plan too; else {ANEW}",
            fqn=view.shown(new.fqn),
            renamed={a.fqn: b.fqn for a, b in together},
        )


def _replaced(matching: Matching, view: ModelView) -> Iterator[Finding]:
    for old, new in matching.pairs:
        if old.fqn == new.fqn and old.type and old.type != new.type:
            yield finding(
                "PA705",
                "error",
                f"{view.shown(new.fqn)} was a {old.type} when the plan was made and is a {new.type} now: "
                f"{format_of(view.plan, new.fqn)} was verified for the {old.type} only",
                _anew(view),
                fqn=view.shown(new.fqn),
                planned=old.type,
                now=new.type,
            )


def _gone(matching: Matching, view: ModelView) -> Iterator[Finding]:
    for layer in matching.removed:
        kind = f" ({layer.type})" if layer.type else ""
        yield finding(
            "PA701",
            "error",
            f"the plan names {layer.fqn}{kind}, which {view.called} doesn't have: removed since, or the wrong plan",
            _anew(view),
            fqn=view.shown(layer.fqn),
        )


def _new(matching: Matching, view: ModelView) -> Iterator[Finding]:
    """A new module is an error; a container that now computes outside its children, a warning."""
    for layer in matching.added:
        unplanned = f"the plan doesn't know it, so it would run in {format_of(view.plan, layer.fqn)} unverified"
        own = layer.fqn in view.own_work
        what = "is new" if own else "computes between its children now"
        yield finding(
            "PA702" if own else "PA706",
            "error" if own else "warning",
            f"{_what(layer, view)} {what}: {unplanned}",
            _anew(view),
            fqn=view.shown(layer.fqn),
        )


def _idle(view: ModelView, trace: Trace, seen: str) -> Iterator[Finding]:
    """Exceptions for operations that their module doesn't call; the operation may have another name now."""
    for exception in view.plan.ops:
        place = view.shown(exception.fqn)
        calls = dict.fromkeys(op.op for op in trace.ops if op.fqn == place)
        if calls and exception.op not in calls:
            yield _idle_exception(exception, place, f"no such operation ran there {seen}, but {listing(calls)}")


def _one_of_several(view: ModelView, plan: Plan) -> Iterator[Finding]:
    """The plan is for several models of one class (actor and critic), which the script names differently."""
    others = parts(plan, set(view.types)) if not any(is_within(fqn, view.model) for fqn in plan.modules) else {}
    if not all(stands_for(view.plan, other) for other in others.values()):
        yield finding(
            "PA710",
            "error",
            f"{view.called} may be {' or '.join(others)} of the plan, whose formats differ, and only one was checked",
            "call the model in the script as the plan does, or check the script that was profiled",
            fqn=view.shown(""),
            models=list(others),
        )


def _bypassed(fqn: str, place: Location) -> Finding:
    """A module whose `forward` is called directly: it runs under the plan only in a deployment that calls the
    module."""
    return finding(
        "PA709",
        "error",
        f"{fqn or 'the model'}: forward is called directly, which runs no hooks: its own operations and outputs "
        "were not checked",
        "call the module: model(x), not model.forward(x), or super().__call__(x) inside its own __call__",
        fqn=fqn,
        location=place,
    )


def _idle_exception(exception: OpFormat, place: str, why: str) -> Finding:
    where = place or "the model itself"
    return finding(
        "PA708",
        "warning",
        f"the plan has {exception.op} of {where} in {exception.format}, and {why}: this exception does nothing",
        f"correct its name in the plan, or {ANEW}",
        fqn=place,
        op=exception.op,
    )


def _what(layer: Layer, view: ModelView) -> str:
    name = view.shown(layer.fqn) or "the model itself"
    return f"{name} ({view.types.get(layer.fqn, layer.type)})"


def _elsewhere(names: Sequence[str]) -> Iterator[Finding]:
    models: Mapping[str, None] = dict.fromkeys(fqn.partition(".")[0] for fqn in names)
    count = plural(len(names), "module")
    if names:
        yield finding(
            "PA707",
            "note",
            f"the plan also covers {listing(models)}, which didn't run here: {count} not checked",
            "check the script that runs them too",
            models=list(models),
        )

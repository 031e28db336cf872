"""Whether a plan can be put on a model, and what speaks against it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import nn

from precaudit.errors import PrecauditError, require
from precaudit.execution.rounding import HALVES
from precaudit.instrument.names import fqns_of, is_leaf
from precaudit.model import Plan
from precaudit.model.fitting import fit_names, format_of, is_within, part_of, parts, stands_for
from precaudit.words import listing

_LATER = ". If something adds them to it later, as a trainer adds LoRA's, apply the plan after that"


def refuse_unplannable(model: nn.Module, plan: Plan) -> None:
    """Raise PrecauditError for a model that takes no plan, or not this one."""
    _refuse_scripted(model)
    if plan.master_weights:
        _refuse_half_weights(model)


def _refuse_scripted(model: nn.Module) -> None:
    """TorchScript takes no hooks, and its code can't be looked into."""
    scripted = [fqn for module, fqn in fqns_of(model).items() if isinstance(module, torch.jit.ScriptModule)]
    if scripted:
        place = scripted[0] or "the whole model"
        raise PrecauditError(
            f"no plan can be put on {place}, which torch.jit compiled. Apply the plan to the model without "
            "torch.jit.script and torch.jit.trace, or set PYTORCH_JIT=0: a profile ran it so"
        )


def _refuse_half_weights(model: nn.Module) -> None:
    """Half weights would be a training other than the verified one; inference with them is allowed."""
    trained = (fqn for fqn, p in model.named_parameters() if p.requires_grad and p.dtype in HALVES)
    if model.training and (first := next(trained, None)) is not None:
        raise PrecauditError(
            f"{first} is in half precision, and a plan is for float32 weights, which take the small changes of "
            "training. Leave the model in float32: model.float(), before the optimizer is made. To use it without "
            "training, call model.eval() first; weights that stay as they are have requires_grad_(False)"
        )


def fit_plan(model: nn.Module, plan: Plan, name: str) -> Plan:
    """The part of a plan that is about `model`, by the model's own names; PrecauditError where it names others, or may
    be one of several parts."""
    own = set(fqns_of(model).values())
    known = listing(dict.fromkeys(fqn.partition(".")[0] for fqn in plan.modules))
    require(
        not name or any(is_within(fqn, name) for fqn in plan.modules),
        f"the plan has no model called {name!r}; its names begin with {known}",
    )
    names = fit_names(plan, own, name)
    _refuse_another_model(model, plan, own, names)
    part, others = part_of(plan, names), {} if name else parts(plan, own)
    if not all(stands_for(part, other) for other in others.values()):
        listed = " or ".join(others)
        raise PrecauditError(
            f"by its modules this model may be {listed} of the plan, whose formats differ: say which, as in "
            f"precaudit.apply(model, plan, name={next(iter(others))!r})"
        )
    return part


def _refuse_another_model(model: nn.Module, plan: Plan, own: set[str], names: Mapping[str, str]) -> None:
    """Raise PrecauditError where the plan's `names` are not all among the model's `own`, or its only module is of
    another type."""
    unknown = sorted(fqn for fqn in names.values() if fqn not in own)
    if plan.modules and (unknown or not names):
        leaves = own - {fqn.rpartition(".")[0] for fqn in own}
        added = any(is_within(fqn, leaf) for fqn in unknown for leaf in leaves)
        raise _unfit(f"it has no module {listing(unknown) or 'of the plan'}", _LATER if added else "")
    kind = next((plan.types[name] for name in names if name in plan.types), None)
    if own == {""} and kind and kind not in _kinds(model)[""]:
        raise _unfit(f"it is not of the plan's type, {kind}")


def _kinds(model: nn.Module) -> dict[str, set[str]]:
    """For each module name, the names of all classes of the module and of its wrappers."""
    kinds: dict[str, set[str]] = {}
    for module, fqn in fqns_of(model).items():
        kinds.setdefault(fqn, set()).update(kind.__name__ for kind in type(module).__mro__)
    return kinds


def _unfit(why: str, more: str = "") -> PrecauditError:
    return PrecauditError(
        f"the plan doesn't fit this model: {why}. "
        f"Make a new plan with `precaudit profile`, or pass the model that the plan was made for{more}"
    )


def doubts(model: nn.Module, plan: Plan, fitted: Plan) -> Iterator[str]:
    """What a person should know before training with a plan; `fitted` is its part for this model."""
    if plan.is_edited:
        yield (
            "this plan was changed since it was profiled: the verdict in it is on what it was, and nothing has "
            "verified it as it is. Profile the script again, and apply a plan that is verified"
        )
    elif plan.verdict == "fail":
        yield (
            "this plan is NOT VERIFIED: when it was profiled, training with it was not as good as float32. "
            "Profile the script again, and apply a plan that is verified"
        )
    if unverified := _unverified(model, fitted):
        yield (
            f"new in this model, or of another type, since the plan was made: {listing(unverified)}. Nothing has "
            "verified them in the plan's formats: profile the script again, or see what has changed by precaudit check"
        )


def _unverified(model: nn.Module, plan: Plan) -> list[str]:
    """What runs low though no profile has seen it; a plan without types was written by hand, and may name what it
    likes."""
    modules, kinds = fqns_of(model), _kinds(model)
    new = [fqn for module, fqn in modules.items() if is_leaf(module) and fqn not in plan.modules]
    others = [fqn for fqn, kind in plan.types.items() if kind not in kinds.get(fqn, {kind})]
    found = [fqn for fqn in (*new, *others) if format_of(plan, fqn) != "float32"] if plan.types else []
    return [f"{fqn or 'the model itself'} (in {format_of(plan, fqn)})" for fqn in found]

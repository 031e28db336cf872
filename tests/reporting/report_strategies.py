"""Strategies for whole reports, from the model's annotations: every field filled, optional ones too."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from dataclasses import fields, is_dataclass

from hypothesis import strategies as st

from precaudit.formats import FORMATS
from precaudit.model import Exponents, LossScale, Plan, TensorStats
from precaudit.reporting.serialize import FLOAT32, MATMUL_PRECISIONS

FREE_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
NAMES = st.sampled_from(sorted(FORMATS))
MAGNITUDES = st.floats(0, allow_infinity=False)


@st.composite
def stats(draw):
    """Statistics that add up."""
    exponents = draw(st.builds(Exponents, st.integers(-1074, 1023), st.lists(st.integers(0, 2**40)).map(tuple)))
    zeros, nonfinite = draw(st.integers(0, 9)), draw(st.integers(0, 9))
    total = exponents.total + zeros + nonfinite
    return TensorStats(total, draw(MAGNITUDES), draw(MAGNITUDES), draw(st.floats(0)), zeros, nonfinite, exponents)


SPECIAL = {
    typing.Any: FREE_JSON,
    float: st.floats(),
    int: st.integers(0, 2**63 - 1),
    str: st.text(max_size=20),
    bool: st.booleans(),
    TensorStats: stats(),
}


def filled(hint):
    """A strategy for an annotation of the model, optional fields filled too."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint in SPECIAL:
        return SPECIAL[hint]
    if origin is typing.Literal:
        return st.sampled_from(arguments)
    if origin in (typing.Union, types.UnionType):
        return st.none() | filled(next(a for a in arguments if a is not type(None)))
    if origin is tuple and arguments[-1] is Ellipsis:
        return st.lists(filled(arguments[0]), max_size=2).map(tuple)
    if origin is tuple:
        return st.tuples(*map(filled, arguments))
    if origin is Mapping:
        return st.dictionaries(st.text(max_size=9), filled(arguments[1]), max_size=2)
    assert is_dataclass(hint), hint
    hints = typing.get_type_hints(hint)
    values = {f.name: filled(hints[f.name]) for f in fields(hint)}
    if hint is Plan:
        values |= {"default": NAMES, "modules": st.dictionaries(st.text(), NAMES, max_size=3), "ops": st.just(())}
        values["master_weights"] = st.just(True)
        values["matmul_precision"] = st.sampled_from(MATMUL_PRECISIONS)
    if hint is LossScale:
        values["growth_interval"] = st.none() | st.integers(1, 10**6)
        exponents = st.integers(-200, 200)
        values["window"] = st.none() | st.tuples(exponents, exponents).map(lambda pair: tuple(sorted(pair)))
        scales = st.floats(FLOAT32.smallest_subnormal, FLOAT32.maximum)
        static = st.builds(LossScale, **values | {"mode": st.just("static"), "init_scale": scales})
        values |= {"mode": st.sampled_from(["none", "dynamic"]), "init_scale": st.none() | scales}
        return static | st.builds(LossScale, **values)
    if "schema_version" in values:
        values["schema_version"] = st.just(1)
    return st.builds(hint, **values)

"""The autocast tables, against the header that the installed torch was built with and what it registers."""

import re
from pathlib import Path

import pytest
import torch

from precaudit.execution.policy import (
    ACCUMULATING,
    BANNED,
    FP32,
    HEADER_FP32,
    HEADER_LOWER,
    HEADER_PROMOTE,
    LOWER,
    PROMOTE,
    category,
    has_autocast,
)

HEADER = Path(torch.__file__).parent / "include" / "ATen" / "autocast_mode.h"


def macro(name):
    """Operation names in one AT_FORALL macro of the header, overloads folded."""
    text = HEADER.read_text().replace("\\\n", " ")
    body = re.search(rf"#define AT_FORALL_{name}\(_\)(.*)", text)
    assert body, f"the header has no AT_FORALL_{name}"
    return set(re.findall(r"\b_\(\s*(?:ADD_NS\()?(\w+)", body[1]))


def test_the_header_is_read():
    assert {"linear", "matmul", "einsum"} <= macro("LOWER_PRECISION_FP")
    assert macro("DIFFERENT_REDISPATCH_SIGNATURE") == {"norm"}


def test_lower_precision_operations():
    assert macro("LOWER_PRECISION_FP") == HEADER_LOWER


def test_float32_operations():
    named = macro("FP32") | macro("FP32_SET_OPT_DTYPE") | macro("DIFFERENT_REDISPATCH_SIGNATURE")
    assert named == HEADER_FP32


def test_widest_input_operations():
    assert macro("PROMOTE") == HEADER_PROMOTE


def test_torch_registers_every_operation_for_autocast():
    """By whatever overload; the tables of another release would have some that this one doesn't."""
    every = [name for name in torch._C._dispatch_get_all_op_names() if name.startswith("aten::")]
    known = {name.partition(".")[0] for name in (name.removeprefix("aten::") for name in every) if has_autocast(name)}
    assert known >= HEADER_LOWER | HEADER_FP32 | HEADER_PROMOTE
    assert not known & {"relu", "add", "reshape"}


def test_operation_tables_are_disjoint():
    tables = [LOWER, FP32, PROMOTE, BANNED]
    assert sum(map(len, tables)) == len(frozenset().union(*tables))


@pytest.mark.parametrize(
    ("op", "expected"),
    [
        ("linear", "lower"),
        ("lstm", "lower"),
        ("softmax", "fp32"),
        ("cross_entropy_loss", "fp32"),
        ("binary_cross_entropy", "banned"),
        ("scatter_add", "promote"),
        ("relu", "other"),
        ("batch_norm", "other"),
    ],
)
def test_category(op, expected):
    assert category(op) == expected


def test_prelu_multiplies_without_accumulating():
    assert LOWER.difference(ACCUMULATING) == {"prelu"}

"""Operations as a function mode sees them: named once, composites taken apart, containers mapped."""

import threading
from collections import OrderedDict, UserDict, namedtuple
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from precaudit.instrument.torch_function import Call, OperationMode, map_tensors, op_name, tensors_in


class Names(OperationMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def operation(self, call):
        if not call.op.startswith("__get"):
            self.seen.append(call.op)
        return call()


def seen(function):
    with Names() as mode:
        function()
    assert torch.overrides._get_current_function_mode_stack() == []
    return mode.seen


A, B = torch.ones(2, 2), torch.ones(2, 2)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda: A @ B, ["matmul"]),
        (lambda: A.matmul(B), ["matmul"]),
        (lambda: torch.linalg.matmul(A, B), ["matmul"]),
        (lambda: A + B, ["add"]),
        (lambda: A.clone().add_(B), ["clone", "add"]),
        (lambda: 1 - A, ["sub"]),
        (lambda: 1 / A, ["reciprocal", "mul"]),
        (lambda: A**2, ["pow"]),
        (lambda: 2**A, ["pow"]),
        (lambda: -A, ["neg"]),
        (lambda: F.linear(A, B), ["linear"]),
        (lambda: F.softmax(A, 1), ["softmax"]),
        (lambda: A.softmax(1), ["softmax"]),
        (lambda: torch.einsum("ij,jk->ik", A, B), ["einsum"]),
        (lambda: F.scaled_dot_product_attention(A[None], B[None], B[None]), ["scaled_dot_product_attention"]),
        (lambda: F.layer_norm(A, (2,)), ["layer_norm"]),
        (lambda: F.dropout(A, 0.5), ["dropout"]),
        (lambda: F.relu(A), ["relu"]),
        (lambda: F.gelu(A), ["gelu"]),
    ],
)
def test_variants_of_an_operation_share_one_name(function, expected):
    assert seen(function) == expected


@pytest.mark.parametrize(
    ("function", "inside"),
    [
        (lambda: F.cross_entropy(A, torch.tensor([0, 1])), {"cross_entropy_loss"}),
        (lambda: F.normalize(A), {"div", "expand_as"}),
        (lambda: nn.MultiheadAttention(2, 1)(A, A, A), {"linear", "softmax", "bmm"}),
        (lambda: F.mse_loss(A, B), {"mse_loss"}),
        (lambda: F.triplet_margin_with_distance_loss(A, B, A), {"pairwise_distance"}),
        (lambda: nn.LSTM(2, 2)(A), {"lstm"}),
    ],
)
def test_composites_are_expanded(function, inside):
    assert inside <= set(seen(function))


def test_no_composite_hides_its_operations():
    """Everything that a Transformer layer computes is seen, none of it as one opaque call."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
    names = seen(lambda: layer(torch.randn(2, 3, 4)))
    assert names.count("linear") >= 3
    assert "scaled_dot_product_attention" in names
    assert names.count("layer_norm") == 2
    assert "multi_head_attention_forward" not in names


def test_results_are_those_without_a_mode():
    torch.manual_seed(0)
    layer, x = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.1, batch_first=True), torch.randn(2, 3, 4)
    torch.manual_seed(1)
    expected = layer(x)
    torch.manual_seed(1)
    with Names():
        assert torch.equal(layer(x), expected)


def test_an_exception_inside_a_composite_leaves_the_mode_as_it_was():
    with Names() as mode:
        with pytest.raises(ValueError, match="not enough values"):
            F.multi_head_attention_forward(A, A, A, 2, 1, A, None, None, None, False, 0.0, A, None)
        mode.seen.clear()
        F.normalize(A)
    assert "div" in mode.seen


@pytest.mark.parametrize(
    ("function", "kwargs", "expected"),
    [
        (torch.Tensor.add_, {}, True),
        (torch.Tensor.__iadd__, {}, True),
        (torch.Tensor.__itruediv__, {}, True),
        (torch.Tensor.__setitem__, {}, True),
        (torch.add, {"out": A}, True),
        (torch.add, {"out": None}, False),
        (torch.Tensor.add, {}, False),
        (torch.Tensor.__invert__, {}, False),
        (torch.Tensor.__index__, {}, False),
        (torch.Tensor.__int__, {}, False),
        (torch.relu_, {}, True),
    ],
)
def test_calls_that_write_to_an_argument(function, kwargs, expected):
    assert Call(function, (), kwargs).writes is expected


def test_in_place_variants_share_a_name():
    assert op_name(torch.Tensor.exp_) == op_name(torch.exp) == "exp"
    assert op_name(torch.Tensor.__add__) == "add"
    assert op_name(torch.Tensor.__setitem__) == "__setitem__"


Pair = namedtuple("Pair", "a b")


class Output(OrderedDict):
    """As transformers' outputs are: a mapping whose keys are keyword arguments."""

    def __init__(self, logits=None, hidden=None):
        super().__init__(logits=logits, hidden=hidden)


def test_containers_keep_their_types():
    value = {"a": [A, (A, 1)], "pair": Pair(A, "x"), "out": Output(A, (A,)), "none": None, "best": torch.max(A, 0)}
    doubled = map_tensors(lambda t: t * 2, value)
    assert isinstance(doubled["pair"], Pair)
    assert isinstance(doubled["out"], Output)
    assert type(doubled["best"]).__name__ == type(value["best"]).__name__
    assert torch.equal(doubled["best"].values, value["best"].values * 2)
    assert doubled["a"][1][1] == 1
    assert len(tensors_in(doubled)) == len(tensors_in(value)) == 7
    assert all(torch.equal(new, old * 2) for new, old in zip(tensors_in(doubled), tensors_in(value), strict=True))


class TensorDict(UserDict):
    """As tensordict's are: iterated by its rows, not by its keys, and with a batch size of its own."""

    def __init__(self, source, batch_size=()):
        super().__init__(source)
        self.batch_size = batch_size

    def __iter__(self):
        return iter([TensorDict({}) for _ in range(2)])

    def items(self):
        return self.data.items()

    __hash__ = None


def test_a_mapping_that_iterates_over_rows_keeps_its_own_attributes():
    value = TensorDict({"a": A, "b": 1}, batch_size=(2,))
    assert map_tensors(lambda t: t, value) is value
    doubled = map_tensors(lambda t: t * 2, value)
    assert (type(doubled), doubled.batch_size, doubled["b"]) == (TensorDict, (2,), 1)
    assert torch.equal(doubled["a"], A * 2)
    assert value["a"] is A


@dataclass(frozen=True)
class Answer:
    logits: torch.Tensor
    extra: Any = None
    made: list = field(init=False, default_factory=list)

    def __post_init__(self):
        assert self.logits.dtype == torch.float32


def test_dataclasses_are_copied_without_init():
    value = Answer(A, [Answer(A)])
    assert map_tensors(lambda t: t, value) is value
    halves = map_tensors(torch.Tensor.half, value)
    assert [tensor.dtype for tensor in tensors_in(halves)] == [torch.float16] * 2
    assert (type(halves), halves.made is value.made) == (Answer, True)
    assert value.logits is A
    assert tensors_in([Answer, value]) == [A, A]
    assert map_tensors(torch.Tensor.half, Answer) is Answer


def test_unchanged_containers_are_the_same_object():
    value = {"a": [A, (A, 1)], "pair": Pair(A, "x")}
    assert map_tensors(lambda t: t, value) is value


def test_composites_are_expanded_in_several_threads():
    """`nn.DataParallel` and servers call one model from several threads, and with it one mode."""
    seen, inside, other_done = [], threading.Event(), threading.Event()

    class Waiting(OperationMode):
        def operation(self, call):
            if threading.current_thread() is threading.main_thread():
                seen.append(call.op)
            else:
                inside.set()
                other_done.wait(10)
            return call()

    mode, x = Waiting(), torch.ones(2, 4)

    def normalise():
        with mode:
            return F.normalize(x)

    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(normalise)
        inside.wait(10)
        normalise()
        other_done.set()
        other.result()
    assert seen
    assert "normalize" not in seen

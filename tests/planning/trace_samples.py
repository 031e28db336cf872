"""Small traces written by hand, for the tests beside."""

import math

from precaudit.model import Exponents, Layer, Location, Op, TensorRecord, TensorStats
from precaudit.tracing.records import Trace


def stats(amax, smallest=None, count=1000):
    """Values spread alike over the binades between two powers of two."""
    top = math.frexp(amax)[1] - 1
    low = top if smallest is None else math.frexp(smallest)[1] - 1
    each = max(1, count // (top - low + 1))
    counts = (each,) * (top - low + 1)
    return TensorStats(
        numel=sum(counts),
        amax=amax,
        amin_nonzero=smallest or amax,
        sum_squares=sum(each * 2.1 * 4.0 ** (low + i) for i in range(len(counts))),
        exponents=Exponents(low, counts),
    )


def op(name="linear", fqn="a", amax=1.0, category="lower", half=None, **fields):
    """One operation of a module: its result reaches `amax`."""
    return Op(
        fqn=fqn,
        op=name,
        calls=1,
        category=category,
        location=Location("train.py", 7),
        tensors=(TensorRecord("activation", stats(amax)),),
        half=category == "lower" if half is None else half,
        **fields,
    )


def layer(fqn="a", gradient=None, leaf=True, trained=True, kind="Linear"):
    """A layer whose gradients are `gradient` (statistics), where it has any."""
    tensors = (TensorRecord("activation_grad", gradient),) if gradient else ()
    return Layer(fqn, kind, 10, 1, tensors, trained=trained, leaf=leaf)


def trace(ops, layers=None, maxima=()):
    """A trace of these operations, in leaf layers unless layers are given."""
    fqns = dict.fromkeys(each.fqn for each in ops)
    layers = [layer(fqn) for fqn in fqns] if layers is None else layers
    leaves = tuple(each.fqn for each in layers if each.leaf)
    return Trace(tuple(layers), tuple(ops), maxima=tuple(enumerate(maxima)), leaves=leaves)

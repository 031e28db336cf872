"""The local error of an operation: it is run once more on the same inputs in a low format."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from precaudit.execution.emulated import run_in_format
from precaudit.execution.kernels import to_float32
from precaudit.execution.rounding import CASTABLE, HALVES, rounding_for
from precaudit.histograms import Accumulator
from precaudit.instrument.torch_function import Call, floats_in, map_tensors, overloads_of, tensors_in
from precaudit.tracing.ops import is_half
from precaudit.tracing.records import ABSORBING

UNREPEATABLE = frozenset(
    "dropout dropout1d dropout2d dropout3d feature_dropout alpha_dropout feature_alpha_dropout native_dropout "
    "bernoulli multinomial normal rrelu rrelu_with_noise batch_norm instance_norm native_batch_norm "
    "_native_multi_head_attention lstm gru rnn_tanh rnn_relu gumbel_softmax poisson binary_cross_entropy grad".split()
)
"""Operations that draw random numbers, update buffers, free the graph, or cost as much as a layer."""

_ROWS = 256
"""About so many rows of a linear layer suffice for its relative error; overflow is measured on all of them."""
_ROUGH = 0.1
"""Limit for the mean squared step of smooth values relative to their variance; for values in random order it is 2."""
_ALIKE, _HIDDEN = 10.0, 1000.0
"""How large a mask is beside what it is added to: at most where it lets values through, and at least where not."""


@dataclass(frozen=True)
class Energies:
    """Sums of squares over any number of calls: of the error in a format, and of the exact result."""

    error: float = 0.0
    result: float = 0.0

    def __add__(self, other: Energies) -> Energies:
        return Energies(self.error + other.error, self.result + other.result)

    @property
    def relative(self) -> float:
        """Relative rms error; inf where a result became non-finite."""
        if self.error == math.inf:
            return math.inf
        return (self.error / self.result) ** 0.5 if self.result else 0.0


def repeatable(call: Call) -> bool:
    """Whether calling the function once more has no side effects and gives the same result."""
    own = isinstance(call.kwargs.get("generator"), torch.Generator)  # its state would not be restored
    return call.op not in UNREPEATABLE and not call.writes and not own and not _changes_tensors(call.func)


def _changes_tensors(func: Callable[..., Any]) -> bool:
    """Whether one of its schemas writes to arguments: a custom operation's buffer, an observer's range."""
    if overloads := overloads_of(func):
        return any(_writes(each._schema) for each in overloads)
    return _changes_by_name(getattr(func, "__name__", ""))


@cache
def _changes_by_name(name: str) -> bool:
    """By the schemas for tensors: TorchScript has functions of the same names for lists and dictionaries."""
    schemas = torch._C._jit_get_schemas_for_operator(f"aten::{name}")
    return any(map(_writes, (s for s in schemas if s.arguments and isinstance(s.arguments[0].type, torch.TensorType))))


def _writes(schema: Any) -> bool:
    """Whether it writes to an argument other than `out`, which callers pass by name."""
    written = [each for each in schema.arguments if each.alias_info is not None and each.alias_info.is_write]
    return any(not each.is_out for each in written)


def local_errors(call: Call, formats: tuple[str, ...]) -> dict[str, Energies]:
    """For each format, the energies (sums of squares) of the operation's error and of its float32 result.

    Inputs that autocast would hold in half are rounded to the format first; others stay as they are. For a sum, the
    energy is that of the smaller addend, which a coarse format may absorb, or of the result if that is smaller because
    the addends cancel.
    """
    with unobserved():
        call, exact, energy = _exact(call)
        return {name: Energies(_error(call, name, exact), energy) for name in formats if exact}


@contextmanager
def unobserved() -> Iterator[None]:
    """Compute apart from the training step: without function modes, gradients, and autocast, which would round the
    exact result too, and would cache weights that it casts here, without gradients, for the training step."""
    with ExitStack() as stack:
        stack.enter_context(torch._C.DisableTorchFunction())
        stack.enter_context(torch.no_grad())
        for device in ("cuda", "cpu"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield


def error_of(result: torch.Tensor, call: Call) -> Energies | None:
    """The energies, as above, of the error that a low result of this call has, whether or not autocast would keep the
    operation in float32; None where it can't be computed once more."""
    with unobserved():
        _, exact, energy = _exact(call)
        rows = _some_rows(result) if call.op == "linear" else result
        return Energies(_energy(rows, exact[0]), energy) if exact else None


def _exact(call: Call) -> tuple[Call, list[torch.Tensor], float]:
    """The call, of a linear layer on some rows alone; the float32 results, [] if there are none that are finite; and
    the energy to compare an error with."""
    if call.op == "linear":
        call = _on_some_rows(call)
    exact = _without_randomness(to_float32(call))
    energy = sum(map(_energy, exact))
    if not exact or energy == math.inf:
        return call, [], energy
    if call.op in ABSORBING:
        energy = min(energy, smaller_addend(tensors_in(call.args), exact[0]) or energy)
    return call, exact, energy


def _on_some_rows(call: Call) -> Call:
    if call.args:
        return call._replace(args=(_some_rows(call.args[0]), *call.args[1:]))
    return call._replace(kwargs={**call.kwargs, "input": _some_rows(call.kwargs["input"])})


def _some_rows(rows: torch.Tensor) -> torch.Tensor:
    """A sample of rows, which are independent. The stride is odd, so that all positions of sequences occur."""
    if rows.dim() < 2:
        return rows
    flat = rows.flatten(0, -2)
    return flat[:: len(flat) // _ROWS | 1]


def _energy(values: torch.Tensor, less: torch.Tensor | None = None) -> float:
    """Sum of squares of the values, or of `values - less`; inf where one is not finite."""
    counted = Accumulator()
    counted.add(values) if less is None else counted.add_difference(values, less)
    stats = counted.stats()
    return math.inf if stats.nonfinite else stats.sum_squares


def smaller_addend(addends: list[torch.Tensor], total: torch.Tensor) -> float:
    """Sum of squares of the addend with the smallest rms, scaled to the size of the sum; 0 if it is all zero, or is a
    function of the other addend, or if the other one is a mask. A single number that is added to many, such as an eps,
    does not count."""
    parts = [t for t in addends if t.is_floating_point() and t.numel() > (total.numel() > 1)]
    ordered = sorted(parts, key=_mean_square)
    if len(parts) < 2 or _follows(ordered[0], ordered[-1]):
        return 0.0
    energy = _mean_square(ordered[0])
    return 0.0 if _masks(ordered[-1], energy**0.5) else energy * total.numel()


def _mean_square(tensor: torch.Tensor) -> float:
    return _energy(tensor) / tensor.numel()


def _follows(small: torch.Tensor, large: torch.Tensor) -> bool:
    """Whether the small addend is a smooth elementwise function of the large one, like the cube in a GELU, and so holds
    no information of its own: sorted by the large one, neighbours differ little in the small one."""
    if small.shape != large.shape or small.numel() < 64:
        return False
    generator = torch.Generator().manual_seed(0)
    some = torch.randint(small.numel(), (min(small.numel(), 1024),), generator=generator).to(small.device)
    values = small.flatten()[some][large.flatten()[some].argsort(stable=True)].double()
    spread = float(values.var())
    return spread > 0 and float(values.diff().square().mean()) < _ROUGH * spread


def _masks(addend: torch.Tensor, rms: float) -> bool:
    """Whether an addend makes some values vanish in a softmax, and leaves the others about as large as they are."""
    hidden = addend < -_HIDDEN * rms
    seen = addend[~hidden]
    return 0 < seen.numel() < addend.numel() and bool((seen.abs() <= _ALIKE * rms).all())


def _without_randomness(call: Call) -> list[torch.Tensor]:
    """The floating-point results; [] where the operation draws random numbers, whose state is restored."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else range(0)
    before = [torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in devices)]
    result = call()
    after = [torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in devices)]
    if all(map(torch.equal, before, after)):
        return floats_in(result)
    torch.set_rng_state(before[0])
    for device, state in zip(devices, before[1:], strict=True):
        torch.cuda.set_rng_state(state, device)
    return []


def _error(call: Call, name: str, exact: list[torch.Tensor]) -> float:
    """Sum of squares of the error in the format; inf where values become non-finite."""
    rounding = rounding_for(name, call.op)
    if rounding is None:
        return 0.0

    def as_stored(tensor: torch.Tensor) -> torch.Tensor:
        low = rounding.dtype in HALVES and tensor.dtype in CASTABLE and is_half(tensor)
        return tensor.to(rounding.dtype) if low else tensor

    low = floats_in(run_in_format(map_tensors(as_stored, call), rounding))
    return sum(map(_energy, low, exact))

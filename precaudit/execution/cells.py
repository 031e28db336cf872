"""Single recurrent cells (`nn.LSTMCell`, `nn.GRUCell`, `nn.RNNCell`) as torch computes them on CUDA in half precision:
both products are rounded, a fused kernel makes gates of them in float32, and the new state is rounded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from precaudit.execution.chains import Multiply
from precaudit.instrument.torch_function import Call

Enter = Callable[[Tensor], Tensor]


def cell(call: Call, multiply: Multiply, enter: Enter) -> Any:
    """The new state of a cell, to be rounded; None for any other operation. `multiply` gives a rounded product, `enter`
    a rounded tensor in float32."""
    run = _CELLS.get(call.op)
    return run(multiply, enter, *call.args, **call.kwargs) if run else None


def _lstm(multiply: Multiply, enter: Enter, input: Tensor, hx: tuple[Tensor, Tensor], *own: Any, **named: Any) -> Any:
    of_input, of_hidden = _products(multiply, enter, input, hx[0], *own, **named)
    i, f, g, o = (of_input + of_hidden).chunk(4, dim=-1)
    state = f.sigmoid() * enter(hx[1]) + i.sigmoid() * g.tanh()
    return o.sigmoid() * state.tanh(), state


def _gru(multiply: Multiply, enter: Enter, input: Tensor, hx: Tensor, *own: Any, **named: Any) -> Tensor:
    of_input, of_hidden = _products(multiply, enter, input, hx, *own, **named)
    (i_r, i_z, i_n), (h_r, h_z, h_n) = of_input.chunk(3, dim=-1), of_hidden.chunk(3, dim=-1)
    new = (i_n + (i_r + h_r).sigmoid() * h_n).tanh()
    return new + (i_z + h_z).sigmoid() * (enter(hx) - new)


def _products(
    multiply: Multiply,
    enter: Enter,
    input: Tensor,
    hidden: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
) -> list[Tensor]:
    """The two rounded products, to which the fused kernel adds the biases."""
    products = (multiply(linear, (input, w_ih)).float(), multiply(linear, (hidden, w_hh)).float())
    biases = (b_ih, b_hh)
    return [each if bias is None else each + enter(bias) for each, bias in zip(products, biases, strict=True)]


def _simple(activation: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    """A cell without a fused kernel: two layers, whose sum and activation are computed in half."""

    def run(
        multiply: Multiply,
        enter: Enter,
        input: Tensor,
        hx: Tensor,
        w_ih: Tensor,
        w_hh: Tensor,
        b_ih: Tensor | None = None,
        b_hh: Tensor | None = None,
    ) -> Tensor:
        return activation(multiply(linear, (hx, w_hh, b_hh)) + multiply(linear, (input, w_ih, b_ih)))

    return run


_CELLS: dict[str, Callable[..., Any]] = {
    "lstm_cell": _lstm,
    "gru_cell": _gru,
    "rnn_tanh_cell": _simple(torch.tanh),
    "rnn_relu_cell": _simple(torch.relu),
}

"""Operations taken apart into such as have rules: recurrence, attention, bags, broadcasting."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from noisescale.measure.objective.substitutes.bags import embedding_bag

Weights = Sequence[Tensor]  # W_ih, W_hh and, where there are biases, b_ih, b_hh
State = tuple[Tensor, ...]  # h, and c of an LSTM, each (B, H)
# (W_ih x_t, state, W_hh, b_hh) -> the next state
Cell = Callable[[Tensor, State, Tensor, Tensor | None], State]


class NotPlainError(Exception):
    """An operation is called in a form that is not taken apart, as with packed sequences."""


def lstm(
    input: Tensor,
    hx: Sequence[Tensor],
    params: Sequence[Tensor],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Tensor, ...]:
    """What `torch.lstm` returns: outputs, h_n and c_n."""
    if not isinstance(hx, list | tuple):
        raise NotPlainError
    outputs, states = _layers(
        _lstm_cell, input, hx, params, has_biases, num_layers, bidirectional, batch_first
    )
    return outputs, *states


def gru(
    input: Tensor,
    hx: Tensor,
    params: Sequence[Tensor],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
    *,
    cell: Cell | None = None,
) -> tuple[Tensor, Tensor]:
    """What `torch.gru` returns: outputs and h_n."""
    if not isinstance(params, list | tuple):
        raise NotPlainError
    outputs, (state,) = _layers(
        cell or _gru_cell, input, [hx], params, has_biases, num_layers, bidirectional, batch_first
    )
    return outputs, state


def _lstm_cell(of_input: Tensor, state: State, weight: Tensor, bias: Tensor | None) -> State:
    hidden, memory = state
    gates = of_input + F.linear(hidden, weight, bias)  # (B, 4·H)
    enter, keep, new, leave = gates.chunk(4, 1)
    memory = keep.sigmoid() * memory + enter.sigmoid() * new.tanh()
    return leave.sigmoid() * memory.tanh(), memory


def _gru_cell(of_input: Tensor, state: State, weight: Tensor, bias: Tensor | None) -> State:
    (hidden,) = state
    reset, update, new = of_input.chunk(3, 1)
    of_hidden = F.linear(hidden, weight, bias)  # (B, 3·H)
    reset_of_hidden, update_of_hidden, new_of_hidden = of_hidden.chunk(3, 1)
    keep = (update + update_of_hidden).sigmoid()
    candidate = (new + (reset + reset_of_hidden).sigmoid() * new_of_hidden).tanh()
    return ((1 - keep) * candidate + keep * hidden,)


def _elman_cell(
    activation: Callable[[Tensor], Tensor],
    of_input: Tensor,
    state: State,
    weight: Tensor,
    bias: Tensor | None,
) -> State:
    return (activation(of_input + F.linear(state[0], weight, bias)),)


def _layers(
    cell: Cell,
    input: Tensor,
    initial: Sequence[Tensor],
    params: Sequence[Tensor],
    has_biases: bool,
    num_layers: int,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Tensor, list[Tensor]]:
    """Outputs (as the input's layout) and final states (layers·directions, B, H)."""
    directions = 2 if bidirectional else 1
    size = 4 if has_biases else 2
    if input.ndim != 3 or len(params) != num_layers * directions * size:
        raise NotPlainError
    time = 1 if batch_first else 0
    final: list[State] = []
    for layer in range(num_layers):
        outputs = []
        for direction in range(directions):
            number = layer * directions + direction
            weights = params[number * size : (number + 1) * size]
            state = tuple(of_all[number] for of_all in initial)
            of_direction, state = _run(cell, input, state, weights, time, reverse=direction == 1)
            outputs.append(of_direction)
            final.append(state)
        input = torch.cat(outputs, 2) if directions == 2 else outputs[0]
    return input, [torch.stack(parts) for parts in zip(*final, strict=True)]


def _run(
    cell: Cell, input: Tensor, state: State, weights: Weights, time: int, *, reverse: bool
) -> tuple[Tensor, State]:
    """One layer in one direction over the steps along a dimension: outputs and the last state."""
    of_input, of_hidden, *biases = weights
    bias_of_input, bias_of_hidden = biases or (None, None)
    of_steps = F.linear(input, of_input, bias_of_input).unbind(time)
    outputs: list[Tensor] = []
    for of_step in reversed(of_steps) if reverse else of_steps:
        state = cell(of_step, state, of_hidden, bias_of_hidden)
        outputs.append(state[0])
    return torch.stack(outputs[::-1] if reverse else outputs, time), state


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """What `scaled_dot_product_attention` returns, with a bias that has a gradient."""
    if attn_mask is None or not attn_mask.requires_grad or dropout_p or is_causal or enable_gqa:
        raise NotPlainError
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    scores = (query * factor) @ key.mT + attn_mask  # (..., T, S)
    return scores.softmax(-1) @ value


def left_product(input: Tensor, other: Tensor) -> Tensor:
    """What `matmul` returns of a matrix and a batch of such, as queries that are parameters."""
    if input.ndim != 2 or other.ndim < 3 or not input.requires_grad:
        raise NotPlainError
    return input.expand(*other.shape[:-2], *input.shape) @ other


def rows(input: Tensor, index: Any) -> Tensor:
    """What `input[index]` returns of a matrix and whole numbers, as a table that is looked up."""
    is_list = isinstance(index, Tensor) and index.dtype == torch.int64 and index.ndim > 0
    if not is_list or input.ndim != 2:
        raise NotPlainError
    # an index beyond the rows is refused, as there
    return F.embedding(torch.where(index < 0, index + len(input), index), input)


def broadcast_to(input: Tensor, size: Sequence[int]) -> Tensor:
    """What `torch.broadcast_to` returns."""
    return input.expand(size)


def _spread(function: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
    """What an operation on corresponding entries returns, its arguments expanded to one shape.

    To expand has a rule, which is all that a parameter among the arguments needs.
    """
    given = [*args, *kwargs.values()]
    shapes = [value.shape for value in given if isinstance(value, Tensor)]
    whole = torch.broadcast_shapes(*shapes)
    if all(shape == whole for shape in shapes):
        raise NotPlainError

    def expanded(value: Any) -> Any:
        is_smaller = isinstance(value, Tensor) and value.shape != whole
        return value.expand(whole) if is_smaller and value.requires_grad else value

    return function(
        *(expanded(value) for value in args),
        **{name: expanded(value) for name, value in kwargs.items()},
    )


# Operations on corresponding entries, by the name of the tensor's method or of the function, that
# have no rule of their own
ENTRYWISE: dict[str, Callable[..., Tensor]] = {
    **{name: getattr(torch, name) for name in ("addcdiv", "addcmul", "atan2", "clamp", "div")},
    **{name: getattr(torch, name) for name in ("lerp", "max", "maximum", "min", "minimum", "pow")},
    **{name: getattr(Tensor, name) for name in ("div_", "mul_", "sub_")},
    "true_divide": torch.div,
}
# Of those that go step by step, by name
RECURRENT: dict[str, Callable[..., tuple[Tensor, ...]]] = {
    "lstm": lstm,
    "gru": gru,
    "rnn_tanh": partial(gru, cell=partial(_elman_cell, torch.tanh)),
    "rnn_relu": partial(gru, cell=partial(_elman_cell, torch.relu)),
}
# Of all of them
TAKEN_APART: dict[str, Callable[..., Any]] = RECURRENT | {
    "scaled_dot_product_attention": attention,
    "embedding_bag": embedding_bag,
    "matmul": left_product,
    "__matmul__": left_product,
    "__getitem__": rows,
    "broadcast_to": broadcast_to,
    **{name: partial(_spread, function) for name, function in ENTRYWISE.items()},
}

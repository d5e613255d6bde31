"""Recurrent layers, unrolled into products that ``Tracer`` sees: each step is a use of the recurrent weight.

Torch's fused functions hide their steps. The equations are those of torch's own documentation of LSTM, GRU and RNN.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from curvbench.uses.rules import rule
from curvbench.uses.tracer import Tracer, tensors_in

State = tuple[Tensor, ...]
Cell = Callable[[Tensor, State, Sequence[Tensor | None]], State]


def _lstm(gates: Tensor, state: State, weights: Sequence[Tensor | None]) -> State:
    h, c = state
    i, f, g, o = (gates + _recurrent(h, weights)).chunk(4, -1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    h = o.sigmoid() * c.tanh()
    projection = weights[4]
    return (h if projection is None else F.linear(h, projection)), c


def _gru(gates: Tensor, state: State, weights: Sequence[Tensor | None]) -> State:
    (h,) = state
    r, z, n = gates.chunk(3, -1)
    own_r, own_z, own_n = _recurrent(h, weights).chunk(3, -1)
    z = (z + own_z).sigmoid()
    return ((1 - z) * (n + (r + own_r).sigmoid() * own_n).tanh() + z * h,)


def _simple(activation: Callable[[Tensor], Tensor]) -> Cell:
    return lambda gates, state, weights: (activation(gates + _recurrent(state[0], weights)),)


def _recurrent(h: Tensor, weights: Sequence[Tensor | None]) -> Tensor:
    assert weights[1] is not None
    return F.linear(h, weights[1], weights[3])


CELLS: dict[str, Cell] = {"lstm": _lstm, "gru": _gru, "rnn_tanh": _simple(torch.tanh), "rnn_relu": _simple(torch.relu)}


def _run(cell: Cell, x: Tensor, sizes: Sequence[int], state: State, weights: Sequence[Any], backward: bool) -> Any:
    """One direction of one layer over packed rows; ``sizes`` are the numbers of sequences that reach each step."""
    gates = F.linear(x, weights[0], weights[2]).split(list(sizes))
    state, start = tuple(s.clone() for s in state), tuple(s for s in state)
    outputs: list[Tensor] = [x] * len(sizes)
    if backward:
        state = tuple(s[: sizes[-1]] for s in state)
    for step in reversed(range(len(sizes))) if backward else range(len(sizes)):
        size, present = sizes[step], len(state[0])
        if backward and size > present:
            state = tuple(torch.cat([s, s0[present:size]]) for s, s0 in zip(state, start, strict=True))
        active = cell(gates[step], tuple(s[:size] for s in state), weights)
        state = tuple(
            torch.cat([new, s[size:]]) if len(s) > size else new for new, s in zip(active, state, strict=True)
        )
        outputs[step] = active[0]
    return torch.cat(outputs), state


def _layers(
    cell: Cell, x: Tensor, sizes: Sequence[int], states: State, weights: Sequence[Any], layers: int, directions: int
) -> tuple[Tensor, State]:
    """All layers over packed rows; ``states``: (layers x directions, sequences, features) each."""
    per = len(weights) // (layers * directions)
    finals = []
    for layer in range(layers):
        outputs = []
        for direction in range(directions):
            index = layer * directions + direction
            own = _weights(weights[index * per : (index + 1) * per])
            state = tuple(s[index] for s in states)
            output, final = _run(cell, x, sizes, state, own, direction == 1)
            outputs.append(output)
            finals.append(final)
        x = torch.cat(outputs, -1) if directions == 2 else outputs[0]
    return x, tuple(torch.stack(parts) for parts in zip(*finals, strict=True))


def _weights(flat: Sequence[Tensor]) -> list[Tensor | None]:
    """Input and recurrent weight, their biases, and the projection; None for what there is not."""
    if len(flat) in (2, 3):
        return [flat[0], flat[1], None, None, flat[2] if len(flat) == 3 else None]
    return [*flat[:4], flat[4] if len(flat) == 5 else None]


def _unrolled(name: str) -> Callable[..., Any]:
    cell = CELLS[name]

    def unroll(t: Tracer, _: Any, input: Tensor, second: Any, third: Any, *others: Any) -> Any:
        """All steps of a recurrent layer, by one of torch's two signatures.

        They are (x, hx, weights, biases, layers, dropout, train, bidirectional, batch_first) and, packed, (rows, sizes,
        hx, weights, biases, layers, dropout, train, bidirectional).
        """
        is_packed = isinstance(second, Tensor) and second.dtype == torch.int64
        hx, weights = (third, others[0]) if is_packed else (second, third)
        rest = others[1:] if is_packed else others
        _, layers, dropout, train, bidirectional = rest[:5]
        if not any(t.weight(w) is not None for w in tensors_in((weights,))) or (train and dropout):
            return NotImplemented
        states = tuple(hx) if isinstance(hx, (tuple, list)) else (hx,)
        with t:
            if is_packed:
                output, final = _layers(cell, input, second.tolist(), states, weights, layers, 1 + bidirectional)
            else:
                steps = input.transpose(0, 1) if rest[5] else input
                count, samples = steps.shape[:2]
                flat = steps.reshape(count * samples, -1)
                output, final = _layers(cell, flat, [samples] * count, states, weights, layers, 1 + bidirectional)
                output = output.reshape(count, samples, -1)
                output = output.transpose(0, 1) if rest[5] else output
        return output, *final

    return unroll


for _name in CELLS:
    rule(getattr(torch, _name))(_unrolled(_name))


def _one_step(name: str) -> Callable[..., Any]:
    cell = CELLS[name]

    def step(
        t: Tracer, _: Any, input: Tensor, hx: Any, w_ih: Tensor, w_hh: Tensor, b_ih: Any = None, b_hh: Any = None
    ) -> Any:
        """A cell applied once."""
        if not any(t.weight(w) is not None for w in (w_ih, w_hh, b_ih, b_hh)) or input.ndim != 2:
            return NotImplemented
        states = tuple(hx) if isinstance(hx, (tuple, list)) else (hx,)
        with t:
            state = cell(F.linear(input, w_ih, b_ih), states, [w_ih, w_hh, b_ih, b_hh, None])
        return state if len(state) > 1 else state[0]

    return step


for _name in CELLS:
    rule(getattr(torch, f"{_name}_cell"))(_one_step(_name))

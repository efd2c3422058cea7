"""Recurrent layers, step by step: torch's own know neither the order of the gates nor half of the options."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from onnxprune.errors import ModelError
from onnxprune.training.operators.node import Binder, Node, Run

Function = Callable[[Tensor], Tensor]
State = tuple[Tensor, ...]
DEFAULTS = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh"), "RNN": ("Tanh",)}
SLOPES = {"Affine": (1.0, 0.0), "Elu": (1.0, 0.0), "HardSigmoid": (0.2, 0.5), "LeakyRelu": (0.01, 0.0)}
SLOPES |= {"ScaledTanh": (1.0, 1.0), "ThresholdedRelu": (1.0, 0.0)}
"""alpha and beta by default, of those activations that have any."""


def _function(name: str, alpha: float, beta: float, clip: float | None) -> Function:
    """Return an activation; what goes into it is clipped before."""
    known: dict[str, Function] = {
        "affine": lambda x: alpha * x + beta,
        "elu": lambda x: functional.elu(x, alpha),
        "hardsigmoid": lambda x: torch.clamp(alpha * x + beta, 0.0, 1.0),
        "leakyrelu": lambda x: functional.leaky_relu(x, alpha),
        "relu": torch.relu,
        "scaledtanh": lambda x: alpha * torch.tanh(beta * x),
        "sigmoid": torch.sigmoid,
        "softplus": functional.softplus,
        "softsign": functional.softsign,
        "tanh": torch.tanh,
        "thresholdedrelu": lambda x: functional.threshold(x, alpha, 0.0),
    }
    function = known[name.lower()]
    return function if clip is None else lambda x: function(torch.clamp(x, -clip, clip))


def _activations(node: Node, directions: int) -> list[list[Function]]:
    """Return the activations of each direction; alphas and betas are given only for those that have any."""
    names = list(node.attr("activations") or DEFAULTS[node.op] * directions)
    unknown = [
        name
        for name in names
        if name.lower() not in {n.lower() for n in (*SLOPES, *DEFAULTS["LSTM"], "Relu", "Softsign", "Softplus")}
    ]
    if unknown:
        raise ModelError(
            f"{node.op} has no function in torch", where=node.label, why=f"its activation {unknown[0]} is not known"
        )
    given = [iter(node.attr(f"activation_{which}") or ()) for which in ("alpha", "beta")]
    folded = {name.lower(): slopes for name, slopes in SLOPES.items()}
    found = []
    for name in names:
        default = folded.get(name.lower())
        slopes = [next(values, d) for values, d in zip(given, default, strict=True)] if default else [0.0, 0.0]
        found.append(_function(name, slopes[0], slopes[1], node.attr("clip")))
    each = len(found) // directions
    return [found[d * each : (d + 1) * each] for d in range(directions)]


@dataclass(frozen=True)
class Cell:
    """One direction of a layer: what a step does, from the product with its input and the state before it to the state after.

    Attributes:
        functions: activations.
        recurrent: (gates * hidden, hidden).
        bias: of the recurrent product, (gates * hidden,), or None.
        peepholes: (3 * hidden,) of an LSTM, or None.
        couple: whether the forget gate of an LSTM is one minus its input gate.
        late: whether a GRU resets after the recurrent product.
    """

    functions: Sequence[Function]
    recurrent: Tensor
    bias: Tensor | None
    peepholes: Tensor | None = None
    couple: bool = False
    late: bool = False

    def lstm(self, x: Tensor, state: State) -> State:
        """Gates in the order input, output, forget, cell."""
        h, c = state
        i, o, f, g = functional.linear(h, self.recurrent, self.bias).add(x).chunk(4, 1)
        gate, candidate, out = self.functions
        if self.peepholes is not None:
            pi, po, pf = self.peepholes.chunk(3)
            i, f = i + pi * c, f + pf * c
        i = gate(i)
        c = (1 - i if self.couple else gate(f)) * c + i * candidate(g)
        o = gate(o if self.peepholes is None else o + po * c)
        return o * out(c), c

    def gru(self, x: Tensor, state: State) -> State:
        """Gates in the order update, reset, hidden."""
        (h,) = state
        gate, candidate = self.functions
        size = h.shape[1]
        zr = functional.linear(h, self.recurrent[: 2 * size], None if self.bias is None else self.bias[: 2 * size])
        z, r = gate(zr + x[:, : 2 * size]).chunk(2, 1)
        own, bias = self.recurrent[2 * size :], None if self.bias is None else self.bias[2 * size :]
        n = r * functional.linear(h, own, bias) if self.late else functional.linear(r * h, own, bias)
        n = candidate(x[:, 2 * size :] + n)
        return ((1 - z) * n + z * h,)

    def rnn(self, x: Tensor, state: State) -> State:
        """One gate."""
        return (self.functions[0](functional.linear(state[0], self.recurrent, self.bias) + x),)


def recurrent(node: Node) -> Run:
    """One direction or two; lengths, peepholes, clipping and both layouts."""
    hidden, direction = int(node.attr("hidden_size")), node.attr("direction", "forward")
    directions = 2 if direction == "bidirectional" else 1
    functions = _activations(node, directions)
    batch_first, lstm = bool(node.attr("layout", 0)), node.op == "LSTM"

    def run(x: Tensor, w: Tensor, r: Tensor, *rest: Tensor | None) -> Sequence[Tensor]:
        bias, lengths, first, cells, peepholes = (*rest, *[None] * 5)[:5]
        x = x.transpose(0, 1) if batch_first else x
        wholes, lasts = [], []
        for d in range(directions):
            b = None if bias is None else bias[d].chunk(2)
            cell = Cell(
                functions[d],
                r[d],
                None if b is None else b[1],
                None if peepholes is None else peepholes[d],
                bool(node.attr("input_forget", 0)),
                bool(node.attr("linear_before_reset", 0)),
            )
            state = tuple(
                x.new_zeros(x.shape[1], hidden) if given is None else given[:, d] if batch_first else given[d]
                for given in ((first, cells) if lstm else (first,))
            )
            step = {"LSTM": cell.lstm, "GRU": cell.gru, "RNN": cell.rnn}[node.op]
            products = functional.linear(x, w[d], None if b is None else b[0])
            whole, last = _steps(step, products, state, lengths, backwards=d == 1 or direction == "reverse")
            wholes.append(whole)
            lasts.append(last)
        y = torch.stack(wholes, 2 if batch_first else 1)
        states = [torch.stack(parts, 1 if batch_first else 0) for parts in zip(*lasts, strict=True)]
        return (y, *states) if not batch_first else (y.transpose(0, 1), *states)

    return run


def _steps(
    step: Callable[[Tensor, State], State], x: Tensor, state: State, lengths: Tensor | None, backwards: bool
) -> tuple[Tensor, State]:
    """Return the hidden states (time, batch, hidden), zero beyond each sequence's length, and the last state."""
    found: list[Tensor] = []
    times = range(x.shape[0])
    for t in reversed(times) if backwards else times:
        new = step(x[t], state)
        if lengths is None:
            state, out = new, new[0]
        else:
            within = (t < lengths).unsqueeze(1)
            state = tuple(torch.where(within, a, b) for a, b in zip(new, state, strict=True))
            out = torch.where(within, new[0], torch.zeros_like(new[0]))
        found.append(out)
    return torch.stack(found[::-1] if backwards else found), state


BINDERS: dict[str, Binder] = dict.fromkeys(("GRU", "LSTM", "RNN"), recurrent)

"""Recurrent layers: whole hidden units with all their gates."""

from __future__ import annotations

import math

import numpy as np

from onnxprune.graph.ids import Ids, on_axis
from onnxprune.graph.rule_context import RuleContext, lane

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
W, R, B, LENGTHS, H0, C0, P = range(1, 8)
"""Inputs: weights, recurrent weights, biases, lengths of the sequences, initial states, peepholes."""


def recurrent(ctx: RuleContext) -> list[Ids]:
    """Reads channels and writes hidden units, deleted with all gates and in both directions; initial states are tied.

    The recurrent weight writes the units and reads them. Gates, cell and peepholes of a unit read no other unit, so
    that activations, `clip`, `input_forget` and `linear_before_reset` do not matter. W is (directions, gates x hidden,
    inputs), R (directions, gates x hidden, hidden), B (directions, 2 x gates x hidden), P (directions, 3 x hidden).
    With either `layout`, the last axis of sequences and states holds the units.
    """
    gates = GATES[ctx.op]
    units = ctx.mint(ctx.shape(R)[2])
    computed = [i for i in (W, R, B, P) if ctx.has(i) and ctx.const(i) is None]
    for i, reads in ((W, lane(ctx, 0, 2)), (R, units)):
        if i in computed:
            ctx.pin(reads, f"a weight of this {ctx.op} is not a constant")
            continue
        ctx.slice(i, 1, np.tile(units, gates), "writes")
        ctx.slice(i, 2, reads, "reads")
        ctx.work(i, math.prod(ctx.shape(0)[:2]))
    for i, repeats in ((B, 2 * gates), (P, 3)):
        if ctx.const(i) is not None:
            ctx.slice(i, 1, np.tile(units, repeats), "follows")
    if computed:
        ctx.pin(units, f"a weight of this {ctx.op} is not a constant")
    for i in (H0, C0):
        if ctx.const(i) is not None:
            ctx.slice(i, 2, units, "follows")
        elif ctx.has(i):
            ctx.tie(units, lane(ctx, i, 2), f"an initial state of this {ctx.op} is an input of the model, or pinned")
    ctx.refuse(f"{ctx.op} takes a weight or the lengths of sequences from the channel", (*computed, LENGTHS))
    ctx.count("hidden_size", units)
    return [on_axis(units, 3, 4), *(on_axis(units, 2, 3) for _ in range(2))]

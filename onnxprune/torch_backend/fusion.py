"""Fusion of nodes into one function of torch.

Exporters decompose some layers: SiLU becomes a sigmoid and a product, GELU five nodes, a linear layer a product and a sum. In torch each
node keeps its input for the gradient, so that the decomposed layer is slower than the fused one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import onnx_graphsurgeon as gs
from torch.nn import functional

from onnxprune.torch_backend.operators import Run

Found = tuple[list[gs.Node], list[gs.Tensor], Run]
"""Fused nodes, inputs of the fusion, and its function."""
CLOSE = 1e-6


def fusions(graph: gs.Graph) -> Iterator[tuple[list[int], list[gs.Tensor], Run]]:
    """Yield the ascending numbers of fused nodes, whose last one gives the result, the inputs of the fusion, and its function.

    No inner tensor of a fusion is an output or is read by another node.
    """
    numbers = {id(node): n for n, node in enumerate(graph.nodes)}
    results = {value.name for value in graph.outputs}
    taken: set[int] = set()
    for node in reversed(graph.nodes):
        for pattern in PATTERNS.get(node.op, ()):
            found = pattern(node)
            if found is None:
                continue
            nodes, inputs, run = found
            parts = sorted(numbers[id(part)] for part in nodes)
            inner = [value for part in nodes if part is not node for value in part.outputs]
            members = {id(part) for part in nodes}
            closed = all(value.name not in results and all(id(r) in members for r in value.outputs) for value in inner)
            if closed and not taken.intersection(parts):
                taken.update(parts)
                yield parts, inputs, run
                break


def silu(node: gs.Node) -> Found | None:
    """Match x Sigmoid(x)."""
    return _gated(node, "Sigmoid", functional.silu)


def hard_swish(node: gs.Node) -> Found | None:
    """Match x HardSigmoid(x) with the slope and offset of torch."""
    found = _gated(node, "HardSigmoid", functional.hardswish)
    gate = found[0][0].attrs if found else {}
    return found if abs(gate.get("alpha", 0.2) - 1 / 6) < CLOSE and gate.get("beta", 0.5) == 0.5 else None


def _gated(node: gs.Node, op: str, run: Run) -> Found | None:
    for x, other in _both(node):
        gate = _maker(other, op)
        if gate is not None and gate.inputs[0] is x:
            return [gate, node], [x], run
    return None


def gelu(node: gs.Node) -> Found | None:
    """Match x (1 + Erf(x / sqrt 2)) / 2, with its factors in any order."""
    nodes, factors = [node], list(node.inputs)
    for i in (0, 1):
        inner = _maker(factors[i], "Mul")
        if inner is not None:
            nodes, factors = [inner, node], [factors[1 - i], *inner.inputs]
            break
    halves = [f for f in factors if _number(f) == 0.5]
    sums = [f for f in factors if _maker(f, "Add") is not None]
    if len(factors) != 3 or len(halves) != 1 or not sums:
        return None
    for total in sums:
        add = total.inputs[0]
        x = next(f for f in factors if f is not halves[0] and f is not total)
        for one, value in _both(add):
            erf = _maker(value, "Erf")
            scaled = None if erf is None else erf.inputs[0]
            if erf is None or _number(one) != 1 or not isinstance(scaled, gs.Variable) or len(scaled.inputs) != 1:
                continue
            root = scaled.inputs[0]
            factor = {"Div": math.sqrt(2), "Mul": math.sqrt(0.5)}.get(root.op, math.nan)
            number = _number(root.inputs[1]) if root.op in ("Div", "Mul") else None
            if root.inputs[0] is x and number is not None and abs(number - factor) < CLOSE:
                return [root, erf, add, *nodes], [x], functional.gelu
    return None


def linear(node: gs.Node) -> Found | None:
    """Match x W + b with constants W and b."""
    for bias, product in _both(node):
        matmul = _maker(product, "MatMul")
        if matmul is None or not isinstance(bias, gs.Constant) or not isinstance(matmul.inputs[1], gs.Constant):
            continue
        weight = matmul.inputs[1]
        if len(weight.shape) == 2 and tuple(bias.shape) == (weight.shape[1],):
            return [matmul, node], [*matmul.inputs, bias], lambda x, w, b: functional.linear(x, w.t(), b)
    return None


def _both(node: gs.Node) -> Iterator[tuple[gs.Tensor, gs.Tensor]]:
    """Yield the two inputs of a node, in both orders."""
    if len(node.inputs) == 2:
        yield node.inputs[0], node.inputs[1]
        yield node.inputs[1], node.inputs[0]


def _maker(tensor: gs.Tensor, op: str) -> gs.Node | None:
    """Return the node that computes a tensor, if it has this operator."""
    found = tensor.inputs[0] if isinstance(tensor, gs.Variable) and tensor.inputs else None
    return found if found is not None and found.op == op and not found.domain else None


def _number(tensor: gs.Tensor) -> float | None:
    """Return the value of a constant with one element."""
    single = isinstance(tensor, gs.Constant) and math.prod(tensor.shape) == 1
    return float(np.asarray(tensor.values).reshape(())) if single else None


PATTERNS = {"Add": (linear,), "Mul": (silu, hard_swish, gelu)}
"""Patterns by operator of the last node."""

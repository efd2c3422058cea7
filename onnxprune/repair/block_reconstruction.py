"""Block reconstruction: the layers of a chain are fitted together to the output of the last of them in the original.

A layer that is fitted alone restores its surviving channels to their old values. With fewer channels between two layers
these values need not be the old ones, only those that serve the layers behind best. So all layers up to a target tensor
are fitted to it,

    min over changes D of all layers of |f(W + D) - Y|^2 + lambda |D|^2

with f the function of the chain, by the method of Gauss and Newton: with the slopes of all activations fixed, f is
linear in D, so each turn is a linear least squares problem. The target is that of Li et al., 2021, "BRECQ: Pushing the
Limit of Post-Training Quantization by Block Reconstruction", section 3.2; here by least squares, as in
`onnxprune.repair.least_squares`, without labels, learning rates or schedule. The linear problems are solved by
conjugate gradients (Hestenes and Stiefel, 1952), preconditioned by the covariance of each layer's input and by the
sensitivity of the target to each of its outputs. Turns are judged on held-out samples, and end where the error on these
stops falling.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.calibration.capture import LayerwiseRunner
from onnxprune.graph.linear import Norm
from onnxprune.graph.operators import spec_of
from onnxprune.graph.readers import linear_of
from onnxprune.graph.saturation import Flat
from onnxprune.repair.layer_chain import STEPS, LayerChain
from onnxprune.repair.layer_map import Change, LayerMap
from onnxprune.runtime.session import ALTERNATING, open_session, run_batch
from onnxprune.types import Array, BoolArray, FloatArray

if TYPE_CHECKING:
    import onnxruntime as ort


Changes = dict[int, Change]
LEAST_GAIN = 5e-3
"""Share of the held-out error that a turn must remove; otherwise it is the last one."""
PENALTIES = (1e-3, 1e-2, 1e-1, 1.0)
"""Ridge penalties, as shares of the mean variance of a feature; the next one is tried where a turn gains nothing."""
SHARES = (1.0, 0.5, 0.25)
"""Step lengths along the changes of a turn; the first that gains something is taken."""
SLOPE = 1e-3
"""Half the distance over which the slope of an activation is measured, as a share of the spread of its input."""
EXACT = 1e-10
"""Error that counts as zero, as a share of the mean square of the target."""
TINY = 1e-12


def fit(
    chain: LayerChain, stream: LayerwiseRunner, flat: Flat, train: Samples, held: Samples, turns: int, seed: int = 0
) -> tuple[float, float]:
    """Fit the layers of a chain in at most `turns` turns; write weights that lower the error on the held-out samples.

    `flat` are the bounds beyond which no reader distinguishes values of the target; `seed` is of the random signs by
    which the sensitivity of the target to each output is estimated.

    Returns:
        The mean squared error of a held-out sample, before and after.
    """
    rng = np.random.default_rng(seed)
    fitted, judged = Linearized(chain, stream, flat, train), Linearized(chain, stream, flat, held)
    best = at_first = judged.error()
    penalties = list(PENALTIES)
    nothing = EXACT * float(np.square(held.wanted, dtype=np.float64).sum()) / len(held.wanted)
    if not np.isfinite(best):
        return best, best
    for _ in range(turns):
        if not best > nothing:
            break
        start = {n: layer.effective() for n, layer in chain.layers.items()}
        with np.errstate(over="ignore", invalid="ignore"):
            changes = fitted.turn(penalties[0], rng)
        for share in SHARES:
            _write(chain, {n: (start[n][0] + share * d, start[n][1] + share * s) for n, (d, s) in changes.items()})
            gain = 1 - judged.error() / best
            if gain > 0:
                best *= 1 - gain
                break
        else:
            _write(chain, start)
        if not gain > LEAST_GAIN:
            penalties.pop(0)
            if gain > 0 or not penalties:
                break
    return at_first, best


def _write(chain: LayerChain, weights: Mapping[int, Change]) -> None:
    for n, (matrix, bias) in weights.items():
        layer = chain.layers[n]
        layer.write(matrix, bias if layer.has_bias else None)


@dataclass(frozen=True)
class Samples:
    """Inputs of a chain, by name, and its target; samples on the first axis."""

    taken: Mapping[str, Array]
    wanted: Array


def joined(parts: list[Samples]) -> Samples:
    """Concatenate samples."""
    taken = {name: np.concatenate([part.taken[name] for part in parts]) for name in parts[0].taken}
    return Samples(taken, np.concatenate([part.wanted for part in parts]))


class Linearized:
    """A chain, linearized at its weights on some samples: the derivative by the weights, and its transpose."""

    def __init__(self, chain: LayerChain, stream: LayerwiseRunner, flat: Flat, samples: Samples) -> None:
        self.chain, self.stream, self.flat, self.samples = chain, stream, flat, samples
        self.made = {t.name for n in chain.nodes for t in stream.nodes[n].outputs if t.name}
        self.layers: dict[int, LayerMap] = {}
        self.values: dict[str, Array] = {}
        self.slopes: dict[int, Array] = {}

    def error(self) -> float:
        """Return the mean squared error of a sample with the current weights, errors on flat parts excluded."""
        missed, _ = self._missed(self._run([self.chain.target])[0])
        return float(np.einsum("n,n->", missed.ravel(), missed.ravel(), dtype=np.float64)) / len(missed)

    def turn(self, penalty: float, rng: np.random.Generator) -> Changes:
        """Return the best changes of all layers for fixed slopes, by preconditioned conjugate gradients."""
        missed = self.observe()
        signs = rng.choice(np.array([-1, 1], np.float32), missed.shape)
        preconditioners = {n: _Preconditioner(self.layers[n], rows, penalty) for n, rows in self._pulled(signs).items()}
        left = self.backward(missed)
        solution = {n: (np.zeros_like(d), np.zeros_like(s)) for n, (d, s) in left.items()}
        ahead = {n: preconditioners[n](change) for n, change in left.items()}
        along, power = ahead, _dot(left, ahead)
        for _ in range(STEPS):
            if not power > 0:
                break
            image = self.backward(self.forward(along))
            curved = {n: preconditioners[n].ridged(image[n], along[n]) for n in along}
            curvature = _dot(along, curved)
            if not curvature > 0:
                break
            solution = _plus(solution, power / curvature, along)
            left = _plus(left, -power / curvature, curved)
            ahead = {n: preconditioners[n](change) for n, change in left.items()}
            old, power = power, _dot(left, ahead)
            along = _plus(ahead, power / old, along)
        return {n: self.layers[n].unshifted(change) for n, change in solution.items()}

    def _run(self, names: list[str]) -> list[Array]:
        taken = self.samples.taken
        return run_batch(self._session(self.chain.nodes, taken, names), dict(taken), names=names)

    def _session(
        self, nodes: Sequence[int], inputs: Mapping[str, Array], outputs: Sequence[str]
    ) -> ort.InferenceSession:
        proto, weights = self.stream.model.part(nodes, inputs, outputs)
        return open_session(proto, ALTERNATING, weights=weights)

    def _missed(self, given: Array) -> tuple[Array, BoolArray]:
        """Return target less output, 0 where both lie on the same flat part, and a mask of the other elements."""
        (low, high), wanted = self.flat, self.samples.wanted
        counts = ~(((wanted <= low) & (given <= low)) | ((wanted >= high) & (given >= high)))
        return np.where(counts, wanted.astype(np.float32) - given, np.float32(0)), counts

    def observe(self) -> Array:
        """Run the chain with the current weights, measure all slopes, and return target less output."""
        names = sorted(self.made)
        self.values = {**self.samples.taken, **dict(zip(names, self._run(names), strict=True))}
        missed, self.counts = self._missed(self.values[self.chain.target])
        for n in self.chain.nodes:
            node, name = self.stream.nodes[n], self.stream.inputs[n][0]
            x, y = self.values[name], self.values[node.outputs[0].name]
            layer = self.chain.layers.get(n) or linear_of(node)
            if layer is not None and not isinstance(layer, Norm):
                if n not in self.layers:
                    self.layers[n] = LayerMap(layer, x, y)
                self.layers[n].look(x, rows=n in self.chain.layers)
            elif spec_of(node).chain == "elementwise" and name in self.made:
                self.slopes[n] = self._slope(n, name, x)
        return missed

    def _slope(self, n: int, name: str, x: Array) -> Array:
        step = x.dtype.type(max(SLOPE, float(np.finfo(x.dtype).eps) ** 0.5) * max(float(x.std()), TINY))
        out = self.stream.nodes[n].outputs[0].name
        opened = self._session([n], {name: x}, [out])
        up, down = (run_batch(opened, {name: x + s})[0].astype(np.float32) for s in (step, -step))
        return np.asarray((up - down) / np.float32(2 * step))

    def forward(self, changes: Changes) -> Array:
        """Return the change of the target for changes of weights."""
        moved: dict[str, Array] = {}
        for n in self.chain.nodes:
            node, names = self.stream.nodes[n], self.stream.inputs[n]
            name = node.outputs[0].name
            parts = {p: moved[p] for p in names if p in moved}
            if n in self.layers:
                terms = [self.layers[n].forward(part) for part in parts.values()]
                if n in changes:
                    terms.append(self.layers[n].changed(changes[n]))
                if terms:
                    moved[name] = sum(terms[1:], terms[0])
            elif parts:
                moved[name] = self._passed(n, parts)
        return np.where(self.counts, moved[self.chain.target], np.float32(0))

    def _passed(self, n: int, parts: Mapping[str, Array]) -> Array:
        node = self.stream.nodes[n]
        shape = self.values[node.outputs[0].name].shape
        one = next(iter(parts.values()))
        if n in self.slopes:
            return one * self.slopes[n]
        role = spec_of(node).chain
        if role == "sum":
            return np.broadcast_to(sum(parts[t.name] for t in node.inputs if t.name in parts), shape)
        if role == "product":
            a, b = node.inputs
            return np.asarray(sum(parts[p.name] * self._value(q) for p, q in ((a, b), (b, a)) if p.name in parts))
        if role == "mean":
            one = one.mean(axis=tuple(range(2, one.ndim)))
        return np.asarray(one.reshape(shape))

    def backward(self, given: Array) -> Changes:
        """Return the transpose of `forward`."""
        return {n: self.layers[n].products(rows) for n, rows in self._pulled(given).items()}

    def _pulled(self, given: Array) -> dict[int, Array]:
        """Return the transposed derivative by the output of each fitted layer, applied to `given`, as rows."""
        pulled: dict[str, Array] = {self.chain.target: np.where(self.counts, given, np.float32(0))}
        result: dict[int, Array] = {}
        for n in reversed(self.chain.nodes):
            node = self.stream.nodes[n]
            back = pulled.pop(node.outputs[0].name, None)
            if back is None:
                continue
            if n in self.chain.layers:
                result[n] = self.layers[n].rows_of(back)
            for i, tensor in enumerate(node.inputs):
                if tensor.name in self.made:
                    part = self._returned(n, i, back)
                    pulled[tensor.name] = pulled[tensor.name] + part if tensor.name in pulled else part
        return result

    def _returned(self, n: int, i: int, back: Array) -> Array:
        node = self.stream.nodes[n]
        x = self.values[node.inputs[i].name]
        if n in self.layers:
            return self.layers[n].backward(back)
        if n in self.slopes:
            return back * self.slopes[n]
        role = spec_of(node).chain
        if role == "sum":
            return _summed(back, x.shape)
        if role == "product":
            return _summed(back * self._value(node.inputs[1 - i]), x.shape)
        if role == "mean":
            size = math.prod(x.shape[2:])
            return np.broadcast_to(back.reshape(*x.shape[:2], *(1,) * (x.ndim - 2)) / np.float32(size), x.shape)
        return back.reshape(x.shape)

    def _value(self, tensor: Any) -> Array:
        value = tensor.values if isinstance(tensor, gs.Constant) else self.values[tensor.name]
        return np.asarray(value, dtype=np.float32)


def _summed(values: Array, shape: tuple[int, ...]) -> Array:
    """Return the transpose of broadcasting from a shape: the sum over the broadcast axes."""
    axes = tuple(a for a, (one, two) in enumerate(zip(values.shape, shape, strict=True)) if one != two)
    return values.sum(axis=axes, keepdims=True) if axes else values


def _dot(u: Changes, v: Changes) -> float:
    return sum(float((a * b).sum()) for n in u for a, b in zip(u[n], v[n], strict=True))


def _plus(u: Changes, factor: float, v: Changes) -> Changes:
    return {n: (u[n][0] + factor * v[n][0], u[n][1] + factor * v[n][1]) for n in u}


def _solver(matrix: FloatArray) -> Callable[[Array], FloatArray]:
    """Return a function that multiplies by the inverse of a symmetric matrix."""
    from scipy.linalg import cho_factor, cho_solve

    try:
        factor = cho_factor(matrix, check_finite=False)
    except np.linalg.LinAlgError:  # rounding of float32 products made an eigenvalue negative
        return np.linalg.inv(matrix).__matmul__
    return lambda right: np.asarray(cho_solve(factor, right, check_finite=False))


class _Preconditioner:
    """Inverse input covariance times inverse output sensitivity of a layer."""

    def __init__(self, layer: LayerMap, signed: Array, penalty: float) -> None:
        moved = np.square(signed, dtype=np.float64).sum(
            axis=1
        )  # of the target by each output, estimated by random signs
        self.weight: FloatArray = np.maximum(moved, TINY + 1e-6 * moved.max())
        self.x, (_, n, features) = layer.x, layer.x.shape
        self.is_dual = n < features  # the matrix of the rows is smaller than that of the features
        turned = np.swapaxes(layer.x, 1, 2)
        gram = (layer.x @ turned if self.is_dual else turned @ layer.x).astype(np.float64) / n
        self.added: FloatArray = penalty * np.einsum("gff->g", gram) / features + TINY
        index = np.arange(gram.shape[1])
        gram[:, index, index] += self.added[:, None]
        self.solve = [_solver(part) for part in gram]
        self.ridge = self.weight * self.added[:, None], self.weight * penalty

    def __call__(self, change: Change) -> Change:
        matrix = change[0]
        if self.is_dual:  # Woodbury: inv(X'X / n + a) = (1 - X' inv(XX' / n + a) X / n) / a
            taken = self._solved(matrix @ np.swapaxes(self.x, 1, 2)) @ self.x
            matrix = (matrix - taken / self.x.shape[1]) / self.added[:, None, None]
        else:
            matrix = self._solved(matrix)
        return matrix / self.weight[:, :, None], change[1] / self.weight

    def _solved(self, rows: Array) -> FloatArray:
        return np.stack([solve(part.T).T for solve, part in zip(self.solve, rows, strict=True)])

    def ridged(self, image: Change, change: Change) -> Change:
        """Return the image of a change with the term of the ridge added."""
        matrix, bias = self.ridge
        return image[0] + matrix[:, :, None] * change[0], image[1] + bias * change[1]

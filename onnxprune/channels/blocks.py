"""Several layers fitted together to what the last of them gave in the original.

A layer that is fitted by itself gives its survivors back what they were. But with fewer channels between two layers these need not be
what they were, only what the layers behind make most of. So the layers up to some tensor are fitted to what that was,

    min over changes D of all layers of |f(W + D) - Y|^2 + lambda |D|^2,

f being what they give together. That is solved by turns (the method of Gauss and Newton): with the slopes of all activations fixed, what
changes move is linear in them, so each turn is a linear least squares problem. Aiming at what a block of layers gives, not each layer, is
the reconstruction of Li et al., 2021, "BRECQ: Pushing the Limit of Post-Training Quantization by Block Reconstruction", section 3.2; here
by least squares, as in `onnxprune.pruning.repair`, with no labels, no rates and no schedule. The unknowns are too many to be solved for
directly, so that is done by conjugate gradients (Hestenes and Stiefel, 1952), preconditioned by the covariance of what each layer sees and by
what its outputs move. Turns are judged on samples held out, and end where these gain nothing.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import helper

from onnxprune.capture import Stream
from onnxprune.channels.flat import Flat
from onnxprune.channels.linear import Conv, Linear, Norm, Product, linear_of
from onnxprune.runtime.session import ALTERNATING, open_session, run_batch
from onnxprune.types import BoolArray, FloatArray

if TYPE_CHECKING:
    import onnxruntime as ort

Array = np.ndarray[Any, Any]
Change = tuple[Array, Array]
"""Of a matrix, (groups, outputs, features), and of a bias, (groups, outputs)."""
Changes = dict[int, Change]
ELEMENTWISE = frozenset({
    "BatchNormalization", "Clip", "Elu", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Relu", "Selu", "Sigmoid", "Softplus", "Tanh",
})  # fmt: skip
SUMS = frozenset({"Add", "Sum"})
POOLS = frozenset({"GlobalAveragePool", "ReduceMean"})
STEPS = 6
"""Steps of conjugate gradients in each turn."""
LEAST_GAIN = 5e-3
"""Share of the error held out that a turn has to take away, or it is the last one."""
PENALTIES = (1e-3, 1e-2, 1e-1, 1.0)
"""Shares of the mean variance of a feature; the next one is tried where a turn gains nothing."""
SHARES = (1.0, 0.5, 0.25)
"""How far a turn goes along the changes that it finds: the first that gains something."""
SLOPE = 1e-3
"""Half the distance over which the slope of an activation is measured, as a share of the spread of what it takes."""
EXACT = 1e-10
"""Error that is none, as a share of the square of what is wanted."""
TINY = 1e-12


@dataclass(frozen=True)
class Block:
    """A part of a network.

    Attributes:
        nodes: what depends on its layers, up to the target, in order.
        layers: those to fit, by node.
        taken: tensors that come from outside.
        target: what it gives.
        work: multiply-accumulates that a turn takes, for one sample.
        bytes: memory that it takes.
    """

    nodes: tuple[int, ...]
    layers: Mapping[int, Linear]
    taken: tuple[str, ...]
    target: str
    work: float
    bytes: float


def block_of(
    stream: Stream,
    node: int,
    target: str,
    layers: Mapping[int, Linear],
    free: Collection[int],
    shapes: Mapping[str, tuple[int, ...]],
    depth: int,
) -> Block | None:
    """Return the layers, up to some number, that lead to a tensor and to nothing else, as far as all between them can be linearised.

    Args:
        stream: of the model; nothing that depends on the target has run.
        node: the layer that gives the target, by itself or with a sum.
        target: the tensor.
        layers: all that are linear, by node.
        free: those that may change.
        shapes: of all tensors, with the samples on the first axis.
        depth: number of layers, at most.
    """
    before = stream.ancestors([target])
    found = None
    chosen = [node]
    for n in sorted((n for n in before if n in layers and n < node and n in free), reverse=True):
        if len(chosen) >= depth:
            break
        trial = [n, *chosen]
        behind = _behind(stream, trial)
        inside = [m for m in behind if m in before]
        made = {t.name for m in inside for t in stream.nodes[m].outputs}
        seen = {name for m in behind if m not in before for name in stream.inputs[m]} | stream.results
        if not seen.isdisjoint(made - {target}):
            break  # something else sees what would change, and not for its good
        if not all(_is_known(stream, m, layers, shapes) for m in inside) or not all(_is_free(layers[m]) for m in trial):
            break
        chosen = trial
        taken = sorted({name for m in inside for name in stream.inputs[m]} - made)
        found = Block(
            tuple(inside), {m: layers[m] for m in chosen}, tuple(taken), target, *_cost(stream, inside, layers, shapes)
        )
    return found


def _cost(
    stream: Stream, nodes: list[int], layers: Mapping[int, Linear], shapes: Mapping[str, tuple[int, ...]]
) -> tuple[float, float]:
    """Return the multiply-accumulates of a turn, and the bytes it takes, for one sample."""
    macs = size = 0.0
    for n in nodes:
        elements = math.prod(shapes[stream.nodes[n].outputs[0].name][1:])
        size += 8 * elements  # the value, its slope, what moves and what comes back
        if n in layers:
            _, outputs, features = layers[n].effective()[0].shape
            macs += elements * features
            size += elements / outputs * features
    return 4 * (STEPS + 2) * macs, 4 * size  # with the weights and with their change, each there and back


def _behind(stream: Stream, nodes: list[int]) -> list[int]:
    """Return some nodes and all that depend on them."""
    reached: set[str] = set()
    found = []
    for n in range(min(nodes), len(stream.nodes)):
        if n in nodes or not reached.isdisjoint(stream.inputs[n]):
            found.append(n)
            reached |= {t.name for t in stream.nodes[n].outputs if t.name}
    return found


def _is_free(layer: Linear) -> bool:
    """Tell whether a layer may be fitted in a block: its bias, if any, is its own, and its factors are not those of a BatchNormalization."""
    return not isinstance(layer, Norm) and not (isinstance(layer, Product) and layer.adds)


def _is_known(stream: Stream, n: int, layers: Mapping[int, Linear], shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Tell whether a node can be linearised, sample by sample."""
    node = stream.nodes[n]
    names = [*stream.inputs[n], node.outputs[0].name]
    if any(len(shapes.get(name, ())) < 2 for name in names) or len({shapes[name][0] for name in names}) > 1:
        return False
    x, y = shapes[names[0]], shapes[names[-1]]
    if n in layers:
        return layers[n].channel_axis % len(y) != 0
    if node.op in POOLS:
        return y[1] == x[1] and math.prod(y) == x[0] * x[1]
    if node.op == "Reshape":
        shape = node.inputs[1]
        return isinstance(shape, gs.Constant) and shape.values.flat[0] in (0, -1)
    if node.op == "Flatten":
        return int(node.attrs.get("axis", 1)) == 1
    if node.op in SUMS or node.op == "Mul":
        return len({len(shapes[name]) for name in names}) == 1
    return node.op in ELEMENTWISE and len(stream.inputs[n]) == 1


def fit(
    block: Block, stream: Stream, flat: Flat, train: Samples, held: Samples, turns: int, seed: int = 0
) -> tuple[float, float]:
    """Fit the layers of a block and write them, as far as that predicts the samples held out better.

    Args:
        block: the layers.
        stream: of the model.
        flat: bounds beyond which the target does not count.
        train: samples to fit.
        held: samples to judge by.
        turns: how many, at most.
        seed: of the signs by which it is estimated what each output moves.

    Returns:
        The squared error of a sample held out, on average, before and after.
    """
    rng = np.random.default_rng(seed)
    fitted, judged = _Linearised(block, stream, flat, train), _Linearised(block, stream, flat, held)
    best = at_first = judged.error()
    penalties = list(PENALTIES)
    nothing = EXACT * float(np.square(held.wanted, dtype=np.float64).sum()) / len(held.wanted)
    if not np.isfinite(best):
        return best, best
    for _ in range(turns):
        if not best > nothing:
            break
        start = {n: layer.effective() for n, layer in block.layers.items()}
        with np.errstate(over="ignore", invalid="ignore"):
            changes = fitted.turn(penalties[0], rng)
        for share in SHARES:
            _write(block, {n: (start[n][0] + share * d, start[n][1] + share * s) for n, (d, s) in changes.items()})
            gain = 1 - judged.error() / best
            if gain > 0:
                best *= 1 - gain
                break
        else:
            _write(block, start)
        if not gain > LEAST_GAIN:
            penalties.pop(0)
            if gain > 0 or not penalties:
                break
    return at_first, best


def _write(block: Block, weights: Mapping[int, Change]) -> None:
    for n, (matrix, bias) in weights.items():
        layer = block.layers[n]
        layer.write(matrix, bias if layer.has_bias else None)


@dataclass(frozen=True)
class Samples:
    """What a block takes, by name, and what it is to give."""

    taken: Mapping[str, Array]
    wanted: Array


def joined(parts: list[Samples]) -> Samples:
    """Put samples together."""
    taken = {name: np.concatenate([part.taken[name] for part in parts]) for name in parts[0].taken}
    return Samples(taken, np.concatenate([part.wanted for part in parts]))


class _Linearised:
    """A block near some weights, on some samples: what changes of its layers move, and the transpose of that."""

    def __init__(self, block: Block, stream: Stream, flat: Flat, samples: Samples) -> None:
        self.block, self.stream, self.flat, self.samples = block, stream, flat, samples
        self.made = {t.name for n in block.nodes for t in stream.nodes[n].outputs if t.name}
        self.layers: dict[int, _Layer] = {}
        self.values: dict[str, Array] = {}
        self.slopes: dict[int, Array] = {}

    def error(self) -> float:
        """Return the mean squared error of a sample with the weights as they are, what is cut off not counting."""
        missed, _ = self._missed(self._run([self.block.target])[0])
        return float(np.einsum("n,n->", missed.ravel(), missed.ravel(), dtype=np.float64)) / len(missed)

    def turn(self, penalty: float, rng: np.random.Generator) -> Changes:
        """Return the changes of all layers that are best as far as slopes stay as they are."""
        missed = self._look()
        signs = rng.choice(np.array([-1, 1], np.float32), missed.shape)
        eases = {n: _Ease(self.layers[n], rows, penalty) for n, rows in self._pulled(signs).items()}
        left = self._backward(missed)
        solution = {n: (np.zeros_like(d), np.zeros_like(s)) for n, (d, s) in left.items()}
        ahead = {n: eases[n](change) for n, change in left.items()}
        along, power = ahead, _dot(left, ahead)
        for _ in range(STEPS):
            if not power > 0:
                break
            image = self._backward(self._forward(along))
            curved = {n: eases[n].ridged(image[n], along[n]) for n in along}
            curvature = _dot(along, curved)
            if not curvature > 0:
                break
            solution = _plus(solution, power / curvature, along)
            left = _plus(left, -power / curvature, curved)
            ahead = {n: eases[n](change) for n, change in left.items()}
            old, power = power, _dot(left, ahead)
            along = _plus(ahead, power / old, along)
        return {n: self.layers[n].unshifted(change) for n, change in solution.items()}

    def _run(self, names: list[str]) -> list[Array]:
        taken = self.samples.taken
        kinds = {name: (value.dtype, value.ndim) for name, value in taken.items()}
        return run_batch(self._session(self.block.nodes, kinds, names), dict(taken), names=names)

    def _session(
        self, nodes: Sequence[int], inputs: Mapping[str, tuple[np.dtype[Any], int]], outputs: Sequence[str]
    ) -> ort.InferenceSession:
        proto, weights = self.stream.model.part(nodes, inputs, outputs)
        return open_session(proto, ALTERNATING, weights=weights)

    def _missed(self, given: Array) -> tuple[Array, BoolArray]:
        """Return what is wanted less what is given, 0 where both lie on a flat part, and where they do not."""
        (low, high), wanted = self.flat, self.samples.wanted
        counts = ~(((wanted <= low) & (given <= low)) | ((wanted >= high) & (given >= high)))
        return np.where(counts, wanted.astype(np.float32) - given, np.float32(0)), counts

    def _look(self) -> Array:
        """Look at everything with the weights as they are; return what is missed."""
        names = sorted(self.made)
        self.values = {**self.samples.taken, **dict(zip(names, self._run(names), strict=True))}
        missed, self.counts = self._missed(self.values[self.block.target])
        for n in self.block.nodes:
            node, name = self.stream.nodes[n], self.stream.inputs[n][0]
            x, y = self.values[name], self.values[node.outputs[0].name]
            layer = self.block.layers.get(n) or linear_of(node)
            if layer is not None and not isinstance(layer, Norm):
                if n not in self.layers:
                    self.layers[n] = _Layer(layer, x, y)
                self.layers[n].look(x, rows=n in self.block.layers)
            elif node.op in ELEMENTWISE and name in self.made:
                self.slopes[n] = self._slope(n, name, x)
        return missed

    def _slope(self, n: int, name: str, x: Array) -> Array:
        step = x.dtype.type(max(SLOPE, float(np.finfo(x.dtype).eps) ** 0.5) * max(float(x.std()), TINY))
        out = self.stream.nodes[n].outputs[0].name
        opened = self._session([n], {name: (x.dtype, x.ndim)}, [out])
        up, down = (run_batch(opened, {name: x + s})[0].astype(np.float32) for s in (step, -step))
        return np.asarray((up - down) / np.float32(2 * step))

    def _forward(self, changes: Changes) -> Array:
        """Return what some changes move."""
        moved: dict[str, Array] = {}
        for n in self.block.nodes:
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
        return np.where(self.counts, moved[self.block.target], np.float32(0))

    def _passed(self, n: int, parts: Mapping[str, Array]) -> Array:
        node = self.stream.nodes[n]
        shape = self.values[node.outputs[0].name].shape
        one = next(iter(parts.values()))
        if n in self.slopes:
            return one * self.slopes[n]
        if node.op in SUMS:
            return np.broadcast_to(sum(parts[t.name] for t in node.inputs if t.name in parts), shape)
        if node.op == "Mul":
            a, b = node.inputs
            return np.asarray(sum(parts[p.name] * self._value(q) for p, q in ((a, b), (b, a)) if p.name in parts))
        if node.op in POOLS:
            one = one.mean(axis=tuple(range(2, one.ndim)))
        return np.asarray(one.reshape(shape))

    def _backward(self, given: Array) -> Changes:
        """Return the transpose of `_forward`."""
        return {n: self.layers[n].products(rows) for n, rows in self._pulled(given).items()}

    def _pulled(self, given: Array) -> dict[int, Array]:
        """Return what comes back to the outputs of the layers that are fitted, as rows."""
        pulled: dict[str, Array] = {self.block.target: np.where(self.counts, given, np.float32(0))}
        result: dict[int, Array] = {}
        for n in reversed(self.block.nodes):
            node = self.stream.nodes[n]
            back = pulled.pop(node.outputs[0].name, None)
            if back is None:
                continue
            if n in self.block.layers:
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
        if node.op in SUMS:
            return _summed(back, x.shape)
        if node.op == "Mul":
            return _summed(back * self._value(node.inputs[1 - i]), x.shape)
        if node.op in POOLS:
            size = math.prod(x.shape[2:])
            return np.broadcast_to(back.reshape(*x.shape[:2], *(1,) * (x.ndim - 2)) / np.float32(size), x.shape)
        return back.reshape(x.shape)

    def _value(self, tensor: Any) -> Array:
        value = tensor.values if isinstance(tensor, gs.Constant) else self.values[tensor.name]
        return np.asarray(value, dtype=np.float32)


def _summed(values: Array, shape: tuple[int, ...]) -> Array:
    """Return the transpose of broadcasting from a shape."""
    axes = tuple(a for a, (one, two) in enumerate(zip(values.shape, shape, strict=True)) if one != two)
    return values.sum(axis=axes, keepdims=True) if axes else values


def _dot(u: Changes, v: Changes) -> float:
    return sum(float((a * b).sum()) for n in u for a, b in zip(u[n], v[n], strict=True))


def _plus(u: Changes, factor: float, v: Changes) -> Changes:
    return {n: (u[n][0] + factor * v[n][0], u[n][1] + factor * v[n][1]) for n in u}


class _Ease:
    """What makes the unknowns of a layer alike: an estimate of the inverse of their squares."""

    def __init__(self, layer: _Layer, signed: Array, penalty: float) -> None:
        moved = (signed.astype(np.float64) ** 2).sum(
            axis=1
        )  # random signs: of each output, what it moves of the target
        self.weight: FloatArray = np.maximum(moved, TINY + 1e-6 * moved.max())
        covariance = (np.swapaxes(layer.x, 1, 2) @ layer.x).astype(np.float64) / layer.x.shape[1]
        features = covariance.shape[1]
        ridge = penalty * np.einsum("gff->g", covariance) / features + TINY
        self.inverse = np.linalg.inv(covariance + ridge[:, None, None] * np.eye(features))
        self.ridge = self.weight * ridge[:, None], self.weight * penalty

    def __call__(self, change: Change) -> Change:
        return change[0] @ self.inverse / self.weight[:, :, None], change[1] / self.weight

    def ridged(self, image: Change, change: Change) -> Change:
        matrix, bias = self.ridge
        return image[0] + matrix[:, :, None] * change[0], image[1] + bias * change[1]


class _Layer:
    """One layer on all positions of some samples."""

    def __init__(self, layer: Linear, x: Array, y: Array) -> None:
        self.layer, self.shape = layer, y.shape
        self.every = np.arange(layer.positions(y))
        self.fast = _Convolution.of(layer, x.shape, y.shape)
        size = math.prod(x.shape[1:])
        index = layer.rows(np.arange(1.0, size + 1).reshape(1, *x.shape[1:]), self.every[: self.every.size // len(x)])
        self.index = index.astype(np.int64)  # where each feature of a row comes from in its sample; 0: from the padding
        self.x_shape = x.shape
        self.sources: Array | None = None

    def look(self, x: Array, *, rows: bool) -> None:
        """Take the weights as they are, and the input; as rows, too, where the layer is to be fitted."""
        self.matrix = self.layer.effective()[0].astype(np.float32)
        self.input = x
        if rows:
            self.x = self._gathered(x)
            self.mean = self.x.mean(axis=1, keepdims=True)
            if not self.layer.has_bias:
                self.mean = np.zeros_like(self.mean)
            self.x -= self.mean

    def forward(self, moved: Array) -> Array:
        """Return what the layer makes of a change of its input."""
        if self.fast is not None:
            return self.fast.forward(moved, self.matrix)
        return self._laid(self._gathered(moved) @ np.swapaxes(self.matrix, 1, 2))

    def changed(self, change: Change) -> Array:
        """Return what a change of the layer makes of its input."""
        if self.fast is not None:
            matrix, bias = self.unshifted(change)
            return self.fast.forward(self.input, matrix) + bias.reshape(-1, *(1,) * (len(self.shape) - 2)).astype(
                np.float32
            )
        matrix, bias = (part.astype(np.float32) for part in change)
        return self._laid(self.x @ np.swapaxes(matrix, 1, 2) + bias[:, None])

    def unshifted(self, change: Change) -> Change:
        """Return a change for rows as they are, of one for rows less their mean."""
        matrix, bias = change
        return matrix, bias - np.einsum("gof,gf->go", matrix, self.mean[:, 0])

    def rows_of(self, back: Array) -> Array:
        """Return an output as rows."""
        return self.layer.outputs(back, self.every)

    def products(self, rows: Array) -> Change:
        """Return the transpose of `changed`."""
        shift = rows.sum(axis=1, dtype=np.float64) if self.layer.has_bias else np.zeros((len(rows), rows.shape[2]))
        return (np.swapaxes(rows, 1, 2) @ self.x).astype(np.float64), shift

    def backward(self, back: Array) -> Array:
        """Return the transpose of `forward`."""
        if self.fast is not None:
            return self.fast.backward(back, self.matrix)
        return self._scattered(self.rows_of(back) @ self.matrix)

    def _laid(self, rows: Array) -> Array:
        axis = self.layer.channel_axis % len(self.shape)
        rest = [size for a, size in enumerate(self.shape) if a != axis]
        return np.ascontiguousarray(np.moveaxis(rows.swapaxes(0, 1).reshape(*rest, -1), -1, axis))

    def _gathered(self, x: Array) -> Array:
        n = len(x)
        flat = np.zeros((n, 1 + x.size // n), np.float32)
        flat[:, 1:] = x.reshape(n, -1)
        _, positions, features = self.index.shape
        return np.stack([flat.take(part.ravel(), axis=1).reshape(n * positions, features) for part in self.index])

    def _scattered(self, rows: Array) -> Array:
        """Return the transpose of `_gathered`: every element gets the sum over the rows that it is in."""
        groups, positions, features = self.index.shape
        n = rows.shape[1] // positions
        if self.sources is None:
            size = math.prod(self.x_shape[1:])
            flat = self.index.ravel()
            order = np.argsort(flat, kind="stable")[np.count_nonzero(flat == 0) :]
            counts = np.bincount(flat[order], minlength=size + 1)[1:]
            slot = np.arange(order.size) - np.repeat(np.cumsum(counts) - counts, counts)
            self.sources = np.zeros((max(1, counts.max()), size), dtype=np.int64)
            self.sources[slot, flat[order] - 1] = order + 1
        spread = np.zeros((n, groups * positions * features + 1), np.float32)
        spread[:, 1:].reshape(n, groups, -1)[:] = rows.reshape(groups, n, -1).swapaxes(0, 1)
        result = spread.take(self.sources[0], axis=1)
        for source in self.sources[1:]:
            result += spread.take(source, axis=1)
        return np.asarray(result.reshape(n, *self.x_shape[1:]))


class _Convolution:
    """A Conv and its transpose with weights for an input, run by onnxruntime: several times faster than by rows."""

    def __init__(self, layer: Conv, attributes: dict[str, Any], rest: list[int]) -> None:
        self.layer = layer
        self.opened = _session("Conv", attributes), _session("ConvTranspose", {**attributes, "output_padding": rest})

    @classmethod
    def of(cls, layer: Linear, x: tuple[int, ...], y: tuple[int, ...]) -> _Convolution | None:
        """Return one for a layer with these shapes, if it is a plain Conv."""
        if not isinstance(layer, Conv) or layer.transposed or isinstance(layer.pads, str):
            return None
        kernel, strides, dilations, pads = layer.kernel, layer.strides, layer.dilations, layer.pads
        rest = []
        for a, size in enumerate(x[2:]):
            span = strides[a] * (y[2 + a] - 1) + (kernel[a] - 1) * dilations[a] + 1
            rest.append(size - span + pads[a] + pads[a + len(kernel)])
        if not all(0 <= size < stride for size, stride in zip(rest, strides, strict=True)):
            return None
        attributes = {"kernel_shape": kernel, "strides": strides, "dilations": dilations, "pads": pads}
        return cls(layer, {**{k: [int(v) for v in vs] for k, vs in attributes.items()}, "group": layer.groups}, rest)

    def forward(self, x: Array, matrix: Array) -> Array:
        """Return the Conv of x."""
        return self._run(0, x, matrix)

    def backward(self, y: Array, matrix: Array) -> Array:
        """Return the transpose of that for y."""
        return self._run(1, y, matrix)

    def _run(self, which: int, value: Array, matrix: Array) -> Array:
        weight = self.layer.unmatrix(matrix)
        feeds = {name: np.ascontiguousarray(part, np.float32) for name, part in (("x", value), ("w", weight))}
        result: Array = run_batch(self.opened[which], feeds)[0]
        return result


def _session(op: str, attributes: dict[str, Any]) -> Any:
    rank = len(attributes["strides"]) + 2
    x, w, y = (helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [None] * rank) for name in ("x", "w", "y"))
    graph = helper.make_graph([helper.make_node(op, ["x", "w"], ["y"], **attributes)], "layer", [x, w], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    return open_session(model, ALTERNATING)

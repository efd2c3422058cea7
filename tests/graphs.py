"""Small ONNX models for tests: a builder, a hypothesis strategy of random valid graphs, and random plans."""

from __future__ import annotations

import functools
import hashlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import onnx
import onnx.printer
from hypothesis import HealthCheck, Phase, note, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from onnxprune.data.dataset import Data
from onnxprune.graph import io
from onnxprune.graph.model import Model
from onnxprune.graph.shapes import light
from onnxprune.graph.signature import Signature, derive
from onnxprune.runtime.session import Feeds, open_session
from onnxprune.types import BoolArray, Trace

DRAWN = settings(
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)
"""For properties of drawn models: the same ones each time, however long they take."""
THOROUGH = settings(
    DRAWN,
    print_blob=True,
    max_examples=150,
    phases=(Phase.explicit, Phase.generate, Phase.shrink),
)
"""For the properties on which a pruned model depends most: more models, and how to draw a failing one again."""

T = TypeVar("T")
Array = npt.NDArray[Any]
OPSETS = (17, 18, 11, 13, 21)
MOST_CHANNELS = 24
"""No tensor grows wider than this."""


def batches_of(data: Data, size: int) -> list[Feeds]:
    """Return all samples in batches, as the model takes them."""
    return [data.rows(start, min(start + size, len(data))) for start in range(0, len(data), size)]


def signature_of(proto: onnx.ModelProto) -> Signature:
    """Return the axes of samples of a model, and input shapes that run."""
    stored = {tensor.name for tensor in proto.graph.initializer}
    inputs = [value for value in proto.graph.input if value.name not in stored]
    header = onnx.ModelProto(graph=onnx.GraphProto(input=inputs, output=proto.graph.output))
    return derive(light(proto), header, lambda: open_session(proto))


class Builder:
    """Grow a graph node by node. Every activation has the batch on axis 0; `shapes` holds the other axes.

    Attributes:
        live: feature maps of shape (channels, height, width) that a next step may use; the newest is last.
    """

    def __init__(self, shape: Sequence[int] = (3, 8, 8), *, opset: int = 17, batch: int | str = "batch", seed: int = 0):
        self.opset, self.batch = opset, batch
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, onnx.TensorProto] = {}
        self.shapes: dict[str, tuple[int, ...]] = {"x": tuple(shape)}
        self.live = ["x"]

    # ------------------------------------------------------------------------------------------------------ parts

    def const(self, value: Any, stem: str = "c") -> str:
        """Store a constant; return its name."""
        name = f"{stem}{len(self.weights)}"
        self.weights[name] = numpy_helper.from_array(np.asarray(value), name)
        return name

    def ints(self, *values: int) -> str:
        """Store a list of int64; return its name."""
        return self.const(np.array(values, dtype=np.int64), "i")

    def normal(self, *shape: int, scale: float = 1.0, stem: str = "w") -> str:
        """Store random float32 numbers; return their name."""
        return self.const((scale * self.rng.standard_normal(shape)).astype(np.float32), stem)

    def node(
        self,
        op: str,
        inputs: Sequence[str],
        shape: Sequence[int] | None = None,
        *,
        name: str | None = None,
        **attributes: Any,
    ) -> str:
        """Add a node with one output, of the shape of its first input unless `shape` says otherwise."""
        return self.nodes_out(
            op, inputs, [self.shapes[inputs[0]] if shape is None else shape], name=name, **attributes
        )[0]

    def nodes_out(
        self, op: str, inputs: Sequence[str], shapes: Sequence[Sequence[int]], *, name: str | None = None, **attrs: Any
    ) -> list[str]:
        """Add a node with one output per shape; return their names."""
        name = name or f"{op}_{len(self.nodes)}"
        outputs = [f"{name}:{i}" if i else f"{name}_out" for i in range(len(shapes))]
        self.nodes.append(helper.make_node(op, list(inputs), outputs, name=name, **attrs))
        for output, shape in zip(outputs, shapes, strict=True):
            self.shapes[output] = tuple(int(size) for size in shape)
        return outputs

    def channels(self, x: str) -> int:
        """Return the number of channels of a feature map."""
        return self.shapes[x][0]

    # ----------------------------------------------------------------------------------------------------- layers

    def conv(
        self,
        x: str,
        out: int,
        kernel: int = 1,
        *,
        stride: int = 1,
        dilation: int = 1,
        pad: int | None = None,
        group: int = 1,
        bias: bool = True,
        name: str | None = None,
        weight: str | None = None,
    ) -> str:
        """Conv; `pad` None keeps the size (at stride 1)."""
        channels, *spatial = self.shapes[x]
        reach = dilation * (kernel - 1)
        pad = reach // 2 if pad is None else pad
        size = [(n + 2 * pad - reach - 1) // stride + 1 for n in spatial]
        fan_in = channels // group * kernel**2
        inputs = [x, weight or self.normal(out, channels // group, kernel, kernel, scale=fan_in**-0.5)]
        if bias:
            inputs.append(self.normal(out, scale=0.5, stem="b"))
        return self.node(
            "Conv", inputs, (out, *size), name=name, kernel_shape=[kernel] * 2, strides=[stride] * 2,
            dilations=[dilation] * 2, pads=[pad] * 4, group=group,
        )  # fmt: skip

    def depthwise(
        self, x: str, kernel: int = 3, multiplier: int = 1, *, bias: bool = True, name: str | None = None
    ) -> str:
        """Conv with one group per channel."""
        channels = self.channels(x)
        return self.conv(x, channels * multiplier, kernel, group=channels, bias=bias, name=name)

    def batchnorm(self, x: str, name: str | None = None) -> str:
        """BatchNormalization in inference mode."""
        n = self.channels(x)
        scale = self.const(self.rng.uniform(0.5, 1.5, n).astype(np.float32), "scale")
        variance = self.const(self.rng.uniform(0.5, 1.5, n).astype(np.float32), "var")
        inputs = [x, scale, self.normal(n, scale=0.3), self.normal(n, scale=0.3), variance]
        return self.node("BatchNormalization", inputs, name=name)

    def global_pool(self, x: str) -> str:
        """GlobalAveragePool."""
        return self.node("GlobalAveragePool", [x], (self.channels(x), 1, 1))

    def reduce_mean(self, x: str, axes: Sequence[int], keepdims: bool = True, op: str = "ReduceMean") -> str:
        """Mean over axes (the batch is axis 0)."""
        kept = [1 if i + 1 in axes else n for i, n in enumerate(self.shapes[x]) if keepdims or i + 1 not in axes]
        if self.opset >= 18:
            return self.node(op, [x, self.ints(*axes)], kept, keepdims=int(keepdims))
        return self.node(op, [x], kept, axes=list(axes), keepdims=int(keepdims))

    def pool(self, x: str, op: str, kernel: int, stride: int = 1, pad: int = 0) -> str:
        """MaxPool or AveragePool."""
        channels, *spatial = self.shapes[x]
        size = [(n + 2 * pad - kernel) // stride + 1 for n in spatial]
        return self.node(op, [x], (channels, *size), kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[pad] * 4)

    def concat(self, parts: Sequence[str]) -> str:
        """Concat on channels."""
        return self.node("Concat", parts, (sum(self.channels(p) for p in parts), *self.shapes[parts[0]][1:]), axis=1)

    def squeeze_excite(self, x: str, hidden: int, *, mean: bool = False, gate: str = "Sigmoid") -> str:
        """Scale each channel by a gate computed from the means of all."""
        squeezed = self.reduce_mean(x, (2, 3)) if mean else self.global_pool(x)
        hidden_out = self.node("Relu", [self.conv(squeezed, hidden)])
        return self.node("Mul", [x, self.node(gate, [self.conv(hidden_out, self.channels(x))])])

    def pad(self, x: str, begin: Sequence[int], end: Sequence[int], mode: str = "constant", value: float = 0.0) -> str:
        """Pad channels, height and width."""
        shape = [n + a + b for n, a, b in zip(self.shapes[x], begin, end, strict=True)]
        inputs = [x, self.ints(0, *begin, 0, *end)]
        if mode == "constant":
            inputs.append(self.const(np.float32(value)))
        return self.node("Pad", inputs, shape, mode=mode)

    def split(self, x: str, sizes: Sequence[int], explicit: bool = True) -> list[str]:
        """Split on channels; without `explicit` sizes are left out, and must be equal."""
        shapes = [(n, *self.shapes[x][1:]) for n in sizes]
        if explicit and self.opset >= 13:
            return self.nodes_out("Split", [x, self.ints(*sizes)], shapes, axis=1)
        attributes = {"num_outputs": len(sizes)} if self.opset >= 18 else {"split": list(sizes)} if explicit else {}
        return self.nodes_out("Split", [x], shapes, axis=1, **attributes)

    def slice(self, x: str, start: int, end: int, step: int = 1, axis: int = 1) -> str:
        """Slice channels; bounds as in Python, `axis` 1 or -3."""
        n = len(range(*slice(start, end, step).indices(self.channels(x))))
        inputs = [x, self.ints(start), self.ints(end), self.ints(axis), self.ints(step)]
        return self.node("Slice", inputs if step != 1 else inputs[:4], (n, *self.shapes[x][1:]))

    def gather(self, x: str, index: Sequence[int]) -> str:
        """Gather channels."""
        return self.node("Gather", [x, self.ints(*index)], (len(index), *self.shapes[x][1:]), axis=1)

    def reshape(self, x: str, target: Sequence[int], shape: Sequence[int], **attributes: Any) -> str:
        """Reshape to the literal `target`, which gives `shape` (without the batch)."""
        return self.node("Reshape", [x, self.ints(*target)], shape, **attributes)

    def shuffle(self, x: str, groups: int, batch: int = 0) -> str:
        """Channel shuffle: Reshape, Transpose, Reshape; `batch` is the literal of the first axis, 0 or -1."""
        channels, h, w = self.shapes[x]
        part = channels // groups
        wide = self.reshape(x, (batch, groups, part, h, w), (groups, part, h, w))
        turned = self.node("Transpose", [wide], (part, groups, h, w), perm=[0, 2, 1, 3, 4])
        return self.reshape(turned, (batch, channels, h, w), (channels, h, w))

    def gemm(self, x: str, out: int, *, trans_b: bool = True, bias: bool = True, name: str | None = None) -> str:
        """Gemm on (batch, features)."""
        (n,) = self.shapes[x]
        inputs = [x, self.normal(*((out, n) if trans_b else (n, out)), scale=n**-0.5)]
        if bias:
            inputs.append(self.normal(out, scale=0.5, stem="b"))
        return self.node("Gemm", inputs, (out,), name=name, transB=int(trans_b))

    def flatten(self, x: str) -> str:
        """Flatten all but the batch."""
        return self.node("Flatten", [x], (int(np.prod(self.shapes[x])),))

    # ------------------------------------------------------------------------------------------------------ model

    def build(self, *outputs: str, keep_dead: bool = False) -> onnx.ModelProto:
        """Return the model; nodes that no output needs are left out unless `keep_dead`."""
        needed = set(outputs)
        nodes = []
        for node in reversed(self.nodes):
            if keep_dead or needed & set(node.output):
                needed |= set(node.input)
                nodes.append(node)
        infos = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, [self.batch, *self.shapes[name]])
            for name in ("x", *outputs)
        ]
        graph = helper.make_graph(
            nodes[::-1], "test", infos[:1], infos[1:], [w for name, w in self.weights.items() if name in needed]
        )
        return helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8 if self.opset < 21 else 10
        )


# ------------------------------------------------------------------------------------------------------------- models


@functools.cache
def folder() -> tempfile.TemporaryDirectory[str]:
    """Return a folder that is there until the tests end."""
    return tempfile.TemporaryDirectory(prefix="onnxprune-tests-")


def load(proto: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]] | None = None) -> Model:
    """Write a model to a file of its own, and load it; `shapes` are those of the inputs."""
    content = proto.SerializeToString()
    path = Path(folder().name) / f"{hashlib.sha256(content).hexdigest()[:16]}.onnx"
    path.write_bytes(content)
    return io.load(path, shapes)


def as_half(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Turn the float32 weights, inputs and outputs of a model into float16, in place; return the model."""
    for tensor in proto.graph.initializer:
        value = numpy_helper.to_array(tensor)
        if value.dtype == np.float32:
            tensor.CopyFrom(numpy_helper.from_array(value.astype(np.float16), tensor.name))
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    return proto


def random_plan(trace: Trace, seed: int, ratio: float) -> BoolArray:
    """Return a random keep mask: pinned channels stay, and so does one channel at least of each extent."""
    rng = np.random.default_rng(seed)
    keep = trace.pinned | (rng.random(trace.n_channels) >= ratio)
    for extent in trace.extents:
        if not keep[extent].any():
            keep[rng.choice(extent)] = True
    return keep


# ------------------------------------------------------------------------------------------------------- random graphs


@dataclass(frozen=True)
class Picker:
    """Draw choices; the first of several is what hypothesis shrinks to."""

    draw: Callable[[Any], Any]

    def of(self, choices: Sequence[T]) -> T:
        """Draw one of `choices`."""
        result: T = self.draw(st.sampled_from(choices))
        return result

    def int(self, low: int, high: int) -> int:
        """Draw an integer, both ends included."""
        return int(self.draw(st.integers(low, high)))

    def flag(self) -> bool:
        """Draw a boolean."""
        return bool(self.draw(st.booleans()))


Step = Callable[[Builder, Picker, str], str]
"""Add nodes that use a feature map; return the new one."""


def _conv(b: Builder, pick: Picker, x: str) -> str:
    smallest = min(b.shapes[x][1:])
    kernel = pick.of((1, 3)) if smallest >= 3 else 1
    dilation = pick.of((1, 2)) if kernel == 3 and smallest >= 5 else 1
    pad = pick.of((None, 0, 1))
    return b.conv(
        x, pick.int(1, 12), kernel, stride=pick.of((1, 1, 2)), dilation=dilation, pad=pad, bias=pick.flag()
    )  # fmt: skip


def _depthwise(b: Builder, pick: Picker, x: str) -> str:
    multiplier = 1 if 2 * b.channels(x) > MOST_CHANNELS else pick.of((1, 2))
    return b.depthwise(x, pick.of((3, 1)), multiplier, bias=pick.flag())


def _grouped(b: Builder, pick: Picker, x: str) -> str:
    n = b.channels(x)
    divisors = [g for g in range(2, n) if n % g == 0]
    if not divisors:
        x = b.conv(x, 8)
        divisors = [2, 4]
    group = pick.of(divisors)
    return b.conv(x, group * pick.int(1, 3), pick.of((1, 3)), group=group, bias=pick.flag())


def _batchnorm(b: Builder, pick: Picker, x: str) -> str:
    return b.batchnorm(x)


def _conv_batchnorm(b: Builder, pick: Picker, x: str) -> str:
    first = pick.flag()
    x = _conv(b, pick, b.batchnorm(x) if first else x)
    return x if first else b.batchnorm(x)


def _unary(b: Builder, pick: Picker, x: str) -> str:
    plain = ["Relu", "Sigmoid", "LeakyRelu", "Clip", "Tanh", "Elu", "Softplus", "HardSigmoid", "Abs", "Neg", "Exp"]
    op = pick.of(plain + ["HardSwish"] * (b.opset >= 14) + ["Gelu"] * (b.opset >= 20))
    if op == "Clip":
        return b.node("Clip", [x, "" if pick.flag() else b.const(np.float32(-0.5)), b.const(np.float32(6))])
    if op == "Exp":
        x = b.node("Tanh", [x])
    return b.node(op, [x])


def _nothing(b: Builder, pick: Picker, x: str) -> str:
    op = pick.of(("Identity", "Dropout", "Cast"))
    if op == "Cast":
        return b.node("Cast", [x], to=TensorProto.FLOAT)
    if op == "Dropout" and b.opset < 12:
        return b.node("Dropout", [x], ratio=0.3)
    return b.node(op, [x, b.const(np.float32(0.3))] if op == "Dropout" else [x])


def _partner(b: Builder, pick: Picker, x: str) -> str:
    """Return another tensor of the same shape; make one where there is none."""
    same = [t for t in reversed(b.live) if t != x and b.shapes[t] == b.shapes[x]]
    return pick.of(same) if same and pick.flag() else b.conv(pick.of([*same, x]), b.channels(x), pick.of((1, 3)))


def _binary(b: Builder, pick: Picker, x: str) -> str:
    op = pick.of(("Add", "Add", "Mul", "Sub", "Max", "Min", "Sum"))
    inputs = [x, _partner(b, pick, x)]
    if op == "Sum" and pick.flag():
        inputs.append(_partner(b, pick, x))
    return b.node(op, inputs[::-1] if pick.flag() else inputs)


def _squeeze_excite(b: Builder, pick: Picker, x: str) -> str:
    return b.squeeze_excite(x, pick.int(1, 6), mean=pick.flag(), gate=pick.of(("Sigmoid", "HardSigmoid")))


def _with_constant(b: Builder, pick: Picker, x: str) -> str:
    c, h, w = b.shapes[x]
    shape = pick.of(((c, 1, 1), (1, c, 1, 1), (), (1,), (1, 1, h, w), (1, c, h, w)))
    inputs = [x, b.normal(*shape)]
    return b.node(pick.of(("Add", "Mul", "Sub")), inputs[::-1] if pick.flag() else inputs, b.shapes[x])


def _prelu(b: Builder, pick: Picker, x: str) -> str:
    return b.node("PRelu", [x, b.normal(*pick.of(((b.channels(x), 1, 1), (1,), (1, b.channels(x), 1, 1))), scale=0.3)])


def _concat(b: Builder, pick: Picker, x: str) -> str:
    parts = [x]
    for _ in range(pick.int(1, 2)):
        fitting = [t for t in reversed(b.live) if b.shapes[t][1:] == b.shapes[x][1:]]
        part = pick.of(fitting) if pick.flag() else b.conv(x, pick.int(1, 6))
        if sum(map(b.channels, [*parts, part])) <= MOST_CHANNELS:
            parts.append(part)
    return b.concat(parts)


def _pool(b: Builder, pick: Picker, x: str) -> str:
    if min(b.shapes[x][1:]) < 3:
        return x
    return b.pool(x, pick.of(("MaxPool", "AveragePool")), pick.of((2, 3)), pick.of((1, 2)), pick.of((0, 1)))


def _pad(b: Builder, pick: Picker, x: str) -> str:
    if pick.int(0, 2) == 2:
        return b.pad(x, (pick.int(0, 2), 0, 0), (pick.int(0, 2), 1, 0), value=pick.of((0.0, 1.5)))
    mode = pick.of(("constant", "reflect", "edge")) if min(b.shapes[x][1:]) > 1 else "constant"
    return b.pad(x, (0, 1, 0), (0, 0, 1), mode, 0.5)


def _channels_last(b: Builder, pick: Picker, x: str) -> str:
    c, h, w = b.shapes[x]
    x = b.node("Transpose", [x], (h, w, c), perm=[0, 2, 3, 1])
    match pick.of(("Relu", "constant", "square", "PRelu", "MatMul")):
        case "constant":
            x = b.node(pick.of(("Add", "Mul")), [x, b.normal(c)])
        case "square":
            x = b.node("Mul", [x, x])
        case "PRelu":
            x = b.node("PRelu", [x, b.normal(c, scale=0.3)])
        case "MatMul":
            out = pick.int(1, 8)
            x = b.node("MatMul", [x, b.normal(c, out, scale=c**-0.5)], (h, w, out))
            c = out
        case op:
            x = b.node(op, [x])
    return b.node("Transpose", [x], (c, h, w), perm=[0, 3, 1, 2])


def _split(b: Builder, pick: Picker, x: str) -> str:
    n = b.channels(x)
    if n < 2:
        return x
    even = n % 2 == 0 and pick.flag()
    cut = n // 2 if even else pick.int(1, n - 1)
    left, right = b.split(x, (cut, n - cut), explicit=not even or pick.flag())
    if pick.flag():
        left = _unary(b, pick, left)
    if pick.flag() and n == 2 * cut:
        return b.node(pick.of(("Add", "Mul")), [left, right])
    return b.concat(pick.of(([left, right], [right, left], [left])))


def _select(b: Builder, pick: Picker, x: str) -> str:
    n = b.channels(x)
    if pick.flag():
        start, step = pick.int(0, n - 1), pick.of((1, 1, 1, 2, -1))
        if step < 0:
            end = pick.of((-(2**31), -n - 1))
        else:
            end = pick.of((n, 2**31, *range(start + 1, n), *range(start + 1 - n, 0)))
        return b.slice(x, start - n if pick.flag() else start, end, step, pick.of((1, -3)))
    low = pick.of((0, -n))
    return b.gather(x, [pick.int(low, n - 1) for _ in range(pick.int(1, 6))])


def _shuffle(b: Builder, pick: Picker, x: str) -> str:
    n = b.channels(x)
    divisors = [g for g in range(2, n) if n % g == 0]
    if not divisors:
        x, divisors = b.conv(x, 6), [2, 3]
    return b.shuffle(x, pick.of(divisors), pick.of((0, -1)))


def _spatial_gate(b: Builder, pick: Picker, x: str) -> str:
    gate = b.reduce_mean(x, (1,), op=pick.of(("ReduceMean", "ReduceMax"))) if b.opset >= 18 or pick.flag() else x
    if gate == x:
        return b.node("Mul", [x, x])
    return b.node("Mul", [x, b.node("Sigmoid", [gate])])


def _twin_convs(b: Builder, pick: Picker, x: str) -> str:
    """Two Convs that share a weight, on two tensors."""
    c = b.channels(x)
    weight = b.normal(pick.int(1, 6), c, 1, 1, scale=c**-0.5)
    out = len(b.weights) and b.weights[weight].dims[0]
    one = b.conv(x, out, weight=weight)
    two = b.conv(_partner(b, pick, x), out, weight=weight)
    return b.concat([one, two]) if pick.flag() else b.node("Add", [one, two])


def _normalise(b: Builder, pick: Picker, x: str) -> str:
    """Operators that mix channels, or that the engine may not know."""
    op = pick.of(("Softmax", "LRN", "InstanceNormalization", "Softmax of rows"))
    if op == "InstanceNormalization":
        n = b.channels(x)
        return b.node(op, [x, b.normal(n), b.normal(n)])
    if op == "LRN":
        return b.node(op, [x], size=3, alpha=3.0, bias=0.1)
    return b.node("Softmax", [x], axis=1 if op == "Softmax" else 3)


def _channel_norm(b: Builder, pick: Picker, x: str) -> str:
    """Normalise over channels: LayerNormalization behind a Transpose, or a GroupNormalization of one group as exporters write it."""
    c, h, w = b.shapes[x]
    if b.opset >= 17 and pick.flag():
        y = b.node("Transpose", [x], (h, w, c), perm=[0, 2, 3, 1])
        y = b.node("LayerNormalization", [y, b.normal(c), b.normal(c)])
        return b.node("Transpose", [y], (c, h, w), perm=[0, 3, 1, 2])
    y = b.node("InstanceNormalization", [b.reshape(x, (0, 1, -1), (1, c * h * w)), b.normal(1), b.normal(1)])
    return b.reshape(y, (0, c, h, w), (c, h, w))


def _move_pixels(b: Builder, pick: Picker, x: str) -> str:
    c, h, w = b.shapes[x]
    if c % 4 == 0 and pick.flag():
        return b.node("DepthToSpace", [x], (c // 4, 2 * h, 2 * w), blocksize=2, mode=pick.of(("DCR", "CRD")))
    if h % 2 == w % 2 == 0 and 4 * c <= MOST_CHANNELS:
        return b.node("SpaceToDepth", [x], (4 * c, h // 2, w // 2), blocksize=2)
    if max(h, w) > 9:
        return x
    scales = b.const(np.array([1, 1, 2, 2], np.float32))
    roi = "" if b.opset >= 13 else b.const(np.zeros(0, np.float32))
    return b.node("Resize", [x, roi, scales], (c, 2 * h, 2 * w), mode="nearest")


def _conv_transpose(b: Builder, pick: Picker, x: str) -> str:
    c, h, w = b.shapes[x]
    group = pick.of([g for g in (1, 2, c) if c % g == 0])
    out = group * pick.int(1, 2) if group > 1 else pick.int(1, 8)
    inputs = [x, b.normal(c, out // group, 3, 3, scale=c**-0.5 / 3)] + [b.normal(out)] * pick.flag()
    return b.node("ConvTranspose", inputs, (out, h, w), pads=[1] * 4, group=group, kernel_shape=[3, 3])


def _spread(b: Builder, pick: Picker, x: str) -> str:
    """Expand a gate to the whole tensor, or repeat channels by Tile."""
    c, h, w = b.shapes[x]
    if pick.flag():
        gate = b.node("Sigmoid", [b.conv(b.global_pool(x), c)])
        target = pick.of(((1, c, h, w), (1, 1, h, w), (c, h, w)))
        return b.node("Mul", [x, b.node("Expand", [gate, b.ints(*target)], (c, h, w))])
    if 2 * c > MOST_CHANNELS:
        return x
    return b.node("Tile", [x, b.ints(1, 2, 1, 1)], (2 * c, h, w))


def _computed_shape(b: Builder, pick: Picker, x: str) -> str:
    """Reshape to (batch, channels, pixels) and back, by shapes computed at run time as exporters do."""
    c, h, w = b.shapes[x]
    whole = b.nodes_out("Shape", [x], [()])[0]
    first = b.node("Gather", [whole, b.ints(0)], (), axis=0)
    second = b.node("Gather", [whole, b.ints(1)], (), axis=0) if pick.flag() else b.ints(c)
    target = b.node("Concat", [first, second, b.ints(pick.of((-1, h * w)))], (), axis=0)
    y = b.node("Reshape", [x, target], (c, h * w))
    match pick.of(("Relu", "Transpose", "MatMul")):
        case "Transpose":
            y = b.node("Transpose", [y], (h * w, c), perm=[0, 2, 1])
            y = b.node("Transpose", [b.node("Add", [y, b.normal(c)])], (c, h * w), perm=[0, 2, 1])
        case "MatMul":
            y = b.node("MatMul", [y, b.normal(h * w, h * w, scale=(h * w) ** -0.5)])
        case op:
            y = b.node(op, [y])
    return b.node("Reshape", [y, whole], (c, h, w))


def _attention(b: Builder, pick: Picker, x: str) -> str:
    """Self-attention over pixels, with one head or two."""
    c, h, w = b.shapes[x]
    n = h * w
    heads, part = pick.of((1, 2)), pick.int(1, 3)
    wide = heads * part
    rows = b.node("Transpose", [b.reshape(x, (0, c, n), (c, n))], (n, c), perm=[0, 2, 1])

    def project(perm: list[int], shape: tuple[int, int, int]) -> str:
        y = b.node("MatMul", [rows, b.normal(c, wide, scale=c**-0.5)], (n, wide))
        y = b.node("Add", [y, b.normal(wide)])
        y = b.reshape(y, (0, n, heads, part), (n, heads, part))
        return b.node("Transpose", [y], shape, perm=perm)

    q, k = project([0, 2, 1, 3], (heads, n, part)), project([0, 2, 3, 1], (heads, part, n))
    v = project([0, 2, 1, 3], (heads, n, part))
    weights = b.node("Softmax", [b.node("MatMul", [q, k], (heads, n, n))], axis=3)
    y = b.node("Transpose", [b.node("MatMul", [weights, v], (heads, n, part))], (n, heads, part), perm=[0, 2, 1, 3])
    y = b.reshape(y, (0, n, wide), (n, wide))
    return b.reshape(b.node("Transpose", [y], (wide, n), perm=[0, 2, 1]), (0, wide, h, w), (wide, h, w))


def _unpool(b: Builder, pick: Picker, x: str) -> str:
    """MaxPool with indices, a layer, and MaxUnpool."""
    channels, height, width = b.shapes[x]
    if height % 2 or width % 2:
        return _conv(b, pick, x)
    small, window = (channels, height // 2, width // 2), {"kernel_shape": [2, 2], "strides": [2, 2]}
    pooled, indices = b.nodes_out("MaxPool", [x], [small, small], **window)
    inner = b.conv(pooled, channels) if pick.flag() else b.node("Relu", [pooled])
    return b.node("MaxUnpool", [inner, indices], b.shapes[x], **window)


def _zeros(b: Builder, pick: Picker, x: str) -> str:
    """Join zero channels, whose shape follows the batch: by ConstantOfShape, or by Pad before an Add."""
    channels, height, width = b.shapes[x]
    more = pick.int(1, 4)
    if channels + more > MOST_CHANNELS:
        return x
    if pick.flag():
        return b.node("Add", [b.pad(x, (0, 0, 0), (more, 0, 0)), b.conv(x, channels + more)])
    batch = b.node("Gather", [b.node("Shape", [x], (4,)), b.ints(0)], (1,))
    shape = b.node("Concat", [batch, b.ints(more, height, width)], (4,), axis=0)
    return b.concat([x, b.node("ConstantOfShape", [shape], (more, height, width))])


def _computed_weight(b: Builder, pick: Picker, x: str) -> str:
    """A layer whose weight, scale or bias is computed from the features; for a single sample."""
    channels = b.channels(x)
    if b.batch != 1:
        return _conv(b, pick, x)
    pooled = b.node("Relu", [b.global_pool(x)])
    vector = b.node("Reshape", [pooled, b.ints(channels)], (channels,))
    kind = pick.of(("depthwise", "mixture", "scale", "bias"))
    if kind == "depthwise":
        kernel = b.node("Reshape", [pooled, b.ints(channels, 1, 1, 1)], (1, 1, 1))
        return b.node("Conv", [x, kernel], group=channels)
    if kind == "mixture":
        out = pick.int(1, 6)
        mixed = b.node("MatMul", [b.flatten(pooled), b.normal(channels, out * channels)], (out * channels,))
        kernel = b.node("Reshape", [mixed, b.ints(out, channels, 1, 1)], (channels, 1, 1))
        return b.node("Conv", [x, kernel], (out, *b.shapes[x][1:]))
    if kind == "scale":
        return b.node("InstanceNormalization", [x, vector, b.normal(channels)])
    return b.node("Conv", [x, b.normal(channels, channels, 1, 1), vector])


STEPS: tuple[Step, ...] = (
    _conv, _unary, _binary, _conv_batchnorm, _depthwise, _grouped, _squeeze_excite, _concat, _with_constant, _prelu,
    _pool, _pad, _batchnorm, _channels_last, _split, _select, _shuffle, _nothing, _spatial_gate, _twin_convs,
    _normalise, _move_pixels, _conv_transpose, _spread, _computed_shape, _attention,
    _unpool, _zeros, _computed_weight,
)  # fmt: skip
NORMS: tuple[Step, ...] = (_channel_norm, _normalise, _spatial_gate)
"""Steps that take statistics over channels."""
COMMON: tuple[Step, ...] = (_conv, _unary, _binary, _conv, _depthwise, _conv_batchnorm)


def _head(b: Builder, pick: Picker, x: str) -> str:
    kind = pick.of(("pool", "flatten", "none", "reshape", "mean"))
    if kind == "none":
        return x
    out, trans_b = pick.int(2, 5), pick.flag()
    match kind:
        case "flatten":
            x = b.flatten(x)
        case "pool":
            x = b.flatten(b.global_pool(x))
        case "reshape":
            x = b.reshape(x, (0, -1), (int(np.prod(b.shapes[x])),))
        case "mean":
            x = b.reduce_mean(x, (2, 3), keepdims=False)
    if pick.flag():  # a hidden layer
        x = b.node("Relu", [b.gemm(x, pick.int(1, 8), trans_b=not trans_b)])
    if kind != "reshape":
        return b.gemm(x, out, trans_b=trans_b)
    (n,) = b.shapes[x]
    return b.node("Add", [b.node("MatMul", [x, b.normal(n, out, scale=n**-0.5)], (out,)), b.normal(out)])


@st.composite
def cnn_models(draw: Callable[[Any], Any], most_steps: int = 12, often: tuple[Step, ...] = ()) -> onnx.ModelProto:
    """Draw a valid convolutional model of a few random steps, those in `often` among the common ones, with one or two outputs."""
    pick = Picker(draw)
    shape = (pick.int(1, 4), pick.int(5, 9), pick.int(5, 9))
    batches: tuple[int | str, ...] = ("batch", "batch", "batch", 2, 1)
    b = Builder(shape, opset=pick.of(OPSETS), batch=pick.of(batches), seed=pick.int(0, 2**16))
    b.live.append(b.conv("x", pick.int(2, 12), pick.of((1, 3))))
    for _ in range(pick.int(3, most_steps)):
        step = pick.of(STEPS) if pick.int(0, 3) else pick.of((*often, *COMMON))
        source = b.live[-1 - pick.of((0, 0, 0, 1, 2)) % len(b.live)]
        result = step(b, pick, source)
        if result not in b.live:
            b.live.append(result)
    last = b.live[-1]
    if pick.flag():  # most networks end on a Conv before the head
        last = b.node("Relu", [b.conv(last, pick.int(2, 8))])
    outputs = [_head(b, pick, last)]
    if pick.int(0, 3) == 3:
        second = _head(b, pick, b.live[-1 - pick.int(0, len(b.live) - 2)])
        outputs += [second] * (second not in outputs)
    proto = b.build(*outputs, keep_dead=pick.int(0, 7) == 7)
    note(onnx.printer.to_text(proto))
    return proto

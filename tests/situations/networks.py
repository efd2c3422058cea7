"""Networks in situations that people reported, rebuilt small with seeded random weights.

`build(NAME, folder)` writes `NAME.onnx`, and `NAME.npz` where data matter; some situations write further files.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto as T
from onnx import helper as h
from onnx import numpy_helper as nh


class G:
    def __init__(s, opset=17, ir=10, seed=0):
        s.n, s.i, s.inp, s.out, s.rng, s.opset, s.ir, s.k, s.funcs, s.domains = (
            [],
            [],
            [],
            [],
            np.random.default_rng(seed),
            opset,
            ir,
            0,
            [],
            [],
        )

    def new(s, p="t"):
        s.k += 1
        return f"{p}{s.k}"

    def c(s, a, name=None):
        name = name or s.new("c")
        s.i.append(nh.from_array(np.asarray(a), name))
        return name

    def w(s, *shape, fan=None):
        return (s.rng.standard_normal(shape) * (2 / (fan or max(1, int(np.prod(shape[1:]))))) ** 0.5).astype(np.float32)

    def x(s, name, shape, t=T.FLOAT):
        s.inp.append(h.make_tensor_value_info(name, t, shape))
        return name

    def op(s, op, *ins, n=1, outs=None, domain="", name=None, **at):
        outs = outs or [s.new(op.lower()) for _ in range(n)]
        s.n.append(h.make_node(op, list(ins), outs, name=name or f"{op}_{len(s.n)}", domain=domain, **at))
        return outs[0] if len(outs) == 1 else outs

    def conv(s, x, ci, co, k=3, g=1, bias=True, **at):
        k = (k, k) if isinstance(k, int) else k
        W = s.c(s.w(co, ci // g, *k))
        ins = [x, W] + ([s.c((s.rng.standard_normal(co) * 0.1).astype(np.float32))] if bias else [])
        at.setdefault("pads", [q // 2 for q in k] * 2)
        return s.op("Conv", *ins, group=g, kernel_shape=list(k), **at)

    def bn(s, x, c):
        r = s.rng
        f = lambda a: s.c(a.astype(np.float32))
        return s.op(
            "BatchNormalization",
            x,
            f(r.uniform(0.5, 1.5, c)),
            f(r.normal(0, 0.2, c)),
            f(r.normal(0, 0.2, c)),
            f(r.uniform(0.5, 1.5, c)),
        )

    def cbr(s, x, ci, co, k=3, **at):
        return s.op("Relu", s.bn(s.conv(x, ci, co, k, bias=False, **at), co))

    def ints(s, *v):
        return s.c(np.array(v, np.int64))

    def gap(s, x):
        return s.op("GlobalAveragePool", x)

    def fc(s, x, ci, co):
        return s.op("Gemm", s.op("Flatten", x, axis=1), s.c(s.w(co, ci)), s.c(np.zeros(co, np.float32)), transB=1)

    def y(s, t, shape, ty=T.FLOAT, name=None):
        if name:
            s.op("Identity", t, outs=[name])
            t = name
        s.out.append(h.make_tensor_value_info(t, ty, shape))

    def save(s, path, external=None):
        g = h.make_graph(s.n, "g", s.inp, s.out, s.i)
        m = h.make_model(
            g,
            opset_imports=[h.make_opsetid("", s.opset)] + [h.make_opsetid(d, 1) for d in s.domains],
            functions=s.funcs,
            ir_version=s.ir,
        )
        onnx.save(m, path)
        return m


def attn23() -> None:
    """Convolutional stem, then one block of self-attention written as the Attention operator of opset 23."""
    g = G(23, ir=11)
    x = g.x("x", ["N", 3, 32, 32])
    t = g.cbr(x, 3, 32, strides=[2, 2])
    t = g.cbr(t, 32, 64, strides=[2, 2])
    C = 64
    q = g.op("Transpose", g.op("Reshape", t, g.ints(0, C, 64)), perm=[0, 2, 1])
    qkv = [g.op("Add", g.op("MatMul", q, g.c(g.w(C, C))), g.c(np.zeros(C, np.float32))) for _ in range(3)]
    a = g.op("Attention", *qkv, q_num_heads=4, kv_num_heads=4)
    q = g.op("Add", q, g.op("MatMul", a, g.c(g.w(C, C))))
    m = g.op("Gelu", g.op("MatMul", q, g.c(g.w(C, 4 * C))))
    q = g.op("Add", q, g.op("MatMul", m, g.c(g.w(4 * C, C))))
    t = g.op("Reshape", g.op("Transpose", q, perm=[0, 2, 1]), g.ints(0, C, 8, 8))
    t = g.cbr(t, 64, 64)
    g.y(g.fc(g.gap(t), 64, 10), ["N", 10])
    g.save("attn23.onnx")


def batch1only() -> None:
    """Dynamic batch is declared, but a Reshape in the graph is hard-coded to batch 1 (common slip with dynamic_axes)."""
    g = G(17)
    x = g.x("x", ["N", 3, 32, 32])
    t = g.cbr(x, 3, 32)
    t = g.cbr(t, 32, 64, strides=[2, 2])
    t = g.cbr(t, 64, 64)
    t = g.op("Reshape", g.gap(t), g.ints(1, 64))
    g.y(g.op("Gemm", t, g.c(g.w(10, 64)), g.c(np.zeros(10, np.float32)), transB=1), ["N", 10])
    g.save("batch1only.onnx")
    r = np.random.default_rng(0)
    np.savez("batch1only.npz", x=r.standard_normal((40, 3, 32, 32)).astype(np.float32))


def bigconst() -> None:
    """Constants that are small in the file and large when folded: Tile of a position map, ConstantOfShape, fp16 weights behind Cast."""
    g = G(17)
    x = g.x("x", ["N", 3, 256, 256])
    t = g.cbr(x, 3, 32)
    pos = g.op("Tile", g.c(g.w(1, 32, 1, 1)), g.ints(1, 1, 256, 256))
    t = g.op("Add", t, pos)
    t = g.cbr(t, 32, 32, strides=[4, 4])
    z = g.op("ConstantOfShape", g.ints(1, 32, 64, 64), value=h.make_tensor("v", 1, [1], [0.5]))
    t = g.op("Add", t, z)
    t = g.cbr(t, 32, 64, strides=[2, 2])
    for _ in range(3):
        t = g.op("Relu", g.op("Conv", t, g.op("Cast", g.c(g.w(64, 64, 3, 3).astype(np.float16)), to=1), pads=[1] * 4))
    g.y(g.fc(g.gap(t), 64, 10), ["N", 10])
    g.save("bigconst.onnx")


def condconv() -> None:
    """CondConv / dynamic convolution: weight = routing @ bank, reshaped, grouped convolution over batch * channels."""
    g = G(17)
    x = g.x("x", [1, 3, 32, 32])
    t = g.cbr(x, 3, 32)
    t = g.cbr(t, 32, 64, strides=[2, 2])
    for _ in range(2):
        r = g.op("Sigmoid", g.fc(g.gap(t), 64, 4))
        w = g.op("Reshape", g.op("MatMul", r, g.c(g.w(4, 64 * 64 * 9, fan=576 * 2))), g.ints(64, 64, 3, 3))
        t = g.op("Relu", g.bn(g.op("Conv", t, w, pads=[1] * 4), 64))
    t = g.cbr(t, 64, 64)
    g.y(g.fc(g.gap(t), 64, 10), [1, 10])
    g.save("condconv.onnx")


def constif() -> None:
    """The legacy exporter's squeeze: If(size of axis == 1) though shapes are static; branch bodies only Squeeze or pass on."""
    g = G(17)
    x = g.x("x", ["N", 3, 32, 32])
    t = g.cbr(x, 3, 32)
    t = g.cbr(t, 32, 64, strides=[2, 2])
    t = g.cbr(t, 64, 64)
    p = g.gap(t)
    for ax, rank in ((3, 3), (2, 2)):
        c = g.op("Equal", g.op("Gather", g.op("Shape", p), g.ints(ax), axis=0), g.ints(1))
        a = g.ints(ax)
        tb = h.make_graph(
            [h.make_node("Squeeze", [p, a], [f"sq{ax}"])], "tb", [], [h.make_tensor_value_info(f"sq{ax}", 1, None)]
        )
        eb = h.make_graph(
            [h.make_node("Identity", [p], [f"id{ax}"])], "eb", [], [h.make_tensor_value_info(f"id{ax}", 1, None)]
        )
        p = g.op("If", c, then_branch=tb, else_branch=eb)
    t = g.op("Relu", g.op("Gemm", p, g.c(g.w(64, 64)), g.c(np.zeros(64, np.float32)), transB=1))
    g.y(g.op("Gemm", t, g.c(g.w(10, 64)), g.c(np.zeros(10, np.float32)), transB=1), ["N", 10])
    g.save("constif.onnx")


def convlstm() -> None:
    """Two steps of a ConvLSTM, unrolled; initial state zeros sized from the input; gates split in four."""
    g = G(17)
    x = g.x("x", ["N", 2, 3, 32, 32])
    H = 32
    W = g.c(g.w(4 * H, 32 + H, 3, 3), "cell.weight")
    B = g.c(np.zeros(4 * H, np.float32), "cell.bias")
    W1 = g.c(g.w(32, 3, 3, 3), "stem.weight")
    n = g.op("Gather", g.op("Shape", x), g.ints(0), axis=0)
    z = g.op("ConstantOfShape", g.op("Concat", n, g.ints(H, 32, 32), axis=0))
    hh, c = z, z
    for k in range(2):
        t = g.op("Relu", g.op("Conv", g.op("Gather", x, g.c(np.array(k, np.int64)), axis=1), W1, pads=[1] * 4))
        q = g.op("Conv", g.op("Concat", t, hh, axis=1), W, B, pads=[1] * 4)
        i, f, o, gg = g.op("Split", q, g.ints(H, H, H, H), axis=1, n=4)
        c = g.op("Add", g.op("Mul", g.op("Sigmoid", f), c), g.op("Mul", g.op("Sigmoid", i), g.op("Tanh", gg)))
        hh = g.op("Mul", g.op("Sigmoid", o), g.op("Tanh", c))
    g.y(g.fc(g.gap(g.cbr(hh, H, 64)), 64, 10), ["N", 10])
    g.save("convlstm.onnx")


def crnn() -> None:
    """CRNN OCR: conv stack, collapse of the height, two bidirectional LSTMs, Gemm; dynamic width."""
    g = G(17)
    x = g.x("x", ["N", 1, 32, "W"])
    t = g.cbr(x, 1, 32)
    t = g.op("MaxPool", t, kernel_shape=[2, 2], strides=[2, 2])
    t = g.cbr(t, 32, 64)
    t = g.op("MaxPool", t, kernel_shape=[2, 2], strides=[2, 2])
    t = g.cbr(t, 64, 128)
    t = g.op("MaxPool", t, kernel_shape=[2, 1], strides=[2, 1])
    t = g.cbr(t, 128, 128)
    t = g.op("MaxPool", t, kernel_shape=[4, 1], strides=[4, 1])
    t = g.op("Transpose", g.op("Squeeze", t, g.ints(2)), perm=[2, 0, 1])
    H = 64
    ci = 128
    for _ in range(2):
        s = g.op("Shape", t)
        n = g.op("Gather", s, g.ints(1), axis=0)
        z = g.op("ConstantOfShape", g.op("Concat", g.ints(2), n, g.ints(H), axis=0))
        y = g.op(
            "LSTM",
            t,
            g.c(g.w(2, 4 * H, ci, fan=4 * ci)),
            g.c(g.w(2, 4 * H, H, fan=4 * H)),
            g.c(np.zeros((2, 8 * H), np.float32)),
            "",
            z,
            z,
            outs=[g.new("lstm"), g.new("h"), g.new("c")],
            direction="bidirectional",
            hidden_size=H,
        )[0]
        t = g.op("Reshape", g.op("Transpose", y, perm=[0, 2, 1, 3]), g.ints(0, 0, -1))
        ci = 2 * H
    t = g.op("Add", g.op("MatMul", t, g.c(g.w(2 * H, 40))), g.c(np.zeros(40, np.float32)))
    g.y(g.op("LogSoftmax", t, axis=2), ["T", "N", 40], name="logits")
    g.save("crnn.onnx")
    r = np.random.default_rng(0)
    np.savez("crnn.npz", x=r.standard_normal((40, 1, 32, 64)).astype(np.float32))


def dcn() -> None:
    """CNN with two DeformConv (opset 19), offsets and masks from ordinary convs."""
    g = G(19)
    x = g.x("x", ["N", 3, 32, 32])
    t = g.cbr(x, 3, 32)
    t = g.cbr(t, 32, 64, strides=[2, 2])
    for i in range(3):
        off = g.conv(t, 64, 18)
        mask = g.op("Sigmoid", g.conv(t, 64, 9))
        W = g.c(g.w(64, 64, 3, 3))
        B = g.c(np.zeros(64, np.float32))
        t = g.op("Relu", g.bn(g.op("DeformConv", t, W, off, B, mask, kernel_shape=[3, 3], pads=[1, 1, 1, 1]), 64))
    t = g.cbr(t, 64, 64)
    g.y(g.fc(g.gap(t), 64, 10), ["N", 10])
    g.save("dcn.onnx")


def defaults_in() -> None:
    """IR 8 model with an overridable input (initializer of the same name): a score threshold that callers may feed."""
    g = G(17, ir=8)
    x = g.x("image", ["N", 3, 32, 32])
    th = g.x("threshold", [1])
    g.c(np.array([0.3], np.float32), "threshold")
    t = g.cbr(x, 3, 32)
    t = g.cbr(t, 32, 64, strides=[2, 2])
    t = g.cbr(t, 64, 64)
    t = g.op("Sigmoid", g.conv(t, 64, 5, k=1))
    m = g.op("Cast", g.op("Greater", t, th), to=1)
    g.y(g.op("Mul", t, m), ["N", 5, 16, 16], name="heat")
    g.save("defaults_in.onnx")


def dropout_train() -> None:
    """Exported with TrainingMode.TRAINING: Dropout active (training_mode true); also a BatchNormalization in training mode variant."""
    g = G(17)
    x = g.x("x", ["N", 3, 32, 32])
    t = g.cbr(x, 3, 32)
    t = g.cbr(t, 32, 64, strides=[2, 2])
    t = g.cbr(t, 64, 64)
    t = g.op("Flatten", g.gap(t), axis=1)
    t = g.op("Dropout", t, g.c(np.array(0.5, np.float32)), g.c(np.array(True)))
    g.y(g.op("Gemm", t, g.c(g.w(10, 64)), g.c(np.zeros(10, np.float32)), transB=1), ["N", 10])
    g.save("dropout_train.onnx")
    g = G(17)
    x = g.x("x", ["N", 3, 32, 32])
    t = g.cbr(x, 3, 32)
    t = g.cbr(t, 32, 64, strides=[2, 2])
    t = g.cbr(t, 64, 64)
    t = g.op("Flatten", g.gap(t), axis=1)
    r = g.op("Greater", g.op("RandomUniformLike", t), g.c(np.array(0.2, np.float32)))
    t = g.op("Mul", t, g.op("Cast", r, to=1))
    g.y(g.op("Gemm", t, g.c(g.w(10, 64)), g.c(np.zeros(10, np.float32)), transB=1), ["N", 10])
    g.save("mcdropout.onnx")


def eca() -> None:
    """ResNet with ECA: Conv1d of width 3 along the channel axis of the pooled vector."""
    g = G(17)
    x = g.x("x", ["N", 3, 32, 32])
    t = g.cbr(x, 3, 32)
    t = g.cbr(t, 32, 64, strides=[2, 2])
    for _ in range(4):
        y = g.cbr(t, 64, 64)
        y = g.bn(g.conv(y, 64, 64, bias=False), 64)
        e = g.op("Transpose", g.op("Squeeze", g.gap(y), g.ints(-1)), perm=[0, 2, 1])
        e = g.op("Sigmoid", g.op("Conv", e, g.c(g.w(1, 1, 3)), pads=[1, 1]))
        e = g.op("Unsqueeze", g.op("Transpose", e, perm=[0, 2, 1]), g.ints(-1))
        t = g.op("Relu", g.op("Add", g.op("Mul", y, e), t))
    g.y(g.fc(g.gap(t), 64, 10), ["N", 10])
    g.save("eca.onnx")


def einsumdense() -> None:
    """Attention as Keras/TF converters write it: EinsumDense projections "abc,cde->abde", scores by Einsum, output "abde,dec->abc"."""
    g = G(17)
    x = g.x("x", ["N", 3, 32, 32])
    t = g.cbr(x, 3, 32, strides=[2, 2])
    t = g.cbr(t, 32, 64, strides=[2, 2])
    C = 64
    q = g.op("Transpose", g.op("Reshape", t, g.ints(0, C, 64)), perm=[0, 2, 1])
    Q, K, V = [
        g.op(
            "Add",
            g.op("Einsum", q, g.c(g.w(C, 4, 16, fan=64)), equation="abc,cde->abde"),
            g.c(np.zeros((4, 16), np.float32)),
        )
        for _ in range(3)
    ]
    s = g.op(
        "Softmax",
        g.op("Mul", g.op("Einsum", K, Q, equation="aecd,abcd->acbe"), g.c(np.array(0.25, np.float32))),
        axis=-1,
    )
    o = g.op("Einsum", s, V, equation="acbe,aecd->abcd")
    o = g.op("Einsum", o, g.c(g.w(4, 16, C, fan=64)), equation="abcd,cde->abe")
    q = g.op("Add", q, o)
    m = g.op("Relu", g.op("Einsum", q, g.c(g.w(C, 256)), equation="...x,xy->...y"))
    q = g.op("Add", q, g.op("Einsum", m, g.c(g.w(256, C)), equation="...x,xy->...y"))
    t = g.op("Reshape", g.op("Transpose", q, perm=[0, 2, 1]), g.ints(0, C, 8, 8))
    t = g.cbr(t, 64, 64)
    g.y(g.fc(g.gap(t), 64, 10), ["N", 10])
    g.save("einsumdense.onnx")


def fixedbatch() -> None:
    """Batch fixed at 8, as for an accelerator; 50 samples of data (no multiple of 8)."""
    g = G(17)
    x = g.x("x", [8, 3, 32, 32])
    t = g.cbr(x, 3, 32)
    t = g.cbr(t, 32, 64, strides=[2, 2])
    t = g.cbr(t, 64, 64)
    g.y(g.fc(g.gap(t), 64, 10), [8, 10], name="logits")
    g.save("fixedbatch.onnx")
    r = np.random.default_rng(0)
    np.savez("fixedbatch.npz", x=r.standard_normal((50, 3, 32, 32)).astype(np.float32), labels=r.integers(0, 10, 50))
    np.savez("fixedbatch48.npz", x=r.standard_normal((48, 3, 32, 32)).astype(np.float32))


def halfdouble() -> None:
    """The same small net wholly in float16 and in float64."""
    for nm, np_, ty in (("half", np.float16, 10), ("double", np.float64, 11)):
        g = G(17)
        x = g.x("x", ["N", 3, 32, 32])
        t = g.cbr(x, 3, 32)
        t = g.cbr(t, 32, 64, strides=[2, 2])
        t = g.op("Add", t, g.cbr(t, 64, 64))
        t = g.cbr(t, 64, 64)
        g.y(g.fc(g.gap(t), 64, 10), ["N", 10], name="o")
        m = g.save(nm + ".onnx")
        for i in m.graph.initializer:
            a = nh.to_array(i)
            if a.dtype == np.float32:
                i.CopyFrom(nh.from_array(a.astype(np_), i.name))
        for v in (*m.graph.input, *m.graph.output):
            v.type.tensor_type.elem_type = ty
        onnx.save(m, nm + ".onnx")
        np.savez(nm + ".npz", x=np.random.default_rng(0).standard_normal((64, 3, 32, 32)).astype(np_))


def hfcache() -> None:
    """Layout of the Hugging Face cache: snapshots/REV/*.onnx are links to ../../blobs/<hash>."""
    m = onnx.load("seqsplit_ref.onnx")
    shutil.rmtree("hf", ignore_errors=True)
    os.makedirs("hf/blobs")
    os.makedirs("hf/snapshots/abc")
    onnx.save_model(
        m, "hf/model.onnx", save_as_external_data=True, all_tensors_to_one_file=True, location="model.onnx_data"
    )
    os.rename("hf/model.onnx", "hf/blobs/1111")
    os.rename("hf/model.onnx_data", "hf/blobs/2222")
    os.symlink("../../blobs/1111", "hf/snapshots/abc/model.onnx")
    os.symlink("../../blobs/2222", "hf/snapshots/abc/model.onnx_data")


def hwc() -> None:
    """No batch axis at all: one uint8 image (H, W, 3) of any size, scaled and transposed within the graph."""
    g = G(17)
    x = g.x("image", ["height", "width", 3], T.UINT8)
    t = g.op("Cast", x, to=1)
    t = g.op(
        "Div", g.op("Sub", t, g.c(np.array([123.0, 116, 103], np.float32))), g.c(np.array([58.0, 57, 57], np.float32))
    )
    t = g.op("Unsqueeze", g.op("Transpose", t, perm=[2, 0, 1]), g.ints(0))
    t = g.cbr(t, 3, 32, strides=[2, 2])
    t = g.cbr(t, 32, 64, strides=[2, 2])
    t = g.cbr(t, 64, 64, strides=[2, 2])
    t = g.cbr(t, 64, 96)
    g.y(g.op("Softmax", g.fc(g.gap(t), 96, 10), axis=1), [1, 10], name="prob")
    g.save("hwc.onnx")
    r = np.random.default_rng(0)
    np.savez("hwc.npz", image=r.integers(0, 255, (64, 80, 3)).astype(np.uint8))
    np.savez("hwc_batch.npz", image=r.integers(0, 255, (24, 64, 80, 3)).astype(np.uint8))


def ifnet() -> None:
    """If with a computed condition (input size): then-branch resizes the features, else passes them; the weight of a conv is read only within a body."""
    g = G(17)
    x = g.x("x", ["N", 3, "h", "w"])
    t = g.cbr(x, 3, 32, strides=[2, 2])
    t = g.cbr(t, 32, 64, strides=[2, 2])
    f = g.cbr(t, 64, 64)
    sh = g.op("Shape", x)
    c = g.op("Greater", g.op("Gather", sh, g.c(np.array(2, np.int64)), axis=0), g.c(np.array(48, np.int64)))
    W = g.c(g.w(64, 64, 1, 1), "body.weight")
    tb = h.make_graph(
        [
            h.make_node("AveragePool", [f], ["tp"], kernel_shape=[2, 2], strides=[2, 2]),
            h.make_node("Conv", ["tp", "body.weight"], ["to"]),
        ],
        "tb",
        [],
        [h.make_tensor_value_info("to", 1, None)],
    )
    eb = h.make_graph(
        [h.make_node("Conv", [f, "body.weight"], ["eo"])], "eb", [], [h.make_tensor_value_info("eo", 1, None)]
    )
    t = g.op("If", c, then_branch=tb, else_branch=eb)
    t = g.cbr(t, 64, 64)
    g.y(g.fc(g.gap(t), 64, 10), ["N", 10])
    g.save("ifnet.onnx")


def landmarks2() -> None:
    """Landmark regressor as trained ones are: coordinates around a mean face (bias), small variation with the input: argmax over them never changes."""
    g = G(17)
    x = g.x("x", ["N", 3, 32, 32])
    t = g.cbr(x, 3, 32)
    t = g.cbr(t, 32, 64, strides=[2, 2])
    t = g.cbr(t, 64, 64, strides=[2, 2])
    t = g.cbr(t, 64, 64)
    t = g.op("Flatten", g.gap(t), axis=1)
    mean = np.array([0.3, 0.4, 0.7, 0.4, 0.5, 0.6, 0.35, 0.9, 0.65, 0.75], np.float32)
    W = g.w(10, 64)
    g.y(g.op("Gemm", t, g.c(W), g.c(mean), transB=1), ["N", 10], name="points")
    m = g.save("landmarks2.onnx")
    X = np.random.default_rng(0).standard_normal((40, 3, 32, 32)).astype(np.float32) * np.linspace(0.3, 2, 40)[
        :, None, None, None
    ].astype(np.float32)
    y = ort.InferenceSession("landmarks2.onnx").run(None, {"x": X})[0]
    w = [i for i in m.graph.initializer if list(i.dims) == [10, 64]][0]
    s = 0.02 / y.std(0)
    W2 = W * s[:, None]
    b2 = mean - (y.mean(0) - mean) * s
    for i in m.graph.initializer:
        if list(i.dims) == [10, 64]:
            i.CopyFrom(nh.from_array(W2.astype(np.float32), i.name))
        if list(i.dims) == [10]:
            i.CopyFrom(nh.from_array(b2.astype(np.float32), i.name))
    onnx.save(m, "landmarks2.onnx")
    y = ort.InferenceSession("landmarks2.onnx").run(None, {"x": X})[0]
    np.savez("landmarks2.npz", x=X)


def loopnet() -> None:
    """Scripted loop: a residual block with shared weights applied three times in a Loop body; weights captured from the outer graph."""
    g = G(17)
    x = g.x("x", ["N", 3, 32, 32])
    t = g.cbr(x, 3, 32)
    t = g.cbr(t, 32, 64, strides=[2, 2])
    W = g.c(g.w(64, 64, 3, 3), "loop.weight")
    body = h.make_graph(
        [
            h.make_node("Conv", ["s", "loop.weight"], ["u"], pads=[1] * 4),
            h.make_node("Relu", ["u"], ["v"]),
            h.make_node("Add", ["s", "v"], ["so"]),
            h.make_node("Identity", ["cond"], ["co"]),
        ],
        "body",
        [
            h.make_tensor_value_info("it", 7, []),
            h.make_tensor_value_info("cond", 9, []),
            h.make_tensor_value_info("s", 1, None),
        ],
        [h.make_tensor_value_info("co", 9, []), h.make_tensor_value_info("so", 1, None)],
    )
    t = g.op("Loop", g.c(np.array(3, np.int64)), g.c(np.array(True)), t, body=body)
    t = g.cbr(t, 64, 64)
    g.y(g.fc(g.gap(t), 64, 10), ["N", 10])
    g.save("loopnet.onnx")


def nms() -> None:
    """Detector with NonMaxSuppression inside the graph: boxes and scores gathered by the selected indices, number of rows varies."""
    g = G(17)
    x = g.x("images", [1, 3, 64, 64])
    t = g.cbr(x, 3, 32, strides=[2, 2])
    t = g.cbr(t, 32, 64, strides=[2, 2])
    t = g.cbr(t, 64, 64)
    f = g.cbr(t, 64, 64)
    b_ = g.op("Relu", g.conv(f, 64, 4, k=1))
    s = g.op("Sigmoid", g.conv(f, 64, 3, k=1))
    b_ = g.op("Transpose", g.op("Reshape", b_, g.ints(1, 4, 256)), perm=[0, 2, 1])
    s = g.op("Reshape", s, g.ints(1, 3, 256))
    c, e = g.op("Split", b_, g.ints(2, 2), axis=2, n=2)
    grid = g.c((np.stack(np.meshgrid(np.arange(16), np.arange(16)), -1).reshape(1, 256, 2) * 4).astype(np.float32))
    c = g.op("Add", c, grid)
    e = g.op("Add", g.op("Mul", e, g.c(np.array(4, np.float32))), g.c(np.array(4, np.float32)))
    box = g.op("Concat", c, g.op("Add", c, e), axis=2)
    sel = g.op(
        "NonMaxSuppression", box, s, g.ints(10), g.c(np.array([0.5], np.float32)), g.c(np.array([0.5], np.float32))
    )
    bi = g.op("Gather", sel, g.ints(2), axis=1)
    ci = g.op("Gather", sel, g.ints(1), axis=1)
    bi = g.op("Squeeze", bi, g.ints(1))
    ci = g.op("Squeeze", ci, g.ints(1))
    ob = g.op("Gather", g.op("Squeeze", box, g.ints(0)), bi, axis=0)
    os_ = g.op("Reshape", s, g.ints(3, 256))
    flat = g.op("Add", g.op("Mul", ci, g.ints(256)), bi)
    sc = g.op("Gather", g.op("Reshape", os_, g.ints(-1)), flat, axis=0)
    g.y(ob, ["n", 4], name="boxes")
    g.y(sc, ["n"], name="scores")
    g.y(ci, ["n"], T.INT64, name="classes")
    g.save("nms.onnx")
    r = np.random.default_rng(0)
    np.savez("nms.npz", images=r.standard_normal((32, 3, 64, 64)).astype(np.float32))


def optiona() -> None:
    """CIFAR ResNet-20 with option A shortcuts: spatial Slice with step 2 and zero Pad of channels."""
    g = G(17)
    x = g.x("x", ["N", 3, 32, 32])
    t = g.cbr(x, 3, 16)
    c = 16
    for s, co in enumerate((16, 32, 64)):
        for b in range(3):
            st = 2 if s and not b else 1
            y = g.cbr(t, c, co, strides=[st, st])
            y = g.bn(g.conv(y, co, co, bias=False), co)
            if st == 2:
                t = g.op("Slice", t, g.ints(0, 0), g.ints(2**40, 2**40), g.ints(2, 3), g.ints(2, 2))
                t = g.op("Pad", t, g.ints(0, (co - c) // 2, 0, 0, 0, (co - c) // 2, 0, 0))
            t = g.op("Relu", g.op("Add", y, t))
            c = co
    g.y(g.fc(g.gap(t), 64, 10), ["N", 10])
    g.save("optiona.onnx")


def ortopt() -> None:
    """A file that onnxruntime wrote after optimising (extended level): FusedConv etc. of com.microsoft."""
    g = G(17)
    x = g.x("x", ["N", 3, 32, 32])
    t = g.cbr(x, 3, 32)
    t = g.cbr(t, 32, 64, strides=[2, 2])
    r = t
    t = g.cbr(t, 64, 64)
    t = g.op("Relu", g.op("Add", g.bn(g.conv(t, 64, 64, bias=False), 64), r))
    t = g.op("LeakyRelu", g.conv(t, 64, 64), alpha=0.1)
    t = g.op("Mul", t, g.op("Sigmoid", t))
    g.y(g.fc(g.gap(t), 64, 10), ["N", 10])
    g.save("plain.onnx")
    so = ort.SessionOptions()
    so.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    so.optimized_model_filepath = "ortopt.onnx"
    ort.InferenceSession("plain.onnx", so)
    so = ort.SessionOptions()
    so.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    so.optimized_model_filepath = "ortopt_all.onnx"
    ort.InferenceSession("plain.onnx", so)


def retina() -> None:
    """One head (4 convs + GN-free) shared by 4 pyramid levels, weights are the same initializers in every level."""
    g = G(17)
    x = g.x("images", ["N", 3, 64, 64])
    t = g.cbr(x, 3, 32, strides=[2, 2])
    fs = []
    c = 32
    for co in (48, 64, 96):
        t = g.cbr(t, c, co, strides=[2, 2])
        fs.append((t, co))
        c = co
    lat = [g.conv(f, co, 64, k=1) for f, co in fs]
    p2 = lat[2]
    p1 = g.op("Add", lat[1], g.op("Resize", p2, "", g.c(np.array([1, 1, 2, 2], np.float32)), mode="nearest"))
    p0 = g.op("Add", lat[0], g.op("Resize", p1, "", g.c(np.array([1, 1, 2, 2], np.float32)), mode="nearest"))
    W = [
        (g.c(g.w(64, 64, 3, 3), f"head.{i}.weight"), g.c(np.zeros(64, np.float32), f"head.{i}.bias")) for i in range(4)
    ]
    Wc = (g.c(g.w(9 * 4, 64, 3, 3), "cls.weight"), g.c(np.zeros(36, np.float32), "cls.bias"))
    outs = []
    for n, p in zip((8, 4, 2)[::1], (p0, p1, p2)):
        for w, b_ in W:
            p = g.op("Relu", g.op("Conv", p, w, b_, pads=[1] * 4))
        p = g.op("Conv", p, *Wc, pads=[1] * 4)
        p = g.op("Transpose", p, perm=[0, 2, 3, 1])
        outs.append(g.op("Reshape", p, g.ints(0, -1, 4)))
    g.y(g.op("Sigmoid", g.op("Concat", *outs, axis=1)), ["N", "A", 4], name="scores")
    g.save("retina.onnx")


def segnet() -> None:
    """SegNet: MaxPool with indices in the encoder, MaxUnpool in the decoder."""
    g = G(17)
    x = g.x("x", ["N", 3, 32, 32])
    t = g.cbr(x, 3, 32)
    t = g.cbr(t, 32, 32)
    p1, i1 = g.op("MaxPool", t, n=2, kernel_shape=[2, 2], strides=[2, 2])
    t = g.cbr(p1, 32, 64)
    t = g.cbr(t, 64, 64)
    p2, i2 = g.op("MaxPool", t, n=2, kernel_shape=[2, 2], strides=[2, 2])
    t = g.cbr(p2, 64, 64)
    t = g.cbr(t, 64, 64)
    t = g.op("MaxUnpool", t, i2, kernel_shape=[2, 2], strides=[2, 2])
    t = g.cbr(t, 64, 64)
    t = g.cbr(t, 64, 32)
    t = g.op("MaxUnpool", t, i1, kernel_shape=[2, 2], strides=[2, 2])
    t = g.cbr(t, 32, 32)
    g.y(g.conv(t, 32, 5), ["N", 5, 32, 32], name="mask")
    g.save("segnet.onnx")


def seqsplit() -> None:
    """C2f-like block whose chunk was exported as SplitToSequence + SequenceAt (dynamic/legacy chunk export)."""

    def net(seq):
        g = G(17)
        x = g.x("images", ["N", 3, 32, 32])
        t = g.cbr(x, 3, 32)
        t = g.cbr(t, 32, 64, strides=[2, 2])
        t = g.cbr(t, 64, 64, k=1)
        if seq:
            s = g.op("SplitToSequence", t, g.c(np.array([32, 32], np.int64)), axis=1)
            a = g.op("SequenceAt", s, g.c(np.array(0, np.int64)))
            b = g.op("SequenceAt", s, g.c(np.array(1, np.int64)))
        else:
            a, b = g.op("Split", t, g.ints(32, 32), axis=1, n=2)
        m = g.cbr(g.cbr(b, 32, 32), 32, 32)
        t = g.op("Concat", a, b, m, axis=1)
        t = g.cbr(t, 96, 64, k=1)
        t = g.cbr(t, 64, 64)
        g.y(g.fc(g.gap(t), 64, 10), ["N", 10])
        return g

    net(True).save("seqsplit.onnx")
    net(False).save("seqsplit_ref.onnx")


def siamese() -> None:
    """Siamese embedding: both inputs go through the same network (every initializer is shared, BatchNormalization too); output is the distance."""
    g = G(17)
    a = g.x("a", ["N", 3, 32, 32])
    b_ = g.x("b", ["N", 3, 32, 32])
    spec = [(3, 32, 1), (32, 64, 2), (64, 128, 2), (128, 128, 1)]
    par = []
    for ci, co, s in spec:
        r = g.rng
        par.append(
            (
                g.c(g.w(co, ci, 3, 3)),
                [
                    g.c(v.astype(np.float32))
                    for v in (
                        r.uniform(0.5, 1.5, co),
                        r.normal(0, 0.2, co),
                        r.normal(0, 0.2, co),
                        r.uniform(0.5, 1.5, co),
                    )
                ],
                s,
            )
        )

    def net(t):
        for w, bn, s in par:
            t = g.op("Relu", g.op("BatchNormalization", g.op("Conv", t, w, pads=[1] * 4, strides=[s, s]), *bn))
        return g.op("Flatten", g.gap(t), axis=1)

    d = g.op("Sub", net(a), net(b_))
    g.y(g.op("ReduceSumSquare", d, axes=[1], keepdims=1), ["N", 1], name="distance")
    g.save("siamese.onnx")
    r = np.random.default_rng(0)
    np.savez(
        "siamese.npz",
        a=r.standard_normal((64, 3, 32, 32)).astype(np.float32),
        b=r.standard_normal((64, 3, 32, 32)).astype(np.float32),
    )


def siamrpn() -> None:
    """Siamese tracker: template features become the kernel of a depthwise correlation over the search features (weight of Conv computed, group = C), fixed batch 1."""

    def net(g, t, par):
        for w, b_, s in par:
            t = g.op("Relu", g.op("Conv", t, w, b_, pads=[1] * 4, strides=[s, s]))
        return t

    g = G(17)
    z = g.x("template", [1, 3, 32, 32])
    x = g.x("search", [1, 3, 64, 64])
    par = []
    for ci, co, s in ((3, 32, 2), (32, 64, 2), (64, 64, 1)):
        par.append((g.c(g.w(co, ci, 3, 3)), g.c(np.zeros(co, np.float32)), s))
    fz, fx = net(g, z, par), net(g, x, par)
    kz = g.op("Relu", g.conv(fz, 64, 48))
    kx = g.op("Relu", g.conv(fx, 64, 48))
    k = g.op("Reshape", kz, g.ints(48, 1, 8, 8))
    r = g.op("Mul", g.op("Conv", kx, k, group=48), g.c(np.array(0.05, np.float32)))
    r = g.op("Relu", g.conv(r, 48, 48, k=1))
    g.y(g.conv(r, 48, 10, k=1), [1, 10, 9, 9], name="cls")
    g.y(g.conv(r, 48, 20, k=1), [1, 20, 9, 9], name="loc")
    g.save("siamrpn.onnx")


def sparse() -> None:
    """Weights of two convs stored as sparse_initializer, as onnxruntime's sparsify script does after magnitude pruning."""
    g = G(17)
    x = g.x("x", ["N", 3, 32, 32])
    t = g.cbr(x, 3, 32)
    t = g.cbr(t, 32, 64, strides=[2, 2])
    t = g.cbr(t, 64, 64)
    g.y(g.fc(g.gap(t), 64, 10), ["N", 10])
    m = g.save("sparse.onnx")
    keep = []
    for i in m.graph.initializer:
        a = nh.to_array(i)
        if a.ndim == 4 and a.size > 5000:
            z = np.where(np.abs(a) > np.quantile(np.abs(a), 0.8), a, 0).ravel()
            ix = np.flatnonzero(z)
            sp = h.make_sparse_tensor(
                h.make_tensor(i.name, 1, [len(ix)], z[ix]),
                h.make_tensor(i.name + "_i", 7, [len(ix)], ix.astype(np.int64)),
                list(a.shape),
            )
            m.graph.sparse_initializer.append(sp)
        else:
            keep.append(i)
    del m.graph.initializer[:]
    m.graph.initializer.extend(keep)
    onnx.save(m, "sparse.onnx")


def square() -> None:
    """Height and width declared dynamic under two names, but a Flatten + Gemm fits 96 x 96 only."""
    g = G(17)
    x = g.x("x", ["N", 3, "height", "width"])
    t = g.cbr(x, 3, 32, strides=[4, 4])
    t = g.cbr(t, 32, 64, strides=[2, 2])
    t = g.cbr(t, 64, 32, strides=[2, 2])
    t = g.op("Relu", g.fc(t, 32 * 36, 64))
    g.y(g.op("Gemm", t, g.c(g.w(10, 64)), g.c(np.zeros(10, np.float32)), transB=1), ["N", 10])
    g.save("square.onnx")
    r = np.random.default_rng(0)
    np.savez("square.npz", x=r.standard_normal((40, 3, 96, 96)).astype(np.float32))


def tied() -> None:
    """Autoencoder with tied weights: one initializer is the weight of a Conv and of the ConvTranspose that mirrors it; a bias also is an output."""
    g = G(17)
    x = g.x("x", ["N", 3, 32, 32])
    W1 = g.c(g.w(32, 3, 3, 3), "enc1")
    W2 = g.c(g.w(64, 32, 3, 3), "enc2")
    W3 = g.c(g.w(64, 64, 3, 3), "enc3")
    t = g.op("Relu", g.op("Conv", x, W1, pads=[1] * 4))
    t = g.op("Relu", g.op("Conv", t, W2, pads=[1] * 4, strides=[2, 2]))
    t = g.op("Relu", g.op("Conv", t, W3, pads=[1] * 4))
    t = g.op("Relu", g.op("ConvTranspose", t, W3, pads=[1] * 4))
    t = g.op("Relu", g.op("ConvTranspose", t, W2, pads=[1] * 4, strides=[2, 2], output_padding=[1, 1]))
    t = g.op("ConvTranspose", t, W1, pads=[1] * 4)
    g.y(t, ["N", 3, 32, 32], name="recon")
    g.save("tied.onnx")


def uint8nhwc() -> None:
    """Uint8 NHWC input with batch, normalised within the graph (as tf2onnx or a pre-processing tool writes it)."""
    g = G(17)
    x = g.x("image", ["N", 64, 64, 3], T.UINT8)
    t = g.op("Cast", x, to=1)
    t = g.op(
        "Div", g.op("Sub", t, g.c(np.array([123.0, 116, 103], np.float32))), g.c(np.array([58.0, 57, 57], np.float32))
    )
    t = g.op("Transpose", t, perm=[0, 3, 1, 2])
    t = g.cbr(t, 3, 32, strides=[2, 2])
    t = g.cbr(t, 32, 64, strides=[2, 2])
    t = g.cbr(t, 64, 64, strides=[2, 2])
    t = g.cbr(t, 64, 64)
    g.y(g.op("Softmax", g.fc(g.gap(t), 64, 10), axis=1), ["N", 10], name="prob")
    g.save("uint8nhwc.onnx")


def build(name: str, folder: Path) -> Path:
    """Write the files of a situation into a folder; return the path of its model."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        if name == "hfcache":
            seqsplit()
        globals()[name]()
    finally:
        os.chdir(before)
    return folder / f"{name}.onnx"

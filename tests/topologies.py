"""Hand-made network topologies that break pruners, with the prunable and pinned channels of each."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from cases import ONLY, A, C, Case, Y

STAYS = "Add joins the channel with the model input x"
SAME = "pads=[1,1,1,1]"
HEAD = "p = GlobalAveragePool (z) f = Flatten (p) y = MatMul (f, m)"  # reads z, of 8 channels


def net(name: str, text: str, free: int, pinned: int, *why: str, **rest: Any) -> Case:
    """Describe a network: nodes, prunable channels, pinned channels, and reasons."""
    fields = {key: rest.pop(key) for key in list(rest) if key in Case.__dataclass_fields__}
    return Case("net", name, text, free, pinned, why, rest, **{"inputs": "float[N,3,8,8] x", **fields})


def bn(x: str, out: str, suffix: str = "") -> str:
    """Normalize a tensor with its own parameters."""
    parameters = ", ".join(f"{name}{suffix}" for name in ("scale", "beta", "mu", "var"))
    return f"{out} = BatchNormalization ({x}, {parameters})"


def bn_weights(suffix: str, n: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}{suffix}": (n,) for name in ("scale", "beta", "mu", "var")}


K8 = (8, 8, 1, 1)
BLOCK = """n{n} = LayerNormalization ({x}, scale, beta)
    q{n} = MatMul (n{n}, kq) key{n} = MatMul (n{n}, kk) v{n} = MatMul (n{n}, kv)
    q{n}1 = Reshape (q{n}, s4) k{n}_1 = Reshape (key{n}, s4) v{n}1 = Reshape (v{n}, s4)
    q{n}2 = Transpose <perm=[0,2,1,3]> (q{n}1) k{n}_2 = Transpose <perm=[0,2,3,1]> (k{n}_1)
    v{n}2 = Transpose <perm=[0,2,1,3]> (v{n}1)
    d{n} = MatMul (q{n}2, k{n}_2) s{n} = Softmax (d{n}) o{n} = MatMul (s{n}, v{n}2)
    o{n}1 = Transpose <perm=[0,2,1,3]> (o{n}) o{n}2 = Reshape (o{n}1, s5) p{n} = MatMul (o{n}2, ko) r{n} = Add ({x}, p{n})
    m{n} = LayerNormalization (r{n}, scale, beta) h{n} = MatMul (m{n}, kh) e{n} = Gelu (h{n}) w{n} = MatMul (e{n}, kp)
    {y} = Add (r{n}, w{n})"""
"""Attention with two heads and an MLP, each with a norm in front and a residual connection."""
NETS = [
    net(
        "an Add of three branches, one of which goes on",
        f"{A} {C} d = Conv (a, k) e = Add (a, c) r = Add (e, d) b = Relu (r) {Y}",
        8, 4, k=K8,
    ),
    net(
        "Concat, then Add",
        f"a = Conv (x, k1) c = Conv (x, k2) q = Concat <axis=1> (a, c) d = Conv (x, w) b = Add (q, d) {Y}",
        8, 4, k1=(5, 3, 1, 1), k2=(3, 3, 1, 1),
    ),
    net(
        "a Concat of the same tensor twice", f"{A} q = Concat <axis=1> (a, a) r = Relu (q) y = Conv (r, k)", 8, 4,
        k=(4, 16, 1, 1),
    ),
    net(
        "a residual around a Concat",
        f"a = Conv (x, k1) c = Conv (a, k2) q = Concat <axis=1> (a, c) d = Conv (q, k3) b = Add (q, d) {Y}",
        8, 4, k1=(5, 3, 1, 1), k2=(3, 5, 1, 1), k3=K8,
    ),
    net(
        "a residual of two Concats in another order",
        f"{A} {C} q = Concat <axis=1> (a, c) r = Concat <axis=1> (c, a) z = Add (q, r) s = Relu (z) y = Conv (s, k)",
        8, 4, k=(4, 16, 1, 1),
    ),
    net(
        "a Split, one part of which is an output", f"{A} p, q = Split <axis=1, num_outputs=2> (a) y = Conv (p, k)", 4,
        8, outputs="y, q", k=(4, 4, 1, 1),
    ),
    net(
        "a dense block",
        f"""{A} {bn("a", "n1", "1")} r1 = Relu (n1) c1 = Conv (r1, k1) q1 = Concat <axis=1> (a, c1)
        {bn("q1", "n2", "2")} r2 = Relu (n2) c2 = Conv (r2, k2) q2 = Concat <axis=1> (a, c1, c2)
        {bn("q2", "n3", "3")} r3 = Relu (n3) y = Conv (r3, k3)""",
        8 + 3 + 5, 4, k1=(3, 8, 1, 1), k2=(5, 11, 1, 1), k3=(4, 16, 1, 1),
        **bn_weights("1", 8), **bn_weights("2", 11), **bn_weights("3", 16),
    ),
    net(
        "two shuffles in a row",
        f"""{A} q1 = Reshape (a, s1) t1 = Transpose <perm=[0,2,1,3,4]> (q1) h1 = Reshape (t1, s0)
        q2 = Reshape (h1, s1) t2 = Transpose <perm=[0,2,1,3,4]> (q2) b = Reshape (t2, s0) {Y}""",
        2, 4, s1=[0, 2, 4, 8, 8], s0=[0, 8, 8, 8],
    ),
    net(
        "two units of ShuffleNet v1",
        f"""a = Conv <group=1> (x, w) g1 = Conv <group=2> (a, k1) q1 = Reshape (g1, s1)
        t1 = Transpose <perm=[0,2,1,3,4]> (q1)
        h1 = Reshape (t1, s0) d1 = Conv <group=8, {SAME}> (h1, k2) g2 = Conv <group=2> (d1, k3) z = Add (a, g2)
        {HEAD}""",
        4 + 2, 4, s1=[0, 2, 4, 8, 8], s0=[0, 8, 8, 8], k1=(8, 4, 1, 1), k2=(8, 1, 3, 3), k3=(8, 4, 1, 1),
    ),
    net(
        "two units of ShuffleNet v2",
        f"""{A} l1, r1 = Split <axis=1, num_outputs=2> (a) c1 = Conv (r1, k1) d1 = Conv <group=4, {SAME}> (c1, k2)
        e1 = Conv (d1, k3)
        q1 = Concat <axis=1> (l1, e1) i1 = Reshape (q1, s1) j1 = Transpose <perm=[0,2,1,3,4]> (i1) o1 = Reshape (j1, s0)
        l2, r2 = Split <axis=1, num_outputs=2> (o1) c2 = Conv (r2, k4) e2 = Conv (c2, k5) z = Concat <axis=1> (l2, e2)
        {HEAD}""",
        8 + 4 + 4 + 4, 4, s1=[0, 2, 4, 8, 8], s0=[0, 8, 8, 8],
        k1=(4, 4, 1, 1), k2=(4, 1, 3, 3), k3=(4, 4, 1, 1), k4=(4, 4, 1, 1), k5=(4, 4, 1, 1),
    ),
    net(
        "a squeeze-and-excitation with linear layers",
        f"""{A} q = GlobalAveragePool (a) r = Flatten (q) s = Gemm <transB=1> (r, k1) t = Relu (s) u1 = Gemm (t, k2)
        v1 = Sigmoid (u1) g1 = Unsqueeze (v1, ax) b = Mul (a, g1) {Y}""",
        8 + 3, 4, k1=(3, 8), k2=(3, 8), ax=[2, 3],
    ),
    net(
        "a squeeze-and-excitation that reshapes to literals",
        f"""{A} q = ReduceMean <keepdims=0> (a, ax) s = MatMul (q, k1) t = Relu (s) u1 = MatMul (t, k2)
        v1 = HardSigmoid (u1) g1 = Reshape (v1, s4) b = Mul (g1, a) {Y}""",
        8 + 3, 4, k1=(8, 3), k2=(3, 8), ax=[2, 3], s4=[-1, 8, 1, 1],
    ),
    net(
        "a gate by Split",
        f"c = Conv (x, k1) p, q = Split <axis=1, num_outputs=2> (c) s = Sigmoid (q) b = Mul (p, s) {Y}",
        8, 4, k1=(16, 3, 1, 1),
    ),
    net(
        "a maximum of two halves",
        f"c = Conv (x, k1) p = Slice (c, i0, i8, i1) q = Slice (c, i8, i99, i1) b = Max (p, q) {Y}",
        8, 4, k1=(16, 3, 1, 1), i0=[0], i8=[8], i1=[1], i99=[2**63 - 1],
    ),
    net(
        "a pixel shuffle as head", f"{A} b = Relu (a) c = Conv (b, k) y = DepthToSpace <blocksize=2> (c)", 8, 3,
        k=(12, 8, 1, 1),
    ),
    net(
        "a pixel shuffle in primitives",
        f"""c = Conv (x, k) q = Reshape (c, s6) t = Transpose <perm=[0,1,4,2,5,3]> (q) b = Reshape (t, s4) {Y}""",
        8, 4, k=(32, 3, 1, 1), s6=[0, 8, 2, 2, 8, 8], s4=[0, 8, 16, 16],
    ),
    net(
        "two heads",
        f"{A} b = Relu (a) c = Conv (b, k1) d = Relu (c) y = Conv (d, k2) e = Conv (b, k3) s = Relu (e) "
        "y2 = Conv (s, k4)",
        8 + 6 + 5, 4 + 2, outputs="y, y2", k1=(6, 8, 1, 1), k2=(4, 6, 1, 1), k3=(5, 8, 1, 1), k4=(2, 5, 1, 1),
    ),
    net(
        "a feature pyramid",
        f"""{A} r = Relu (a) d = Conv <strides=[2,2], {SAME}> (r, k1) s = Relu (d) l1 = Conv (r, k2) l2 = Conv (s, k3)
        up = Resize (l2, , by) t = Add (l1, up) y = Conv (t, k4) y2 = Conv (l2, k4)""",
        8 + 7 + 6, 4, outputs="y, y2", by=np.array([1, 1, 2, 2], np.float32),
        k1=(7, 8, 3, 3), k2=(6, 8, 1, 1), k3=(6, 7, 1, 1), k4=(4, 6, 1, 1),
    ),
    net(
        "spatial attention by mean and maximum over channels",
        f"""{A} b = Relu (a) s = ReduceMean (b, ax) t = ReduceMax (b, ax) q = Concat <axis=1> (s, t)
        r = Conv <{SAME}> (q, k1) e = Sigmoid (r) z = Mul (b, e) {HEAD}""",
        0, 8 + 1 + 4, "ReduceMean runs over the channels", "ReduceMax runs over the channels", ONLY, ax=[1], k1=(1, 2, 3, 3),
    ),
    net(
        "a product with a map of one channel", f"{A} e = Conv (a, k) s = Sigmoid (e) b = Mul (a, s) {Y}", 8, 5, ONLY,
        k=(1, 8, 1, 1),
    ),
    net("a tensor that a Conv reads and that is an output", f"{A} b = Relu (a) {Y}", 0, 12, outputs="y, b"),
    net("an output before its activation", f"{A} b = Relu (a) {Y}", 0, 12, outputs="a, y"),
    net(
        "a chain of Identity and Dropout up to the output",
        f"{A} i = Identity (a) j = Dropout (i) b = Identity (j) q = Conv (b, v, vb) r = Identity (q) y = Identity (r)", 8, 4,
    ),
    net("a dead branch", f"{A} b = Relu (a) d = Conv (b, k) e = Relu (d) {Y}", 8, 4, k=(6, 8, 1, 1)),
    net("a Conv twice on the input, added", f"{A} {C} b = Add (a, c) {Y}", 8, 4),
    net("the input joined with itself", f"q = Concat <axis=1> (x, x) b = Conv (q, k) {Y}", 8, 4, k=(8, 6, 1, 1)),
    net(
        "a depthwise Conv after a Concat",
        f"c = Conv (x, k1) d = Conv (x, k2) q = Concat <axis=1> (c, d) b = Conv <group=8, {SAME}> (q, k3) {Y}",
        8, 4, k1=(3, 3, 1, 1), k2=(5, 3, 1, 1), k3=(8, 1, 3, 3),
    ),
    net(
        "a depthwise Conv after a Concat with the input",
        f"c = Conv (x, k1) q = Concat <axis=1> (c, x) b = Conv <group=8, {SAME}> (q, k3) {Y}",
        5, 4, k1=(5, 3, 1, 1), k3=(8, 1, 3, 3),
    ),
    net(
        "a depthwise Conv after a channel shuffle",
        f"""{A} q = Reshape (a, s1) t = Transpose <perm=[0,2,1,3,4]> (q) h = Reshape (t, s0)
        b = Conv <group=8, {SAME}> (h, k) {Y}""",
        4, 4, s1=[0, 2, 4, 8, 8], s0=[0, 8, 8, 8], k=(8, 1, 3, 3),
    ),
    net(
        "a grouped Conv after a Split",
        f"c = Conv (x, k1) p, q = Split <axis=1> (c, n) d = Conv <group=2> (p, k2) b = Concat <axis=1> (d, q) {Y}",
        2 + 4 + 2, 4, n=[4, 4], k1=(8, 3, 1, 1), k2=(4, 2, 1, 1),
    ),
    net("a grouped Conv in a residual", f"{A} d = Conv <group=4, {SAME}> (a, k) b = Add (a, d) {Y}", 2, 4, k=(8, 2, 3, 3)),
    net(
        "a grouped ConvTranspose between Convs",
        "a = Conv (x, k1) h = ConvTranspose <group=3, strides=[2,2]> (a, k2, kb) r = Relu (h) y = Conv (r, k3)",
        3 + 2, 4, k1=(9, 3, 1, 1), k2=(9, 2, 2, 2), kb=(6,), k3=(4, 6, 1, 1),
    ),
    net(
        "a grouped Conv after a Concat of different branches",
        f"c = Conv (x, k1) d = Conv (x, k2) q = Concat <axis=1> (c, d) b = Conv <group=2> (q, k3) {Y}",
        4 + 4, 4, k1=(6, 3, 1, 1), k2=(2, 3, 1, 1), k3=(8, 4, 1, 1),
    ),
    net(
        "a U-Net",
        f"""{A} r = Relu (a) d = MaxPool <kernel_shape=[2,2], strides=[2,2]> (r) e = Conv <{SAME}> (d, k1) s = Relu (e)
        h = ConvTranspose <strides=[2,2]> (s, k2) q = Concat <axis=1> (h, r) t = Conv <{SAME}> (q, k3) o = Relu (t)
        y = Conv (o, k4)""",
        8 + 6 + 5 + 7, 4, k1=(6, 8, 3, 3), k2=(6, 5, 2, 2), k3=(7, 13, 3, 3), k4=(4, 7, 1, 1),
    ),
    net(
        "a Flatten of a Concat", f"{A} d = Conv (a, k1) q = Concat <axis=1> (a, d) f = Flatten (q) y = MatMul (f, k2)",
        8 + 3, 4, k1=(3, 8, 1, 1), k2=(704, 4),
    ),
    net(
        "a sequence for an LSTM",
        f"""{A} b = Relu (a) d = MaxPool <kernel_shape=[4,1], strides=[4,1]> (b) t = Transpose <perm=[3,0,1,2]> (d)
        q = Reshape (t, s)
        h, l = LSTM <hidden_size=5> (q, k1, k2) f = Squeeze (l, ax) y = MatMul (f, k3)""",
        8 + 5, 4, s=[0, 0, -1], k1=(1, 20, 16), k2=(1, 20, 5), ax=[0], k3=(5, 4),
    ),
    net(
        "a learned factor", f"{A} d = Conv (a, k) e = Mul (d, alpha) b = Add (a, e) {Y}", 8, 4, k=K8,
        alpha=np.full((1,), 0.7, np.float32),
    ),
    net(
        "LayerScale in a ConvNeXt block without norm",
        f"""{A} d = Conv <group=8, {SAME}> (a, k1) t = Transpose <perm=[0,2,3,1]> (d) e = MatMul (t, k2)
        e1 = Add (e, b2) h = Gelu (e1)
        o = MatMul (h, k3) l = Mul (o, scale) q = Transpose <perm=[0,3,1,2]> (l) b = Add (q, a) {Y}""",
        8 + 12, 4, opset=20, k1=(8, 1, 3, 3), k2=(8, 12), b2=(12,), k3=(12, 8), scale=(8,),
    ),
    net("a PRelu on a sum", f"{A} {C} q = Add (a, c) b = PRelu (q, scale) {Y}", 8, 4, scale=(8, 1, 1)),
    net(
        "PRelus of one slope tensor", f"{A} q = PRelu (a, scale) d = Conv (q, k) b = PRelu (d, scale) {Y}", 8, 4,
        scale=(8, 1, 1), k=K8,
    ),
    net(
        "an encoder and a decoder of one weight",
        "a = Conv (x, w) r = Relu (a) d = Conv (r, k) s = Relu (d) e = ConvTranspose (s, k) t = Relu (e) "
        "y = ConvTranspose (t, w)",
        8 + 5, 3, "the weight w is also read by Conv_a", k=(5, 8, 1, 1),
    ),
    net("an output that is a sum", f"{A} b = Relu (a) d = Conv (b, k) y = Add (a, d)", 0, 8, k=K8),
    net(
        "an output that adds the input", "a = Conv (x, w) b = Relu (a) d = Conv (b, k) y = Add (d, x)", 8, 3, STAYS,
        k=(3, 8, 1, 1),
    ),
    net("a batch axis without a name", f"{A} b = Relu (a) {Y}", 8, 4, inputs="float[?,3,8,8] x"),
    net(
        "a batch axis without a name, two inputs", f"{A} c = Conv (x2, u) b = Add (a, c) {Y}", 8, 4,
        inputs="float[?,3,8,8] x, float[?,3,8,8] x2",
    ),
    net(
        "an image and a vector",
        f"{A} q = GlobalAveragePool (a) f = Flatten (q) e = MatMul (i, k1) r = Relu (e) t = Concat <axis=1> (f, r) "
        "y = MatMul (t, k2)",
        8 + 6, 4, inputs="float[N,3,8,8] x, float[N,5] i", k1=(5, 6), k2=(14, 4),
    ),
    net(
        "a vector that scales the channels of an image",
        f"{A} e = MatMul (i, k1) r = Unsqueeze (e, ax) b = Mul (a, r) {Y}",
        8, 4, inputs="float[N,3,8,8] x, float[N,5] i", k1=(5, 8), ax=[2, 3],
    ),
    net(
        "twins that share their weights",
        "a = Conv (x, w) c = Conv (x2, w) r = Relu (a) s = Relu (c) d = Conv (r, k) e = Conv (s, k) t = Sub (d, e) "
        "b = Abs (t) y = Conv (b, v)",
        8 + 8, 4, inputs="float[N,3,8,8] x, float[N,3,8,8] x2", k=K8,
    ),
    net(
        "an inverted residual",
        f"""a = Conv (x, w) {bn("a", "n0", "0")} e = Conv (n0, k1) {bn("e", "n1", "1")} r = Clip (n1, zero, two)
        d = Conv <group=12, {SAME}> (r, k2)
        {bn("d", "n2", "2")} s = Clip (n2, zero, two) o = Conv (s, k3) {bn("o", "n3", "3")} b = Add (n0, n3) {Y}""",
        8 + 12, 4, k1=(12, 8, 1, 1), k2=(12, 1, 3, 3), k3=(8, 12, 1, 1),
        **bn_weights("0", 8), **bn_weights("1", 12), **bn_weights("2", 12), **bn_weights("3", 8),
    ),
    net(
        "a RepVGG block",
        f"""{A} r = Relu (a) d = Conv <{SAME}> (r, k1) {bn("d", "n1", "1")} e = Conv (r, k2)
        {bn("e", "n2", "2")} {bn("r", "n3", "3")}
        s = Add (n1, n2) t = Add (s, n3) b = Relu (t) {Y}""",
        8, 4, k1=(8, 8, 3, 3), k2=K8, **bn_weights("1", 8), **bn_weights("2", 8), **bn_weights("3", 8),
    ),
    net(
        "a Ghost module that cuts its surplus",
        f"a = Conv (x, k1) r = Relu (a) d = Conv <group=5, {SAME}> (r, k2) q = Concat <axis=1> (r, d) "
        f"b = Slice (q, i0, i8, i1) {Y}",
        5, 4, k1=(5, 3, 1, 1), k2=(5, 1, 3, 3), i0=[0], i8=[8], i1=[1],
    ),
    net(
        "a Res2Net block",
        f"""{A} o, q, r, s = Split <axis=1, num_outputs=4> (a) p1 = Conv (o, k1) q0 = Add (q, p1) q1 = Conv (q0, k2)
        r0 = Add (r, q1)
        r1 = Conv (r0, k3) z = Concat <axis=1> (p1, q1, r1, s) {HEAD}""",
        2 + 2 + 2 + 2 + 2, 4, k1=(2, 2, 1, 1), k2=(2, 2, 1, 1), k3=(2, 2, 1, 1),
    ),
    net(
        "a C2f block of YOLOv8",
        f"""{A} p, q = Split <axis=1> (a, n) d = Conv <{SAME}> (q, k1) e = Conv <{SAME}> (d, k2) r = Add (q, e)
        t = Concat <axis=1> (p, q, r) y = Conv (t, k3)""",
        8 + 6, 4, n=[4, 4], k1=(6, 4, 3, 3), k2=(4, 6, 3, 3), k3=(4, 12, 1, 1),
    ),
    net(
        "an Inception block",
        f"""{A} b1 = Conv (a, k1) b2 = Conv (a, k2) b3 = Conv <{SAME}> (b2, k3)
        m1 = MaxPool <kernel_shape=[3,3], {SAME}> (a)
        b4 = Conv (m1, k4) q = Concat <axis=1> (b1, b3, b4, m1) r = Relu (q) y = Conv (r, k5)""",
        8 + 3 + 4 + 5 + 2, 4, k1=(3, 8, 1, 1), k2=(4, 8, 1, 1), k3=(5, 4, 3, 3), k4=(2, 8, 1, 1), k5=(4, 18, 1, 1),
    ),
    net(
        "pyramid pooling with a global branch",
        f"""{A} d = Conv <dilations=[2,2], pads=[2,2,2,2]> (a, k1) q = GlobalAveragePool (a) e = Conv (q, k2)
        r = Relu (e)
        t = Resize <mode="linear"> (r, , , to) c = Concat <axis=1> (d, t) y = Conv (c, k3)""",
        8 + 5 + 3, 4, inputs="float[1,3,8,8] x", to=[1, 3, 8, 8], k1=(5, 8, 3, 3), k2=(3, 8, 1, 1), k3=(4, 8, 1, 1),
    ),
    net(
        "Transposes around each Conv, as from TensorFlow",
        """x1 = Transpose <perm=[0,3,1,2]> (x) a = Conv (x1, w) t1 = Transpose <perm=[0,2,3,1]> (a) b1 = Add (t1, wb)
        r = Relu (b1)
        t2 = Transpose <perm=[0,3,1,2]> (r) d = Conv <group=8> (t2, k1) t3 = Transpose <perm=[0,2,3,1]> (d)
        s = Mul (t3, scale)
        t4 = Transpose <perm=[0,3,1,2]> (s) e = Conv (t4, v) y = Transpose <perm=[0,2,3,1]> (e)""",
        8, 4, inputs="float[N,8,8,3] x", k1=(8, 1, 3, 3), scale=(8,),
    ),
    net(
        "a non-local block",
        f"""{A} th = Conv (a, k1) ph = Conv (a, k2) gs = Conv (a, k3) th1 = Reshape (th, s6)
        th2 = Transpose <perm=[0,2,1]> (th1)
        ph1 = Reshape (ph, s6) gs1 = Reshape (gs, s5) gs2 = Transpose <perm=[0,2,1]> (gs1) at = MatMul (th2, ph1)
        so = Softmax (at)
        o = MatMul (so, gs2) o1 = Transpose <perm=[0,2,1]> (o) o2 = Reshape (o1, s4) e = Conv (o2, k4) b = Add (a, e)
        {Y}""",
        8 + 6 + 5, 4, s6=[0, 6, -1], s5=[0, 5, -1], s4=[0, 5, 8, 8],
        k1=(6, 8, 1, 1), k2=(6, 8, 1, 1), k3=(5, 8, 1, 1), k4=(8, 5, 1, 1),
    ),
    net(
        "attention between two branches (selective kernel)",
        f"""{A} {C} s = Add (a, c) q = GlobalAveragePool (s) h = Conv (q, k1) r = Relu (h) e = Conv (r, k2)
        t = Reshape (e, s2)
        o = Softmax <axis=1> (t) l1, l2 = Split <axis=1, num_outputs=2> (o) g1 = Reshape (l1, s4) g2 = Reshape (l2, s4)
        u1 = Mul (a, g1) u2 = Mul (c, g2) b = Add (u1, u2) {Y}""",
        8 + 3, 4, k1=(3, 8, 1, 1), k2=(16, 3, 1, 1), s2=[0, 2, 8, 1], s4=[0, 8, 1, 1],
    ),
    net(
        "a Conv along channels (ECA)",
        f"""{A} q = GlobalAveragePool (a) s = Squeeze (q, ax1) t = Transpose <perm=[0,2,1]> (s)
        e = Conv <pads=[1,1]> (t, k)
        o = Sigmoid (e) r = Transpose <perm=[0,2,1]> (o) g1 = Unsqueeze (r, ax1) b = Mul (a, g1) {Y}""",
        0, 8 + 1 + 4, "Conv can't lose channels on axis 2", ONLY, ax1=[-1], k=(1, 1, 3),
    ),
    net(
        "branches that are stacked and summed",
        f"{A} {C} p = Unsqueeze (a, ax) q = Unsqueeze (c, ax) s = Concat <axis=1> (p, q) t = Mul (s, k) "
        f"b = ReduceSum <keepdims=0> (t, ax) {Y}",
        8, 4, ax=[1], k=(1, 2, 1, 1, 1),
    ),
    net(
        "branches that are stacked and interleaved",
        f"{A} {C} p = Unsqueeze (a, ax) q = Unsqueeze (c, ax) s = Concat <axis=2> (p, q) r = Reshape (s, s4) "
        "y = Conv (r, k)",
        8, 4, ax=[2], s4=[0, 16, 8, 8], k=(4, 16, 1, 1),
    ),
    net(
        "a detection head that is reshaped",
        f"{A} b = Relu (a) c = Conv (b, k) r = Reshape (c, s5) y = Transpose <perm=[0,1,3,4,2]> (r)",
        8, 7, s5=[-1, 2, 7, 8, 8], k=(14, 8, 1, 1),
    ),
    net(
        "a space-to-depth of strided slices (Focus)",
        """p = Slice (x, i0, i9, i2, i2) q = Slice (x, i1, i9, i2, i2) r = Concat <axis=1> (p, q) a = Conv (r, k)
        s = Slice (a, i0, i9, i3, i2)
        t = Slice (a, i1, i9, i3, i2) b = Concat <axis=1> (s, t) y = Conv (b, k2)""",
        8, 4, i0=[0], i1=[1], i2=[2], i3=[3], i9=[2**31 - 1], k=(8, 6, 1, 1), k2=(4, 16, 1, 1),
    ),
    net(
        "a shortcut that is padded with zero channels",
        f"a = Conv (x, k1) d = Conv (a, k2) s = Pad (a, pads) b = Add (d, s) {Y}",
        8, 4, k1=(5, 3, 1, 1), k2=(8, 5, 1, 1), pads=[0, 0, 0, 0, 0, 3, 0, 0],
    ),
    net(
        "patches, a class token and positions",
        """c = Conv <strides=[4,4]> (x, k1) r = Reshape (c, s3) t = Transpose <perm=[0,2,1]> (r)
        q = Concat <axis=1> (token, t)
        e = Add (q, place) o = Gather <axis=1> (e, i0) y = Gemm <transB=1> (o, g, gb)""",
        8, 4, inputs="float[1,3,8,8] x", k1=(8, 3, 4, 4), s3=[0, 8, -1], token=(1, 1, 8), place=(1, 5, 8), i0=np.int64(0),
    ),
    net(
        "a transformer's MLP beside its norm",
        """n = LayerNormalization (x, scale, beta) h = MatMul (n, k1) h1 = Add (h, b1) e = Gelu (h1) o = MatMul (e, k2)
        o1 = Add (o, b2)
        y = Add (x, o1)""",
        12, 8, STAYS, inputs="float[N,5,8] x", opset=20, scale=(8,), beta=(8,), k1=(8, 12), b1=(12,), k2=(12, 8), b2=(8,),
    ),
    net(
        "two blocks of a transformer",
        f"""c = Conv <strides=[4,4]> (x, k1) r = Reshape (c, s3) t = Transpose <perm=[0,2,1]> (r) e = Add (t, place)
        {BLOCK.format(x="e", y="f", n=1)} {BLOCK.format(x="f", y="o", n=2)}
        l = LayerNormalization (o, scale, beta) q = ReduceMean <keepdims=0> (l, ax) y = Gemm <transB=1> (q, g, gb)""",
        2 + 12, 8 + 4, "normalizes over the channels", inputs="float[N,3,8,8] x", opset=20, k1=(8, 3, 4, 4),
        s3=[0, 8, -1], place=(1, 4, 8), ax=[1], scale=(8,), beta=(8,), kq=(8, 6), kk=(8, 6), kv=(8, 6), ko=(6, 8),
        s4=[0, 0, 2, 3], s5=[0, 0, 6], kh=(8, 12), kp=(12, 8),
    ),
    net(
        "q, k and v from one matrix",
        """h = MatMul (x, k1) h1 = Add (h, b1) r = Reshape (h1, s5) t = Transpose <perm=[2,0,3,1,4]> (r)
        q, k, v1 = Split <axis=0, num_outputs=3> (t)
        q1 = Squeeze (q, ax) k2 = Squeeze (k, ax) v2 = Squeeze (v1, ax) k3 = Transpose <perm=[0,1,3,2]> (k2)
        d = MatMul (q1, k3) s = Softmax (d)
        o = MatMul (s, v2) o1 = Transpose <perm=[0,2,1,3]> (o) o2 = Reshape (o1, s3) y = MatMul (o2, k4)""",
        4, 8, inputs="float[N,5,8] x", k1=(8, 36), b1=(36,), s5=[0, 0, 3, 4, 3], s3=[0, 0, 12], ax=[0], k4=(12, 8),
    ),
    net(
        "an upsampling by a fixed depthwise ConvTranspose",
        f"{A} r = Conv <group=1> (a, k1) h = ConvTranspose <group=6, strides=[2,2]> (r, k2) t = Relu (h) "
        "y = Conv (t, k3)",
        8 + 6, 4, k1=(6, 8, 1, 1), k2=np.full((6, 1, 2, 2), 0.25, np.float32), k3=(4, 6, 1, 1),
    ),
    net(
        "one tensor, readers of every kind",
        f"""{A} d = Conv (a, k1) e = ConvTranspose (a, k2) s = Add (d, e) q = GlobalAveragePool (a) f = Flatten (q)
        h = MatMul (f, k3)
        h1 = Unsqueeze (h, ax) t = Mul (s, h1) y = Conv (t, k4)""",
        8 + 5, 4, k1=(5, 8, 1, 1), k2=(8, 5, 1, 1), k3=(8, 5), ax=[2, 3], k4=(4, 5, 1, 1),
    ),
    net(
        "a style: normalized, then scaled by another input",
        f"{A} n = InstanceNormalization (a, scale, beta) e = Gemm (i, k1) l1, l2 = Split <axis=1, num_outputs=2> (e) "
        f"g1 = Unsqueeze (l1, ax) g2 = Unsqueeze (l2, ax) o = Mul (n, g1) b = Add (o, g2) {Y}",
        8, 4, inputs="float[N,3,8,8] x, float[N,5] i", scale=(8,), beta=(8,), k1=(5, 16), ax=[2, 3],
    ),
]  # fmt: skip


def under(net_: str, free: int, pinned: int, *why: str, **modes: str) -> Case:
    """Take a network from above, with other options of the trace."""
    (case,) = (case for case in NETS if case.name == net_)
    told = ", ".join(f"{key} {value}" for key, value in modes.items())
    return replace(case, name=f"{net_}; {told}", free=free, pinned=pinned, why=why, modes=modes)


OTHER_UNITS = [
    under("a grouped Conv after a Split", 2 + 4, 4, grouped="whole"),
    under("a grouped Conv after a Concat of different branches", 1, 1 + 4, ONLY, grouped="whole"),
    under("a grouped Conv in a residual", 4, 4, grouped="whole"),
    under("two units of ShuffleNet v1", 0, 1 + 4, ONLY, grouped="whole"),
    under("an upsampling by a fixed depthwise ConvTranspose", 8 + 6, 4, grouped="whole"),
    under("a grouped ConvTranspose between Convs", 3, 4, grouped="whole"),
    under("q, k and v from one matrix", 3, 8, heads="width"),
    under("two blocks of a transformer", 2 + 12 + 8, 4, norms="cut"),
    under("two blocks of a transformer", 3 + 3 + 12 + 8, 4, norms="cut", heads="width"),
    under("a transformer's MLP beside its norm", 12, 8, STAYS, norms="cut"),
    under("a non-local block", 8 + 6 + 5, 4, heads="width"),
    under("attention between two branches (selective kernel)", 8 + 3, 4, heads="width"),
]

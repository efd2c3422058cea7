"""Tensors made of shapes and numbers; shapes live on the host."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor

from onnxprune.errors import ModelError
from onnxprune.training.operators.node import Binder, Node, Run

HALF = (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)


def torch_type(node: Node, kind: int) -> torch.dtype:
    """Return torch's type for one of ONNX; half precision is computed in single precision."""
    if kind in HALF:
        return torch.float32
    name = str(onnx.helper.tensor_dtype_to_np_dtype(kind))
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype):
        raise ModelError(
            f"{node.op} to {onnx.TensorProto.DataType.Name(kind)} has no function in torch",
            where=node.label,
            why="torch does not compute in this type",
            hint="everything but training works on this model: prune, repair, check",
        )
    return found


def widened(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return an array that torch knows: half precision becomes single precision, and four bits become eight."""
    name = str(array.dtype)
    if name in ("float16", "bfloat16"):
        return array.astype(np.float32)
    return array.astype(name.replace("4", "8")) if name in ("int4", "uint4") else array


def cast(node: Node) -> Run:
    """Floats are cut off towards zero where they become integers."""
    kind = torch_type(node, node.attr("to"))
    return lambda x: x.to(kind)


def constant(node: Node) -> Run:
    """What a node holds."""
    name = next(n for n in node.node.attrs if n.startswith("value"))
    array = np.asarray(node.attr(name))
    if name != "value":
        array = array.astype(np.float32 if "float" in name else np.int64)
    value = torch.from_numpy(np.array(widened(array)))
    return lambda: value


def constant_of_shape(node: Node) -> Run:
    """One number everywhere, a float zero by default."""
    value = torch.from_numpy(np.array(widened(np.asarray(node.attr("value", np.zeros(1, np.float32)))))).reshape(())
    sizes = node.numbers(0)
    return lambda *inputs: value.expand(sizes(inputs) or []).clone()


def shape(node: Node) -> Run:
    """From one axis to another."""
    start, end = node.attr("start", 0), node.attr("end")
    return lambda x: torch.tensor(x.shape[start:end], dtype=torch.int64)


def arange(node: Node) -> Run:
    """Start, limit and step."""
    for i in range(3):
        node.host.add(i)
    return lambda start, limit, step: torch.arange(start.item(), limit.item(), step.item(), dtype=start.dtype)


def one_hot(node: Node) -> Run:
    """Negative positions count from the end; those beyond it are off everywhere."""
    depths, axis = node.numbers(1), node.attr("axis", -1)

    def run(*inputs: Tensor | None) -> Tensor:
        at, values = inputs[0], inputs[2]
        assert at is not None
        assert values is not None
        depth = int((depths(inputs) or [0])[0])
        at = at.long()
        at = torch.where(at < 0, at + depth, at).unsqueeze(axis)
        order = torch.arange(depth, device=at.device)
        order = order.reshape(*[-1 if a == axis % at.ndim else 1 for a in range(at.ndim)])
        return torch.where(at == order, values[1], values[0])

    return run


def eye_like(node: Node) -> Run:
    """Ones on a diagonal."""
    k, kind = node.attr("k", 0), node.attr("dtype")
    given = None if kind is None else torch_type(node, kind)

    def run(x: Tensor) -> Tensor:
        ones = torch.ones(x.shape, dtype=given or x.dtype, device=x.device)
        return ones.triu(k).tril(k)

    return run


BINDERS: dict[str, Binder] = {
    "Cast": cast,
    "CastLike": lambda node: lambda x, like: x.to(like.dtype),
    "Constant": constant,
    "ConstantOfShape": constant_of_shape,
    "EyeLike": eye_like,
    "NonZero": lambda node: lambda x: torch.nonzero(x).t(),
    "OneHot": one_hot,
    "Range": arange,
    "Shape": shape,
    "Size": lambda node: lambda x: torch.tensor(x.numel(), dtype=torch.int64),
}

"""Casts, and tensors made of shapes and numbers; shapes stay on the host."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor

from onnxprune.torch_backend.operators.node import Node, Run, unsupported

HALF = (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)


def widened(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return an array of a type that torch computes with: half precision becomes single precision, 4 bits become 8."""
    name = str(array.dtype)
    if name in ("float16", "bfloat16"):
        return array.astype(np.float32)
    return array.astype(name.replace("4", "8")) if name in ("int4", "uint4") else array


def cast(node: Node) -> Run:
    """Floats become integers by rounding toward zero; half precision becomes single precision."""
    kind = node.attr("to")
    found = torch.float32 if kind in HALF else getattr(torch, str(onnx.helper.tensor_dtype_to_np_dtype(kind)), None)
    if not isinstance(found, torch.dtype):
        raise unsupported(f"{node.op} to {onnx.TensorProto.DataType.Name(kind)}", node.label)
    return lambda x: x.to(found)


def constant(node: Node) -> Run:
    """Return the constant of the node."""
    name = next(n for n in node.node.attrs if n.startswith("value"))
    array = np.asarray(node.attr(name))
    if name != "value":
        array = array.astype(np.float32 if "float" in name else np.int64)
    value = torch.from_numpy(np.array(widened(array)))
    return lambda: value


def constant_of_shape(*, shape: Sequence[int], value: Any = None) -> Tensor:
    """Fill a tensor with one number, by default a float 0."""
    number = torch.from_numpy(np.array(widened(np.zeros(1, np.float32) if value is None else value)))
    return number.reshape(()).expand(shape).clone()


def arange(node: Node) -> Run:
    """The inputs are start, limit and step."""
    node.host.update(range(3))
    return lambda start, limit, step: torch.arange(start.item(), limit.item(), step.item(), dtype=start.dtype)

"""Check that a model is well-formed and has the inputs and outputs of the original."""

from __future__ import annotations

import onnx

from onnxprune import leftovers
from onnxprune.errors import first_line
from onnxprune.graph.initializers import STORED_IN
from onnxprune.graph.io import PROTO_LIMIT, Parsed
from onnxprune.graph.model import Model, tensors_of
from onnxprune.types import Check

Source = onnx.ModelProto | Parsed | Model


def check_structure(candidate: Source, baseline: Source, *, strict: bool = True) -> list[Check]:
    """Check that a model is well-formed (where `strict`, by onnx's full check) and has the inputs and outputs of the baseline."""
    checks = []
    if strict:
        reason = full_check(candidate)
        checks.append(Check("onnx checker", "ok" if reason is None else "invalid", None, reason is None, reason or ""))
    for kind in ("input", "output"):
        ours, theirs = (_signature(source, kind) for source in (candidate, baseline))
        different = [name for name in {*ours, *theirs} if ours.get(name) != theirs.get(name)]
        detail = "; ".join(
            f"{name}: {ours.get(name, 'missing')} instead of {theirs.get(name, 'nothing')}"
            for name in sorted(different)
        )
        checks.append(Check(f"same {kind}s", not different, None, not different, detail))
    return checks


def full_check(source: Source) -> str | None:
    """Return why onnx's full check refuses a model, None where it passes; weights that a proto lacks are not checked.

    Raises:
        OSError: the folder for temporary files cannot be written, and the model is too large for a check without it.
    """
    if isinstance(source, onnx.ModelProto):
        return _refused(source)
    proto, weights = source.stub()
    try:
        with leftovers.temporary_folder() as folder:
            path = folder / "model.onnx"
            path.write_bytes(proto.SerializeToString())
            with (folder / STORED_IN).open("wb") as file:  # a sparse file: nothing is written
                file.truncate(max((values.nbytes for values in weights.values()), default=0))
            return _refused(str(path))
    except OSError:  # it says nothing about the model
        if sum(values.nbytes for values in weights.values()) >= PROTO_LIMIT:
            raise
        return _refused(source.to_proto() if isinstance(source, Model) else source.whole())


def _refused(model: onnx.ModelProto | str) -> str | None:
    """Return why onnx's full check refuses a proto or a file."""
    try:
        onnx.checker.check_model(model, full_check=True)
    except (OSError, MemoryError):
        raise
    except Exception as error:
        return first_line(error)
    return None


def _signature(source: Source, kind: str) -> dict[str, str]:
    """Return dtype and shape of each `input` or `output`."""
    if isinstance(source, Model):
        graph, weights = source.header.graph, {tensor.name for _, _, tensor in tensors_of(source.graph)}
    else:
        graph = source.graph if isinstance(source, onnx.ModelProto) else source.proto.graph
        weights = {tensor.name for tensor in graph.initializer}
    result = {}
    for value in getattr(graph, kind):
        if value.name in weights:
            continue
        tensor = value.type.tensor_type
        dims = (
            ["?" if not d.HasField("dim_value") else d.dim_value for d in tensor.shape.dim]
            if tensor.HasField("shape")
            else "any"
        )
        result[value.name] = f"{onnx.TensorProto.DataType.Name(tensor.elem_type).lower()}{dims}"
    return result

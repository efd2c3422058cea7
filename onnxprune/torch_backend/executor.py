"""Run an ONNX graph in torch: differentiable, with weights that are written back under their names.

Each node is bound once to a function of torch (`operators`). onnx2torch refuses the opsets that the exporter of torch writes now.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_graphsurgeon as gs
import torch
from torch import Tensor

from onnxprune.errors import DataError, ModelError
from onnxprune.graph.folded import is_float
from onnxprune.graph.model import Model
from onnxprune.metrics.outputs import Outputs
from onnxprune.torch_backend import operators
from onnxprune.torch_backend.fusion import fusions
from onnxprune.torch_backend.operators import Node, Run
from onnxprune.torch_backend.operators.shapes import widened

HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class _Step:
    """One bound node: slots of its inputs (-1: absent) and outputs, host inputs (`Node.host`), and slots that are freed after it."""

    n: int
    label: str
    op: str
    run: Run
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    host: frozenset[int]
    done: tuple[int, ...] = ()


class Executor:
    """A model's graph in torch.

    Half precision is computed in single precision; weights are rounded when they are written back.

    Attributes:
        model: the model.
        weights: leaves that require gradients, by name of their initializer: weights, biases, and scales of normalizations.
        buffers: running statistics, by name of their initializer, which a BatchNormalization updates in training mode.
        device: torch device.
        training: whether a BatchNormalization uses the statistics of the batch, and updates the running statistics.
    """

    def __init__(
        self,
        model: Model,
        *,
        device: str = "cpu",
        channels_last: bool = True,
        trained: bool = True,
    ) -> None:
        """Bind every node.

        Args:
            model: a normalized model.
            device: torch device: cpu, cuda, mps.
            channels_last: whether 4-D activations have their channels innermost in memory, which convolutions prefer.
            trained: whether the weights require gradients; else they are constants.

        Raises:
            ModelError: training does not support an operator; the message names the node.
        """
        self.model, self.device, self.channels_last, self.training = model, torch.device(device), channels_last, False
        self.weights: dict[str, Tensor] = {}
        self.buffers: dict[str, Tensor] = {}
        graph = model.graph
        self._slots: dict[str, int] = {}
        self._values: dict[int, Tensor] = {}
        for value in graph.inputs:
            self._slot(value.name)
        wanted = _trainable(graph)
        for node in graph.nodes:
            for i, tensor in enumerate(node.inputs):
                if isinstance(tensor, gs.Constant) and tensor.name not in self._slots:
                    self._hold(tensor, trained and tensor.name in wanted)
                if isinstance(tensor, gs.Constant) and i in operators.UPDATED.get(node.op, ()):
                    self.buffers[tensor.name] = self._values[self._slot(tensor.name)]
        for value in graph.outputs:
            if isinstance(value, gs.Constant) and value.name not in self._slots:
                self._hold(value, False)
        self._steps = self._bound()
        self._fused, self._parts, self._hidden = self._joined()

    def __call__(
        self,
        feeds: Mapping[str, Tensor],
        wanted: Sequence[str] = (),
        masks: Mapping[tuple[int, int], Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Run the graph.

        Args:
            feeds: one tensor per input of the model.
            wanted: names of activations to return beside the outputs.
            masks: factors of the inputs of nodes, by (number of the node, number of the input).

        Returns:
            Outputs and wanted activations, by name.

        Raises:
            DataError: an input has no tensor.
            ModelError: a node fails; the message names the node and the shapes of its inputs.
        """
        missing = [value.name for value in self.model.graph.inputs if value.name not in feeds]
        if missing:
            raise DataError(f"there is no tensor for input {missing[0]}", hint="give one for each input of the model")
        asked = (*(value.name for value in self.model.graph.outputs), *wanted)
        kept = {self._slots[name] for name in asked}
        values: dict[int, Tensor | None] = dict(self._values)
        for name, value in feeds.items():
            value = value.to(self.device, torch.float32 if value.dtype in HALF else value.dtype)
            last = self.channels_last and value.ndim == 4
            values[self._slots[name]] = value.to(memory_format=torch.channels_last) if last else value
        masks = masks or {}
        # a tensor inside a fusion can be neither masked nor returned
        whole = self._parts.isdisjoint(n for n, _ in masks) and kept.isdisjoint(self._hidden)
        for step in self._fused if whole else self._steps:
            inputs = [values[slot] if slot >= 0 else None for slot in step.inputs]
            for i, x in enumerate(inputs if masks else ()):
                if x is not None and (step.n, i) in masks:
                    inputs[i] = x * masks[step.n, i]
            try:
                results = step.run(*(inputs if self.device.type == "cpu" else self._together(inputs, step.host)))
            except (RuntimeError, IndexError, TypeError, ValueError) as error:
                if isinstance(error, torch.OutOfMemoryError) or "memory" in str(error):
                    raise
                shapes = ", ".join("-" if x is None else str(list(x.shape)) for x in inputs)
                raise ModelError(
                    f"{step.op} cannot be run in torch",
                    where=step.label,
                    why=f"{str(error).splitlines()[0]} (inputs {shapes})",
                    hint="onnxruntime runs it: everything but training works on this model",
                ) from error
            if isinstance(results, Tensor):
                values[step.outputs[0]] = results
            else:
                values.update((slot, value) for slot, value in zip(step.outputs, results, strict=False) if slot >= 0)
            for slot in step.done:
                if slot not in kept:
                    values.pop(slot, None)
        found = ((name, values[self._slots[name]]) for name in asked)
        present = {name: value for name, value in found if value is not None}
        if torch.is_grad_enabled():
            return present
        # a weight that is an output has a gradient still
        return {name: value.detach() if name in self.weights else value for name, value in present.items()}

    def outputs(self, feeds: Mapping[str, Tensor]) -> Outputs:
        """Return the outputs as arrays, without gradients, in evaluation mode."""
        was, self.training = self.training, False
        try:
            with torch.no_grad():
                found = self(feeds)
        finally:
            self.training = was
        return [found[value.name].to("cpu").numpy() for value in self.model.graph.outputs]

    def not_finite(self, feeds: Mapping[str, Tensor]) -> str:
        """Return the operator and name of the first node with an output that is not finite; empty if all are finite."""
        names = [tensor.name for node in self.model.graph.nodes for tensor in node.outputs if tensor.name]
        with torch.no_grad():
            values = self(feeds, names)
        for node in self.model.graph.nodes:
            for tensor in node.outputs:
                value = values.get(tensor.name)
                if value is not None and value.is_floating_point() and not bool(torch.isfinite(value).all()):
                    return f"{node.op} {node.name or tensor.name}"
        return ""

    def written(
        self, weights: Mapping[str, Tensor] | None = None, buffers: Mapping[str, Tensor] | None = None
    ) -> Model:
        """Return the model with the current, or the given, weights and running statistics; all other constants keep their bits."""
        model = self.model.copy()
        tensors = model.graph.tensors()
        found = {**(self.buffers if buffers is None else buffers), **(self.weights if weights is None else weights)}
        for name, value in found.items():
            constant = tensors[name]
            array = value.detach().to("cpu").contiguous().numpy()
            before = np.asarray(constant.values)
            if not np.array_equal(array, widened(before)):
                constant.values = array.astype(before.dtype)
        return model

    def _slot(self, name: str) -> int:
        return self._slots.setdefault(name, len(self._slots)) if name else -1

    def _hold(self, constant: gs.Constant, trained: bool) -> None:
        # a copy: training must not change the model
        value = torch.from_numpy(np.array(widened(np.asarray(constant.values))))
        if self.channels_last and value.ndim == 4 and value.is_floating_point():
            # not `contiguous`: it leaves a single channel unchanged, and torch then chooses the other layout
            value = value.to(memory_format=torch.channels_last)
        if value.is_floating_point():
            value = value.to(self.device)
        if trained:
            value.requires_grad_()
            self.weights[constant.name] = value
        self._values[self._slot(constant.name)] = value

    def _bound(self) -> list[_Step]:
        steps = []
        for n, node in enumerate(self.model.graph.nodes):
            label = node.name or (node.outputs[0].name if node.outputs else node.op)
            seen = Node(node, self.model.opset, label, self)
            run = operators.bind(seen)
            inputs, outputs = (tuple(self._slot(x.name) for x in each) for each in (node.inputs, node.outputs))
            steps.append(_Step(n, label, node.op, run, inputs, outputs, frozenset(seen.host)))
        return self._with_ends(steps)

    def _joined(self) -> tuple[list[_Step], set[int], set[int]]:
        """Return the steps with fused nodes, the numbers of the fused nodes, and the slots of tensors inside fusions."""
        steps, parts, hidden = dict(enumerate(self._steps)), set[int](), set[int]()
        for (*inner, last), tensors, run in fusions(self.model.graph):
            parts.update((*inner, last))
            hidden.update(slot for n in inner for slot in steps.pop(n).outputs)
            inputs = tuple(self._slots[tensor.name] for tensor in tensors)
            steps[last] = replace(steps[last], run=run, inputs=inputs, host=frozenset())
        return self._with_ends(list(steps.values())), parts, hidden

    def _with_ends(self, steps: Sequence[_Step]) -> list[_Step]:
        """Return the steps with the slots that no later step reads."""
        results = {self._slots[value.name] for value in self.model.graph.outputs}
        last = {slot: step.n for step in steps for slot in (*step.inputs, *step.outputs)}
        done: dict[int, list[int]] = {}
        for slot, n in last.items():
            if slot >= 0 and slot not in self._values and slot not in results:
                done.setdefault(n, []).append(slot)
        return [replace(step, done=tuple(done.get(step.n, ()))) for step in steps]

    def _together(self, inputs: list[Tensor | None], host: frozenset[int]) -> list[Tensor | None]:
        """Move the inputs of a node to one device, except host inputs: shapes are computed on the host."""
        if not any(x is not None and x.device.type != "cpu" for x in inputs):
            return inputs
        return [x if x is None or i in host else x.to(self.device) for i, x in enumerate(inputs)]


def _trainable(graph: gs.Graph) -> set[str]:
    """Return the names of float constants that are weights of all of their readers."""
    found, other = set[str](), set[str]()
    for node in graph.nodes:
        for i, tensor in enumerate(node.inputs):
            if isinstance(tensor, gs.Constant):
                weight = is_float(tensor) and operators.is_weight(node, i)
                (found if weight else other).add(tensor.name)
    return found - other

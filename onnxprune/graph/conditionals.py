"""Inline every If whose condition is a constant: the branch that is taken becomes part of the graph."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from onnxprune.graph.normalize import remove_dead
from onnxprune.graph.order import sort
from onnxprune.graph.qdq import STANDARD


def inline_ifs(graph: gs.Graph) -> bool:
    """Replace each If with a constant condition by the branch that is taken, in place; return whether there was any.

    Names of a branch that the graph has already are changed. An If within a branch is left for the next call.
    """
    found = [node for node in graph.nodes if node.op == "If" and node.domain in STANDARD]
    found = [node for node in found if isinstance(node.inputs[0], gs.Constant) and node.inputs[0].values.size == 1]
    names = set(graph.tensors()) if found else set()
    labels = {node.name for node in graph.nodes}
    for node in found:
        taken = bool(node.inputs[0].values.reshape(-1)[0])
        _inline(graph, node, node.attrs["then_branch" if taken else "else_branch"], names, labels)
    if found:
        sort(graph)
        remove_dead(graph)
    return bool(found)


def _inline(graph: gs.Graph, node: gs.Node, branch: gs.Graph, names: set[str], labels: set[str]) -> None:
    """Move the nodes of a branch into the graph, and let them write the outputs of the If."""
    inner = {id(tensor): tensor for own in branch.nodes for tensor in own.outputs if tensor.name}
    for own in branch.nodes:
        own.name = _unused(own.name, labels) if own.name else ""
        for tensor in own.inputs:
            if isinstance(tensor, gs.Constant) and not tensor.inputs:
                inner[id(tensor)] = tensor
    known = graph.tensors()
    for tensor in inner.values():
        if known.get(tensor.name) is not tensor:
            tensor.name = _unused(tensor.name, names)
    graph.nodes.extend(branch.nodes)
    outputs = list(node.outputs)
    node.outputs.clear()
    node.inputs.clear()
    for result, output in zip(branch.outputs, outputs, strict=True):
        source = next(iter(result.inputs), None)
        if source is not None and any(source is own for own in branch.nodes) and result is not output:
            for reader in list(result.outputs):
                reader.inputs = [output if tensor is result else tensor for tensor in reader.inputs]
            source.outputs = [output if tensor is result else tensor for tensor in source.outputs]
        else:  # the branch passes a tensor of the graph, a constant, or one result twice
            graph.nodes.append(gs.Node("Identity", _unused(f"{output.name}__branch", labels), {}, [result], [output]))
    graph.nodes = [other for other in graph.nodes if other is not node]


def _unused(name: str, taken: set[str]) -> str:
    """Return a name that is not taken yet, and take it."""
    number, found = 0, name
    while found in taken:
        number += 1
        found = f"{name}__{number}"
    taken.add(found)
    return found

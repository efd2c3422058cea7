"""Order nodes: every node after those it reads from, and otherwise where it was."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from onnxprune.graph.qdq import captured_names


def sort(graph: gs.Graph) -> None:
    """Sort the nodes of a graph topologically, in place; nodes that are in order stay in order.

    A node that comes too late, as new ones at the end do, moves right before its first reader. The order of a file is
    kept, since it decides how much memory the activations take where a compiler runs the nodes in that order. Nodes of
    bodies stay.

    Raises:
        ValueError: the nodes form a circle.
    """
    own = {id(node) for node in graph.nodes}
    writers = {tensor.name: node for node in graph.nodes for tensor in node.outputs}
    done: set[int] = set()
    ordered: list[gs.Node] = []

    def sources(node: gs.Node) -> list[gs.Node]:
        found = [tensor.inputs[0] for tensor in node.inputs if tensor.inputs]
        found += [writers[name] for name in captured_names(node) if name in writers]
        return [source for source in found if id(source) in own and id(source) not in done]

    open_: set[int] = set()  # nodes whose sources are being placed
    for first in graph.nodes:
        waiting = [first]
        while waiting:
            node = waiting[-1]
            missing = sources(node) if id(node) not in done else []
            if missing:
                if id(node) in open_:
                    raise ValueError(f"node {node.name or node.op} reads, through other nodes, what it writes")
                open_.add(id(node))
                waiting += reversed(missing)
                continue
            waiting.pop()
            if id(node) not in done:
                done.add(id(node))
                ordered.append(node)
    graph.nodes = ordered

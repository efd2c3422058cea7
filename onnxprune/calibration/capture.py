"""Run a model piece by piece over calibration batches, so that weights can change in between."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnxprune import leftovers
from onnxprune.errors import ModelError
from onnxprune.graph.model import Model
from onnxprune.graph.qdq import captured_names
from onnxprune.runtime.session import ALTERNATING, Feeds, open_session, run_batch
from onnxprune.surgery.cuts import COMPUTED, cut_at

Array = np.ndarray[Any, Any]
Kept = Array | Path | list[Array]
"""An array, or the file that holds it; an ONNX sequence (a list of arrays) stays in memory."""
FREE = frozenset({"Shape", "Size"})
"""Operators that run as soon as possible: they cost nothing, and would keep a tensor alive for one integer."""


class ActivationStore:
    """Arrays in memory up to `budget` bytes, further ones in files of a temporary folder.

    What killed runs have left beside that folder is deleted.
    """

    def __init__(self, budget: float) -> None:
        self.budget = budget
        self.held = 0
        self.count = 0
        self._folder: Path | None = None
        self._scope = contextlib.ExitStack()

    def put(self, value: Array | list[Array]) -> Kept:
        """Store an array; return its handle for `get` and `drop`."""
        if isinstance(value, list):
            return value
        if value.nbytes < 2**16 or self.held + value.nbytes <= self.budget:
            self.held += value.nbytes
            return value
        if self._folder is None:
            self._folder = self._scope.enter_context(leftovers.temporary_folder())
        self.count += 1
        path = self._folder / f"{self.count}.npy"
        np.save(path, value)
        return path

    @staticmethod
    def get(kept: Kept) -> Any:
        """Return a stored array."""
        return np.load(kept) if isinstance(kept, Path) else kept

    def drop(self, kept: Kept) -> None:
        """Release an array."""
        if isinstance(kept, Path):
            kept.unlink()
        elif not isinstance(kept, list):
            self.held -= kept.nbytes

    def close(self) -> None:
        """Delete the files."""
        self._scope.close()
        self._folder = None


class LayerwiseRunner:
    """A model that is run layer by layer over all batches.

    The store keeps, per batch, the tensors that the rest of the model needs. So each node runs once, and the weights
    of a node may change until it runs, or after `rewind`.

    Attributes:
        results: names of the tensors that `finish` returns: the outputs, unless others are given.
        lasting: names of tensors that are kept from their computation on.
    """

    def __init__(
        self, model: Model, batches: Iterable[Feeds], store: ActivationStore, results: Sequence[str] | None = None
    ) -> None:
        self.model, self.store = model, store
        self.nodes = model.graph.nodes
        self.done: set[int] = set()
        self.producer = {t.name: n for n, node in enumerate(self.nodes) for t in node.outputs if t.name}
        self.inputs = [_inputs(node) for node in self.nodes]
        self.users: dict[str, list[int]] = {}
        for n, names in enumerate(self.inputs):
            for name in names:
                self.users.setdefault(name, []).append(n)
        self.results = tuple(t.name for t in model.graph.outputs) if results is None else tuple(results)
        self.kept: dict[str, list[Kept]] = {}
        self.held: dict[str, list[Kept]] = {}
        self.lasting: set[str] = set()
        self.n_batches = 0
        for feeds in batches:
            self.n_batches += 1
            for name, value in feeds.items():
                self.kept.setdefault(name, []).append(store.put(value))

    def close(self) -> None:
        """Release all tensors."""
        for values in (*self.kept.values(), *self.held.values()):
            for value in values:
                self.store.drop(value)
        self.kept, self.held = {}, {}

    def ancestors(self, names: Iterable[str]) -> set[int]:
        """Return the nodes that must run to compute tensors."""
        needed: set[int] = set()
        waiting = [name for name in names if name not in self.kept]
        while waiting:
            n = self.producer.get(waiting.pop())
            if n is None or n in needed:
                continue
            needed.add(n)
            waiting += [name for name in self.inputs[n] if name not in self.kept]
        return needed

    def dependents(self, nodes: Collection[int], names: Sequence[str]) -> list[int]:
        """Return those of `nodes`, and of the nodes that depend on them, that must run to compute tensors."""
        made: set[str] = set()
        found: list[int] = []
        for n in sorted(self.ancestors(names)):
            if n in nodes or not made.isdisjoint(self.inputs[n]):
                found.append(n)
                made |= {t.name for t in self.nodes[n].outputs if t.name}
        return found

    def taken(self, nodes: Collection[int]) -> set[str]:
        """Return the tensors that some nodes take from others."""
        made = {t.name for n in nodes for t in self.nodes[n].outputs}
        return {name for n in nodes for name in self.inputs[n]} - made

    def advance(self, names: Sequence[str]) -> None:
        """Run up to the tensors `names`; `read` returns them until the next call."""
        if needed := self.ancestors(names):
            self._run(needed, names)
        for name in list(self.kept):
            if not self._is_wanted(name, names, self.done):
                for value in self.kept.pop(name):
                    self.store.drop(value)

    def _is_wanted(self, name: str, names: Collection[str], done: set[int]) -> bool:
        if name in names or name in self.lasting or name in self.results:
            return True
        return any(n not in done for n in self.users.get(name, ()))

    def _run(self, needed: set[int], names: Sequence[str]) -> None:
        known = {t.name for n in needed for t in self.nodes[n].outputs} | self.kept.keys()
        free = {n for name in known for n in self.users.get(name, ()) if self.nodes[n].op in FREE}
        order = sorted(needed | (free - self.done))
        after = self.done.union(order)
        made = sorted({t.name for n in order for t in self.nodes[n].outputs if t.name})
        wanted = [name for name in made if self._is_wanted(name, names, after)]
        taken = sorted({name for n in order for name in self.inputs[n] if name in self.kept})
        opened = self._open(self.model, order, taken, wanted)
        for name in wanted:
            self.kept[name] = []
        for batch in range(self.n_batches):
            feeds = {name: self.store.get(self.kept[name][batch]) for name in taken}
            for name, value in zip(wanted, run_batch(opened, feeds, names=wanted), strict=True):
                self.kept[name].append(self.store.put(value))
        self.done = after

    def _open(
        self, model: Model, nodes: list[int], taken: list[str], wanted: list[str], cut: Sequence[str] = ()
    ) -> Any:
        """Open a session of some nodes of a model, whose inputs have the types of the kept tensors; see `finish` for `cut`."""
        first = {name: self.store.get(self.kept[name][0]) for name in taken}
        arrays = {name: value for name, value in first.items() if not isinstance(value, list)}
        proto, weights = model.part(nodes, arrays, wanted)
        cut_at(proto.graph, {name: self.store.get(self.held[name][0]) for name in cut})
        for name in first.keys() - arrays.keys():
            dtype = next((part.dtype for part in first[name]), np.dtype(np.float32))
            kind = onnx.helper.np_dtype_to_tensor_dtype(dtype)
            proto.graph.input.append(onnx.helper.make_tensor_sequence_value_info(name, kind, None))
        try:
            return open_session(proto, ALTERNATING, where=str(self.model.path), weights=weights)
        except ModelError:  # onnxruntime infers a wrong shape from unknown ones, as behind an Attention
            last = {name: self.store.get(self.kept[name][-1]) for name in arrays}
            for value in proto.graph.input[: len(arrays)]:
                shapes = np.shape(arrays[value.name]), np.shape(last[value.name])
                for dim, one, other in zip(value.type.tensor_type.shape.dim, *shapes, strict=True):
                    if one == other:
                        dim.dim_value = one
            return open_session(proto, ALTERNATING, where=str(self.model.path), weights=weights)

    def may_rewind(self, nodes: Collection[int], changed: Collection[int]) -> bool:
        """Tell whether `nodes` include all nodes that have run and depend on the nodes `changed`."""
        made: set[str] = set()
        for n in sorted(self.done):
            if n in changed or not made.isdisjoint(self.inputs[n]):
                if n not in nodes and self.nodes[n].op not in FREE:
                    return False
                made |= {t.name for t in self.nodes[n].outputs if t.name}
        return True

    def rewind(self, nodes: Iterable[int]) -> None:
        """Release the outputs of nodes, so that they run again with changed weights."""
        for n in nodes:
            self.done.discard(n)
            for tensor in self.nodes[n].outputs:
                for value in self.kept.pop(tensor.name, []):
                    self.store.drop(value)

    def hold(self, names: Sequence[str]) -> None:
        """Run the model as it is, and keep tensors: in `finish` their readers take them as they are now."""
        if not names:
            return
        opened = self.model.session(outputs=names)
        for batch in range(self.n_batches):
            feeds = {name: self.store.get(values[batch]) for name, values in self.kept.items()}
            for name, value in zip(names, run_batch(opened, feeds, names=[*names]), strict=True):
                self.held.setdefault(name, []).append(self.store.put(value))

    def finish(self, model: Model) -> list[Array]:
        """Run the remaining nodes with the weights of `model`, of the same graph; return the concatenated results.

        The readers of tensors that are held (see `hold`) take these; the results hold what is computed.
        """
        order = [n for n in range(len(self.nodes)) if n not in self.done]
        names = [name for name in self.results if name in self.producer or name in self.kept]  # no constants
        taken = sorted(self.kept.keys() & {*names, *(name for n in order for name in self.inputs[n])})
        cut = [name for name in self.held if self.producer[name] in order]
        opened = self._open(model, order, taken, names, cut)
        wanted = [name + COMPUTED * (name in cut) for name in names]
        parts = []
        for batch in range(self.n_batches):
            feeds = {name: self.store.get(self.kept[name][batch]) for name in taken}
            feeds |= {name: self.store.get(self.held[name][batch]) for name in cut}
            parts.append(run_batch(opened, feeds, names=wanted))
        return model.signature.join(parts, names)

    def read(self, name: str, batch: int) -> Array:
        """Return one batch of a tensor that is kept."""
        value: Array = self.store.get(self.kept[name][batch])
        return value


def _inputs(node: Any) -> list[str]:
    """Return the names of the activations that a node or its bodies read."""
    own = [t.name for t in node.inputs if t.name and not hasattr(t, "values")]
    return [*own, *captured_names(node)]

"""Results of long steps, kept in a folder beside the output, so that a run that broke off goes on from them.

A result is found by the digest of everything that it follows from. It is stored as numbers and text, never as code.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from onnxprune import leftovers
from onnxprune.errors import OutputError
from onnxprune.fileio import atomic_write, write_json
from onnxprune.reading import open_regular, read_json
from onnxprune.runtime.timings import Timings

T = TypeVar("T")
SCHEMA = "onnxprune.state/1"
IDENTITY, ENDING, TRAINING, TIMINGS = "state.json", ".npz", "training", "timings.json"
WORTH = 1.0
"""Seconds of work from which a result is stored."""
CONTENT, DIGEST = "content", "digest"
"""Names, within the arrays of a result, of its JSON text and of the digest of all of it."""


class StageResults:
    """The results of a run, in a folder.

    Args:
        folder: of the results; it is made when the first one is stored. None: nothing is stored.
        resume: whether results that lie there already are used; without it they are removed by the first new one.
        timings: times that decisions were taken from; they are stored beside each result, so that a run that goes on decides
            the same. None: there are none, or they are kept elsewhere.
    """

    def __init__(self, folder: Path | None = None, *, resume: bool = False, timings: Timings | None = None) -> None:
        self.folder, self.resume, self._timings = folder, resume, timings
        self._identity: Mapping[str, str] | None = None
        self._identify: Callable[[], Mapping[str, str]] = dict
        self.reused = 0

    def open(self, identify: Callable[[], Mapping[str, str]]) -> None:
        """Say what the run is, by digests of what it reads and was asked; results of another run are refused.

        Raises:
            OutputError: the folder holds the results of another run and `resume` is set, or holds other files.
        """
        self._identify, self._identity = identify, None
        if self.folder is None or not self.folder.exists():
            return
        found = _identity_in(self.folder)
        if found is None:
            is_folder = self.folder.is_dir()
            raise OutputError(
                f"the folder for the state of the run {'holds other files' if is_folder else 'is a file'}",
                where=str(self.folder),
                why=f"there is no {IDENTITY} of this version in it" if is_folder else "a folder of this name is needed",
                hint="move it away, or give another output",
            )
        if not self.resume or not found:  # an empty folder: the run ended before the first result
            return
        wanted = identify()
        if changed := different(found, wanted):
            raise OutputError(
                "the state belongs to another run",
                where=str(self.folder),
                why=f"different: {', '.join(changed)}",
                hint="leave out --resume to start anew, or give what the earlier run was given",
            )
        self._identity = wanted

    @property
    def is_kept(self) -> bool:
        """Whether there are results to go on from."""
        folder = self.folder
        return folder is not None and self._identity is not None and any(path.name != IDENTITY for path in _own(folder))

    def of(
        self,
        name: str,
        parts: Callable[[], Sequence[Any]],
        compute: Callable[[], T],
        *,
        pack: Callable[[T], Any] = lambda value: value,
        unpack: Callable[[Any], T] = lambda value: value,
        types: Sequence[type] = (),
    ) -> T:
        """Return a result: the stored one, or that of `compute`, which is stored where it took long.

        Args:
            name: of the step.
            parts: what the result follows from, beside what the run reads and was asked: texts, numbers, arrays.
            compute: the step.
            pack: makes numbers, texts, arrays, dataclasses of `types`, and sequences of these from the result; None: it
                cannot be stored.
            unpack: the inverse of `pack`.
            types: dataclasses that occur in what is packed.

        >>> StageResults().of("sum", lambda: ["a"], lambda: 1 + 1)
        2
        """
        if self.folder is None:
            return compute()
        key = f"{name}-{digest(parts())[:24]}{ENDING}"
        if self.resume and self._identity is not None:
            with contextlib.suppress(Exception):  # a damaged one is computed anew: numpy and zipfile raise many types
                found = unpack(_read(self.folder / key, types))
                self.reused += 1
                return found
        start = time.perf_counter()
        value = compute()
        if time.perf_counter() - start >= WORTH and (packed := pack(value)) is not None:
            self._store(key, packed)
        return value

    def file(self, name: str) -> Path | None:
        """Return the path of a further file in the folder, which is made; None: nothing is stored."""
        return self.folder / name if self.folder is not None and self._made() else None

    def _made(self) -> bool:
        """Make the folder, without results of another run; tell whether that was possible."""
        assert self.folder is not None
        if self._identity is not None and self.folder.exists():
            return True
        try:
            if self._identity is None:
                self._identity = self._identify()
                self._removed()
            self.folder.mkdir(exist_ok=True)
            write_json(self.folder / IDENTITY, {"schema": SCHEMA, "identity": self._identity})
        except (OSError, OutputError):  # the run goes on without it
            self.folder = None
            return False
        return True

    def _store(self, key: str, packed: Any) -> None:
        arrays: list[np.ndarray[Any, Any]] = []
        content = json.dumps(_plain(packed, arrays))
        if not self._made() or self.folder is None:
            return
        stored = {f"a{number}": array for number, array in enumerate(arrays)}
        stored[DIGEST] = np.array(digest([content, arrays]))
        with (
            contextlib.suppress(OSError, OutputError),
            atomic_write(self.folder / key) as temporary,
            temporary.open("wb") as stream,
        ):
            np.savez(stream, **{CONTENT: np.frombuffer(content.encode(), dtype=np.uint8)}, **stored)  # type: ignore[arg-type]
        if self._timings is not None:
            with contextlib.suppress(OutputError):
                self._timings.save(self.folder / TIMINGS)

    @contextlib.contextmanager
    def kept_on_error(self) -> Iterator[None]:
        """Remove the results when the `with` block succeeds; say where they are when it fails."""
        try:
            yield
        except BaseException as error:
            if self.is_kept:
                error.add_note(self.where)
            raise
        self.discard()

    @property
    def where(self) -> str:
        """A sentence on where the results are."""
        return f"the work so far is kept in {self.folder}: the same command with --resume goes on from there"

    def discard(self) -> None:
        """Remove the results, and their folder where nothing else is in it."""
        if self._identity is not None:
            self._removed()

    def _removed(self) -> None:
        if self.folder is None or not self.folder.is_dir():
            return
        for path in _own(self.folder):
            with contextlib.suppress(OSError):  # what cannot be deleted stays, with the file that identifies it
                if path.name != IDENTITY or _own(self.folder) == [path]:
                    path.unlink(missing_ok=True)
        leftovers.sweep(self.folder)
        with contextlib.suppress(OSError):  # other files stay
            self.folder.rmdir()


def _own(folder: Path) -> list[Path]:
    """Return the files that a run leaves in a folder; the one that identifies it comes last."""
    found = [*folder.glob(f"*-*{ENDING}"), *folder.glob(f"{TRAINING}*"), *folder.glob(TIMINGS)]
    identity = folder / IDENTITY
    return [*found, identity] if identity.exists() else []


def _identity_in(folder: Path) -> dict[str, str] | None:
    try:
        content = read_json(folder / IDENTITY)
        return dict(content["identity"]) if content["schema"] == SCHEMA else None
    except FileNotFoundError:
        foreign = [path for path in folder.iterdir() if not leftovers.OWN.fullmatch(path.name)]
        return None if foreign else {}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def different(one: Mapping[str, str], other: Mapping[str, str]) -> list[str]:
    """Return the names under which two identities differ.

    >>> different({"model": "1", "data": "2"}, {"model": "1", "data": "3"})
    ['data']
    """
    return sorted(name for name in {*one, *other} if one.get(name) != other.get(name))


def digest(value: Any) -> str:
    """Return the SHA-256 of texts, numbers, arrays, the bytes of files (as Path), and of mappings, sequences and dataclasses of these.

    Arrays count with dtype and shape. A value of another kind cannot be compared: it never has the digest of another one.

    >>> digest({"a": np.zeros(3), "b": None}) == digest({"b": None, "a": np.zeros(3)})
    True
    >>> digest(np.zeros(3)) == digest(np.zeros(3, np.float32)), digest(object()) == digest(object())
    (False, False)
    """
    found = hashlib.sha256()
    _update(found, value)
    return found.hexdigest()


ROWS = 1 << 24
"""Bytes of an array that are hashed at a time, where it is not contiguous."""


def _update(found: Any, value: Any) -> None:
    """Add a value to a digest, with its kind and length, so that no two values give the same bytes."""
    if isinstance(value, np.generic):
        value = np.asarray(value)
    if isinstance(value, np.ndarray):
        found.update(f"array {value.dtype} {value.shape};".encode())
        if value.dtype.hasobject:
            for entry in value.ravel():
                _update(found, entry)
        elif value.flags.c_contiguous:
            found.update(value.reshape(-1).view(np.uint8) if value.size else b"")
        else:
            step = max(1, ROWS // max(1, value[:1].nbytes))
            for start in range(0, len(value), step):
                found.update(np.ascontiguousarray(value[start : start + step]).reshape(-1).view(np.uint8))
    elif value is None or isinstance(value, bool | int | float | str | bytes):
        text = value if isinstance(value, bytes) else repr(value).encode()
        found.update(f"{type(value).__name__} {len(text)};".encode() + text)
    elif isinstance(value, Path):
        with open_regular(value) as stream:
            found.update(b"file;" + hashlib.file_digest(stream, "sha256").digest())
    elif is_dataclass(value):
        found.update(f"dataclass {type(value).__name__};".encode())
        _update(found, {field.name: getattr(value, field.name) for field in fields(value)})
    elif isinstance(value, Mapping):
        found.update(f"mapping {len(value)};".encode())
        for key in sorted(value, key=repr):
            _update(found, key)
            _update(found, value[key])
    elif isinstance(value, set | frozenset):
        _update(found, sorted(value, key=repr))
    elif isinstance(value, Sequence):
        found.update(f"sequence {len(value)};".encode())
        for entry in value:
            _update(found, entry)
    else:
        found.update(np.random.default_rng().bytes(32))


def _plain(value: Any, arrays: list[np.ndarray[Any, Any]]) -> Any:
    """Return a value as JSON can hold it; its arrays go to the list."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.ndarray):
        number = next((n for n, known in enumerate(arrays) if known is value), len(arrays))
        if number == len(arrays):
            arrays.append(value)
        return {"array": number}
    if is_dataclass(value):
        entries = [[field.name, _plain(getattr(value, field.name), arrays)] for field in fields(value)]
        return {type(value).__name__: entries}
    if isinstance(value, Mapping):
        return {"mapping": [[_plain(key, arrays), _plain(entry, arrays)] for key, entry in value.items()]}
    if isinstance(value, frozenset):
        return {"frozenset": sorted(_plain(entry, arrays) for entry in value)}
    entries = [_plain(entry, arrays) for entry in value]
    return {"tuple": entries} if isinstance(value, tuple) else entries


def _read(path: Path, types: Sequence[type]) -> Any:
    """Return the value that a file holds."""
    known = {kind.__name__: kind for kind in types}
    with open_regular(path) as stream, np.load(stream, allow_pickle=False) as stored:
        text = stored[CONTENT].tobytes().decode()
        count = sum(name not in (CONTENT, DIGEST) for name in stored.files)
        arrays = [stored[f"a{number}"] for number in range(count)]
        if str(stored[DIGEST]) != digest([text, arrays]):
            raise ValueError("the result was changed")
        content = json.loads(text)

        def value(plain: Any) -> Any:
            if isinstance(plain, list):
                return [value(entry) for entry in plain]
            if not isinstance(plain, dict):
                return plain
            [(kind, entry)] = plain.items()
            if kind == "array":
                return arrays[entry]
            if kind == "mapping":
                return {value(key): value(each) for key, each in entry}
            if kind in ("tuple", "frozenset"):
                return (tuple if kind == "tuple" else frozenset)(map(value, entry))
            return known[kind](**{name: value(each) for name, each in entry})

        return value(content)

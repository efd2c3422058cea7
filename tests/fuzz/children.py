"""Run functions in forked children: what a case does to the interpreter costs one child, and no other case.

A child has everything imported that its parent has, one address space limit, one file size limit, and an audit hook that tells
what it writes outside its folder. The parent starts no threads before it forks.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import importlib
import io
import json
import os
import resource
import select
import signal
import stat
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from onnxprune.cli import main
from onnxprune.cli.group import expected

T = TypeVar("T")
CLEAN = ("done", "refused")
"""Kinds of outcomes that are as they should be."""
FAULTY = ("defect", "crash", "hang", "escape")
"""Kinds of outcomes that are faults: an exception that is no message, a signal, no end, and a file outside the folder."""


@dataclass(frozen=True)
class Limits:
    """What a child may use: bytes beyond its own at the start, bytes of one file, and seconds for one case."""

    memory: float = 3e9
    file: float = 512e6
    seconds: float = 60.0


@dataclass(frozen=True)
class Outcome:
    """What became of a case: its kind (`CLEAN` or `FAULTY`), the message or the place of the fault, and seconds."""

    kind: str
    detail: str = ""
    seconds: float = 0.0

    def __bool__(self) -> bool:
        return self.kind in CLEAN


def command(*args: object) -> int:
    """Run a command of onnxprune in this process; return its exit code.

    Raises:
        Exception: a defect; errors that have a message end in an exit code.
    """
    try:
        code = main.main([str(arg) for arg in args], prog_name="onnxprune", standalone_mode=False)
    except SystemExit as end:
        code = end.code
    return code if isinstance(code, int) else 0


def run(call: Callable[[T], Any], cases: Sequence[T], folder: Path, limits: Limits | None = None) -> list[Outcome]:
    """Call a function on each case in children that have `folder` as their current one; return the outcomes in order.

    The function returns text, which is kept, or an exit code; it raises where a case is refused. After a fault that ends the child,
    the next case gets a new one.
    """
    outcomes: list[Outcome] = []
    while len(outcomes) < len(cases):
        outcomes += _child(call, cases[len(outcomes) :], folder, limits or Limits())
    return outcomes


def _child(call: Callable[[T], Any], cases: Sequence[T], folder: Path, limits: Limits) -> list[Outcome]:
    """Return the outcomes of the first cases, up to one that ends the child."""
    readable, writable = os.pipe()
    child = os.fork()
    if not child:
        os.close(readable)
        try:
            _serve(call, cases, folder, limits, writable)
        finally:
            os._exit(0)
    os.close(writable)
    outcomes, rest, begin = [], b"", time.monotonic()
    with open(readable, "rb", buffering=0) as answers:
        while len(outcomes) < len(cases):
            left = begin + limits.seconds - time.monotonic()
            if not select.select([answers], [], [], max(0.0, left))[0]:
                _kill(child)
                outcomes.append(Outcome("hang", f"no end after {limits.seconds:.0f} s", limits.seconds))
                break
            part = answers.read(65536)
            if not part:
                break
            *lines, rest = (rest + part).split(b"\n")
            outcomes += [Outcome(**json.loads(line)) for line in lines]
            begin = time.monotonic()
    status = os.waitpid(child, 0)[1]
    if len(outcomes) < len(cases) and not (outcomes and outcomes[-1].kind == "hang"):
        outcomes.append(Outcome("crash", _ending(status, folder), time.monotonic() - begin))
    return outcomes


def _kill(child: int) -> None:
    for kill in (os.killpg, os.kill):
        with contextlib.suppress(OSError):
            kill(child, signal.SIGKILL)


def _ending(status: int, folder: Path) -> str:
    said = said_in(folder).read_bytes()[-400:].decode(errors="replace").strip()
    how = (
        signal.Signals(os.WTERMSIG(status)).name
        if os.WIFSIGNALED(status)
        else f"exit {os.waitstatus_to_exitcode(status)}"
    )
    return f"{how}: {said.splitlines()[-1] if said else 'nothing said'}"


def _serve(call: Callable[[T], Any], cases: Sequence[T], folder: Path, limits: Limits, answers: int) -> None:
    """Call the function on each case, and write one line for each."""
    os.setsid()
    settle(folder, limits)
    outside = watched(folder)
    for case in cases:
        os.ftruncate(1, 0)
        begin = time.monotonic()
        outcome = _outcome(call, case, folder)
        if outside:
            outcome = Outcome("escape", outside[0])
            outside.clear()
        line = json.dumps({**vars(outcome), "seconds": time.monotonic() - begin})
        os.write(answers, line.encode() + b"\n")


def settle(folder: Path, limits: Limits) -> None:
    """Bind this process to a folder and to limits; what it prints goes to a file beside the folder."""
    sys.dont_write_bytecode = True
    faulthandler.disable()  # it would print to where the parent prints
    os.chdir(folder)
    temporary = folder / "tmp"
    temporary.mkdir(exist_ok=True)
    os.environ.update(TMPDIR=str(temporary), ONNXPRUNE_CACHE=str(folder / "cache"))
    tempfile.tempdir = None
    said = os.open(said_in(folder), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
    for stream in (1, 2):
        os.dup2(said, stream)
    os.close(said)
    sys.stdout, sys.stderr = (io.TextIOWrapper(open(n, "wb", closefd=False)) for n in (1, 2))  # noqa: SIM115
    if limits.memory:
        resource.setrlimit(resource.RLIMIT_AS, (int(address_space() + limits.memory),) * 2)
    if limits.file:
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(limits.file),) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def address_space() -> int:
    """Return the bytes of this process's address space."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def watched(folder: Path) -> list[str]:
    """Return a list that tells from now on what this process changes outside a folder."""
    found: list[str] = []
    inside = os.path.realpath(folder)

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            paths = args[:1]
        elif event in ("os.rename", "os.link", "os.symlink"):
            paths = args[:2]
        elif event in ("os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.truncate"):
            paths = args[:1]
        else:
            return
        for path in paths:
            if isinstance(path, str | bytes) and _is_outside(os.fsdecode(path), inside):
                found.append(f"{event} of {os.fsdecode(path)}")

    sys.addaudithook(hook)
    return found


def _is_outside(path: str, inside: str) -> bool:
    real = os.path.join(os.path.realpath(os.path.dirname(path) or "."), os.path.basename(path))
    if real.startswith((inside + os.sep, "/dev/", "/proc/")):
        return False
    return real != inside and os.path.isabs(real)


def _outcome(call: Callable[[T], Any], case: T, folder: Path) -> Outcome:
    try:
        found = call(case)
    except click.ClickException as error:
        return Outcome("refused", error.format_message())
    except Exception as error:
        told = expected(error)
        return Outcome("defect", place(error)) if told is None else Outcome("refused", told)
    if isinstance(found, int) and found not in (0, 3):
        return Outcome("refused", _message(folder) or f"exit {found}")
    return Outcome("done", str(found))


def _message(folder: Path) -> str:
    """Return the message of the error that was printed."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    said = said_in(folder).read_text(encoding="utf-8", errors="replace")
    return said[said.rfind("error: ") + 7 :].strip() if "error: " in said else ""


def said_in(folder: Path) -> Path:
    """Return the file of what a child of a folder prints."""
    return folder.with_name(f"{folder.name}.said")


def place(error: BaseException) -> str:
    """Return the type and message of an exception and where in the package it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if f"{os.sep}onnxprune{os.sep}" in frame.filename] or frames[-1:]
    last = own[-1]
    where = last.filename.rpartition(f"{os.sep}onnxprune{os.sep}")[2]
    text = str(error).splitlines()[0][:160] if str(error) else ""
    return f"{where}:{last.lineno} {last.name}: {type(error).__name__}: {text}"


def warm(call: Callable[[], Any], folder: Path) -> None:
    """Import here what a function imports in a child, so that later children have it."""
    readable, writable = os.pipe()
    child = os.fork()
    if not child:
        try:
            settle(folder, Limits(0, 0))
            call()
            os.write(writable, "\n".join(sys.modules).encode())
        finally:
            os._exit(0)
    os.close(writable)
    with open(readable, "rb") as stream:
        names = stream.read().decode().split("\n")
    os.waitpid(child, 0)
    for name in names:
        if name and name not in sys.modules:
            with contextlib.suppress(Exception):
                importlib.import_module(name)
    settled()


def settled() -> None:
    """Leave all that is in memory out of later collections: in a child, each would copy it."""
    gc.collect()
    gc.freeze()


def tree(folder: Path) -> Iterator[Path]:
    """Yield all files of a folder, at any depth, without following links."""
    for root, _, names in os.walk(folder):
        for name in names:
            path = Path(root, name)
            if stat.S_ISREG(path.lstat().st_mode):
                yield path

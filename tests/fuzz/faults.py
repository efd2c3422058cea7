"""Faults at the file-system calls of a command, and kills at any time; what must hold after each.

The shim counts the calls that concern the folder of the scene: an audit hook sees every open, rename, unlink, mkdir, chmod and listing,
whoever makes it in Python; files that are opened for writing are wrapped, so that each write and fsync counts as well. What C code
writes past them (torch, `ndarray.tofile`) meets a limit on the size of files, and kills at random times.
"""

from __future__ import annotations

import atexit
import builtins
import errno
import gc
import io
import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from children import Limits, said_in, settle, tree
from commands import COMMANDS, WHOLE, Command, prepare, scene

from onnxprune.cli import main

ERRORS = ("ENOSPC", "EIO", "EINTR")
AT_CALLS = (*ERRORS, "MemoryError", "KeyboardInterrupt", "SIGKILL")
"""Faults at the n-th file-system call."""
AT_TIMES = ("SIGKILL at a time", "SIGTERM at a time")
"""Faults at a share of the time that the command takes."""
AT_BYTES = "file size limit"
"""A write fails after so many bytes of a file, in C code as well."""
FAULTS = (*AT_CALLS, *AT_TIMES, AT_BYTES)
KILLS = ("SIGKILL", *AT_TIMES)
EVENTS = {
    "open": 1, "os.rename": 2, "os.remove": 1, "os.mkdir": 1, "os.rmdir": 1, "os.chmod": 1, "os.truncate": 1, "os.link": 2,
    "os.symlink": 2, "os.listdir": 1, "os.scandir": 1, "os.utime": 1,
}  # fmt: skip
"""Audit events of file-system calls, and the number of their arguments that are paths."""
EXACT = (".onnx", "plan.json")
"""Ends of the names of outputs that have the same bytes in every run: models and plans."""
PATIENCE = 120.0
LEFT_OVER = ".part"
OLD = 7 * 86400.0
"""Seconds by which the leftovers of killed runs are aged before the next run."""
TEMPORARY = (".ses", "torchinductor_", "joblib_memmapping_folder_")
"""What onnxruntime, torch and joblib leave in the folder for temporary files after any run."""
CLEANING = ("rmtree", "cleanup", "unlink", "remove", "_rmtree")
"""Functions that remove temporary files."""


# ------------------------------------------------------------------------------------------------------------- the shim


@dataclass
class Shim:
    """Counts file-system calls, and injects a fault at one of them.

    Attributes:
        root: folder whose files count.
        fault: of `AT_CALLS`; empty: none.
        call: number of the call, from 1.
        calls: names of all calls so far.
        fired: whether the fault was injected.
        cleaning: whether that was within the removal of a temporary file, which is then left behind.
    """

    root: str
    fault: str = ""
    call: int = 0
    calls: list[str] = field(default_factory=list)
    fired: bool = False
    cleaning: bool = False

    def install(self) -> None:
        """Count from now on; for a process that ends soon, since an audit hook stays."""
        plain = io.open
        sys.addaudithook(self._hook)

        def opened(file: Any, mode: str = "r", *more: Any, **how: Any) -> Any:
            if not set(mode) & set("wax+") or not self.covers(file):
                return plain(file, mode, *more, **how)
            return self._wrapped(file, mode, *more, **how)

        io.open = builtins.open = opened  # type: ignore[assignment]
        for name in ("fsync", "fdatasync", "write", "ftruncate"):
            setattr(os, name, self._counted(name, getattr(os, name)))

    def _hook(self, event: str, args: tuple[Any, ...]) -> None:
        count = EVENTS.get(event)
        if count and any(self.covers(path) for path in args[:count]):
            writes = event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            self.count("open for writing" if writes else event.removeprefix("os."))

    def covers(self, path: Any) -> bool:
        """Tell whether a path lies in the scene."""
        if not isinstance(path, str | bytes | os.PathLike):
            return False
        return os.path.abspath(os.fsdecode(path)).startswith(self.root)

    def count(self, name: str, partly: Callable[[], Any] = lambda: None) -> None:
        """Count a call; where it is the one that fails, do it `partly` first."""
        self.calls.append(name)
        if not self.fault or self.fired or len(self.calls) != self.call:
            return
        self.fired = True
        frame: Any = sys._getframe()
        while frame is not None:
            self.cleaning = self.cleaning or frame.f_code.co_name in CLEANING
            frame = frame.f_back
        if self.fault != "EINTR":  # what is written by then is told as a short write, and no error
            partly()
        if self.fault == "SIGKILL":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.fault in ERRORS:
            number = getattr(errno, self.fault)
            raise OSError(number, os.strerror(number))
        raise getattr(builtins, self.fault)

    def _counted(self, name: str, plain: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any) -> Any:
            self.count(name)
            return plain(*args)

        return counted

    def _wrapped(
        self,
        file: Any,
        mode: str,
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
        closefd: bool = True,
        opener: Any = None,
    ) -> Any:
        shim = self

        class Raw(io.FileIO):
            def write(self, data: Any) -> int:
                view = memoryview(data).cast("B")
                half = super().write
                shim.count("write", lambda: half(view[: len(view) // 2]))
                return super().write(view)

        raw = Raw(file, mode.replace("b", "").replace("t", ""), closefd, opener)
        if buffering == 0:
            return raw
        buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding or "utf-8", errors, newline)


# ------------------------------------------------------------------------------------------------------------- one run


@dataclass(frozen=True)
class Run:
    """How a command ended: its exit code (negative: the signal), what it said, its calls, and seconds."""

    code: int
    said: str
    calls: tuple[str, ...]
    seconds: float
    cleaning: bool = False


def run(
    command: Command, folder: Path, fault: str = "", at: float = 0, before: Callable[[], None] = lambda: None
) -> Run:
    """Run a command in a forked child, with a fault: at a call, at a number of bytes, or after so many seconds.

    The child calls `before` first.
    """
    log = folder.parent / f"{folder.name}.calls"
    log.unlink(missing_ok=True)
    begin = time.monotonic()
    child = os.fork()
    if not child:
        _be(command, folder, fault, at, log, before)
    ended = 0
    sent = fault not in AT_TIMES
    while not ended:
        if not sent and time.monotonic() - begin >= at:
            os.kill(child, getattr(signal, fault.split()[0]))
            sent = True
        if time.monotonic() - begin > PATIENCE:
            os.kill(child, signal.SIGKILL)
        ended, status = os.waitpid(child, os.WNOHANG)
        if not ended:
            time.sleep(0.002)
    seconds = time.monotonic() - begin
    said = said_in(folder).read_text(encoding="utf-8", errors="replace")
    calls, cleaning = json.loads(log.read_text()) if log.exists() else ((), False)  # whole: it is renamed
    return Run(
        -9999 if seconds > PATIENCE else os.waitstatus_to_exitcode(status), said, tuple(calls), seconds, cleaning
    )


def _be(command: Command, folder: Path, fault: str, at: float, log: Path, before: Callable[[], None]) -> None:
    """Be the process of a command, and end."""
    code = 70
    try:
        _forget_exits()
        settle(folder, Limits(memory=0, file=at if fault == AT_BYTES else 0))
        os.environ.pop("ONNXPRUNE_DEBUG", None)
        for prepare_ in (command.before, before):
            prepare_()
        shim = Shim(str(folder), fault if fault in AT_CALLS else "", int(at))
        shim.install()
        try:
            main.main([str(arg) for arg in command.args], prog_name="onnxprune")
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0
        except BaseException:
            code = 1
            traceback.print_exc()
        shim.fault = ""
        gc.collect()
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        told = json.dumps([shim.calls, shim.cleaning])
        if fault != AT_BYTES:
            part = log.with_suffix(".part")
            part.write_text(told)
            part.replace(log)
    finally:
        os._exit(code)


def _forget_exits() -> None:
    """Forget what the parent is to do at its end, such as to delete its temporary folders, before this child ends."""
    atexit._clear()
    for each in list(weakref.finalize._registry):  # type: ignore[attr-defined]
        each.atexit = False
    weakref.finalize._registered_with_atexit = False  # type: ignore[attr-defined]


# -------------------------------------------------------------------------------------------------------------- trials


@dataclass(frozen=True)
class Reference:
    """A run without faults: its outputs, of which `exact` have the same bytes in every run, calls, bytes and seconds."""

    command: Command
    outputs: Mapping[str, bytes]
    exact: frozenset[str]
    calls: tuple[str, ...]
    seconds: float
    code: int


@dataclass(frozen=True)
class Trial:
    """A fault in a command: at a call (from 1), after a number of bytes, or at a share of the time; over old outputs or not."""

    command: str
    fault: str
    at: float
    over_old: bool = False

    def __str__(self) -> str:
        where = f"at call {self.at:.0f}" if self.fault in AT_CALLS else f"at {self.at:.4g}"
        return f"{self.command}: {self.fault} {where}{', over old outputs' if self.over_old else ''}"


class Scene:
    """A folder with inputs, and the commands that run in it.

    Args:
        folder: an empty one.
        prepared: whether there are inputs that onnxprune makes, a pruned model and a plan.
    """

    def __init__(self, folder: Path, *, prepared: bool = True) -> None:
        self.folder = scene(folder)
        if prepared and not (child := os.fork()):
            try:
                settle(folder, Limits(0, 0))
                prepare(folder)
            finally:
                os._exit(0)
        if prepared:
            os.waitpid(child, 0)
        self._inputs = contents(folder / "in")

    def reset(self) -> None:
        """Empty all folders but that of the inputs; the cache holds a file that says nothing."""
        for part in ("out", "tmp", "cache"):
            shutil.rmtree(self.folder / part, ignore_errors=True)
        (self.folder / "out").mkdir()
        (self.folder / "cache").mkdir()
        (self.folder / "cache/step.json").write_text("{}")

    def reference(self, command: Command) -> Reference:
        """Run a command twice.

        Raises:
            RuntimeError: it fails, or a model or a plan has other bytes the second time.
        """
        found = []
        for _ in range(2):
            self.reset()
            done = run(command, self.folder)
            found.append(contents(self.folder / "out"))
            if done.code not in (0, 3):
                raise RuntimeError(f"{command.name} ends with {done.code}: {done.said[-500:]}")
        exact = frozenset(name for name in found[1] if name.endswith(EXACT))
        for name in sorted(exact):
            if found[0].get(name) != found[1][name]:
                raise RuntimeError(f"{command.name} writes {name} with other bytes in each run")
        return Reference(command, found[1], exact, done.calls, done.seconds, done.code)

    def trial(self, trial: Trial, reference: Reference) -> list[str]:
        """Run a command with a fault and then without; return what is wrong."""
        self.reset()
        command, old = reference.command, {}
        if trial.over_old:
            old = {name: b"old " + name.encode() for name in reference.outputs}
            for name, content in old.items():
                (self.folder / "out" / name).parent.mkdir(parents=True, exist_ok=True)
                (self.folder / "out" / name).write_bytes(content)
        at = trial.at * reference.seconds if trial.fault in AT_TIMES else trial.at
        done = run(command, self.folder, trial.fault, at)
        wrong = [*self._after(trial, done, reference, old)]
        if command.name == "check --init" and (self.folder / "out/policy.toml").exists():
            return wrong
        for path in self.folder.rglob(f"*{LEFT_OVER}"):
            os.utime(path, (time.time() - OLD,) * 2)
        again = run(command, self.folder)
        return [*wrong, *self._rerun(again, reference)]

    def _after(self, trial: Trial, done: Run, reference: Reference, old: Mapping[str, bytes]) -> Iterator[str]:
        """Yield what is wrong after a fault."""
        yield from self.inputs_changed()
        said = done.said.strip()
        if "Traceback" in said or "this is a defect" in said or "Exception ignored" in said:
            yield f"a defect: {gist(said)}"
        if done.code == 0 or (done.code == 3 and reference.code == 3):
            missing = [name for name in reference.outputs if not (self.folder / "out" / name).exists()]
            if missing and not reference.command.resumes:
                yield f"exit {done.code} without {', '.join(missing)}"
        elif done.code < 0 and trial.fault not in KILLS:
            yield f"ended by signal {-done.code}"
        elif done.code > 0 and done.code not in (1, 2, 3, 130, 143):
            yield f"exit {done.code}: {gist(said)}"
        if trial.fault == "KeyboardInterrupt" and done.code not in (0, 130):
            yield f"exit {done.code} in place of 130: {gist(said)}"
        for name, content in contents(self.folder / "out").items():
            if name.endswith(LEFT_OVER):
                if trial.fault not in KILLS and not done.cleaning:
                    yield f"{name} is left behind"
                continue
            if content == old.get(name):
                continue
            if name not in reference.outputs and not reference.command.resumes:
                yield f"{name} is written, which no run without faults writes"
            yield from self._not_whole(name, content, reference)
        if trial.fault not in KILLS and not done.cleaning:
            yield from self._temporary(trial.fault)

    def _rerun(self, again: Run, reference: Reference) -> Iterator[str]:
        """Yield what is wrong after the run that follows."""
        yield from self.inputs_changed()
        if again.code != reference.code:
            yield f"the next run ends with {again.code} in place of {reference.code}: {gist(again.said)}"
            return
        found = contents(self.folder / "out")
        for name in reference.outputs:
            if name not in found:
                yield f"{name} is missing after the next run"
            else:
                for problem in self._not_whole(name, found[name], reference):
                    yield f"after the next run {problem}"
        for name in sorted(set(found) - set(reference.outputs)):
            yield f"after the next run {name} is left"
        for path in (self.folder / "tmp").glob(f"*{LEFT_OVER}"):
            yield f"after the next run {path.name} is left in the folder for temporary files"

    def _not_whole(self, name: str, content: bytes, reference: Reference) -> Iterator[str]:
        if name in reference.exact:
            if content != reference.outputs[name]:
                yield f"{name} has other bytes ({len(content)} instead of {len(reference.outputs[name])})"
            return
        try:
            WHOLE[Path(name).suffix](self.folder / "out" / name)
        except Exception as error:
            yield f"{name} is not whole: {type(error).__name__}: {str(error)[:100]}"

    def inputs_changed(self) -> Iterator[str]:
        """Yield what has changed in the folder of the inputs, and put it back."""
        found = contents(self.folder / "in")
        for name in sorted(set(found) | set(self._inputs)):
            if found.get(name) != self._inputs.get(name):
                yield f"the input {name} is {'changed' if name in found else 'gone'}"
        for name, content in self._inputs.items():
            (self.folder / "in" / name).write_bytes(content)

    def _temporary(self, fault: str) -> Iterator[str]:
        for path in (self.folder / "tmp").iterdir():
            swept = (
                path.name.endswith(LEFT_OVER) and fault == "KeyboardInterrupt"
            )  # it may come between two instructions
            if not path.name.startswith(TEMPORARY) and not swept:
                yield f"{path.name} is left in the folder for temporary files"


def contents(folder: Path) -> dict[str, bytes]:
    """Return the bytes of all files of a folder, by relative name."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in tree(folder)}


def gist(said: str) -> str:
    """Return the errors that a command printed, in one line."""
    lines = [line for line in said.splitlines() if line.strip()]
    told = [line for line in lines if line.startswith("error:")] or lines[-1:]
    return " | ".join(told)[-300:]


def at_every_call(reference: Reference, faults: Sequence[str] = AT_CALLS) -> Iterator[Trial]:
    """Yield a trial for each fault at each call; over old outputs at every other one, where the command replaces them."""
    for number in range(1, len(reference.calls) + 1):
        for turn, fault in enumerate(faults):
            over_old = reference.command.replaces and bool((number // 2 + turn) % 2)
            yield Trial(reference.command.name, fault, number, over_old)


def at_random(reference: Reference, count: int, rng: random.Random) -> Iterator[Trial]:
    """Yield trials of kills at random times, and of limits on the size of files."""
    largest = max([4096, *map(len, reference.outputs.values())])
    for number in range(count):
        over_old = reference.command.replaces and bool(number % 2)
        yield Trial(reference.command.name, AT_TIMES[number % 2], rng.random() * 1.05, over_old)
        if number % 2:
            yield Trial(reference.command.name, AT_BYTES, rng.randrange(1, largest), over_old)


def named(name: str) -> Command:
    """Return a command by its name."""
    return next(command for command in COMMANDS if command.name == name)

"""What a person sees: progress by terminal, tables by width, and what is said only when asked for."""

from __future__ import annotations

import io
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Mapping
from fcntl import ioctl
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table
from rich.text import Text

from onnxprune.cli import terminal as terminals
from onnxprune.cli.terminal import Lines, Stages, Terminal
from onnxprune.report import console

COMMAND = [sys.executable, "-c", "from onnxprune.cli import main; main()"]
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
COLOUR = re.compile(r"\x1b\[(?:\d+;)*(?:3\d|9\d|38|48)(?:;\d+)*m")


def at_terminal(*args: object, columns: int = 60, environment: Mapping[str, str] | None = None) -> str:
    """Run a command on a terminal and return all that it wrote there."""
    ours, theirs = pty.openpty()
    ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    inherited = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "NO_COLOR", "FORCE_COLOR")}
    process = subprocess.Popen(
        [*COMMAND, *map(str, args)],
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
        env={**inherited, "TERM": "xterm-256color", **(environment or {})},
    )
    os.close(theirs)
    told = b""
    while True:
        try:
            part = os.read(ours, 2**16)
        except OSError:  # Linux' way to say that nothing is left
            part = b""
        if not part:
            break
        told += part
    os.close(ours)
    assert process.wait(60) == 0, told
    return told.decode().replace("\r\n", "\n")


PRUNE = ("--reduce", "flops=50%", "--runs", "3", "--warmup", "1", "--round-to", "1")


@pytest.mark.parametrize("columns", [40, 60, 80])
def test_narrow_terminals_cut_nothing(columns, tiny_path, out):
    whole = at_terminal("prune", tiny_path, "-o", out / "s.onnx", *PRUNE, "--repair", "none", columns=columns)
    shown = ESCAPE.sub("", whole)
    assert "…" not in shown.replace(str(out), "")
    results = shown[shown.rindex("\r") + 1 :] if "\r" in shown else shown
    path = str(out / "s.onnx")
    assert all(len(line) <= columns for line in results.splitlines() if path[:20] not in line)
    for figure in (r"\d+(\.\d+)? k\b", r"-\d+\.\d %", r"\d\.\d{3} ms", r"\d+\.\d\dx \(\d+\.\d\d to \d+\.\d\d\)"):
        assert re.search(figure, results), figure


def test_progress_shows_the_stage_and_the_time(tiny_path, out):
    whole = at_terminal("prune", tiny_path, "-o", out / "s.onnx", *PRUNE, "--repair", "none", columns=60)
    assert {"load", "prove", "write"} <= set(re.findall(r"\w+", ESCAPE.sub(" ", whole)))
    assert re.search(r"0:00:0\d", whole)
    lines = [ESCAPE.sub("", part) for part in re.split(r"[\r\n]", whole[: whole.rindex("write")])]
    assert max(map(len, lines)) <= 60


@pytest.mark.parametrize("command", ["inspect", "bench"])
def test_no_color(command, tiny_path):
    quick = ("--runs", "3", "--warmup", "1") if command == "bench" else ()
    assert COLOUR.search(at_terminal(command, tiny_path, *quick))
    assert not COLOUR.search(at_terminal(command, tiny_path, *quick, environment={"NO_COLOR": "1"}))


def test_dumb_terminal_gets_no_control_codes(tiny_path):
    assert "\x1b" not in at_terminal("inspect", tiny_path, environment={"TERM": "dumb"})


def test_quiet_terminal_gets_the_result_alone(tiny_path):
    told = at_terminal("inspect", tiny_path, "--quiet", environment={"NO_COLOR": "1"})
    assert "load" not in told
    assert "conv1" in told


# ----------------------------------------------------------------------------------------------------- without a terminal


def test_a_long_run_says_few_plain_lines(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(terminals.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(terminals.time, "perf_counter", lambda: now[0])
    stages = Lines(False)
    for second in range(31):
        now[0] = float(second)
        stages("repair" if second > 1 else "load", None if second < 2 else (second - 2) / 100, f"layer {second}")
    stages.end()
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.splitlines() == [
        "repair: 3%, about 97 s left, layer 5",
        "repair: 18%, about 82 s left, layer 20",
    ]


def test_a_long_time_is_told_in_minutes(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(terminals.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(terminals.time, "perf_counter", lambda: now[0])
    stages = Lines(False)
    stages("train", 0.0)
    now[0] = 60.0
    stages("train", 0.1)
    assert capsys.readouterr().err == "train: 10%, about 9 min left\n"


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_bar_counts_down_however_slow_the_stage_is(monkeypatch):
    """A stage that reports every minute has a time left as well."""
    now = [0.0]
    for clock in ("monotonic", "perf_counter"):
        monkeypatch.setattr(terminals.time, clock, lambda: now[0])
    stream = Screen()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("rich.console.Console", lambda **_: Console(file=stream, width=70, force_terminal=True))
    with Terminal().progress() as stages:
        stages("prune", 0.0, "0 of 4")
        for done in (1, 2):
            now[0] = 60.0 * done
            stages("prune", done / 4, f"{done} of 4")
        now[0] += 20
        stages.say("a line")
    shown = ESCAPE.sub("", stream.getvalue())
    assert "100 s left 2 of 4" in shown


def test_verbose_tells_what_each_stage_took(capsys):
    stages = Stages(True)
    stages("load", None)
    stages("repair", 0.5)
    stages("repair", 1.0)
    stages.end()
    stages.end()
    assert [line.split()[1:] for line in capsys.readouterr().err.splitlines()] == [["s", "load"], ["s", "repair"]]


def test_verbose_says_what_was_decided(tiny_path, samples, out, run):
    result = run("prune", tiny_path, "-o", out / "s.onnx", "--data", samples, *PRUNE, "--verbose", "--json")
    assert result.exit_code == 0
    assert "importance obs" in result.stderr
    assert "pinned: 4 channels at head" in result.stderr
    assert re.search(r"repaired: \w+, error \S+ -> \S+ on held-out rows", result.stderr)
    assert re.search(r"\d\.\d s  prove", result.stderr)
    assert result.stdout.startswith("{")
    planned = run("plan", tiny_path, "-o", out / "p.json", "--reduce", "flops=50%", "--repair", "none", "-v")
    assert "importance l2" in planned.stderr


def test_an_interrupt_says_what_is_left():
    def stop() -> None:
        with Terminal(quiet=True).progress(lambda: "two files"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match="two files"):
        stop()


# ------------------------------------------------------------------------------------------------------------------- tables


def shown(part: Table | Text, width: int) -> list[str]:
    stream = io.StringIO()
    console.show([part], Console(file=stream, width=width, force_terminal=True, no_color=True))
    return ESCAPE.sub("", stream.getvalue()).splitlines()


def table() -> Table:
    made = Table(show_edge=False, pad_edge=False)
    made.add_column("layer", overflow="fold")
    for column in ("channels", "after", "MACs"):
        made.add_column(column, justify="right", no_wrap=True)
    made.add_row(Text("/backbone/stage1/block2/conv/Conv"), "1,024", "512", "113.4 M")
    return made


def test_a_table_that_fits_stays_a_table():
    assert any("│" in line for line in shown(table(), 80))


def test_a_table_that_does_not_fit_is_folded():
    assert shown(table(), 36) == [
        "/backbone/stage1/block2/conv/Conv",
        "  channels: 1,024,",
        "  channels after: 512, MACs: 113.4 M",
    ]


@pytest.mark.parametrize("width", [20, 30, 40])
def test_no_line_ends_between_a_figure_and_its_unit(width):
    lines = shown(Text("FLOPs 23.5 M, 564,426 parameters; 2.26 MB, 0.316 ms, 97.2 % of it, layer: conv"), width)
    assert all(len(line) <= width for line in lines)
    assert not any(re.search(r"[\d:]$", line) for line in lines)


def test_a_sentence_is_a_line_in_a_pipe():
    stream = io.StringIO()
    console.show([Text("word " * 60)], Console(file=stream))
    assert len(stream.getvalue().splitlines()) == 1


def test_module_has_no_control_codes_of_its_own():
    """Rich knows which terminal takes what."""
    package = Path(terminals.__file__).parent.parent
    assert not [path for path in package.rglob("*.py") if "\\x1b[" in path.read_text(encoding="utf-8")]

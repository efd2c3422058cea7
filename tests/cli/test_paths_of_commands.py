"""No option that names an output may name a file that the same command reads, or another of its outputs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import onnx
import pytest
from onnx import external_data_helper

import onnxprune
from onnxprune.cli import main
from onnxprune.cli.parameters import File, Words
from onnxprune.data.labels.reading import LABEL_SUFFIXES
from onnxprune.errors import OutputError
from onnxprune.pipeline.run import Destinations

CONTENT = b"what was there before"
Option = click.Parameter


def files(command: click.Command, *, written: bool) -> list[Option]:
    """Return the parameters of a command that take a file it writes, or one it reads."""
    kinds = [each for each in command.params if isinstance(each.type, File if written else File | Words)]
    return [each for each in kinds if (each.type.writes if written else each.type.reads)]


def pairs() -> Iterator[tuple[str, Option, Option]]:
    """Yield every output of every command, with each of its inputs and each other output."""
    for name, command in main.commands.items():
        outputs = files(command, written=True)
        for place, output in enumerate(outputs):
            for other in (*files(command, written=False), *outputs[:place]):
                yield name, output, other


def called(command: str, given: dict[str, Path | str], folder: Path) -> list[str]:
    """Return the arguments of a call: required parameters get new paths."""
    line = [command]
    for each in main.commands[command].params:
        value = given.get(each.name, folder / f"{each.name}.onnx" if each.required else None)
        if value is not None:
            line += [str(value)] if isinstance(each, click.Argument) else [each.opts[0], str(value)]
    return line


def test_every_parameter_of_a_file_says_whether_it_is_read():
    """Options whose help or name speaks of a file are of a type that `Command` looks at."""
    for command in main.commands.values():
        for each in command.params:
            if isinstance(each, click.Option) and (each.metavar or "").startswith(("FILE", "PRESET|TOML")):
                assert getattr(each.type, "reads", False), (command.name, each.name)
            assert type(each.type) is not click.Path
            assert not isinstance(each.type, click.File)


@pytest.mark.parametrize(
    ("command", "output", "other"),
    [pytest.param(*each, id="-".join((each[0], each[1].name, each[2].name))) for each in pairs()],
)
def test_an_output_overwrites_nothing(command, output, other, tmp_path, run):
    folder = tmp_path / "there"
    folder.mkdir()
    same = folder / "sweep.json"
    same.write_bytes(CONTENT)
    kind = output.type
    given = {output.name: folder if kind.holds else same, other.name: same}
    result = run(*called(command, given, tmp_path))
    assert result.exit_code == 1, result.output
    assert "overwrite" in result.stderr
    assert result.stdout == ""
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {"sweep.json": CONTENT}


@pytest.mark.parametrize("how", ["symlink", "hard link", "folder link", "relative", "function"])
def test_an_output_overwrites_nothing_through_links(how, tmp_path, run, monkeypatch):
    data = tmp_path / "d.py"
    data.write_bytes(CONTENT)
    target: Path = tmp_path / "link.xml"
    if how == "symlink":
        target.symlink_to(data)
    elif how == "hard link":
        os.link(data, target)
    elif how == "folder link":
        (tmp_path / "alias").symlink_to(tmp_path)
        target = tmp_path / "alias" / "d.py"
    elif how == "relative":
        monkeypatch.chdir(tmp_path)
        target = Path("d.py")
    else:
        target = data
    result = run("check", "m.onnx", "--data", f"{data}:samples" if how == "function" else data, "--junit", target)
    assert (result.exit_code, data.read_bytes()) == (1, CONTENT)
    assert "the path of --junit, and --data reads" in result.stderr


@pytest.mark.parametrize("command", ["check", "sensitivity", "bench"])
def test_an_output_does_not_overwrite_external_data(command, tiny, tmp_path, run):
    model, weights = tmp_path / "m.onnx", tmp_path / "weights.bin"
    onnx.save(tiny, model, save_as_external_data=True, location=weights.name, size_threshold=0)
    before = weights.read_bytes()
    option = {"check": "--sarif", "sensitivity": "--plot", "bench": "--latency-table"}[command]
    result = run(command, model, option, weights)
    assert (result.exit_code, weights.read_bytes()) == (1, before)
    assert "would overwrite an input" in result.stderr
    assert external_data_helper.uses_external_data(onnx.load(model, load_external_data=False).graph.initializer[0])


@pytest.mark.parametrize("suffix", LABEL_SUFFIXES)
def test_an_output_becomes_no_image_or_label_of_a_folder(suffix, tmp_path, run):
    (tmp_path / "images" / "cats").mkdir(parents=True)
    target = tmp_path / "images" / "cats" / f"a{suffix}"
    told = run("check", "m.onnx", "--data", tmp_path / "images", "--junit", target)
    assert "would overwrite an input" in told.stderr
    allowed = run("check", "m.onnx", "--data", tmp_path / "images", "--junit", target.with_suffix(".md"))
    assert "overwrite" not in allowed.stderr


@pytest.mark.parametrize("name", ["sweep.json", "flops-20.onnx", "flops-20.plan.json"])
def test_a_sweep_does_not_overwrite_its_model(name, tmp_path, tiny, run):
    model = tmp_path / name
    model.write_bytes(tiny.SerializeToString())
    result = run("sweep", model, "-o", tmp_path, "--targets", "flops=20%")
    assert "would overwrite an input" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == [name]


# ---------------------------------------------------------------------------------------------------------- from Python


def test_functions_refuse_what_commands_refuse(tiny_path, samples, tmp_path):
    """Outputs that only the function knows: the plan beside the model, the states of the steps of a training."""
    plan, state, table = tmp_path / "small.plan.json", tmp_path / "state.2", tmp_path / "t.json"
    for path in (plan, state, table):
        path.write_bytes(CONTENT)
    small, page = tmp_path / "small.onnx", tmp_path / "r.md"
    sizes = tmp_path / "sizes"
    calls = [
        lambda: onnxprune.prune(tiny_path, output=small, data=samples, preprocess=str(plan)),
        lambda: onnxprune.prune(tiny_path, output=small, latency_table=plan),
        lambda: onnxprune.prune(tiny_path, output=small, checkpoint=tmp_path / "state", characters=str(state)),
        lambda: onnxprune.prune(tiny_path, output=small, report_output=page, plan_output=page),
        lambda: onnxprune.plan(tiny_path, output=table, latency_table=table),
        lambda: onnxprune.finetune(tiny_path, tiny_path, data=samples, output=samples),
        lambda: onnxprune.bench(tiny_path, profile_on=table, latency_table=table),
        lambda: onnxprune.sweep(tiny_path, sizes, data=samples, report_output=sizes / "sweep.json"),
    ]
    for call in calls:
        with pytest.raises(OutputError, match="would overwrite"):
            call()
    assert {path.read_bytes() for path in (plan, state, table)} == {CONTENT}
    assert np.load(samples)["x"].shape[0] == 64


def test_a_refused_model_has_files_of_its_own():
    for name in ("small.onnx", "small"):
        refused = Destinations(Path(name), Path("small.plan.json")).rejected
        assert (refused.model.stem.partition(".")[0], refused.plan.name) == ("small", "small.rejected.plan.json")

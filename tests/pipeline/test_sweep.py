"""Sweeps: members as `prune` makes them, the Pareto set, an interrupted sweep that goes on, several workers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import onnxprune
from onnxprune.errors import OptionError, OutputError
from onnxprune.evaluation.benchmark import BenchmarkConfig
from onnxprune.options import Options
from onnxprune.pipeline import sweep as sweeping
from onnxprune.pipeline.sweep_state import is_on_front
from onnxprune.report.document import Member
from onnxprune.runtime import workers

UNTIMED = BenchmarkConfig(latency=False)
OPTIONS = Options(round_to=2, augment=(), granularity=("filter",))
SHARES = (0.2, 0.5, 0.35)


@pytest.fixture
def call(tiny_path: Path, samples: Path) -> dict:
    return {
        "model": tiny_path,
        "data": samples,
        "shares": SHARES,
        "options": OPTIONS,
        "measure": UNTIMED,
    }


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.suffix == ".onnx"}


def test_members_are_what_prune_makes(call: dict, tmp_path: Path) -> None:
    found = onnxprune.sweep(output_folder=tmp_path / "s", **call)
    assert [member.target for member in found.report.members] == sorted(SHARES)
    for member in found.report.members:
        assert member.flops_removed >= member.target
        assert member.verdict
        assert member.drop is not None
        assert (tmp_path / "s" / f"{member.name}.onnx").stat().st_size == pytest.approx(member.size, abs=1000)
    alone = onnxprune.prune(
        call["model"],
        data=call["data"],
        options=replace(OPTIONS, reduce={"flops": 0.5}),
        measure=UNTIMED,
        output=tmp_path / "alone.onnx",
    )
    last = found.report.members[-1]
    assert last.name == f"flops-{100 * last.flops_removed:.0f}"  # named by what it reaches
    assert (tmp_path / "alone.onnx").read_bytes() == (tmp_path / "s" / f"{last.name}.onnx").read_bytes()
    assert last.drop == pytest.approx(100 - alone.report.fidelity["agreement"])
    content = json.loads((tmp_path / "s" / "sweep.json").read_text())
    assert content["schema"] == "onnxprune.sweep/1"
    assert [member["name"] for member in content["members"]] == [member.name for member in found.report.members]


def test_an_interrupted_sweep_goes_on(call: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    onnxprune.sweep(output_folder=tmp_path / "whole", **call)
    made: list[str] = []
    original = sweeping.make_member

    def breaks(job: sweeping.Job) -> dict:
        if len(made) == 1:
            raise KeyboardInterrupt
        made.append(job.name)
        return original(job)

    monkeypatch.setattr(sweeping, "make_member", breaks)
    with pytest.raises(KeyboardInterrupt):
        onnxprune.sweep(output_folder=tmp_path / "s", **call)
    assert len(files(tmp_path / "s")) == 1
    monkeypatch.setattr(sweeping, "make_member", lambda job: made.append(job.name) or original(job))
    monkeypatch.setattr(sweeping, "plan_members", lambda *_, **__: pytest.fail("plans are there already"))
    found = onnxprune.sweep(output_folder=tmp_path / "s", **call)
    assert made == [member.name for member in found.report.members]
    assert files(tmp_path / "s") == files(tmp_path / "whole")


def test_members_are_added(call: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    onnxprune.sweep(output_folder=tmp_path / "s", **{**call, "shares": (0.2,)})
    made: list[str] = []
    original = sweeping.make_member
    monkeypatch.setattr(sweeping, "make_member", lambda job: made.append(job.name) or original(job))
    found = onnxprune.sweep(output_folder=tmp_path / "s", **{**call, "shares": (0.2, 0.4)})
    assert made == ["flops-40"]
    assert len(found.report.members) == 2


def test_workers_make_the_same(call: dict, tmp_path: Path) -> None:
    onnxprune.sweep(output_folder=tmp_path / "one", **call)
    onnxprune.sweep(output_folder=tmp_path / "two", **call, jobs=2)
    assert files(tmp_path / "one") == files(tmp_path / "two")


def test_another_sweep_is_not_mixed_in(call: dict, tmp_path: Path) -> None:
    onnxprune.sweep(output_folder=tmp_path / "s", **{**call, "shares": (0.2,)})
    with pytest.raises(OutputError, match="another sweep"):
        onnxprune.sweep(output_folder=tmp_path / "s", **{**call, "options": replace(OPTIONS, round_to=4)})


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ("name", "../out"),
        ("name", 3),
        ("removed", [0.5]),
        ("removed", "ab"),
        ("report", []),
        ("report", {"size": 1}),
        ("latency", {"a": "x"}),
        ("target", None),
        ("more", 1),
    ],
)
def test_a_damaged_state_is_told(call: dict, tmp_path: Path, entry: str, value: object) -> None:
    folder = tmp_path / "s"
    call = {**call, "shares": (0.2,), "options": replace(OPTIONS, repair="none")}
    onnxprune.sweep(output_folder=folder, **call)
    content = json.loads((folder / "sweep.json").read_text())
    content["state"]["flops-20"][entry] = value
    (folder / "sweep.json").write_text(json.dumps(content))
    with pytest.raises(OutputError, match=r"sweep\.json, which is damaged"):
        onnxprune.sweep(output_folder=folder, **call)


def test_a_target_out_of_reach_is_told(call: dict, tmp_path: Path) -> None:
    shares = {"shares": (0.2, 0.97), "options": replace(OPTIONS, max_ratio=0.5)}
    found = onnxprune.sweep(output_folder=tmp_path / "s", **{**call, **shares})
    assert [bool(member.note) for member in found.report.members] == [False, True]
    assert "cannot be reached" in found.report.members[1].note
    assert not found.report.members[1].pareto


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"quantity": "beauty"}, "unknown quantity"),
        ({"shares": (0.5, 1.0)}, "out of range"),
        ({"shares": ()}, "out of range"),
        ({"jobs": 0}, "--jobs"),
        ({"options": Options(reduce={"flops": 0.5})}, "targets of its own"),
        ({"options": Options(schedule="progressive")}, "block schedule"),
    ],
)
def test_bad_calls(call: dict, tmp_path: Path, change: dict, says: str) -> None:
    with pytest.raises(OptionError, match=says):
        onnxprune.sweep(output_folder=tmp_path / "s", **{**call, **change})
    assert not (tmp_path / "s").exists()


def test_pareto_set() -> None:
    points = {"a": (3.0, 0.0), "b": (2.0, 0.5), "c": (2.5, 0.6), "d": (2.0, 0.4), "e": (1.0, 9.0)}
    members = [Member(name, 0.5, latency_ms=ms, drop=drop) for name, (ms, drop) in points.items()]
    assert {member.name for member in members if is_on_front(member, members)} == {"a", "d", "e"}


def test_command(run, tiny_path: Path, samples: Path, tmp_path: Path) -> None:
    command = (
        "sweep", tiny_path, "-o", tmp_path / "s", "--data", samples, "--targets", "flops=20%,40%", "--round-to", "2", "--augment", "none",
        "--runs", "20", "--plot", tmp_path / "front.svg", "-q",
    )  # fmt: skip
    result = run(*command)
    assert result.exit_code == 0, result.output
    assert "flops-2" in result.output
    assert "<svg" in (tmp_path / "front.svg").read_text()
    again = run(*command, "--json")
    members = json.loads(again.stdout)["members"]
    assert [member["target"] for member in members] == [0.2, 0.4]
    assert all(member["speedup"] for member in members)


def test_without_data(tiny_path: Path, tmp_path: Path) -> None:
    found = onnxprune.sweep(
        tiny_path,
        tmp_path / "s",
        shares=(0.2, 0.4),
        options=Options(round_to=2, samples=64),
        measure=UNTIMED,
    )
    assert [member.kl is not None for member in found.report.members] == [True, True]


def test_a_dask_cluster_makes_the_same(call: dict, tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed")
    onnxprune.sweep(output_folder=tmp_path / "one", **call)
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, scheduler_port=0, silence_logs=50
    ) as cluster:
        onnxprune.sweep(output_folder=tmp_path / "dask", **call, scheduler=cluster.scheduler_address)
    assert files(tmp_path / "one") == files(tmp_path / "dask")
    assert workers.ATTEMPTS > 1


def test_sensitivity_is_the_same_for_any_number_of_workers(tiny_path: Path, samples: Path) -> None:
    found = [
        onnxprune.sensitivity(tiny_path, options=Options(augment=()), data=samples, jobs=jobs).curves for jobs in (1, 2)
    ]
    assert len(found[0]) == len(found[1]) > 1
    for one, two in zip(*found, strict=True):
        assert one.group == two.group
        np.testing.assert_array_equal(one.order, two.order)
        np.testing.assert_array_equal(one.counts, two.counts)
        np.testing.assert_array_equal(one.losses, two.losses)


def test_a_member_that_cannot_be_written_is_the_error_of_the_sweep(
    run, tiny_path: Path, samples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object, **__: object) -> None:
        error = OutputError(
            "cannot write the model", where=str(tmp_path), why="No space left on device", hint="make room"
        )
        error.result = "of the member"
        raise error

    monkeypatch.setattr(sweeping, "prune", failing)
    result = run("sweep", tiny_path, "-o", tmp_path / "s", "--data", samples, "--targets", "params=30%", "--no-latency")
    assert result.exit_code == 1
    assert "No space left on device" in result.stderr
    assert "defect" not in result.stderr

"""`--provider`, `--allow-fallback`, the provider of a policy, and `bench --profile-on`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from click.testing import Result

from onnxprune.cli import main
from onnxprune.evaluation import policy
from onnxprune.evaluation.policy import GateLimits

Run = Callable[..., Result]
COMMANDS = ("prune", "plan", "sweep", "finetune", "bench", "sensitivity", "check")


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_that_take_a_provider(command: str) -> None:
    flags = {flag for parameter in main.commands[command].params for flag in parameter.opts}  # type: ignore[attr-defined]
    assert {"--provider", "--allow-fallback"} <= flags


def arguments(command: str, model: Path, folder: Path, samples: Path) -> list[object]:
    return {
        "prune": ["prune", model, "-o", folder / "a.onnx", "--reduce", "flops=40%", "--repair", "none"],
        "plan": ["plan", model, "-o", folder / "a.json", "--reduce", "latency=40%"],
        "sweep": ["sweep", model, "-o", folder / "s", "--targets", "flops=30%", "--repair", "none"],
        "bench": ["bench", model],
        "sensitivity": ["sensitivity", model, "--data", samples],
        "check": ["check", model, "--baseline", model],
    }[command]


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "finetune"])
def test_a_provider_that_is_not_here(command: str, tiny_path: Path, out: Path, samples: Path, run: Run) -> None:
    asked = arguments(command, tiny_path, out, samples)
    done = run(*asked, "--provider", "qnn,backend_path=x")
    assert done.exit_code == 1, done.output
    assert "onnxruntime has no QNNExecutionProvider here" in done.stderr
    assert "install onnxruntime-qnn" in done.stderr
    assert list(out.glob("*.onnx")) == []
    done = run(*asked, "--provider", "CPU,fast=1")
    assert done.exit_code == 2
    assert "the CPU provider has no options" in done.stderr


def test_the_cpu_by_its_name(tiny_path: Path, run: Run) -> None:
    for name in ("CPU", "cpu", "CPUExecutionProvider"):
        done = run("bench", tiny_path, "--provider", name, "--allow-fallback", "--runs", 5, "--json")
        assert json.loads(done.stdout)["environment"]["provider"] == "CPUExecutionProvider"


# ------------------------------------------------------------------------------------------------------------------- policy


def test_a_policy_names_the_provider(
    tiny_path: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "p.toml"
    path.write_text('provider = "openvino,device_type=CPU"\n\n[limits]\nmax_size = "1GB"\n')
    assert policy.read(path) == policy.Policy(GateLimits(max_size=1e9), "OpenVINOExecutionProvider,device_type=CPU")
    asked: list[Any] = []

    def check(*_: Any, **how: Any) -> Any:
        asked.append((how["providers"], how["limits"], how["measure"].fallback))
        raise KeyboardInterrupt

    monkeypatch.setattr("onnxprune.check", check)
    for more in ([], ["--provider", "CPU", "--provider", "CUDA"], ["--allow-fallback", "--max-size", "1"]):
        run("check", tiny_path, "--baseline", tiny_path, "--policy", path, *more)
    run("check", tiny_path, "--baseline", tiny_path)
    assert asked == [
        (("OpenVINOExecutionProvider,device_type=CPU",), GateLimits(max_size=1e9), False),
        (("CPU", "CUDA"), GateLimits(max_size=1e9), False),
        (("OpenVINOExecutionProvider,device_type=CPU",), GateLimits(max_size=1e6), True),
        (("CPU",), GateLimits(), False),
    ]


def test_the_example_of_init_is_read(tmp_path: Path, run: Run) -> None:
    path = tmp_path / "p.toml"
    assert run("check", "--init", path).exit_code == 0
    path.write_text(path.read_text().replace("# provider", "provider"))
    assert policy.read(path).provider == "OpenVINOExecutionProvider,device_type=CPU"


# --------------------------------------------------------------------------------------------------------------- profile-on


def test_times_that_were_measured_elsewhere(tiny_path: Path, tmp_path: Path, run: Run) -> None:
    first = onnx.load(tiny_path).graph.node[0].name
    (tmp_path / "t.csv").write_text(f"node,microseconds\n{first},20\nelsewhere,5\n")
    done = run("bench", tiny_path, "--profile-on", tmp_path / "t.csv")
    assert done.exit_code == 0, done.output
    assert "0.025 ms" in done.stdout
    assert first in done.stdout
    assert "nothing was run here" in done.stdout
    done = run("bench", tiny_path, "--profile-on", tmp_path / "t.csv", "--json")
    assert json.loads(done.stdout)["source"].startswith("CSV")
    done = run("bench", tiny_path, "--profile-on", tmp_path / "t.csv", "--latency-table", tmp_path / "o.json")
    assert done.exit_code == 2
    assert "no latency table follows from a single profile" in done.stderr

"""Files that onnxprune itself writes: what the mutations of plans, states and tables start from."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from children import command
from commands import network, samples


@dataclass
class Made:
    """Files that onnxprune writes, made once by `make` in a child: what the mutations of plans, states and tables start from."""

    folder: Path | None = None

    def make(self, kinds: Sequence[str]) -> None:
        """Write into the current folder what these classes need."""
        Path("m.onnx").write_bytes(network().SerializeToString())
        np.savez("d.npz", **samples())  # type: ignore[arg-type]
        fast = ("--reduce", "flops=20%", "--round-to", 1, "--quiet")
        if "plans (JSON)" in kinds:
            command("plan", "m.onnx", "-o", "plan.json", *fast)
            command(
                "plan", "m.onnx", "-o", "edits.json", *fast, "--granularity", "all", "--data", "d.npz", "--samples", 16
            )
        if "latency tables" in kinds:
            command("bench", "m.onnx", "--runs", 2, "--warmup", 0, "--latency-table", "table.json", "--quiet")
        if "timing tables" in kinds:
            command(*TIMED)
        if "caches" in kinds:
            command(*CACHED)
            command(*CACHED_MULTIPLE)
            command(*CACHED_LAYERS)
        if "resume states" in kinds:
            self._broken_off()
        if "sweep states" in kinds:
            command("sweep", "m.onnx", "-o", "sizes", "--data", "d.npz", *SWEEP)
        if "checkpoints" in kinds:
            command("prune", "m.onnx", "-o", "o.onnx", *fast, "--no-latency", "--repair", "none")
            command(*TUNE)  # imports what the next run needs
            self._interrupted()

    def _broken_off(self) -> None:
        """Leave the state of a pruning that broke off."""
        from onnxprune.calibration import stage_results
        from onnxprune.evaluation import structure

        plain = structure.check_structure, stage_results.WORTH

        def break_off(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        structure.check_structure, stage_results.WORTH = break_off, 0.0  # type: ignore[assignment]
        command(*RESUMED)
        structure.check_structure, stage_results.WORTH = plain

    def _interrupted(self) -> None:
        """Leave the state of a training that broke off."""
        from onnxprune.training import checkpoint

        plain = checkpoint.save

        def save_once(path: Path, key: str, state: dict[str, Any]) -> None:
            plain(path, key, state)
            raise KeyboardInterrupt

        checkpoint.save = save_once
        with contextlib.suppress(KeyboardInterrupt):
            command(*TUNE, "--checkpoint", "state")
        checkpoint.save = plain

    def __getitem__(self, name: str) -> bytes:
        assert self.folder is not None
        return (self.folder / name).read_bytes()


TUNE = ("finetune", "o.onnx", "--teacher", "m.onnx", "--data", "d.npz", "-o", "t.onnx", "--for", "2steps", "--train-batch", 8, "--train-augment", "none", "--no-latency", "--quiet")  # fmt: skip
SWEEP = ("--targets", "params=20%", "--round-to", 1, "--samples", 8, "--no-latency", "--repair", "none", "--quiet")
FAST = ("--round-to", 1, "--samples", 8, "--augment", "none", "--no-latency", "--quiet")
RESUMED = ("prune", "m.onnx", "-o", "r.onnx", "--data", "d.npz", "--reduce", "flops=20%", *FAST, "--resume")
TIMED = ("plan", "m.onnx", "-o", "t.plan.json", "--reduce", "flops=20%", "--timings", "times.json", "--quiet")
CACHED = ("plan", "m.onnx", "-o", "c.plan.json", "--reduce", "latency=1%", "--runs", 2, "--round-to", 1, "--quiet")
CACHED_LAYERS = (
    "plan",
    "m.onnx",
    "-o",
    "c.plan.json",
    "--reduce",
    "flops=20%",
    "--data",
    "d.npz",
    *FAST[:-2],
    "--quiet",
)
CACHED_MULTIPLE = ("plan", "m.onnx", "-o", "c.plan.json", "--reduce", "flops=20%", "--quiet")
MADE = Made()

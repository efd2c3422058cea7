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
                "plan", "m.onnx", "-o", "edits.json", *fast, "--granularity", "auto", "--data", "d.npz", "--samples", 16
            )
        if "latency tables" in kinds:
            command("bench", "m.onnx", "--runs", 2, "--warmup", 0, "--latency-table", "table.json", "--quiet")
        if "sweep states" in kinds:
            command("sweep", "m.onnx", "-o", "sizes", "--data", "d.npz", *SWEEP)
        if "checkpoints" in kinds:
            command("prune", "m.onnx", "-o", "o.onnx", *fast, "--no-latency", "--repair", "none")
            command(*TUNE)  # imports what the next run needs
            self._interrupted()

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
MADE = Made()

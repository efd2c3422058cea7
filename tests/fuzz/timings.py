"""Runs whose timings are random, and runs that replay a recorded timing table."""

from __future__ import annotations

import functools
import random
import sys
from collections.abc import Callable
from typing import Any

import faults
import numpy as np
from commands import DATA, Command

from onnxprune.cli import main

EDITS = ("--granularity", "all", "--force", "--runs", 3, "--warmup", 1, *DATA, "--samples", 32, "--augment", "none")
TARGETS = ("flops=30%", "flops=50%", "params=40%", "latency=20%")
SPREAD = 1.0
"""Standard deviation of the logarithm of the random factors."""


def noisy(seed: int) -> None:
    """Multiply all times that this process takes from now on by random factors."""
    rng = np.random.default_rng(seed)

    def factors(times: Any) -> Any:
        return times * np.exp(rng.normal(0, SPREAD, (times.shape[0], 1)) + rng.normal(0, SPREAD / 4, times.shape))

    for module in [module for name, module in sys.modules.items() if name.startswith("onnxprune.")]:
        plain = getattr(module, "sample_times", None)
        if callable(plain):
            module.sample_times = _scaled(plain, factors)  # type: ignore[attr-defined]


def _scaled(plain: Callable[..., Any], factors: Callable[[Any], Any]) -> Callable[..., Any]:
    @functools.wraps(plain)
    def scaled(*args: Any, **how: Any) -> Any:
        return factors(plain(*args, **how))

    return scaled


def random_run(scene: faults.Scene, seed: int) -> str:
    """Prune with random timings; return what is wrong, an empty text where nothing is."""
    target = TARGETS[seed % len(TARGETS)]
    multiple = random.Random(seed).choice((1, 1, "auto"))
    args = ("prune", "in/model.onnx", "-o", "out/o.onnx", "--reduce", target, "--round-to", multiple, *EDITS)
    scene.reset()
    done = faults.run(Command("random timings", args), scene.folder, before=functools.partial(noisy, seed))
    if done.code in (0, 3) and (scene.folder / "out/o.onnx").exists():
        return ""
    said = done.said.strip()
    if done.code == 1 and "defect" not in said and "Traceback" not in said and "cannot be reached" in said:
        return ""  # the target is beyond these timings
    return f"seed {seed}, {target}: exit {done.code}: {faults.gist(said)}"


def replays() -> bool:
    """Tell whether `prune` replays a timing table."""
    return any("--timings" in parameter.opts for parameter in main.commands["prune"].params)


def same_bytes(scene: faults.Scene, runs: int) -> list[bool]:
    """Prune with a recorded timing table; return for each run whether its model and plan are those of the run that recorded it."""
    args = (
        "prune",
        "in/model.onnx",
        "-o",
        "out/o.onnx",
        "--reduce",
        "flops=40%",
        *EDITS,
        "--timings",
        "cache/timings.json",
    )
    scene.reset()
    first: dict[str, bytes] = {}
    found = []
    for turn in range(runs + 1):
        faults.run(Command("recorded timings", args), scene.folder, before=functools.partial(noisy, turn))
        made = {
            name: content
            for name, content in faults.contents(scene.folder / "out").items()
            if name.endswith(faults.EXACT)
        }
        first = first or made
        found.append(bool(made) and made == first)
        for path in (scene.folder / "out").iterdir():
            path.unlink()
    return found[1:]

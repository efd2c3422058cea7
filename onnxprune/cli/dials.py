"""The dials of pruning, which a command takes as `options`: a family for each of those that do part of it or all."""

from __future__ import annotations

from typing import Any

import click

from onnxprune.cli.common import SEED
from onnxprune.cli.family import family
from onnxprune.cli.values import Granularity, Step, Words
from onnxprune.data.augment import KINDS, parse_kinds
from onnxprune.options import (
    AUTO,
    GRANULARITIES,
    GROUPED,
    HEADS,
    IMPORTANCES,
    NORMS,
    PACES,
    QUANTITIES,
    REPAIRS,
    SCHEDULES,
    SCOPES,
    Options,
    parse_memory,
    parse_targets,
)

DEFAULTS = Options()


def _options(values: dict[str, Any]) -> Options:
    for name in ("reduce", "limit"):
        values[name] = parse_targets(name, values.get(name, ()))
    values["memory"] = parse_memory(values["memory"])
    if values["augment"] != AUTO:
        values["augment"] = parse_kinds(values["augment"])
    return Options(**values)


IGNORE = click.option(
    "--ignore",
    multiple=True,
    metavar="GLOB",
    help="Layers (node or weight names) that keep all channels; may be repeated.",
)
STRUCTURE = (
    IGNORE,
    click.option(
        "--grouped",
        type=click.Choice(GROUPED),
        default=DEFAULTS.grouped,
        show_default=True,
        help="What goes in grouped convolutions: positions of every group, or whole groups; auto: whole ones from eight on, which runs faster.",
    ),
    click.option(
        "--heads",
        type=click.Choice(HEADS),
        default=DEFAULTS.heads,
        show_default=True,
        help="What goes in attention: whole heads, or width of every head.",
    ),
    click.option(
        "--norms",
        type=click.Choice(NORMS),
        default=DEFAULTS.norms,
        show_default=True,
        help="Whether channels that a LayerNormalization, RMSNormalization or mean runs over must stay; auto: cut with repair by data.",
    ),
    click.option(
        "--samples", type=int, default=DEFAULTS.samples, show_default=True, help="Calibration samples, at most."
    ),
    click.option(
        "--augment",
        type=Words((AUTO, "none", *KINDS), separator=","),
        default=AUTO,
        show_default=True,
        metavar="KINDS",
        help="none, or some of flip,crop,scale,rotate,detail,jitter,noise,erase, for the repair; auto: where samples are few or enlarged.",
    ),
    click.option(
        "--memory", default="2GB", show_default=True, help="For statistics and activations, beside the models."
    ),
    SEED,
)
"""What may go, and the samples by which that is judged."""
GRANULARITY = click.option(
    "--granularity",
    type=Granularity(),
    default=",".join(DEFAULTS.granularity),
    show_default=True,
    metavar="KINDS",
    help=f"What may go, of {','.join(GRANULARITIES)}: channels; taps of kernels; directions of layers; branches. auto: all, by loss per saving, as measured. All but filter take data.",
)
CHOICE = (
    click.option(
        "--importance",
        type=click.Choice(IMPORTANCES),
        default=DEFAULTS.importance,
        show_default=True,
        help="How channels are ranked; auto: obs with data, l2 without.",
    ),
    click.option(
        "--schedule",
        type=click.Choice(SCHEDULES),
        default=DEFAULTS.schedule,
        show_default=True,
        help="One shot, or step by step.",
    ),
    click.option(
        "--steps", type=int, default=DEFAULTS.steps, show_default=True, help="Steps of the progressive schedule."
    ),
    click.option(
        "--pace",
        type=click.Choice(PACES),
        default=DEFAULTS.pace,
        show_default=True,
        help="How the progressive schedule goes on: equal steps, or much at first (cubic).",
    ),
    click.option(
        "--scope",
        type=click.Choice(SCOPES),
        default=DEFAULTS.scope,
        show_default=True,
        help="What groups lose at the output, measured; rank all together; or the same share of each. auto: measured with data.",
    ),
    click.option(
        "--round-to",
        type=Step(),
        default=DEFAULTS.round_to,
        show_default=True,
        help="Channels go in blocks, and end on a multiple, of this; auto: what this machine computes at once, as measured.",
    ),
    click.option(
        "--min-channels", type=int, default=DEFAULTS.min_channels, show_default=True, help="Channels every group keeps."
    ),
    click.option(
        "--max-ratio",
        type=float,
        default=DEFAULTS.max_ratio,
        show_default=True,
        help="Share of a group that may go at most.",
    ),
    *STRUCTURE,
)
"""How it is chosen what goes."""
TARGETS = (
    click.option(
        "--reduce",
        type=Words([f"{quantity}=" for quantity in QUANTITIES]),
        multiple=True,
        metavar="WHAT=SHARE",
        help=f"Share to remove: flops=50%, latency=30%; of {', '.join(QUANTITIES)}; all given targets hold.",
    ),
    click.option(
        "--limit",
        type=Words([f"{quantity}=" for quantity in QUANTITIES]),
        multiple=True,
        metavar="WHAT=AMOUNT",
        help="What may be left: flops=300M, params=1.2M, size=4MB, memory=64MB, latency=3ms.",
    ),
    click.option(
        "--max-drop",
        type=float,
        metavar="POINTS",
        help="Instead, or beside it: the smallest model that loses no more of top-1 (without labels: of agreement); needs --data.",
    ),
    click.option(
        "--minimise",
        type=click.Choice(QUANTITIES),
        default=DEFAULTS.minimise,
        show_default=True,
        help="What smallest means for --max-drop.",
    ),
    click.option("--threshold", type=float, help="Remove channels whose importance / mean of the group is below."),
)
"""How much goes."""
REPAIR = click.option(
    "--repair",
    type=click.Choice(REPAIRS),
    default=DEFAULTS.repair,
    show_default=True,
    help="lstsq: fit every layer behind a cut to what it gave before; bias: only its bias; merge: without data, let what reads a channel that goes read the one most like it; auto: lstsq with data, else merge.",
)

STUDIED = family("options", _options, *STRUCTURE)
"""Options of `sensitivity`."""
PLANNED = family("options", _options, *TARGETS, GRANULARITY, *CHOICE)
"""Options of `plan`."""
SWEPT = family("options", _options, *CHOICE, REPAIR)
"""Options of `sweep`, which has targets of its own."""
PRUNED = family("options", _options, *TARGETS, GRANULARITY, *CHOICE, REPAIR)
"""Options of `prune`."""

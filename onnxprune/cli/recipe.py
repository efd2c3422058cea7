"""The dials of training, which a command takes as `training`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from onnxprune.cli.common import PATH
from onnxprune.cli.family import Decorator, family
from onnxprune.cli.terminal import NOTHING
from onnxprune.cli.values import Words
from onnxprune.data.augment import KINDS, parse_kinds
from onnxprune.errors import OptionError
from onnxprune.options import (
    AUTO,
    BATCHNORMS,
    LABELS,
    OPTIMIZERS,
    PRECISIONS,
    RATE_SCHEDULES,
    RATES,
    Training,
    parse_bounds,
    parse_budget,
)

RECIPE = Training()
FIELDS = {
    "train_batch": "batch",
    "lr": "rate",
    "lr_schedule": "schedule",
    "weight_decay": "decay",
    "clip_norm": "clip",
    "label_weight": "labels",
    "train_augment": "augment",
}
"""Fields of `Training` by the name of their option, where that is another one."""
TRAINING = (
    click.option("--train-batch", type=int, default=RECIPE.batch, show_default=True, help="Samples per gradient."),
    click.option(
        "--accumulate", type=int, default=RECIPE.accumulate, show_default=True, help="Gradients summed before a step."
    ),
    click.option(
        "--optimizer",
        type=click.Choice(OPTIMIZERS),
        default=RECIPE.optimizer,
        show_default=True,
        help="Of the training.",
    ),
    click.option(
        "--lr",
        type=float,
        help=f"Highest learning rate; {', '.join(f'{rate:g} for {name}' for name, rate in RATES.items())}.",
    ),
    click.option(
        "--lr-schedule",
        type=click.Choice(RATE_SCHEDULES),
        default=RECIPE.schedule,
        show_default=True,
        help="Of the rate.",
    ),
    click.option(
        "--weight-decay",
        type=float,
        default=RECIPE.decay,
        show_default=True,
        help="Of weights, not of biases and scales.",
    ),
    click.option(
        "--clip-norm",
        type=float,
        default=RECIPE.clip,
        show_default=True,
        help="Norm of the whole gradient, at most; 0: any.",
    ),
    click.option(
        "--ema",
        type=float,
        default=RECIPE.ema,
        show_default=True,
        help="Write the running mean of the weights; 0: the last ones.",
    ),
    click.option(
        "--temperature", type=float, default=RECIPE.temperature, show_default=True, help="Of the distillation."
    ),
    click.option(
        "--features",
        type=float,
        default=RECIPE.features,
        show_default=True,
        help="Weight of the error of activations at the end of groups, beside that of the outputs.",
    ),
    click.option(
        "--label-weight",
        type=float,
        help=f"Share of the loss that is cross-entropy; {LABELS:g} where --data has labels.",
    ),
    click.option("--smoothing", type=float, default=RECIPE.smoothing, show_default=True, help="Of the labels."),
    click.option(
        "--train-augment",
        type=Words((AUTO, "none", *KINDS), separator=","),
        default=AUTO,
        show_default=True,
        metavar="KINDS",
        help="none, or some of flip,crop,scale,rotate,detail,jitter,noise,erase, while training.",
    ),
    click.option(
        "--hold-out",
        type=float,
        default=RECIPE.hold_out,
        show_default=True,
        help="Share of the samples that chooses the best weights, and is not trained on.",
    ),
    click.option(
        "--patience",
        type=int,
        default=RECIPE.patience,
        show_default=True,
        help="Looks at these without a better one that end it; 0: none does.",
    ),
    click.option(
        "--freeze-below", type=float, metavar="T", help="Elements of weights whose gradient is smaller sit a step out."
    ),
    click.option(
        "--gate-below",
        type=float,
        metavar="T",
        help="Channels all of whose gradients stay smaller are gated, and deleted.",
    ),
    click.option(
        "--clamp", multiple=True, metavar="[GLOB=]LO,HI", help="Range of the weights with such names; may be repeated."
    ),
    click.option(
        "--max-norm", multiple=True, metavar="[GLOB=]R", help="Norm of each filter of weights with such names, at most."
    ),
    click.option(
        "--batchnorm",
        type=click.Choice(BATCHNORMS),
        default=RECIPE.batchnorm,
        show_default=True,
        help="Statistics of BatchNormalization that could not be folded: as they are, or of the batch.",
    ),
    click.option(
        "--device",
        type=Words(("cpu", "cuda", "mps")),
        default=RECIPE.device,
        show_default=True,
        help="Of torch: cpu, cuda, mps.",
    ),
    click.option(
        "--precision",
        type=click.Choice(PRECISIONS),
        default=RECIPE.precision,
        show_default=True,
        help="Of the training.",
    ),
)
CHECKPOINT = click.option(
    "--checkpoint",
    type=PATH,
    help="Keep the state of the training here; the same command then goes on after an interrupt.",
)


def _training(values: dict[str, Any]) -> Training | None:
    """Return how to train; None where nothing is to be trained."""
    amount = values.pop("amount")
    bounds = parse_bounds(values.pop("clamp"), values.pop("max_norm"))
    values = {FIELDS.get(name, name): value for name, value in values.items()}
    if amount is None:
        if bounds or any(value != getattr(RECIPE, name) for name, value in values.items()):
            raise OptionError(
                "there is nothing to train, but options say how", hint="give --finetune, for instance --finetune 3min"
            )
        return None
    if values["augment"] != AUTO:
        values["augment"] = parse_kinds(values["augment"])
    return Training(**values, bounds=bounds, **parse_budget(amount))


def trained(amount: Decorator) -> Decorator:
    """Return the family of all these options, and of the one named `amount` that says how long."""
    return family("training", _training, amount, *TRAINING)


def kept(checkpoint: Path | None) -> str:
    """Say what an interrupted training leaves behind."""
    if checkpoint is None or not checkpoint.exists():
        return NOTHING
    return f"no model was written; the same command goes on from {checkpoint}"

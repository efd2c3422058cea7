"""The dials of a run, and how targets are written. Light to import: the command line reads it before anything else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from numbers import Real

from onnxprune.errors import OptionError

AUTO = "auto"
WITH_DATA = ("obs", "activation", "apoz")
"""Importances that look at activations."""
IMPORTANCES = (AUTO, *WITH_DATA, "l1", "l2", "fpgm", "bn_scale", "random")
SCOPES = (AUTO, "sensitivity", "global", "uniform")
REPAIRS = (AUTO, "lstsq", "bias", "merge", "none")
DATA_FREE = ("merge", "none")
"""Repairs that look at weights alone."""
SCHEDULES = ("block", "progressive")
GROUPED = ("positions", "whole")
HEADS = ("whole", "width")
NORMS = (AUTO, "keep", "cut")
QUANTITIES = ("flops", "params")
LEAST_MEMORY = 64e6
SUFFIXES = {"k": 1e3, "m": 1e6, "g": 1e9}


@dataclass(frozen=True)
class Options:
    """How to prune.

    Attributes:
        reduce: share to remove, by quantity: {"flops": 0.5}. All targets hold.
        limit: absolute bound, by quantity: {"flops": 300e6}; FLOPs are 2 x MACs.
        importance: one of `IMPORTANCES`; `auto` is `obs` with data, `l2` without.
        schedule: `block` (one shot) or `progressive` (weakest first, scored anew after each of `steps` steps).
        scope: `sensitivity` weighs groups by what the output loses, measured; `global` ranks all channels together, `uniform` takes the
            same share of every group. `auto` is `sensitivity` with data (but `global` for a threshold), `global` without.
        repair: `lstsq` fits every layer behind a cut to what it gave before, `bias` only its bias; `merge` needs no data: what reads a
            channel that goes reads the survivor most like it; `none` leaves all weights. `auto` is `lstsq` with data, else `merge`.
        samples: calibration samples that are used, at most.
        augment: kinds of augmentation of them, for the repair, or `auto`: some, where layers with more unknowns than rows hold
            most of the parameters, or the samples are images that were enlarged.
        memory: bytes that statistics and activations may take; what exceeds it goes to temporary files.
        round_to: the survivors of a group are a multiple of this.
        min_channels: channels that every group keeps at least.
        max_ratio: share of a group that may go at most.
        threshold: remove every channel whose importance, divided by the mean of its group, lies below.
        ignore: glob patterns of layers that keep all channels.
        grouped: what goes in a grouped convolution: the same `positions` of every group, or `whole` groups.
        heads: what goes in attention: `whole` heads, or `width` of every head.
        norms: whether channels that a normalisation runs over (LayerNormalization, RMSNormalization, a mean; the embedding of a
            transformer) are to `keep`, or may be `cut`: the statistics then run over what is left, which changes all other channels
            and takes least-squares repair. `auto` is `cut` with it, else `keep`.
        seed: for everything random.
    """

    reduce: Mapping[str, float] = field(default_factory=dict)
    limit: Mapping[str, float] = field(default_factory=dict)
    importance: str = AUTO
    schedule: str = "block"
    steps: int = 5
    scope: str = AUTO
    repair: str = AUTO
    samples: int = 512
    augment: tuple[str, ...] | str = AUTO
    memory: float = 2e9
    round_to: int = 8
    min_channels: int = 1
    max_ratio: float = 0.9
    threshold: float | None = None
    ignore: tuple[str, ...] = ()
    grouped: str = "positions"
    heads: str = "whole"
    norms: str = AUTO
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value, known in (
            ("importance", self.importance, IMPORTANCES),
            ("schedule", self.schedule, SCHEDULES),
            ("scope", self.scope, SCOPES),
            ("repair", self.repair, REPAIRS),
            ("grouped", self.grouped, GROUPED),
            ("heads", self.heads, HEADS),
            ("norms", self.norms, NORMS),
        ):
            if value not in known:
                raise OptionError(f"unknown {name} {value!r}", hint=f"choose one of {', '.join(known)}")
        for name, targets in (("reduce", self.reduce), ("limit", self.limit)):
            if not isinstance(targets, Mapping):
                raise OptionError(f"{name} is {targets!r}", hint='give a mapping, for instance {"flops": 0.5}')
            for quantity, amount in targets.items():
                _check_quantity(name, quantity)
                if not isinstance(amount, Real):
                    raise OptionError(f"{name} of {quantity} is {amount!r}", hint="give a number")
                if name == "reduce" and not 0 < amount < 1:
                    raise OptionError(
                        f"--reduce {quantity}={amount:.4g} is out of range",
                        why="it is the share to remove",
                        hint=f"give more than 0 % and less than 100 %, for instance --reduce {quantity}=50%",
                    )
                if name == "limit" and not 0 < amount < float("inf"):
                    raise OptionError(f"--limit {quantity}={amount:.4g} is out of range", hint="give a number above 0")
        if isinstance(self.ignore, str):
            raise OptionError(f"ignore is {self.ignore!r}", hint="give a list of patterns")
        for name, number, least in (
            ("steps", self.steps, 1),
            ("round-to", self.round_to, 1),
            ("min-channels", self.min_channels, 1),
            ("seed", self.seed, 0),
            ("samples", self.samples, 1),
            ("memory", self.memory, LEAST_MEMORY),
        ):
            if number < least:
                raise OptionError(f"--{name} {number} is out of range", hint=f"give {least} or more")
        if not 0 < self.max_ratio <= 1:
            raise OptionError(f"--max-ratio {self.max_ratio} is out of range", hint="give more than 0 and at most 1")
        if self.threshold is not None and not 0 <= self.threshold < float("inf"):
            raise OptionError(
                f"--threshold {self.threshold} is out of range", hint="give 0 or more; 1 is the mean of a group"
            )

    def resolved(self, data: bool) -> Options:
        """Return the options with `auto` replaced by what it stands for.

        Raises:
            OptionError: a method that needs data, without any.
        """
        importance = (WITH_DATA[0] if data else "l2") if self.importance == AUTO else self.importance
        scope = self.scope
        if scope == AUTO:
            scope = "sensitivity" if data and self.threshold is None else "global"
        repair = ("lstsq" if data else "merge") if self.repair == AUTO else self.repair
        norms = ("cut" if data and repair == "lstsq" else "keep") if self.norms == AUTO else self.norms
        if not data:
            for option, value, needs in (
                ("importance", importance, importance in WITH_DATA),
                ("scope", scope, scope == "sensitivity"),
                ("repair", repair, repair not in DATA_FREE),
                ("norms", norms, norms == "cut"),
            ):
                if needs:
                    raise OptionError(
                        f"--{option} {value} needs inputs of the model",
                        hint="give --data; `--data generated` makes some up where there are none",
                    )
        if norms == "cut" and repair != "lstsq":
            raise OptionError(
                f"--norms cut does not go with --repair {repair}",
                why="without a channel that a normalisation runs over all others change, which only least squares make up for",
                hint="give --repair lstsq, or --norms keep",
            )
        return replace(self, importance=importance, scope=scope, repair=repair, norms=norms)

    @property
    def has_target(self) -> bool:
        """Tell whether anything says how much to remove."""
        return bool(self.reduce or self.limit or self.threshold is not None)


def _check_quantity(option: str, quantity: str) -> None:
    if quantity not in QUANTITIES:
        raise OptionError(f"--{option} does not know {quantity!r}", hint=f"give one of {', '.join(QUANTITIES)}")


def parse_memory(text: str) -> float:
    """Read an amount of memory: 2GB, 500M, or bytes.

    Raises:
        OptionError: not of that form.
    """
    amount = text.strip().lower().removesuffix("b")
    factor = SUFFIXES.get(amount[-1:], 1.0)
    try:
        return float(amount[:-1] if factor > 1 else amount) * factor
    except ValueError:
        raise OptionError(f"--memory {text!r} is not an amount", hint="for instance --memory 2GB") from None


def parse_targets(option: str, texts: Iterable[str]) -> dict[str, float]:
    """Read targets as a person writes them.

    Args:
        option: `reduce` (`flops=50%`, `params=0.3`) or `limit` (`flops=300M`, `params=1.2M`).
        texts: what was given.

    Raises:
        OptionError: not of that form, or the same quantity twice.
    """
    example = "flops=50%" if option == "reduce" else "flops=300M"
    result: dict[str, float] = {}
    for text in texts:
        quantity, equals, amount = (part.strip().lower() for part in text.partition("="))
        if not equals:
            raise OptionError(
                f"--{option} {text!r} is not of the form QUANTITY=AMOUNT", hint=f"for instance --{option} {example}"
            )
        _check_quantity(option, quantity)
        if quantity in result:
            raise OptionError(f"--{option} names {quantity} twice", hint="give one amount per quantity")
        factor = 1.0
        if option == "reduce" and amount.endswith("%"):
            amount, factor = amount[:-1], 0.01
        elif option == "limit" and amount[-1:] in SUFFIXES:
            amount, factor = amount[:-1], SUFFIXES[amount[-1]]
        try:
            result[quantity] = float(amount) * factor
        except ValueError:
            raise OptionError(
                f"--{option} {text!r}: {amount!r} is not a number", hint=f"for instance --{option} {example}"
            ) from None
    return result

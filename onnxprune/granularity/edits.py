"""What may be done to a layer, in the terms of a plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

from onnxprune.errors import PlanError

Form = Literal["channel", "spatial"]
Taps = tuple[int, int, int]
"""Of an axis of a kernel: the first tap that stays, the step to the next, and how many stay."""


@dataclass(frozen=True)
class Kernel:
    """Taps of the kernel of a layer go, `taps` say which stay along each spatial axis."""

    granularity: ClassVar[str] = "kernel"
    layer: str
    taps: tuple[Taps, ...]

    def __str__(self) -> str:
        return f"kernel of {'x'.join(str(count) for _, _, count in self.taps)} taps"


@dataclass(frozen=True)
class Split:
    """Taps of some filters go: the layer becomes two, side by side, the first with a smaller kernel.

    Attributes:
        taps: that stay of the first.
        filters: number of the filter at each place, those of the first layer in front.
        count: filters of the first layer.
    """

    granularity: ClassVar[str] = "kernel"
    layer: str
    taps: tuple[Taps, ...]
    filters: tuple[int, ...]
    count: int

    def __str__(self) -> str:
        return f"kernel of {'x'.join(str(count) for _, _, count in self.taps)} taps for {self.count} filters"


@dataclass(frozen=True)
class Grouped:
    """Blocks of channels go: each of `groups` blocks of filters reads one block of the input.

    Attributes:
        inputs: number of the input channel at each place, so that blocks lie together.
        outputs: the same of the filters.
    """

    granularity: ClassVar[str] = "group"
    layer: str
    groups: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.groups} groups"


@dataclass(frozen=True)
class Rank:
    """Directions of the output go: the layer becomes two, with `rank` channels (of each group) between them.

    Attributes:
        form: `channel`: the same kernel with fewer filters, and one of a single tap; `spatial`: a kernel along the first spatial
            axis, and one along the others.
    """

    granularity: ClassVar[str] = "rank"
    layer: str
    rank: int
    form: Form

    def __str__(self) -> str:
        return f"rank {self.rank} ({self.form})"


@dataclass(frozen=True)
class Depth:
    """A branch goes: of the sum `layer` only the operand at input `stays` is left."""

    granularity: ClassVar[str] = "depth"
    layer: str
    stays: int

    def __str__(self) -> str:
        return "branch removed"


@dataclass(frozen=True)
class Merged:
    """Two layers with nothing between them become one, which is exact."""

    granularity: ClassVar[str] = "depth"
    layer: str
    into: str

    def __str__(self) -> str:
        return f"merged into {self.into}"


Edit = Kernel | Split | Grouped | Rank | Depth | Merged
KINDS: Mapping[str, type[Any]] = {kind.__name__.lower(): kind for kind in (Kernel, Split, Grouped, Rank, Depth, Merged)}


def to_dict(edit: Edit) -> dict[str, Any]:
    """Return an edit as it stands in a plan."""
    return {"kind": type(edit).__name__.lower(), **asdict(edit)}


def from_dict(content: Any, where: str) -> Edit:
    """Read an edit of a plan.

    Raises:
        PlanError: it is none.
    """
    try:
        fields = {key: _frozen(value) for key, value in content.items() if key in FIELDS}
        edit: Edit = KINDS[content["kind"]](**fields)
        return edit
    except (KeyError, TypeError, AttributeError) as error:
        raise PlanError(
            "a block of the plan cannot be read",
            where=where,
            why=f"{type(error).__name__}: {error} in {str(content)[:60]}",
            hint="make a new plan with `onnxprune plan`",
        ) from error


FIELDS = frozenset({name for kind in KINDS.values() for name in kind.__dataclass_fields__})


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value

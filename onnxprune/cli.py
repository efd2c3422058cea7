"""The command line. Results go to stdout, progress and errors to stderr; heavy imports wait until a command runs."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from onnxprune.augment import parse_kinds
from onnxprune.errors import OnnxPruneError, OptionError
from onnxprune.options import (
    AUTO,
    BATCHNORMS,
    GROUPED,
    HEADS,
    IMPORTANCES,
    LABELS,
    NORMS,
    OPTIMIZERS,
    PACES,
    PRECISIONS,
    QUANTITIES,
    RATE_SCHEDULES,
    RATES,
    REPAIRS,
    SCHEDULES,
    SCOPES,
    Options,
    Training,
    parse_bounds,
    parse_budget,
    parse_memory,
    parse_shares,
    parse_targets,
)
from onnxprune.output import plain

if TYPE_CHECKING:
    from onnxprune.comparison import Measure, Stage
    from onnxprune.types import Verdict

F = TypeVar("F", bound=Callable[..., Any])
DEFAULTS = Options()
RECIPE = Training()
FAILED = 3
INTERRUPTED = 130


class Cli(click.Group):
    """Turn every expected error into one message and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; see the class."""
        try:
            return super().invoke(ctx)
        except OnnxPruneError as error:
            click.echo(f"error: {error}", err=True)
            ctx.exit(error.exit_code)
        except KeyboardInterrupt:
            click.echo("interrupted: nothing was written", err=True)
            ctx.exit(INTERRUPTED)
        except MemoryError:
            click.echo(
                "error: out of memory\n  do:    use a smaller --eval-batch, or a machine with more memory", err=True
            )
            ctx.exit(1)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise  # click knows what to do
        except OSError as error:
            where = f"\n  where: {error.filename}" if error.filename else ""
            click.echo(f"error: {error.strerror or error}{where}\n  do:    check the path, and the disk", err=True)
            ctx.exit(1)
        except Exception as error:
            if os.environ.get("ONNXPRUNE_DEBUG"):
                raise
            click.echo(
                f"error: onnxprune failed: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}\n"
                "  do:    this is a defect; run again with ONNXPRUNE_DEBUG=1 and report what it prints",
                err=True,
            )
            ctx.exit(1)


class Step(click.ParamType[Any]):
    """A whole number, or `auto`."""

    name = "integer|auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return one of both."""
        return value if value == AUTO else click.INT.convert(value, param, ctx)


def _examples(*lines: str) -> str:
    """Format examples so that click keeps the lines."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


def _together(*decorators: Callable[[F], F]) -> Callable[[F], F]:
    def wrap(function: F) -> F:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return wrap


PATH = click.Path(path_type=Path, readable=False)  # what is wrong with a path, those who open it can say better
MODEL = click.argument("model", type=PATH)
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
IGNORE = click.option(
    "--ignore",
    multiple=True,
    metavar="GLOB",
    help="Layers (node or weight names) that keep all channels; may be repeated.",
)
SEED = click.option("--seed", type=int, default=DEFAULTS.seed, show_default=True, help="For everything random.")
EVALUATION = click.option("--eval", "evaluation", type=PATH, help="Data to verify on; those of --data when not given.")
EVAL_BATCH = click.option(
    "--eval-batch", type=int, default=64, show_default=True, help="Samples per batch when accuracy is measured."
)
NO_LATENCY = click.option("--no-latency", is_flag=True, help="Don't time the models.")
DATA = _together(
    click.option(
        "--data",
        type=PATH,
        help="A .npz (arrays by input name, optional `labels`), a .npy, a folder of images, or `generated`: made-up inputs.",
    ),
    click.option(
        "--preprocess", metavar="PRESET|TOML", help="How values are scaled: unit, imagenet, tf, or a TOML file."
    ),
)
CALIBRATION = _together(
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
CHOICE = _together(
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
    CALIBRATION,
)
DIALS = _together(
    click.option(
        "--reduce",
        multiple=True,
        metavar="WHAT=SHARE",
        help=f"Share to remove: flops=50%, latency=30%; of {', '.join(QUANTITIES)}; all given targets hold.",
    ),
    click.option(
        "--limit",
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
    CHOICE,
)
TRAINING = _together(
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
    click.option("--device", default=RECIPE.device, show_default=True, help="Of torch: cpu, cuda, mps."),
    click.option(
        "--precision",
        type=click.Choice(PRECISIONS),
        default=RECIPE.precision,
        show_default=True,
        help="Of the training.",
    ),
    click.option(
        "--checkpoint",
        type=PATH,
        help="Keep the state of the training here; the same command then goes on after an interrupt.",
    ),
)
TIMING = _together(
    click.option("--batch", type=int, default=1, show_default=True, help="Samples per timed run."),
    click.option(
        "--threads", type=int, default=1, show_default=True, help="Threads of onnxruntime; 0: its own choice."
    ),
    click.option("--runs", type=int, default=200, show_default=True, help="Timed runs of each model."),
    click.option("--warmup", type=int, default=20, show_default=True, help="Runs before, not counted."),
)
LATENCY_TABLE = click.option(
    "--latency-table",
    type=PATH,
    help="Table that `bench --latency-table` measured on the target machine; else one is measured here where latency is a target.",
)
REPAIR = click.option(
    "--repair",
    type=click.Choice(REPAIRS),
    default=DEFAULTS.repair,
    show_default=True,
    help="lstsq: fit every layer behind a cut to what it gave before; bias: only its bias; merge: without data, let what reads a channel that goes read the one most like it; auto: lstsq with data, else merge.",
)
WORKERS = _together(
    click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, help="Processes that work at a time."),
    click.option(
        "--scheduler", metavar="ADDRESS", help="Of Dask, in place of --jobs; its workers need to see the same files."
    ),
)
REPORT = click.option(
    "--report",
    type=PATH,
    help="Write a report here: .html (one page with plots; pip install 'onnxprune[report]'), .md or .json.",
)
QUIET = click.option("--quiet", "-q", is_flag=True, help="No progress on stderr.")


@click.group(
    cls=Cli,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog=_examples(
        "onnxprune inspect model.onnx",
        "onnxprune prune model.onnx -o small.onnx --data data.npz --reduce flops=50%",
        "onnxprune check small.onnx --baseline model.onnx --data data.npz --max-drop 0.5 --min-speedup 1.3",
    ),
)
@click.version_option(package_name="onnxprune")
def main() -> None:
    """Delete the filters that an exported ONNX CNN can do without, and prove what was gained and what was lost.

    Exit codes: 0 done, 1 error, 2 usage, 3 the verdict is FAILED.
    """


@main.command(epilog=_examples("onnxprune inspect model.onnx", "onnxprune inspect model.onnx --json | jq .pins"))
@MODEL
@IGNORE
@JSON
def inspect(model: Path, ignore: tuple[str, ...], as_json: bool) -> None:
    """Show groups, what must stay and why, and what each layer costs."""
    from onnxprune import analysis
    from onnxprune.model import load
    from onnxprune.report import console

    found = analysis.inspect(analysis.analyse(load(model), ignore))
    if as_json:
        _print_json(found.to_dict())
    else:
        console.show(console.inspect_parts(found))


@main.command(
    epilog=_examples(
        "onnxprune plan model.onnx -o plan.json --reduce flops=50%",
        "onnxprune plan model.onnx -o plan.json --threshold 0.2 --round-to 1",
    )
)
@MODEL
@click.option("--output", "-o", type=PATH, required=True, help="Where to write the plan.")
@DIALS
@DATA
@LATENCY_TABLE
@TIMING
@JSON
@QUIET
def plan(
    model: Path,
    output: Path,
    data: Path | None,
    preprocess: str | None,
    latency_table: Path | None,
    batch: int,
    threads: int,
    runs: int,
    warmup: int,
    as_json: bool,
    quiet: bool,
    **dials: Any,
) -> None:
    """Choose what would go, and write only the plan; `prune --plan` replays it."""
    from onnxprune import plan_file, search
    from onnxprune.analysis import layers_of
    from onnxprune.output import check_destination
    from onnxprune.report import console

    options = _options(dials)
    check_destination(output, model)
    with _progress(quiet) as on_stage:
        measure = _measure(batch, threads, runs, warmup, 1, True)
        analysis, chosen = search.plan(model, options, data, preprocess, on_stage, measure, latency_table)
    plan_file.write(output, chosen, analysis.trace, model.name)
    if as_json:
        _print_json(plan_file.to_dict(chosen, analysis.trace, model.name))
    else:
        console.show(console.plan_parts(layers_of(analysis, chosen.keep), chosen, str(output)))


@main.command(
    epilog=_examples(
        "onnxprune prune model.onnx -o small.onnx --data data.npz --reduce flops=50%",
        "onnxprune prune model.onnx -o small.onnx --data images/ --preprocess imagenet --limit flops=300M --ignore 'head*'",
        "onnxprune prune model.onnx -o small.onnx --schedule progressive --steps 8 --reduce params=40%",
        "onnxprune prune model.onnx -o small.onnx --data data.npz --reduce flops=50% --finetune 3min",
        "onnxprune prune model.onnx -o small.onnx --data data.npz --reduce latency=30% --limit size=4MB",
        "onnxprune prune model.onnx -o small.onnx --data data.npz --max-drop 0.5 --minimise latency",
    )
)
@MODEL
@click.option("--output", "-o", type=PATH, required=True, help="Where to write the pruned model.")
@DATA
@EVALUATION
@DIALS
@click.option(
    "--plan",
    "plan_path",
    type=PATH,
    help="Replay this plan.json; of the dials above, those that choose channels then have no say.",
)
@REPAIR
@click.option("--plan-output", type=PATH, help="Where to write the plan; beside the output when not given.")
@click.option(
    "--finetune",
    metavar="AMOUNT",
    help="Train what is left towards the original: 300steps, 2epochs or 3min; needs --data, and torch. Options below say how.",
)
@TRAINING
@LATENCY_TABLE
@TIMING
@EVAL_BATCH
@NO_LATENCY
@click.option("--force", is_flag=True, help="Write a result even where it is measured to be slower than the original.")
@REPORT
@JSON
@QUIET
def prune(
    model: Path,
    output: Path,
    data: Path | None,
    preprocess: str | None,
    evaluation: Path | None,
    plan_path: Path | None,
    plan_output: Path | None,
    finetune: str | None,
    checkpoint: Path | None,
    batch: int,
    threads: int,
    runs: int,
    warmup: int,
    eval_batch: int,
    no_latency: bool,
    latency_table: Path | None,
    force: bool,
    report: Path | None,
    as_json: bool,
    quiet: bool,
    **dials: Any,
) -> None:
    """Prune a model, prove it equal to the masked one, measure it, and write it."""
    from onnxprune import pipeline
    from onnxprune.report import console

    recipe = _training(finetune, dials)
    options = _options(dials)
    measure = _measure(batch, threads, runs, warmup, eval_batch, not no_latency)
    with _progress(quiet) as on_stage:
        result = pipeline.prune(
            model,
            output=output,
            data=data,
            evaluation=evaluation,
            preprocess=preprocess,
            plan=plan_path,
            plan_output=plan_output,
            measure=measure,
            on_stage=on_stage,
            report_output=report,
            command=_command(),
            options=options,
            training=recipe,
            checkpoint=checkpoint,
            latency_table=latency_table,
            force=force,
        )
    if as_json:
        _print_json(result.report.to_dict())
    else:
        console.show([*console.report_parts(result.report), *console.written(report)])
    if not result.report.verdict:
        sys.exit(FAILED)


@main.command(
    epilog=_examples(
        "onnxprune finetune small.onnx --teacher model.onnx --data data.npz -o tuned.onnx --for 3min",
        "onnxprune finetune small.onnx --teacher model.onnx --data images/ --preprocess imagenet -o tuned.onnx --for 2epochs --train-batch 16 --accumulate 4",
    )
)
@MODEL
@click.option("--teacher", type=PATH, required=True, help="The model that it was pruned from.")
@click.option("--output", "-o", type=PATH, required=True, help="Where to write the trained model.")
@DATA
@EVALUATION
@click.option(
    "--for",
    "amount",
    default="2epochs",
    show_default=True,
    metavar="AMOUNT",
    help="How long: 300steps, 2epochs or 3min.",
)
@click.option(
    "--plan",
    "plan_path",
    type=PATH,
    help="The plan.json it was pruned by; with it --features compares channels that are left.",
)
@TRAINING
@click.option("--memory", default="2GB", show_default=True, help="For preprocessed samples, beside the models.")
@SEED
@TIMING
@EVAL_BATCH
@NO_LATENCY
@REPORT
@JSON
@QUIET
def finetune(
    model: Path,
    teacher: Path,
    output: Path,
    data: Path | None,
    preprocess: str | None,
    evaluation: Path | None,
    amount: str,
    plan_path: Path | None,
    checkpoint: Path | None,
    memory: str,
    seed: int,
    batch: int,
    threads: int,
    runs: int,
    warmup: int,
    eval_batch: int,
    no_latency: bool,
    report: Path | None,
    as_json: bool,
    quiet: bool,
    **dials: Any,
) -> None:
    """Train a pruned model towards the one it came from, without labels or with, and write it."""
    from onnxprune import finetuning
    from onnxprune.report import console

    if data is None:
        raise OptionError("finetune needs inputs of the model", hint="give --data")
    recipe = _training(amount, dials)
    measure = _measure(batch, threads, runs, warmup, eval_batch, not no_latency)
    with _progress(quiet) as on_stage:
        _, found = finetuning.finetune(
            model,
            teacher,
            data=data,
            output=output,
            evaluation=evaluation,
            preprocess=preprocess,
            plan=plan_path,
            training=recipe,
            checkpoint=checkpoint,
            seed=Options(seed=seed).seed,
            memory=parse_memory(memory),
            measure=measure,
            on_stage=on_stage,
            report_output=report,
            command=_command(),
        )
    if as_json:
        _print_json(found.to_dict())
    else:
        console.show([*console.report_parts(found), *console.written(report)])
    if not found.verdict:
        sys.exit(FAILED)


@main.command(
    epilog=_examples(
        "onnxprune sensitivity model.onnx --data data.npz",
        "onnxprune sensitivity model.onnx --data images/ --preprocess imagenet --plot curves.svg",
    )
)
@MODEL
@DATA
@click.option("--plot", type=PATH, help="Draw the curves: .svg, .png or .pdf; needs matplotlib.")
@CALIBRATION
@WORKERS
@JSON
@QUIET
def sensitivity(
    model: Path,
    data: Path | None,
    preprocess: str | None,
    plot: Path | None,
    jobs: int,
    scheduler: str | None,
    as_json: bool,
    quiet: bool,
    **dials: Any,
) -> None:
    """Measure what the output loses as each group by itself loses channels, its readers being repaired."""
    from onnxprune import search
    from onnxprune.output import check_destination
    from onnxprune.report import console

    if plot is not None:
        check_destination(plot, model)
    options = _options({"reduce": (), "limit": (), **dials})
    with _progress(quiet) as on_stage:
        analysis, found = search.study(model, options, data, preprocess, on_stage, jobs, scheduler)
    if plot is not None:
        from onnxprune.report.plot import draw_curves

        draw_curves(found, plot)
    if as_json:
        _print_json(search.curves_dict(analysis, found))
    else:
        console.show(console.curve_parts(found, analysis.trace, None if plot is None else str(plot)))


LIMITS = _together(
    click.option(
        "--max-drop",
        type=float,
        metavar="POINTS",
        help="Points of top-1 (without labels: of agreement) that may be lost.",
    ),
    click.option(
        "--max-class-drop",
        type=float,
        metavar="POINTS",
        help="Points of recall that any class may lose, beyond chance.",
    ),
    click.option("--min-agreement", type=float, metavar="PERCENT", help="Samples with the same top-1, at least."),
    click.option("--min-cosine", type=float, metavar="C", help="Cosine of the outputs, at least."),
    click.option("--max-kl", type=float, metavar="NATS", help="Divergence of the outputs, at most."),
    click.option(
        "--max-calibration-rise", type=float, metavar="POINTS", help="Rise of the expected calibration error, at most."
    ),
    click.option(
        "--min-speedup",
        type=float,
        metavar="RATIO",
        help="Latency of the baseline / latency of the candidate, at least.",
    ),
    click.option("--max-latency", type=float, metavar="MS", help="Milliseconds of a run, at most."),
    click.option("--max-size", type=float, metavar="MB", help="Size of the file in megabytes, at most."),
    click.option("--max-params", type=float, metavar="N", help="Parameters, at most."),
    click.option("--max-memory", type=float, metavar="MB", help="Activations alive at once in megabytes, at most."),
    click.option("--max-opset", type=int, metavar="N", help="Opset, at most."),
    click.option(
        "--domain",
        "domains",
        multiple=True,
        metavar="NAME",
        help="Operator domain that is allowed beside ai.onnx; may be repeated.",
    ),
)


@main.command(
    epilog=_examples(
        "onnxprune check small.onnx --baseline model.onnx --data eval.npz --max-drop 0.5 --min-speedup 1.3",
        "onnxprune check --init policy.toml",
        "onnxprune check quantised.onnx --baseline model.onnx --data images/ --preprocess imagenet --policy policy.toml --junit check.xml",
    )
)
@click.argument("candidate", type=PATH, required=False)
@click.option("--baseline", type=PATH, help="The model the candidate should replace.")
@DATA
@click.option("--policy", type=PATH, help="TOML file with limits; options go before what it says.")
@click.option("--init", "template", type=PATH, help="Write a commented policy here, and do nothing else.")
@LIMITS
@click.option("--strict", is_flag=True, help="Checks that are undecided fail as well.")
@click.option(
    "--provider",
    "providers",
    multiple=True,
    metavar="NAME",
    help="Provider of onnxruntime that it must load on; may be repeated. The first runs it.",
)
@click.option("--junit", type=PATH, help="Write JUnit XML here.")
@click.option("--sarif", type=PATH, help="Write a SARIF log here.")
@click.option("--markdown", type=PATH, help="Write a summary for a pull request here.")
@click.option("--github", is_flag=True, help="Print annotations for GitHub Actions as well.")
@TIMING
@EVAL_BATCH
@NO_LATENCY
@JSON
@QUIET
def check(
    candidate: Path | None,
    baseline: Path | None,
    data: Path | None,
    preprocess: str | None,
    policy: Path | None,
    template: Path | None,
    strict: bool,
    providers: tuple[str, ...],
    junit: Path | None,
    sarif: Path | None,
    markdown: Path | None,
    github: bool,
    batch: int,
    threads: int,
    runs: int,
    warmup: int,
    eval_batch: int,
    no_latency: bool,
    as_json: bool,
    quiet: bool,
    **values: Any,
) -> None:
    """Judge a candidate against the model it should replace; exit code 3 when a limit fails."""
    from dataclasses import replace

    from onnxprune import gate
    from onnxprune import policy as policies
    from onnxprune.output import check_destination
    from onnxprune.report import console

    if template is not None:
        policies.init(template)
        click.echo(f"written: {template}")
        return
    if candidate is None or baseline is None:
        raise OptionError("Missing models: check needs two", hint="give a CANDIDATE and --baseline MODEL")
    for target in (junit, sarif, markdown):
        if target is not None:
            check_destination(target, candidate, baseline)
    for name in ("max_size", "max_memory"):
        values[name] = None if values[name] is None else values[name] * 1e6
    values["domains"] = values["domains"] or None
    limits = gate.Limits(**values)
    if policy is not None:
        limits = policies.merged(policies.read(policy), limits)
    measure = _measure(batch, threads, runs, warmup, eval_batch, not no_latency)
    named = tuple(f"{name.removesuffix('ExecutionProvider')}ExecutionProvider" for name in providers or ("CPU",))
    with _progress(quiet) as on_stage:
        verdict = gate.check(
            candidate,
            baseline,
            data=data,
            preprocess=preprocess,
            limits=limits,
            measure=measure,
            providers=named,
            on_stage=on_stage,
        )
    if strict:
        verdict = replace(
            verdict, checks=tuple(replace(c, passed=c.passed and not c.undecided) for c in verdict.checks)
        )
    _write_formats(verdict, str(candidate), str(baseline), junit, sarif, markdown)
    if as_json:
        _print_json(gate.to_dict(verdict))
    else:
        for line in console.verdict_lines(verdict):
            click.echo(line)
    if github:
        from onnxprune.report import formats

        for line in formats.github(verdict, str(candidate)):
            click.echo(line, err=as_json)
    if not verdict:
        sys.exit(FAILED)


def _write_formats(
    verdict: Verdict, candidate: str, baseline: str, junit: Path | None, sarif: Path | None, markdown: Path | None
) -> None:
    from importlib.metadata import version

    from onnxprune.output import staged
    from onnxprune.report import formats

    texts: dict[Path, str] = {}
    if junit is not None:
        texts[junit] = formats.junit(verdict, candidate)
    if sarif is not None:
        texts[sarif] = json.dumps(plain(formats.sarif(verdict, candidate, version("onnxprune"))), indent=1)
    if markdown is not None:
        texts[markdown] = formats.markdown(verdict, candidate, baseline)
    for path, text in texts.items():
        with staged(path) as temporary:
            temporary.write_text(text, encoding="utf-8")


@main.command(
    epilog=_examples(
        "onnxprune sweep model.onnx -o sizes/ --data data.npz --eval test.npz",
        "onnxprune sweep model.onnx -o sizes/ --data images/ --preprocess imagenet --targets latency=20%,40%,60% --jobs 2 --plot front.svg",
    )
)
@MODEL
@click.option(
    "--output",
    "-o",
    type=PATH,
    required=True,
    help="Folder for all models, plans and reports; an interrupted sweep goes on there.",
)
@click.option(
    "--targets",
    default="flops=10%,20%,30%,40%,50%,60%,70%,80%",
    show_default=True,
    metavar="WHAT=SHARES",
    help=f"Shares to remove, one model each; of {', '.join(QUANTITIES)}.",
)
@DATA
@EVALUATION
@CHOICE
@REPAIR
@click.option(
    "--finetune", metavar="AMOUNT", help="Train each of them: 300steps, 2epochs or 3min; needs --data, and torch."
)
@TRAINING
@LATENCY_TABLE
@WORKERS
@click.option("--plot", type=PATH, help="Draw what is lost against what is left: .svg, .png or .pdf; needs matplotlib.")
@TIMING
@EVAL_BATCH
@NO_LATENCY
@REPORT
@JSON
@QUIET
def sweep(
    model: Path,
    output: Path,
    targets: str,
    data: Path | None,
    preprocess: str | None,
    evaluation: Path | None,
    finetune: str | None,
    checkpoint: Path | None,
    latency_table: Path | None,
    jobs: int,
    scheduler: str | None,
    plot: Path | None,
    batch: int,
    threads: int,
    runs: int,
    warmup: int,
    eval_batch: int,
    no_latency: bool,
    report: Path | None,
    as_json: bool,
    quiet: bool,
    **dials: Any,
) -> None:
    """Make models of several sizes in one run, each repaired and measured, and say which of them are worth having."""
    from onnxprune import sweeping
    from onnxprune.output import check_destination
    from onnxprune.report import console

    if checkpoint is not None:
        raise OptionError("a sweep keeps its state in its folder", hint="leave --checkpoint out")
    if plot is not None:
        check_destination(plot, model)
    quantity, shares = parse_shares(targets)
    recipe = _training(finetune, dials)
    options = _options({"reduce": (), "limit": (), **dials})
    measure = _measure(batch, threads, runs, warmup, eval_batch, not no_latency)
    with _progress(quiet) as on_stage:
        found = sweeping.sweep(
            model,
            output,
            data=data,
            evaluation=evaluation,
            preprocess=preprocess,
            quantity=quantity,
            shares=shares,
            options=options,
            training=recipe,
            measure=measure,
            latency_table=latency_table,
            jobs=jobs,
            scheduler=scheduler,
            on_stage=on_stage,
            report_output=report,
            command=_command(),
        )
    if plot is not None:
        from onnxprune.report.plot import draw_front

        draw_front(found, plot)
    if as_json:
        _print_json(found.to_dict())
    else:
        parts = console.sweep_parts(found, str(output), None if plot is None else str(plot))
        console.show([*parts, *console.written(report)])


@main.command(
    epilog=_examples(
        "onnxprune bench model.onnx small.onnx --threads 2 --batch 8",
        "onnxprune bench model.onnx --latency-table table.json    # then, elsewhere: prune model.onnx --latency-table table.json",
    )
)
@click.argument("a", type=PATH)
@click.argument("b", type=PATH, required=False)
@click.option(
    "--layers", type=click.IntRange(0), default=10, show_default=True, help="Show so many layers, dearest first."
)
@click.option(
    "--latency-table",
    type=PATH,
    help="Measure what each layer takes with fewer channels, and write it here for `prune`.",
)
@TIMING
@JSON
@QUIET
def bench(
    a: Path,
    b: Path | None,
    layers: int,
    latency_table: Path | None,
    batch: int,
    threads: int,
    runs: int,
    warmup: int,
    as_json: bool,
    quiet: bool,
) -> None:
    """Measure the latency of a model, or of two in turn, on random inputs, as a whole and layer by layer."""
    from onnxprune import benchmark, targets
    from onnxprune.output import check_destination
    from onnxprune.report import console

    measure = _measure(batch, threads, runs, warmup, 1, True)
    if latency_table is not None:
        check_destination(latency_table, a, *([] if b is None else [b]))
    with _progress(quiet) as on_stage:
        on_stage("time", None)
        found = benchmark.bench([path for path in (a, b) if path is not None], measure)
        table = None if latency_table is None else targets.write_table(a, latency_table, measure, on_stage)
    if as_json:
        _print_json({**found.to_dict(), **({} if table is None else {"latency_table": table.summary()})})
        return
    console.show(console.bench_parts(found, str(a), str(b), layers))
    if table is not None:
        click.echo(
            f"written: {latency_table} ({len(table.measured)} variants in {table.seconds:.0f} s, median error {table.error:.1%})"
        )


@main.command(epilog=_examples("onnxprune ops", "onnxprune ops --json | jq 'keys'"))
@JSON
def ops(as_json: bool) -> None:
    """Show the support matrix: each operator, and what becomes of channels there."""
    from onnxprune.channels.ops import support
    from onnxprune.report import console

    if as_json:
        _print_json(dict(support()))
    else:
        console.show([console.operators_table(support())])


def _options(dials: dict[str, Any]) -> Options:
    reduce, limit = (parse_targets(name, dials.pop(name)) for name in ("reduce", "limit"))
    augment = dials.pop("augment")
    kinds = augment if augment == AUTO else parse_kinds(augment)
    return Options(reduce=reduce, limit=limit, memory=parse_memory(dials.pop("memory")), augment=kinds, **dials)


NAMES = {
    "train_batch": "batch",
    "lr": "rate",
    "lr_schedule": "schedule",
    "weight_decay": "decay",
    "clip_norm": "clip",
    "label_weight": "labels",
    "train_augment": "augment",
}
"""Fields of `Training` by the name of their option, where that is another one."""
AS_THEY_ARE = (
    "accumulate", "optimizer", "ema", "temperature", "features", "smoothing", "hold_out", "patience", "freeze_below", "gate_below",
    "batchnorm", "device", "precision",
)  # fmt: skip


def _training(amount: str | None, dials: dict[str, Any]) -> Training | None:
    """Take the options of training out of `dials`; None where nothing is to be trained."""
    values = {NAMES.get(name, name): dials.pop(name) for name in (*NAMES, *AS_THEY_ARE)}
    bounds = parse_bounds(dials.pop("clamp"), dials.pop("max_norm"))
    if amount is None:
        given = [name for name, value in values.items() if value != getattr(RECIPE, name)]
        if given or bounds:
            raise OptionError(
                "there is nothing to train, but options say how", hint="give --finetune, for instance --finetune 3min"
            )
        return None
    if values["augment"] != AUTO:
        values["augment"] = parse_kinds(values["augment"])
    return Training(**values, bounds=bounds, **parse_budget(amount))


def _command() -> str:
    """Return the command line, as a shell takes it."""
    return shlex.join(["onnxprune", *sys.argv[1:]])


def _measure(batch: int, threads: int, runs: int, warmup: int, eval_batch: int, latency: bool) -> Measure:
    from onnxprune.comparison import Measure

    return Measure(latency=latency, batch=batch, threads=threads, runs=runs, warmup=warmup, eval_batch=eval_batch)


def _print_json(content: dict[str, Any]) -> None:
    click.echo(json.dumps(plain(content), indent=1, allow_nan=False))


@contextmanager
def _progress(quiet: bool) -> Iterator[Stage]:
    """Show the stage of the run, and the share of it where that is known, on a terminal's stderr."""
    if quiet or not sys.stderr.isatty():
        from onnxprune.comparison import quiet as silent

        yield silent
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description:<9}"),
        BarColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[detail]}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("start", total=None, detail="")
        last = ""

        def on_stage(stage: str, share: float | None, detail: str = "") -> None:
            nonlocal last
            if stage != last:
                progress.reset(task, description=stage, total=None if share is None else 1.0, detail=detail)
                last = stage
            if share is not None:
                progress.update(task, completed=share, total=1.0, detail=detail)

        yield on_stage

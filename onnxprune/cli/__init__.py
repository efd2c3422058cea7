"""The command line: results on stdout, progress and errors on stderr. Heavy imports wait until a command runs.

Each module of `commands` calls the public function of its name. Commands share groups of options, each of which
becomes one argument: `options`, `training`, `limits` (`cli.options`), `measure` (`cli.common`), `terminal`.
"""

from __future__ import annotations

import click

from onnxprune.cli.commands.bench import bench
from onnxprune.cli.commands.cache import cache
from onnxprune.cli.commands.check import check
from onnxprune.cli.commands.finetune import finetune
from onnxprune.cli.commands.inspect import inspect
from onnxprune.cli.commands.ops import ops
from onnxprune.cli.commands.plan import plan
from onnxprune.cli.commands.prune import prune
from onnxprune.cli.commands.sensitivity import sensitivity
from onnxprune.cli.commands.sweep import sweep
from onnxprune.cli.group import Cli, examples


@click.group(
    cls=Cli,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog=examples(
        "onnxprune inspect model.onnx",
        "onnxprune prune model.onnx -o small.onnx --data data.npz --reduce flops=50%",
        "onnxprune check small.onnx --baseline model.onnx --data data.npz --max-drop 0.5 --min-speedup 1.3",
    ),
)
@click.version_option(package_name="onnxprune")
def main() -> None:
    """Prune an exported ONNX CNN, repair the remaining weights, and measure speed and accuracy against the original.

    Exit codes: 0 done, 1 error, 2 usage, 3 the verdict is FAILED.
    """


for command in (inspect, plan, prune, finetune, sensitivity, check, sweep, bench, ops, cache):
    main.add_command(command)

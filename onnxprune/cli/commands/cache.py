"""`onnxprune cache`."""

from __future__ import annotations

import click

from onnxprune.cli.group import examples
from onnxprune.cli.terminal import ANSWER, Terminal


@click.command(epilog=examples("onnxprune cache", "onnxprune cache --clear", "onnxprune cache --json | jq .folder"))
@click.option("--clear", is_flag=True, help="Remove what is kept; it is measured again when it is needed.")
@ANSWER
def cache(clear: bool, terminal: Terminal) -> None:
    """Show the measurements of this machine that are kept from run to run, or remove them.

    They are latency tables, times of layers and the channel multiple, in the user's cache folder; ONNXPRUNE_CACHE names another folder.
    """
    from onnxprune.report import console
    from onnxprune.runtime import cache_entries
    from onnxprune.runtime.machine import cache_folder

    found = cache_entries.clear() if clear else cache_entries.entries()
    terminal.show(
        lambda: {
            "folder": str(cache_folder()),
            "cleared": clear,
            "entries": [entry.to_dict() for entry in found],
        },
        lambda: console.cache_parts(found, str(cache_folder()), cleared=clear),
    )

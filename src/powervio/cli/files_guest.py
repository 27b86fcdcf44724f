"""`powervio bench files-guest`: a folder in a stock guest over CRQ beside the same by QEMU's own virtio-9p."""

from __future__ import annotations

import json
from pathlib import Path

import click

from powervio.bench.crq import default_folder
from powervio.bench.files_guest import ROUNDS, Result, measure
from powervio.boot import cache, machine
from powervio.cli.measuring import measuring


@click.command("files-guest")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, with every round.")
@click.option(
    "--arch",
    type=click.Choice(list(machine.ARCHES)),
    help="The guest's architecture; this machine's if it is one of them, or x86_64.",
)
@click.option("--rounds", type=click.IntRange(1, 1000), default=ROUNDS, show_default=True, help="Pairs of slices.")
@click.option(
    "--folder",
    type=click.Path(exists=True, file_okay=False, writable=True, path_type=Path),
    help="Where both folders are made. [default: /dev/shm, else the temporary folder]",
)
@click.option(
    "--cache",
    "kernels",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="FOLDER",
    help="Where kernels are kept, as for `powervio boot`.",
)
def files_guest(as_json: bool, arch: str | None, rounds: int, folder: Path | None, kernels: Path | None) -> None:
    """Measure a folder that a stock Linux guest has mounted twice, over CRQ and by QEMU's -virtfs.

    Its kernel's 9p does both, with the same options. In the end both folders have to be equal. It takes a kernel, as
    `powervio boot` does, and about two minutes on two idle processors.
    """
    chosen = machine.find(arch or machine.of_this_machine())
    with measuring() as tell:
        result = measure(chosen, kernels or cache.default_folder(), rounds, folder or default_folder(), tell)
    if as_json:
        click.echo(json.dumps(result.as_json(), indent=2))
    else:
        show(result)


def show(result: Result) -> None:
    """Print a result for people."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    facts = result.conditions
    console.print(
        f"{facts['arch']}, Linux {facts['guest_kernel']}, {facts['mount']}; folders on {facts['filesystem']},"
        f" {facts['processors']} processors, load {facts['load_average_before']} to {facts['load_average_after']}",
        soft_wrap=True,
    )
    table = Table("in the guest", "over CRQ", "-virtfs", "", "ratio", box=box.SIMPLE_HEAD, pad_edge=False)
    for row in result.rows:
        ours, theirs = row.rates
        low, high = min(row.ratios), max(row.ratios)
        table.add_row(
            row.work.name, f"{ours:,.0f}", f"{theirs:,.0f}", row.work.unit, f"{row.ratio:.2f} ({low:.2f}-{high:.2f})"
        )
    console.print(table)
    console.print(f"Medians of {facts['rounds']} rounds; of the ratio, all rounds are in brackets.")

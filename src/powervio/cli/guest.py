"""`powervio bench guest`: a stock kernel's disk over CRQ beside the same guest's over vhost-user."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from powervio.bench.crq import default_folder
from powervio.bench.guest import PEERS, ROUNDS, Measured, Result, measure
from powervio.boot import cache, machine
from powervio.cli import bench_options
from powervio.cli.bench import size_of
from powervio.cli.conditions import host, others_note
from powervio.cli.measuring import measuring

if TYPE_CHECKING:
    from rich.console import Console


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, with every round.")
@bench_options.arch
@click.option("--rounds", type=click.IntRange(1, 1000), default=ROUNDS, show_default=True, help="Pairs of slices.")
@click.option(
    "--seconds", type=click.FloatRange(0.05, 600), default=1.0, show_default=True, help="Time for each slice."
)
@click.option("--size", callback=size_of, default="64M", metavar="BYTES", show_default=True, help="Of each image.")
@click.option(
    "--peer",
    type=click.Choice(PEERS),
    default=PEERS[0],
    show_default=True,
    help="How qemu-storage-daemon reads its image.",
)
@bench_options.folder("the images are")
@bench_options.kernels
def guest(
    as_json: bool,
    arch: str | None,
    rounds: int,
    seconds: float,
    size: int,
    peer: str,
    folder: Path | None,
    kernels: Path | None,
) -> None:
    """Random reads of 4 KiB in a stock Linux guest, over CRQ and over vhost-user.

    One guest has both disks: one over CRQ from our hypervisor and VIO server, one from qemu-storage-daemon. Its own
    block driver reads from one and then from the other, round by round; ratios are of two slices of a round, figures
    are medians. A second guest maps its buffers by hypervisor calls only. Every block is verified; what a read costs
    is counted. docs/benchmarks.md says how to read the tables.
    """
    with measuring() as tell:
        result = measure(
            machine.find(arch or machine.of_this_machine()),
            kernels or cache.default_folder(),
            rounds,
            seconds,
            size,
            folder or default_folder(),
            peer,
            tell,
        )
    if as_json:
        click.echo(json.dumps(result.as_json(), indent=2))
    else:
        show(result)


def show(result: Result) -> None:
    """Print the tables."""
    from rich.console import Console

    console = Console(highlight=False)
    conditions = result.conditions
    console.print(
        f"Random reads of 4 KiB in a guest ({conditions['arch']}, Linux {result.guests[0].kernel}, TCG), around its"
        f" page cache, from images of {conditions['image_bytes']} bytes in {conditions['filesystem']};"
        f" {conditions['peer']} ({conditions['peer_configuration']}), {host(conditions)}."
    )
    for measured in result.guests:
        _show_rounds(console, measured)
    _show_counts(console, result)
    console.print(
        f"Medians of {conditions['rounds']} rounds with slices of {conditions['slice_seconds']:g} s; a ratio is that of"
        f" the two slices of a round. {result.verified_reads:,} reads were verified. The hypervisor looks for news for"
        f" {conditions['poll_us']} us before it sleeps."
    )
    if note := others_note(result.others, conditions):
        console.print(note)


def _show_rounds(console: Console, measured: Measured) -> None:
    from rich import box
    from rich.table import Table

    console.print(f"\n[bold]{measured.mode.name}[/bold]: {measured.mode.what}")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("round", no_wrap=True)
    for row in measured.rows:
        for heading in (f"depth {row.depth}\nCRQ /s", "vhost-user\n/s", "ratio"):
            table.add_column(heading, justify="right", no_wrap=True)
    for number in range(len(measured.rows[0].pairs)):
        cells = []
        for row in measured.rows:
            ours, theirs = row.pairs[number]
            cells += [f"{ours.rate:,.0f}", f"{theirs.rate:,.0f}", f"{row.ratios[number]:.2f}"]
        table.add_row(str(number + 1), *cells)
    table.add_section()
    medians, wanted = [], []
    for row in measured.rows:
        medians += [f"{row.rates[0]:,.0f}", f"{row.rates[1]:,.0f}", f"{row.ratio:.2f}"]
        wanted += ["", "", "" if row.wanted is None else f">= {row.wanted:g}"]
    table.add_row("median", *medians, style="bold")
    if measured.mode.wanted:
        table.add_row("wanted", *wanted)
    console.print(table)


def _show_counts(console: Console, result: Result) -> None:
    from rich import box
    from rich.table import Table

    table = Table("of one read over CRQ", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    rows = [(measured.mode.name, row) for measured in result.guests for row in measured.rows]
    for name, row in rows:
        table.add_column(f"{name}\ndepth {row.depth}", justify="right", no_wrap=True)
    for count, meaning in _COUNTS.items():
        table.add_row(meaning, *(f"{value:.2f}" if (value := row.counts[count]) else "-" for _, row in rows))
    console.print(table)


_COUNTS = {
    "hcalls": "hypervisor calls",
    "remote_copies": "remote copies among them",
    "crq_messages": "CRQ messages",
    "interrupts": "interrupts",
    "tce_updates": "TCEs written",
    "shared_tce_updates": "in place among them",
}

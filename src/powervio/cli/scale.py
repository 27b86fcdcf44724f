"""`powervio bench scale`: what each of many client partitions takes."""

from __future__ import annotations

import json
from pathlib import Path

import click

from powervio.bench.scale import MOST, SIZES, Result, measure
from powervio.cli.measuring import measuring

_NARROW = 76
"""Columns of a terminal from which the table fits."""


def _sizes(context: click.Context, parameter: click.Parameter, value: str) -> list[int]:
    """Numbers of client partitions, separated by commas."""
    words = [word.strip() for word in value.split(",")]
    if not all(word.isdecimal() and len(word) < 6 and 1 <= int(word) <= MOST for word in words):
        raise click.BadParameter(f"{value!r}: expected numbers from 1 to {MOST}, separated by commas")
    return [int(word) for word in words]


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option(
    "--partitions",
    "sizes",
    callback=_sizes,
    default=",".join(map(str, SIZES)),
    show_default=True,
    metavar="N,...",
    help="How many client partitions; one system for each number.",
)
@click.option(
    "--seconds", type=click.FloatRange(0.05, 600), default=2.0, show_default=True, help="Of reading, for each number."
)
@click.option(
    "--folder",
    type=click.Path(exists=True, file_okay=False, writable=True, path_type=Path),
    help="Where the images are made, 64 KiB for each client. [default: /dev/shm, else the temporary folder]",
)
def scale(as_json: bool, sizes: list[int], seconds: float, folder: Path | None) -> None:
    """Many client partitions on one VIO server, each with a disk and its NBD socket.

    Each number of clients is a system of its own, in a process of its own, as `powervio up` would run it. Measured are:

    \b
    start      seconds from the begin of the start until the driver of every
               client runs (DRIVER_OK) and its NBD socket listens
    stop       seconds for flushing and ending all
    beside     resident memory of an idle pair of adapters with its client
               partition: what the process grew by, but for partition memory,
               page tables and what the kernel keeps for open files
    memory     partition memory in use, of client and server together
    files      open files
    calls      hypervisor calls of one read, from the cost ledger
    copies     remote copies of one read: COPY, READ and WRITE
    reads      per second: random reads of 4 KiB by all clients at once,
               one in flight each, every block verified

    All but start, stop and reads are for each client; with one client they include what is there once for all.
    """
    with measuring() as tell:
        result = measure(sizes, seconds, tell, folder)
    if as_json:
        click.echo(json.dumps(result.as_json(), indent=2))
    else:
        _show(result)


def _show(result: Result) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    console.print(
        f"One VIO server, one disk for each client, hot path {'compiled' if result.compiled else 'interpreted'};"
        f" random reads of 4 KiB, one in flight for each client, page-cached, every block verified."
    )
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    headings = ("clients", "start\ns", "stop\ns", "beside\nKiB", "memory\nKiB", "files", "calls", "copies", "reads\n/s")
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for crowd in result.crowds:
        table.add_row(
            str(crowd.partitions),
            f"{crowd.start_seconds:.3f}",
            f"{crowd.stop_seconds:.3f}",
            f"{crowd.resident_bytes / 1024:.0f}",
            f"{crowd.partition_bytes / 1024:.0f}",
            f"{crowd.descriptors:.1f}",
            f"{crowd.hcalls['total']:.2f}",
            f"{crowd.remote_copies['total']:.2f}",
            f"{crowd.reads_per_second:,.0f}",
        )
    if console.width >= _NARROW:
        console.print(table)
    else:
        for row in zip(*(column.cells for column in table.columns), strict=True):
            console.print()
            for heading, cell in zip(headings, row, strict=True):
                console.print(f"{heading.replace(chr(10), ', ')}: {cell}")
        console.print()
    console.print(
        "Start: until every client's driver runs and its NBD socket listens. For each client: resident memory beside"
        " partition memory and partition memory in use when idle, open files; calls and remote copies of one read."
    )

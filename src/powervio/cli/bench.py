"""`powervio bench`: measurements that anybody can repeat."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from powervio.bench.cost import DEPTHS
from powervio.bench.crq import SCHEDULES, STYLES, Result, measure
from powervio.cli import bench_options
from powervio.cli.main import Entry, LazyGroup
from powervio.cli.measuring import measuring

if TYPE_CHECKING:
    from rich.console import Console

_WIDE = 70
"""Columns of a terminal from which all columns of the tables fit."""
_COMMANDS = (
    Entry("crq", "cli.bench:crq", "Random reads through virtio over CRQ: rates, and calls per request."),
    Entry("vhost-user", "cli.compare:vhost_user", "Our vhost-user block back end beside qemu-storage-daemon."),
    Entry("guest", "cli.guest:guest", "A stock Linux guest's disk over CRQ beside its vhost-user disk."),
    Entry("net", "cli.lan:net", "TCP between two client partitions beside a copying loop."),
    Entry("files", "cli.files:files", "Our 9P server beside diod."),
    Entry("scale", "cli.scale:scale", "Many client partitions on one VIO server: time, memory, calls per request."),
)
_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


def size_of(context: click.Context, parameter: click.Parameter, value: str) -> int:
    """Bytes, with K, M or G for the binary multiples; whole blocks of 4 KiB."""
    match = re.fullmatch(r"(\d+)([kmg]?)(?:i?b)?", value.strip().lower())
    if match is None:
        raise click.BadParameter(f"{value!r} is no size; expected bytes, or a number with K, M or G such as 64M")
    size = int(match[1]) * _UNITS[match[2]]
    if size < 1 << 20 or size % 4096:
        raise click.BadParameter(f"{value!r}: expected 1M or more, in whole blocks of 4096 bytes")
    return size


@click.command(cls=LazyGroup, entries=_COMMANDS)
def bench() -> None:
    """Measure."""


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--seconds", type=click.FloatRange(0.05, 600), default=1.0, show_default=True, help="Time for each row.")
@click.option(
    "--size", callback=size_of, default="64M", metavar="BYTES", show_default=True, help="Of the image that is read."
)
@click.option("--revision", type=click.IntRange(0, 1), default=1, show_default=True, help="Of the protocol.")
@click.option(
    "--ring", type=click.Choice(["split", "packed"]), help="Kind of virtqueue. [default: packed in revision 1]"
)
@bench_options.folder("the image is")
def crq(as_json: bool, seconds: float, size: int, revision: int, ring: str | None, folder: Path | None) -> None:
    """Random reads of 4 KiB through virtio over CRQ, by the Python block driver.

    Rates at depth 1 and 32, by the batch interface and by await of each read, with both partitions in one thread and
    in two; hypervisor calls and remote copies per request; and the compiled load generator over CRQ and over our
    vhost-user path. The image is in the page cache and every block is verified.
    """
    with measuring() as tell:
        result = measure(
            size,
            seconds,
            revision,
            tell,
            folder,
            packed=None if ring is None else ring == "packed",
        )
    if as_json:
        click.echo(json.dumps(result.as_json(), indent=2))
    else:
        _show(result)


def _show(result: Result) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from powervio.cli.costs import cost_table

    console = Console(highlight=False)
    hot_path = "compiled" if result.compiled else "interpreted"
    console.print(
        f"Random reads of 4 KiB, revision {result.revision}, {result.ring} ring, hot path {hot_path}; image of"
        f" {result.image_bytes >> 20} MiB in {result.image_folder}, page-cached, every block verified."
    )
    table = Table("requests per second", box=box.SIMPLE_HEAD, pad_edge=False)
    columns = [(schedule, style) for schedule in SCHEDULES for style in STYLES]
    for schedule, style in columns:
        table.add_column(f"{schedule.replace('_', ' ')}\n{style}", justify="right")
    for depth in DEPTHS:
        table.add_row(f"depth {depth}", *(f"{result.row(*column, depth).rate:,.0f}" for column in columns))
    if console.width < _WIDE:
        table = Table("per second", *(f"depth {depth}" for depth in DEPTHS), box=box.SIMPLE_HEAD, pad_edge=False)
        for schedule, style in columns:
            rates = (f"{result.row(schedule, style, depth).rate:,.0f}" for depth in DEPTHS)
            table.add_row(f"{schedule.replace('_', ' ')}, {style}", *rates)
    console.print(table)
    console.print(
        f"Medians of {result.slices} slices of {result.slice_seconds:.2g} s, all rows in turn."
        f" One thread: client and VIO server take turns (`powervio up` with thread = false). Two: the VIO server"
        f" has its own (`powervio up` as it is)."
    )
    _show_generated(console, result)
    console.print("\n[bold]Counted with the partitions polled in turn, a buffer mapped for each request[/bold]")
    console.print(cost_table(result.costs, narrow=console.width < _WIDE))
    kept = ", ".join(f"{cost.hcalls['total']:.2f} at depth {depth}" for depth, cost in result.kept_mapped.items())
    console.print(f"With buffers that stay mapped, hypervisor calls: {kept}.")


def _show_generated(console: Console, result: Result) -> None:
    from rich import box
    from rich.table import Table

    if console.width < _WIDE:
        table = Table("k/s", "CRQ", "vhost-user", "ratio", box=box.SIMPLE_HEAD, pad_edge=False)
    else:
        table = Table(
            "load generator", "depth", "over CRQ", "vhost-user", "ratio", "calls", box=box.SIMPLE_HEAD, pad_edge=False
        )
    for row in result.generated:
        arrangement = row.arrangement.replace("_", " ")
        rates, ratio = (row.crq_rate, row.vhost_user_rate), f"{row.ratio:.2f}"
        if console.width < _WIDE:
            table.add_row(f"{arrangement.split()[0]}, {row.depth}", *(f"{rate / 1000:,.1f}" for rate in rates), ratio)
        else:
            shown = (f"{rate:,.0f}" for rate in rates)
            table.add_row(arrangement, str(row.depth), *shown, ratio, f"{row.cost.hcalls['total']:.2f}")
    console.print(table)
    console.print(
        "The compiled load generator, requests per second, and hypervisor calls per request over CRQ. One processor:"
        " all of it there; over CRQ in one thread, the vhost-user back end as a process beside the generator. Two:"
        " the device's end runs beside the generator, over CRQ in a thread of its own."
    )

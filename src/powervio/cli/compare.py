"""`powervio bench vhost-user`: our vhost-user block back end beside QEMU's."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import click

from powervio.bench.crq import default_folder
from powervio.bench.vhost_user import PLACEMENTS, ROWS, Comparison, Result, Row, measure, usual_rows
from powervio.cli.bench import size_of
from powervio.cli.conditions import host, others_note
from powervio.cli.measuring import measuring

_BY_NAME = {row.name: row for row in ROWS}
_RESIDENT = 0.99
"""Which part of a warm image may be missing in the page cache without a word."""


def _rows(context: click.Context, parameter: click.Parameter, value: str | None) -> list[Row]:
    """Names of rows, separated by commas."""
    if value is None:
        return usual_rows()
    names = [name.strip() for name in value.split(",")]
    for name in names:
        if name not in _BY_NAME:
            raise click.BadParameter(f"{name!r} is no row; expected some of {', '.join(_BY_NAME)}")
    return [row for row in ROWS if row.name in names]


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, with every slice.")
@click.option(
    "--seconds",
    type=click.FloatRange(0.05, 600),
    default=1.0,
    show_default=True,
    help="Time for each back end in each row.",
)
@click.option("--rows", callback=_rows, metavar="NAME,...", help=f"Some of {', '.join(_BY_NAME)}. [default: all]")
@click.option(
    "--placement",
    type=click.Choice([*PLACEMENTS, "both"]),
    default="both",
    show_default=True,
    help="Client and back end on a processor each, or where the kernel puts them.",
)
@click.option("--size", callback=size_of, default="256M", metavar="BYTES", show_default=True, help="Of each image.")
@click.option(
    "--memory-folder",
    type=click.Path(exists=True, file_okay=False, writable=True, path_type=Path),
    help="A folder in a tmpfs. [default: /dev/shm]",
)
@click.option(
    "--disk-folder",
    type=click.Path(exists=True, file_okay=False, writable=True, path_type=Path),
    help="A folder on a disk. [default: the temporary folder]",
)
def vhost_user(
    as_json: bool,
    seconds: float,
    rows: list[Row],
    placement: str,
    size: int,
    memory_folder: Path | None,
    disk_folder: Path | None,
) -> None:
    """Random 4 KiB requests to `powervio vhost-user block`, and to qemu-storage-daemon in each of its configurations.

    Each row is a kind of load. All back ends of a row are measured by one compiled client, in short slices in turn;
    figures are medians, and the peer's are those of its best configuration in that row. Blocks are verified.
    docs/benchmarks.md says how to read the table, and which rows have a ratio that is wanted.
    """
    with measuring() as tell:
        result = measure(
            rows,
            PLACEMENTS if placement == "both" else (placement,),
            seconds,
            size,
            memory_folder or default_folder(),
            disk_folder or Path(tempfile.gettempdir()),
            tell,
        )
    if as_json:
        click.echo(json.dumps(result.as_json(), indent=2))
    else:
        _show(result)


def _show(result: Result) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    conditions = result.conditions
    console.print(
        f"Random requests of 4 KiB to vhost-user block back ends, on images of"
        f" {conditions['image_bytes']} bytes; {conditions['peer']}, {host(conditions)}."
    )
    for placement in PLACEMENTS:
        comparisons = [each for each in result.comparisons if each.placement == placement]
        if not comparisons:
            continue
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
        table.add_column(placement, no_wrap=True)
        headings = ("ours\n/s", "QEMU\n/s", "ratio", "wanted", "ours\nus CPU", "QEMU\nus CPU", "ratio", "wanted")
        for heading in headings:
            table.add_column(heading, justify="right", no_wrap=True)
        for each in comparisons:
            pinned = placement == "pinned"
            table.add_row(
                each.row.name,
                f"{each.ours.rate:,.0f}",
                f"{each.best.rate:,.0f}",
                f"{each.ratio:.2f}",
                f">= {each.row.wanted:g}" if pinned and each.row.wanted is not None else "",
                f"{each.ours.cpu_us:.2f}",
                f"{each.best.cpu_us:.2f}",
                f"{each.cpu_ratio:.2f}",
                f"<= {each.row.wanted_cpu:g}" if pinned and each.row.wanted_cpu is not None else "",
            )
        console.print(table)
    for row in {each.row.name: each.row for each in result.comparisons}.values():
        best = " and ".join(each.best.name for each in result.comparisons if each.row is row)
        console.print(f"[bold]{row.name}[/bold]: {row.what}; QEMU's best: {best}")
    console.print(
        f"Medians of {conditions['slices']} slices of {conditions['slice_seconds']:.2g} s, all back ends of a row in"
        f" turn. CPU: of the back end, for each request. {result.verified_reads:,} reads were verified."
    )
    for note in (others_note(result.others, conditions), *_notes(result.comparisons)):
        if note:
            console.print(note)


def _notes(comparisons: list[Comparison]) -> list[str]:
    return [
        f"[red]{each.row.name}, {each.placement}: the page cache had only {each.least_resident:.0%} of the image in one"
        f" slice; what is missing was read from the disk.[/red]"
        for each in comparisons
        if each.least_resident < _RESIDENT
    ]

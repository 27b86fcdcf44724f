"""`powervio bench files`: our 9P server beside diod, and in a guest beside QEMU's own."""

from __future__ import annotations

import json
from pathlib import Path

import click

from powervio.bench import files_guest
from powervio.bench.crq import default_folder
from powervio.bench.files import DEPTHS, KINDS, Kind, Result, measure
from powervio.bench.files_guest import WORKS, Work
from powervio.boot import cache, machine
from powervio.cli import bench_options
from powervio.cli.bench import size_of
from powervio.cli.conditions import host, others_note
from powervio.cli.files_guest import show as show_guest
from powervio.cli.measuring import measuring

_BY_NAME = {kind.name: kind for kind in KINDS} | {f"guest-{work.name}": work for work in WORKS}


def _kinds(context: click.Context, parameter: click.Parameter, value: str | None) -> list[Kind | Work]:
    """Names of kinds, separated by commas."""
    if value is None:
        return list(KINDS)
    names = [name.strip() for name in value.split(",")]
    for name in names:
        if name not in _BY_NAME:
            raise click.BadParameter(f"{name!r} is no kind; expected some of {', '.join(_BY_NAME)}")
    return [kind for name, kind in _BY_NAME.items() if name in names]


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, with every slice.")
@click.option(
    "--seconds",
    type=click.FloatRange(0.05, 600),
    default=1.0,
    show_default=True,
    help="Time for each server in each row.",
)
@click.option(
    "--kinds",
    callback=_kinds,
    metavar="NAME,...",
    help=f"Some of {', '.join(_BY_NAME)}. [default: all that are not the guest's]",
)
@click.option("--slices", type=click.IntRange(1, 1000), default=7, show_default=True, help="Parts of that time.")
@click.option("--size", callback=size_of, default="64M", metavar="BYTES", show_default=True, help="Of the large file.")
@bench_options.folder("what is served is")
@click.option(
    "--guest",
    is_flag=True,
    help="And in a stock guest, over CRQ beside QEMU's -virtfs: all kinds if --kinds names none, two minutes more.",
)
@bench_options.arch
@click.option(
    "--rounds",
    type=click.IntRange(1, 1000),
    default=files_guest.ROUNDS,
    show_default=True,
    help="Pairs of slices in the guest.",
)
@bench_options.kernels
def files(
    as_json: bool,
    seconds: float,
    kinds: list[Kind | Work],
    slices: int,
    size: int,
    folder: Path | None,
    guest: bool,
    arch: str | None,
    rounds: int,
    kernels: Path | None,
) -> None:
    """`powervio serve-9p` beside diod: one directory, one compiled client, Unix sockets, depth 1 and 32.

    Messages are as long as both servers agree to; the last rows are reads with each server's own longest. Medians of
    slices in turn. With --guest, or a kind of the guest, a stock Linux guest has a folder mounted twice, too, over CRQ
    and by QEMU's -virtfs; its kernel's 9p does both, with the same options, and in the end both folders have to be
    equal. docs/benchmarks.md says how to read the tables.
    """
    outside = [kind for kind in kinds if isinstance(kind, Kind)]
    works = [kind for kind in kinds if isinstance(kind, Work)] or (WORKS if guest else ())
    place = folder or default_folder()
    result: Result | None = None
    inside: files_guest.Result | None = None
    with measuring() as tell:
        if outside:
            result = measure(seconds, place, kinds=outside, slices=slices, file_bytes=size, progress=tell)
        if works:
            chosen = machine.find(arch or machine.of_this_machine())
            inside = files_guest.measure(chosen, kernels or cache.default_folder(), rounds, place, tell, works=works)
    if as_json:
        parts = {} if result is None else result.as_json()
        click.echo(json.dumps(parts | ({} if inside is None else {"guest": inside.as_json()}), indent=2))
        return
    if result is not None:
        _show(result)
    if inside is not None:
        show_guest(inside)


def _show(result: Result) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    console.print(
        f"9P over a Unix socket, messages of {result.msize} bytes, beside {result.peer}; {host(result.conditions)}."
    )
    table = Table("operations per second", "depth", box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("ours", "diod", "ratio"):
        table.add_column(heading, justify="right")
    for row in result.rows:
        rates = [f"{rate / 1e6:,.0f} MB/s" if row.kind == "read" else f"{rate:,.0f}" for rate in row.rates]
        table.add_row(row.kind, str(row.depth), *rates, f"{row.ratio:.2f}")
    if result.has_metadata:
        for depth in DEPTHS:
            table.add_row("names and attributes", str(depth), "", "", f"{result.metadata(depth):.2f}")
    for row in result.longest:
        rates = [f"{rate / 1e6:,.0f} MB/s" for rate in row.rates]
        table.add_row(f"read, {result.our_msize} bytes", str(row.depth), *rates, f"{row.ratio:.2f}")
    console.print(table)
    for kind in KINDS:
        if any(row.kind == kind.name for row in result.rows):
            console.print(f"[bold]{kind.name}[/bold]: {kind.what}", soft_wrap=True)
    console.print(
        f"Medians of {result.slices} slices of {result.slice_seconds:.2g} s, both servers in turn. Names and"
        f" attributes: geometric mean. The large file has {result.file_bytes >> 20} MiB and is page-cached."
        f" diod's longest message has {result.their_msize} bytes."
    )
    if note := others_note(result.others, result.conditions):
        console.print(note)

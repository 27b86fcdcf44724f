"""`powervio demo`: the whole of it in a few seconds, for people to see and for programs to check."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn
from rich.text import Text

from powervio.boot import machine
from powervio.boot.cache import default_folder
from powervio.cli import peers
from powervio.cli.costs import cost_table
from powervio.errors import LocalError
from powervio.evaluate.demo import Programs, Report, Watcher, run_demo
from powervio.evaluate.guest_demo import run_guest_demo
from powervio.evaluate.handshake import Step

_WIDTH = 78
_NARROWEST = 40


def _path(context: click.Context, parameter: click.Parameter, value: str | None) -> Path | None:
    if value == "":
        raise click.BadParameter("it is empty; expected the path of a disk image")
    return None if value is None else Path(value)


@click.command()
@click.option(
    "--image",
    type=click.Path(),
    callback=_path,
    metavar="FILE",
    help="Work on this disk image (read only; it is not changed) and not on one made from the project's files.",
)
@click.option("--revision", type=click.IntRange(0, 1), help="Of the protocol; 0 if not given.")
@click.option("--guest", is_flag=True, help="Let a stock Linux kernel in QEMU be the client, as `powervio boot` does.")
@click.option(
    "--arch", metavar="|".join(machine.ARCHES), help="With --guest: its architecture; this machine's or x86_64."
)
@click.option(
    "--cache",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="FOLDER",
    help="With --guest: where kernels are kept, if not where `powervio boot` has them.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else.")
def demo(
    image: Path | None, revision: int | None, guest: bool, arch: str | None, cache: Path | None, as_json: bool
) -> None:
    """Show the whole of it in a few seconds.

    A hypervisor, a VIO server and a client partition are started; they configure a disk as the protocol says; the
    client reads an image, writes it to a second disk, discards, zeroes; and the costs are counted. The exit status is 0
    if every digest agreed and e2fsck found the copy clean.

    With --guest the client is a virtual machine: the guest's own block driver reads, mounts and copies the image.
    """
    if guest and revision is not None:
        raise click.UsageError("--revision is for clients of powervio's own: a guest's driver takes the newest")
    if not guest and (arch or cache):
        raise click.UsageError(f"{'--arch' if arch else '--cache'} is for demo --guest")
    found = {peer.name: peer.find() for peer in peers.PEERS}
    programs = Programs(found["mke2fs"], found["e2fsck"])
    if guest:
        chosen = machine.find(arch or machine.of_this_machine())
        _finish(*_run_guest(programs, image, chosen, cache or default_folder(), as_json))
    else:
        _finish(*_run(programs, image, revision or 0, as_json))


def _run(
    programs: Programs, image: Path | None, revision: int, as_json: bool
) -> tuple[Report, dict[str, object] | None]:
    if as_json:
        report = run_demo(programs, image, revision, Watcher())
        return report, report.as_json()
    screen = _Screen(Console(highlight=False))
    with screen:
        report = run_demo(programs, image, revision, screen)
    screen.figures(report)
    return report, None


def _run_guest(
    programs: Programs, image: Path | None, arch: machine.Arch, cache: Path, as_json: bool
) -> tuple[Report, dict[str, object] | None]:
    if as_json:
        found = run_guest_demo(programs, image, arch, cache, Watcher())
        return found.report, found.as_json()
    screen = _Screen(Console(highlight=False))
    with screen:
        found = run_guest_demo(programs, image, arch, cache, screen)
    screen.figures(found.report, "Cost of a direct read of 4 KiB by the guest, both partitions together")
    return found.report, None


def _finish(report: Report, values: dict[str, object] | None) -> None:
    if values is not None:
        click.echo(json.dumps(values, indent=2))
    if report.failures:
        raise LocalError("; ".join(report.failures))


class _Screen(Watcher):
    """Shows what happens as it happens."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._ascii = console.options.ascii_only
        self._width = max(_NARROWEST, min(_WIDTH, console.width))
        self._progress = Progress(
            TextColumn("   {task.description}"),
            BarColumn(bar_width=24),
            DownloadColumn(binary_units=True),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("", visible=False)
        self._what = ""
        self._section = "Disk image"
        """Title that stands before the next note."""

    def __enter__(self) -> _Screen:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def _title(self, text: str) -> None:
        self.console.print()
        self.console.print(Text(text, "bold"))

    def handshake(self, revision: int, steps: list[Step]) -> None:
        """The drawing of the slides: two columns, time runs down."""
        self._title(f"Configuration handshake, revision {revision}")
        left, right = "Guest LPAR: client1, virtio_vio", "VIO LPAR: vios1, virtio_crq"
        self.console.print()
        if len(left) + len(right) < self._width:
            self.console.print(Text(left + right.rjust(self._width - len(left)), "cyan"))
        else:
            self.console.print(Text(f"{left}\n{right.rjust(self._width)}", "cyan"))
        self.console.print(Text(("-" if self._ascii else "─") * self._width, "cyan"))
        for step in steps:
            self._step(step)
        self._section = "Work of the client"

    def _step(self, step: Step) -> None:
        line, head_right, head_left = ("-", ">", "<") if self._ascii else ("─", "▶", "◀")
        label = step.hcall + (f", {step.rdma_bytes} bytes" if step.rdma_bytes else "")
        if not label:
            self.console.print(Text.assemble((step.name, "bold green"), ("  (in its own memory)", "dim")))
        else:
            room = self._width - len(step.name) - 1
            arrow = f" {label} ".center(room - 1, line)
            arrow = head_left + arrow if step.to_client else arrow + head_right
            if step.by_client:
                self.console.print(Text.assemble((step.name, "bold green"), " ", arrow))
            else:
                self.console.print(Text.assemble(arrow, " ", (step.name, "bold yellow")))
        indent = " " * (3 if step.by_client else self._width // 3)
        for carried in step.carried:
            wrapped = textwrap.wrap(
                carried, self._width, initial_indent=indent, subsequent_indent=indent + "  ", break_long_words=False
            )
            for row in wrapped:
                self.console.print(Text(row, "dim"))

    def note(self, text: str) -> None:
        """A line of the work."""
        if self._section:
            self._title(self._section)
            self._section = ""
        mark = "*" if self._ascii else "•"
        for row in textwrap.wrap(text, self._width, initial_indent=f" {mark} ", subsequent_indent="   "):
            self.console.print(Text(row))

    def begin(self, what: str, total: int) -> None:
        """Show the bar."""
        self._what = what
        self._progress.reset(self._task, total=total, description=what, visible=True)

    def advance(self, count: int) -> None:
        """Move it."""
        self._progress.advance(self._task, count)

    def end(self, result: str) -> None:
        """A line in the place of the bar."""
        self._progress.update(self._task, visible=False)
        self.note(f"{self._what}: {result}")

    def figures(self, report: Report, title: str = "Cost of a random read of 4 KiB, both partitions together") -> None:
        """Costs, rates, and the verdict."""
        if report.costs:
            self._title(title)
            self.console.print(cost_table(report.costs, narrow=self._width < _WIDTH))
        if report.rates:
            rates = ", ".join(f"{rate:,.0f}/s at depth {depth}" for depth, rate in report.rates.items())
            hot_path = "compiled" if report.compiled else "interpreted"
            self.console.print(f"In one thread, hot path {hot_path}: {rates}.")
        if not report.failures:
            checked = ", e2fsck clean" if report.fsck_clean else ""
            self.console.print()
            self.console.print(
                Text(
                    f"All well: {report.rdma_bytes / (1 << 20):.0f} MiB moved by remote DMA, digests equal{checked};"
                    f" {report.seconds:.1f} s.",
                    "bold green",
                )
            )

"""The command `powervio`. A subcommand's module is imported only when it is used or asked for help."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import click

from powervio import __version__
from powervio.cli import process
from powervio.errors import PowervioError


@dataclass(frozen=True, slots=True)
class Entry:
    """One row of the table of commands."""

    name: str
    place: str
    """`module:attribute` of the click command, below `powervio.`."""
    summary: str
    """For `powervio --help`, which imports no command."""


COMMANDS = (
    Entry("demo", "cli.demo:demo", "Show the whole of it in a few seconds, on a disk made for the purpose."),
    Entry("up", "cli.up:up", "Start a system that is declared in a file."),
    Entry("ps", "cli.ps:ps", "List the adapters of a running system, and what they have done."),
    Entry("console", "cli.console:console", "Attach the terminal to a client partition's console."),
    Entry("attach", "cli.plug:attach", "Give a client of a running system one more disk."),
    Entry("detach", "cli.plug:detach", "Take a disk away from a running system."),
    Entry("resize", "cli.plug:resize", "Change the size of a running system's disk."),
    Entry("save", "cli.move:save", "Let a client partition go on in a file, and end it."),
    Entry("restore", "cli.move:restore", "Let a saved client partition go on."),
    Entry("terminate", "cli.server:terminate", "Let a VIO server of a running system fail."),
    Entry("activate", "cli.server:activate", "Start a VIO server that was terminated again."),
    Entry("sea", "cli.sea:sea", "Show Shared Ethernet Adapters, and have one take over or hand over."),
    Entry("dtb", "cli.dtb:dtb", "Print the device tree of a partition."),
    Entry("down", "cli.down:down", "Stop a running system."),
    Entry("pool", "cli.pool:pool", "Make, resize, delete and list the logical volumes of storage pools."),
    Entry("vhost-user", "cli.vhost_user:vhost_user", "Serve a device to a virtual machine, by vhost-user."),
    Entry("serve-9p", "cli.serve_9p:serve_9p", "Serve a directory of this machine by 9P2000.L."),
    Entry("mount-9p", "cli.mount_9p:mount_9p", "Mount a 9P server's share on this machine."),
    Entry("boot", "cli.boot:boot", "Boot a stock Linux kernel in QEMU, with disks of ours."),
    Entry("bench", "cli.bench:bench", "Measure."),
    Entry("doctor", "cli.doctor:doctor", "Say what is here, and what each missing program would enable."),
)
"""To add a command, add a row."""


class LazyGroup(click.Group):
    """A group whose commands come from a table."""

    def __init__(self, *args: object, entries: Sequence[Entry] = COMMANDS, **options: object) -> None:
        super().__init__(*args, **options)  # type: ignore[arg-type]
        self._entries = {entry.name: entry for entry in entries}

    def list_commands(self, context: click.Context) -> list[str]:
        """The names, in the table's order."""
        return list(self._entries)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        """Import the command's module."""
        entry = self._entries.get(name)
        if entry is None:
            return None
        module, _, attribute = entry.place.partition(":")
        command = getattr(importlib.import_module(f"powervio.{module}"), attribute)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """From the table, importing nothing."""
        with formatter.section("Commands"):
            formatter.write_dl([(entry.name, entry.summary) for entry in self._entries.values()])


@dataclass(slots=True)
class Options:
    """What holds for every command; a command finds it as its context's object."""

    debug: bool = False


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--debug", is_flag=True, help="Show where an error comes from, and log more.")
@click.version_option(__version__, prog_name="powervio")
@click.pass_obj
def cli(options: Options, debug: bool) -> None:
    """Virtio for PowerVM's virtual I/O: hypervisor, VIO server and client side on any Linux machine."""
    options.debug = debug


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command and end the process: 0 done, 1 failed, 2 wrong usage, 130 interrupted, 143 terminated."""
    process.open_standard_files()
    options = Options()
    # temporary files and partitions go; `up` has its own way to end
    process.end_on_signals()
    try:
        sys.exit(_run(options, arguments))
    except (KeyboardInterrupt, RuntimeError) as error:
        # what a signal raises while a class is made is the cause of a RuntimeError (Python 3.11, `__set_name__`)
        reason = error.__cause__ if isinstance(error, RuntimeError) else error
        if isinstance(reason, SystemExit):
            sys.exit(reason.code)
        if not isinstance(reason, KeyboardInterrupt):
            raise
        _say("interrupted")
        sys.exit(130)
    finally:
        process.let_go()


def _run(options: Options, arguments: Sequence[str] | None) -> int:
    """Run the command; the exit status. Every failure that is foreseen is one line for people."""
    try:
        status = cli.main(arguments, prog_name="powervio", standalone_mode=False, obj=options)
        sys.stdout.flush()
    except click.ClickException as error:
        with suppress(OSError):
            error.show()
        return error.exit_code
    except click.Abort:
        raise KeyboardInterrupt from None
    except OSError as error:
        if options.debug:
            raise
        process.give_up_output()
        if isinstance(error, BrokenPipeError):
            return 1  # whoever read our output has what it wanted
        what = "the output cannot be written" if process.is_output_failure(error) else error.filename or "failed"
        _say(f"{what}: {error.strerror or error}")
        return 1
    except PowervioError as error:
        if options.debug:
            raise
        for line in str(error).splitlines():
            _say(line)
        return 128 + process.ended_by() if process.ended_by() else 1
    return status if isinstance(status, int) else 0


def _say(line: str) -> None:
    with suppress(OSError):
        click.echo(f"powervio: {line}", err=True)

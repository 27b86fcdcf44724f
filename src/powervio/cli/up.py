"""`powervio up`: start a declared system, here or in the background."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import select
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from powervio.cli import process
from powervio.cli.main import Options
from powervio.cli.ps import interface
from powervio.errors import LocalError, PowervioError
from powervio.system.config import Config
from powervio.system.fs_section import Fs
from powervio.system.load import load, without_lpar
from powervio.system.net_section import Net, names
from powervio.system.rundir import RunName, log_file
from powervio.system.saved_file import SavedFile
from powervio.system.types import load_types

if TYPE_CHECKING:
    from powervio.system.system import System

END_LIMIT = 10.0
"""Seconds for a system in the background to end that has not started."""
START_LIMIT = 60.0
"""Seconds for a system in the background to start; each step of it has a shorter limit of its own."""


@click.command()
@click.argument("file", type=click.Path())
@click.option("-d", "--detach", is_flag=True, help="Run in the background; return when everything serves.")
@click.option("--types", multiple=True, type=click.Path(), help="A Python file with device types (docs/new-device.md).")
@click.option(
    "--restore",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Let a saved client partition go on instead of starting it anew (`powervio save`).",
)
@click.pass_obj
def up(options: Options, file: str, detach: bool, types: tuple[str, ...], restore: tuple[Path, ...]) -> None:
    """Start the system that FILE declares, and run it until Ctrl-C, SIGTERM, SIGHUP or `powervio down`.

    docs/system-file.md has every option of FILE. In the background, NAME.log beside the control socket (in
    $XDG_RUNTIME_DIR/powervio, /run/powervio or /tmp/powervio-UID) has what there is to say; if that is nothing, it is
    removed at the end.
    """
    for module in types:
        load_types(module)
    config = load(file)
    restore = tuple(path.absolute() for path in restore)
    for path in restore:
        with SavedFile(path) as saved:
            config = without_lpar(config, saved.manifest.partition.name)
    if detach:
        _up_in_background(config, options.debug, restore)
        return
    before = process.hold_signals()  # until the system has its own handlers: no lock stays for want of them
    try:
        run_name = RunName(config.name)
        try:
            _run(config, run_name, options.debug, _Foreground(), restore)
        finally:
            run_name.release()
    finally:
        process.forget_signals(before)


class _Foreground:
    """Tells the user at the terminal what happens."""

    pipe = None

    def ready(self, system: System) -> None:
        show_served(system.config, system.notes)
        click.echo(f"{system.config.name} is up; Ctrl-C or `powervio down {system.config.name}` ends it")

    def stopping(self) -> None:
        with suppress(OSError):  # the terminal may be what has gone
            click.echo("stopping; a second Ctrl-C ends at once", err=True)


class _Background:
    """Tells the waiting parent that everything serves."""

    def __init__(self, pipe: int) -> None:
        self.pipe = pipe

    def ready(self, system: System) -> None:
        _report(self.pipe, None, system.notes)

    def stopping(self) -> None:
        logging.getLogger("powervio").info("stopping")


def _run(
    config: Config, run_name: RunName, debug: bool, teller: _Foreground | _Background, restore: Sequence[Path]
) -> None:
    from powervio.system.run import run

    logging.basicConfig(
        level=logging.DEBUG if debug else logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    asyncio.run(
        run(
            config,
            run_name,
            on_ready=teller.ready,
            on_stopping=teller.stopping,
            starter=teller.pipe,
            restore=restore,
        )
    )


def show_served(config: Config, notes: Sequence[str] = ()) -> None:
    """Print what is served where, and what the user should know of it."""
    for note in notes:
        click.echo(note)
    for _, lpar, disk in config.disks():
        how = " (readonly)" if disk.readonly else ""
        click.echo(f"{lpar.name}: {disk.image}{how}, served by {' and '.join(disk.servers)}")
        if disk.nbd is not None:
            click.echo(f"    nbd+unix:///?socket={disk.nbd}")
    for _, lpar, row, device in config.devices():
        click.echo(f"{lpar.name}: {row.name}, served by {device.vios}")
        if device.socket is not None:
            click.echo(f"    {device.socket}")
        if isinstance(device, Net) and device.tap is not None:
            addresses = ", ".join(names(device.address))
            click.echo(f"    {interface(device.tap, device.netns)}{': ' if addresses else ''}{addresses}")
        if isinstance(device, Fs):
            click.echo(f"    {device.dir} as {device.tag}{'' if device.mount is None else f', at {device.mount}'}")


# -- in the background


def _up_in_background(config: Config, debug: bool, restore: Sequence[Path]) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    log = log_file(config.name)
    reading, writing = os.pipe2(os.O_CLOEXEC)
    before = process.hold_signals()  # the child lets them in when it can end well
    child = os.fork()
    if not child:
        os.close(reading)
        _be_background(config, debug, writing, restore)
    try:
        os.close(writing)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        answer = _wait_for(reading, START_LIMIT)
    except BaseException:
        _end(child)
        raise
    if answer is None:
        _end(child)
        raise LocalError(f"{config.name} did not start within {START_LIMIT:.0f} s; its log is {log}")
    if not answer:
        raise LocalError(f"{config.name} ended while it started; its log is {log}")
    told = json.loads(answer)
    if told["error"] is not None:
        raise LocalError(told["error"])
    try:
        show_served(config, told["notes"])
        click.echo(f"{config.name} is up, process {child}; `powervio down {config.name}` ends it; log: {log}")
    except OSError as error:
        # It is up, and that is what the exit status says.
        process.give_up_output()
        with suppress(OSError):
            click.echo(f"powervio: {config.name} is up, but that cannot be written: {error.strerror}", err=True)


def _end(child: int) -> None:
    """End a system that is starting, and wait until it is gone, so that nothing of it is left when we say so."""
    os.kill(child, signal.SIGTERM)
    deadline = time.monotonic() + END_LIMIT
    while time.monotonic() < deadline and not os.waitpid(child, os.WNOHANG)[0]:
        time.sleep(0.01)


def _wait_for(pipe: int, timeout: float) -> bytes | None:
    """What the child has to say: a line, nothing if it ended without a word, None if it takes too long."""
    deadline = time.monotonic() + timeout
    said = b""
    while not said.endswith(b"\n"):
        if not select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))[0]:
            return None
        piece = os.read(pipe, 65536)
        if not piece:
            return b""
        said += piece
    return said


def _be_background(config: Config, debug: bool, pipe: int, restore: Sequence[Path]) -> NoReturn:
    """The child's life; it never returns into the parent's code."""
    status = 1
    try:
        os.setsid()
        os.closerange(3, pipe)  # what the caller had open is not ours to keep open
        os.closerange(pipe + 1, os.sysconf("SC_OPEN_MAX"))
        run_name = RunName(config.name)
        try:
            _leave_terminal(config.name)
            _run(config, run_name, debug, _Background(pipe), restore)
            _remove_empty(log_file(config.name))
            status = 0
        except PowervioError as error:
            logging.getLogger("powervio").error("%s", error)
            raise
        finally:
            run_name.release()
    except PowervioError as error:
        _report(pipe, str(error))
    except BaseException as error:
        logging.getLogger("powervio").exception("ended by a fault")
        _report(pipe, f"{config.name} ended by a fault, {error!r}; its log is {log_file(config.name)}")
    finally:
        logging.shutdown()
        os._exit(status)


def _remove_empty(log: Path) -> None:
    with suppress(OSError):
        if not log.stat().st_size:
            log.unlink()


def _leave_terminal(name: str) -> None:
    path = log_file(name)
    try:
        log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise LocalError(f"{path}: {error.strerror}") from error
    null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    os.dup2(null, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.chdir("/")  # the folder it was started from stays free to be unmounted


def _report(pipe: int, error: str | None, notes: Sequence[str] = ()) -> None:
    with suppress(OSError):  # nobody waits any more
        os.write(pipe, json.dumps({"error": error, "notes": notes}).encode() + b"\n")

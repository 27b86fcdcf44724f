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
from contextlib import suppress
from typing import TYPE_CHECKING, NoReturn

import click

from powervio.cli.main import Options
from powervio.errors import LocalError, PowervioError
from powervio.system.config import Config, load
from powervio.system.rundir import RunName, log_file
from powervio.system.types import load_types

if TYPE_CHECKING:
    from powervio.system.system import System

START_LIMIT = 60.0
"""Seconds for a system in the background to start; each step of it has a shorter limit of its own."""


@click.command()
@click.argument("file", type=click.Path())
@click.option("-d", "--detach", is_flag=True, help="Run in the background; return when everything serves.")
@click.option("--types", multiple=True, type=click.Path(), help="A Python file with device types (docs/new-device.md).")
@click.pass_obj
def up(options: Options, file: str, detach: bool, types: tuple[str, ...]) -> None:
    """Start the system that FILE declares, and run it until Ctrl-C, SIGTERM or `powervio down`."""
    for module in types:
        load_types(module)
    config = load(file)
    if detach:
        _up_in_background(config, options.debug)
    else:
        run_name = RunName(config.name)
        try:
            _run(config, run_name, options.debug, _Foreground())
        finally:
            run_name.release()


class _Foreground:
    """Tells the user at the terminal what happens."""

    def ready(self, system: System) -> None:
        show_served(config=system.config)
        click.echo(f"{system.config.name} is up; Ctrl-C or `powervio down {system.config.name}` ends it")

    def stopping(self) -> None:
        click.echo("stopping; a second Ctrl-C ends at once", err=True)


class _Background:
    """Tells the waiting parent that everything serves."""

    def __init__(self, pipe: int) -> None:
        self._pipe = pipe

    def ready(self, system: System) -> None:
        _report(self._pipe, None)

    def stopping(self) -> None:
        logging.getLogger("powervio").info("stopping")


def _run(config: Config, run_name: RunName, debug: bool, teller: _Foreground | _Background) -> None:
    from powervio.system.run import run

    logging.basicConfig(
        level=logging.DEBUG if debug else logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    asyncio.run(run(config, run_name, on_ready=teller.ready, on_stopping=teller.stopping))


def show_served(config: Config) -> None:
    """Print what is served where."""
    for _, lpar, disk in config.disks():
        how = " (readonly)" if disk.readonly else ""
        click.echo(f"{lpar.name}: {disk.image}{how}, served by {disk.vios}")
        if disk.nbd is not None:
            click.echo(f"    nbd+unix:///?socket={disk.nbd}")
    for _, lpar, row, device in config.devices():
        click.echo(f"{lpar.name}: {row.name}, served by {device.vios}")
        if device.socket is not None:
            click.echo(f"    {device.socket}")


# -- in the background


def _up_in_background(config: Config, debug: bool) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    reading, writing = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if not child:
        os.close(reading)
        _be_background(config, debug, writing)
    os.close(writing)
    try:
        answer = _wait_for(reading, START_LIMIT)
    except BaseException:
        os.kill(child, signal.SIGTERM)
        raise
    log = log_file(config.name)
    if answer is None:
        os.kill(child, signal.SIGTERM)
        raise LocalError(f"{config.name} did not start within {START_LIMIT:.0f} s; its log is {log}")
    if not answer:
        raise LocalError(f"{config.name} ended while it started; its log is {log}")
    error = json.loads(answer)["error"]
    if error is not None:
        raise LocalError(error)
    show_served(config)
    click.echo(f"{config.name} is up, process {child}; `powervio down {config.name}` ends it; log: {log}")


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


def _be_background(config: Config, debug: bool, pipe: int) -> NoReturn:
    """The child's life; it never returns into the parent's code."""
    status = 1
    try:
        os.setsid()
        run_name = RunName(config.name)
        try:
            _leave_terminal(config.name)
            _run(config, run_name, debug, _Background(pipe))
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


def _leave_terminal(name: str) -> None:
    log = os.open(log_file(name), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
    null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    os.dup2(null, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.chdir("/")  # the folder it was started from stays free to be unmounted


def _report(pipe: int, error: str | None) -> None:
    with suppress(OSError):  # nobody waits any more
        os.write(pipe, json.dumps({"error": error}).encode() + b"\n")

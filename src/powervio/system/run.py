"""One system's life in one process: start it, answer the control socket, stop it on a signal or on request."""

from __future__ import annotations

import asyncio
import base64
import os
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from powervio.errors import LocalError
from powervio.system.config import Config
from powervio.system.control import ControlServer, TakeOver
from powervio.system.operator import operate
from powervio.system.rundir import RunName
from powervio.system.system import System

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


async def run(
    config: Config,
    run_name: RunName,
    *,
    on_ready: Callable[[System], None] = lambda system: None,
    on_stopping: Callable[[], None] = lambda: None,
    starter: int | None = None,
    restore: Sequence[Path] = (),
) -> None:
    """Run a system until SIGINT, SIGTERM, SIGHUP or the request `down`; a second signal ends the process at once.

    Signals that the caller blocks are let in here, and blocked again at the end: so none is lost in between.
    `restore` has files of saved partitions that go on here, which the declaration does not have. `starter` is the
    writing end of a pipe: when nobody reads it any more before the system is ready, it stops.

    Returns when it ended well, also while it was starting. Raises `LocalError` when it could not be started, or when
    something was wrong at its end; nothing of it is left then either.
    """
    loop = asyncio.get_running_loop()
    system = System(config, run_name.socket.parent)
    stop = asyncio.Event()
    finished: asyncio.Future[None] = loop.create_future()

    def signalled() -> None:
        if stop.is_set():
            os._exit(130)
        stop.set()

    async def ps(arguments: dict[str, Any]) -> dict[str, Any]:
        await system.look()
        return system.report()

    async def down(arguments: dict[str, Any]) -> dict[str, Any]:
        stop.set()
        await asyncio.shield(finished)
        return {}

    for number in SIGNALS:
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup has it ignored
            loop.add_signal_handler(number, signalled)
    mask = signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    if starter is not None:
        loop.add_reader(starter, stop.set)  # a pipe without a reader is an event, and there is no other here

    async def console(arguments: dict[str, Any]) -> tuple[dict[str, Any], TakeOver]:
        """`client`, and `port` by name or number: the connection becomes the operator's terminal (`operator`)."""
        port = system.console(str(arguments.get("client")), str(arguments.get("port", "0")))
        port.attach()
        return {}, partial(operate, port)

    async def dtb(arguments: dict[str, Any]) -> dict[str, Any]:
        return {"dtb": base64.b64encode(system.device_tree(str(arguments.get("partition")))).decode()}

    control = ControlServer(
        run_name.socket,
        {
            "ps": ps,
            "down": down,
            "dtb": dtb,
            "pool": system.pool,
            **system.plug.handlers(),
            **system.moves.handlers(),
            **system.servers.handlers(),
            **system.seas.handlers(),
        },
        streams={"console": console},
    )
    try:
        await control.start()
        try:
            if await _started(system, stop, restore):
                if starter is not None:
                    loop.remove_reader(starter)
                on_ready(system)
                await stop.wait()
            on_stopping()
        finally:
            await system.stop()
    except BaseException as error:
        finished.set_exception(error if isinstance(error, LocalError) else LocalError(repr(error)))
        finished.exception()  # if nobody asked for `down`, nobody looks
        raise
    else:
        finished.set_result(None)
    finally:
        await control.close()
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)  # the handlers go with the loop


async def _start(system: System, restore: Sequence[Path]) -> None:
    await system.start()
    for path in restore:
        client = await system.moves.restore(path)
        system.notes.append(f"{client}: goes on from {path}")


async def _started(system: System, stop: asyncio.Event, restore: Sequence[Path]) -> bool:
    """Start the system; False if it was to stop before it had started."""
    start = asyncio.ensure_future(_start(system, restore))
    stopped = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait((start, stopped), return_when=asyncio.FIRST_COMPLETED)
        if start.done():
            start.result()
            return True
        return False
    finally:
        for task in (start, stopped):
            task.cancel()
            with suppress(asyncio.CancelledError, LocalError):
                await task

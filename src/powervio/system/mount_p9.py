"""`powervio mount-9p`: a 9P server's share, mounted for as long as this process runs."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path

from powervio.attach.mount_p9 import MountOptions, P9Mount
from powervio.attach.p9_link import Patience
from powervio.attach.p9_socket import P9Socket, parse_address
from powervio.drivers.p9_core import P9Core

__all__ = ["MountOptions", "run", "user_of"]


def user_of(access: str) -> int | None:
    """`MountOptions.user` for `user` (each caller), `any` (who mounts), or a user's number."""
    if access == "user":
        return None
    return os.geteuid() if access == "any" else int(access)


def run(
    server: str,
    path: str | Path,
    options: MountOptions,
    *,
    msize: int = 1 << 20,
    patience: float = Patience.SECONDS,
    on_ready: Callable[[], None] = lambda: None,
) -> None:
    """Mount, and unmount at SIGTERM or SIGINT; returns also when somebody else has unmounted. Raises `LocalError`.

    `server` is what `parse_address` reads; `msize` the longest message in bytes that is proposed to it; `patience` for
    how many seconds operations wait when it is away. `on_ready` is called when programs may use the mount.
    """
    link = P9Socket(P9Core(msize=msize), parse_address(server), patience=patience)
    asyncio.run(_run(link, path, options, on_ready))


async def _run(link: P9Socket, path: str | Path, options: MountOptions, on_ready: Callable[[], None]) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    mounted = P9Mount(link, path, options)
    await mounted.start()
    try:
        on_ready()
        tasks = [asyncio.create_task(mounted.ended()), asyncio.create_task(stop.wait())]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
    finally:
        await mounted.close()

"""A 9P share, mounted on the host: server, FUSE session and mount together."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from powervio.attach import mount
from powervio.attach.fuse import FuseSession
from powervio.attach.fuse_p9 import TIMEOUT, P9FileSystem
from powervio.attach.p9_link import P9Link
from powervio.drivers.p9_files import HEADROOM
from powervio.drivers.p9_tree import P9Tree

log = logging.getLogger(__name__)

UNMOUNT = 5.0
"""Seconds for which `close` waits until what was written to mappings is at the server."""


@dataclass(frozen=True, slots=True)
class MountOptions:
    """How a share is mounted."""

    share: str = ""
    """What to attach to (9P's aname)."""
    user: int | None = None
    """The user that the server acts as, for everybody; None is each caller (access=user)."""
    user_name: str = ""
    """The user's name, for servers that want one."""
    readonly: bool = False
    everybody: bool = True
    """Whether users other than the one who mounts may use it (allow_other)."""
    timeout: float = TIMEOUT
    """Seconds for which names and attributes are kept."""


class P9Mount:
    """One mount, in the running event loop."""

    def __init__(self, link: P9Link, path: str | Path, options: MountOptions | None = None) -> None:
        """`link` is the way to the server, and is started and closed with the mount: nothing happens before `start`."""
        self.options = options or MountOptions()
        self.path = Path(path)
        self.core = link.core
        self.link = link
        client = f"{socket.gethostname()}:{os.getpid()}:{os.urandom(4).hex()}"
        self.tree = P9Tree(
            self.core,
            share=os.fsencode(self.options.share),
            user=self.options.user,
            name=os.fsencode(self.options.user_name),
            client=client.encode(),
        )
        self.session: FuseSession | None = None
        self._mounted = False
        self._ended: asyncio.Event = asyncio.Event()

    async def start(self) -> None:
        """Connect and mount; programs may use it then. Raises `LocalError`, and then nothing is mounted."""
        loop = asyncio.get_running_loop()
        path = await loop.run_in_executor(None, mount.place, self.path)
        self.path = path
        await self.link.start()
        try:
            max_write = max((self.core.msize - HEADROOM) & ~4095, 4096)
            files = P9FileSystem(self.tree, max_write=max_write, timeout=self.options.timeout)
            device = mount.open_device()
            session = FuseSession(device, files.handlers(), max_write, self._ended.set)
            files.session = session
            self.session = session
            try:
                source = f"9p:{self.link.place}"
                await loop.run_in_executor(
                    None,
                    partial(
                        mount.mount,
                        device,
                        path,
                        source=source,
                        max_read=max_write,
                        readonly=self.options.readonly,
                        everybody=self.options.everybody,
                    ),
                )
            except BaseException:
                session.close()
                raise
            session.start()  # not before: epoll hears nothing of a device that was not mounted when it was added
            self._mounted = True
            await loop.run_in_executor(None, mount.set_read_ahead, path, max_write)
        except BaseException:
            await self.link.close()
            raise

    async def ended(self) -> None:
        """Wait until somebody has unmounted it."""
        await self._ended.wait()

    async def close(self) -> None:
        """Unmount and disconnect. Files that are open there fail from now on."""
        session = self.session
        if session is not None and self._mounted and not self._ended.is_set():
            loop = asyncio.get_running_loop()
            try:
                # by another thread, for what is dirty is written through this loop first
                await asyncio.wait_for(loop.run_in_executor(None, mount.unmount, self.path), UNMOUNT)
            except (OSError, TimeoutError) as error:
                if not isinstance(error, TimeoutError) and error.errno != errno.EBUSY:
                    log.warning("%s: %s", self.path, error.strerror)
                with suppress(OSError):
                    await loop.run_in_executor(None, partial(mount.unmount, self.path, lazy=True))
        self._mounted = False
        if session is not None:
            session.close()
        await self.link.close()

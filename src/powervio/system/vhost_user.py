"""One device for virtual machines, as a back end of vhost-user: what `powervio vhost-user` runs.

The device is served in the calling thread, until a signal ends it, or its one front end if that came as a descriptor.
What was written is flushed at the end.
"""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from powervio.attach.unix_socket import UnixListener
from powervio.devices.block import BlockDevice, BlockOptions
from powervio.devices.net import NetDevice
from powervio.devices.throttle import Limits
from powervio.errors import LocalError
from powervio.memory.abstract import Backing
from powervio.network.loopback import LoopbackPort
from powervio.network.tap import TapPort
from powervio.storage.open import open_disk
from powervio.storage.qemu_daemon import FORMATS
from powervio.system.console_ends import ConsoleEnds
from powervio.system.types import TYPES, DeviceType
from powervio.transport.vhost_user.back_end import BackEndOptions
from powervio.transport.vhost_user.loop import Loop
from powervio.transport.vhost_user.server import Server
from powervio.virtio.device import Device
from powervio.virtio.net import parse_mac

__all__ = [
    "FORMATS",
    "BackEndOptions",
    "BlockOptions",
    "ConsoleEnds",
    "Limits",
    "make_device",
    "open_block",
    "open_net",
    "rows",
    "serve",
]

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def rows() -> dict[str, DeviceType]:
    """The device types of the table that are served whole by their device: nothing else has to be attached."""
    return {section: row for section, row in TYPES.items() if row.standalone}


def make_device(row: DeviceType, options: dict[str, Any]) -> Device:
    """The device of a row. Raises `LocalError` for options that make none."""
    declared = row.options(vios="", **options)
    problems = row.check(declared)
    if problems:
        raise LocalError("\n".join(problems))
    return row.device(declared)


def open_block(
    image: str, options: BlockOptions, *, image_format: str | None, direct: bool, map_file: bool | None = None
) -> tuple[BlockDevice, Backing]:
    """A disk and what it stands on. Raises `LocalError`."""
    backing = open_disk(image, image_format=image_format, read_only=options.read_only, direct=direct, map_file=map_file)
    try:
        return BlockDevice(backing, options), backing
    except BaseException:
        backing.close()
        raise


def open_net(tap: str | None, *, mac: str | None, mtu: int | None) -> NetDevice:
    """A network adapter at a TAP, or without one at a loopback; `close` gives the TAP back. Raises `LocalError`."""
    address = None if mac is None else parse_mac(mac)
    port = LoopbackPort(mtu or 1500) if tap is None else TapPort(tap)
    try:
        return NetDevice(port, mac=address, mtu=mtu)
    except BaseException:
        port.close()
        raise


def serve(
    device: Device,
    *,
    path: str | None,
    fd: int | None,
    options: BackEndOptions,
    backing: Backing | None = None,
    attach: Callable[[Loop, ExitStack], None] = lambda loop, undo: None,
    on_ready: Callable[[], None] = lambda: None,
) -> None:
    """Serve at a socket `path`, or over the socket that descriptor `fd` is; return when a signal ended it.

    `attach` makes what else the device has in this loop, and says how it is undone. A socket that is connected already
    is served until its front end is gone. Raises `LocalError`.
    """
    with ExitStack() as undo:
        loop = Loop()
        undo.callback(loop.close)
        listener, connected = _socket(path, fd, undo)
        server = Server(device, loop, listener, options, None if connected is None else loop.stop)
        undo.callback(server.close)
        attach(loop, undo)
        before = {number: signal.signal(number, lambda *_: loop.stop()) for number in SIGNALS}
        try:
            if connected is not None:
                server.connect(connected)
            on_ready()
            loop.run()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
    if backing is not None and not backing.read_only:
        try:
            backing.flush()
        except OSError as error:
            raise LocalError(f"what was written last is not stable: {error.strerror}") from error


def _socket(path: str | None, fd: int | None, undo: ExitStack) -> tuple[socket.socket | None, socket.socket | None]:
    """A listening socket, or a connected one."""
    if path is not None:
        listener = UnixListener(path)
        undo.callback(listener.close)
        return listener.socket, None
    assert fd is not None
    try:
        given = socket.socket(fileno=fd)
        is_listening = given.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError as error:
        raise LocalError(f"descriptor {fd} is no socket ({error.strerror})") from error
    if given.family != socket.AF_UNIX or given.type != socket.SOCK_STREAM:
        raise LocalError(f"descriptor {fd} is no Unix stream socket")
    given.set_inheritable(False)
    return (given, None) if is_listening else (None, given)

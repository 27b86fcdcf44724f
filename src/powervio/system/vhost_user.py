"""One device for virtual machines, as a back end of vhost-user: what `powervio vhost-user` runs.

The device is served in the calling thread, until a signal ends it, or its one front end if that came as a descriptor.
What was written is flushed at the end.
"""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from powervio.attach.unix_socket import UnixListener
from powervio.devices.block import BlockDevice, BlockOptions
from powervio.devices.net import NetDevice
from powervio.devices.net_loop import Forwarder
from powervio.devices.p9 import P9Device
from powervio.devices.throttle import Limits
from powervio.errors import LocalError
from powervio.files.sizes import MOST_FIDS
from powervio.memory.abstract import Backing
from powervio.network.loopback import LoopbackPort
from powervio.network.switch import PortOptions, Switch
from powervio.network.tap import TapPort
from powervio.storage.open import open_disk
from powervio.storage.qemu_daemon import FORMATS
from powervio.system import fs_section
from powervio.system.console_ends import ConsoleEnds
from powervio.system.fs_section import IDENTITIES, Identity, Share
from powervio.system.types import TYPES, DeviceType
from powervio.transport.vhost_user.back_end import BackEndOptions
from powervio.transport.vhost_user.loop import Loop
from powervio.transport.vhost_user.server import Server
from powervio.virtio.device import Device
from powervio.virtio.net import parse_mac

__all__ = [
    "FORMATS",
    "IDENTITIES",
    "MOST_FIDS",
    "BackEndOptions",
    "BlockOptions",
    "ConsoleEnds",
    "Identity",
    "Limits",
    "NetSwitch",
    "Share",
    "SwitchedPort",
    "make_device",
    "open_block",
    "open_net",
    "open_share",
    "rows",
    "serve",
    "serve_switch",
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


def open_net(tap: str | None, *, mac: str | None, mtu: int | None, pairs: int = 1) -> NetDevice:
    """A network adapter at a TAP, or without one at a loopback; `close` gives the TAP back. Raises `LocalError`."""
    address = None if mac is None else parse_mac(mac)
    port = LoopbackPort(mtu or 1500) if tap is None else TapPort(tap)
    try:
        return NetDevice(port, mac=address, mtu=mtu, pairs=pairs)
    except BaseException:
        port.close()
        raise


def open_share(share: Share) -> P9Device:
    """A folder. Raises `LocalError`."""
    found = list(fs_section.problems(share))
    if found:
        raise LocalError("\n".join(found))
    return fs_section.make_device(share)


@dataclass(frozen=True, slots=True)
class SwitchedPort:
    """One adapter of a switch, and the socket where it is served."""

    path: str
    pvid: int = 1
    """Its VLAN without a tag."""
    vlans: tuple[int, ...] = ()
    """Others, with tags."""
    mac: bytes | None = None
    """Of the adapter; made up if there is none, and then any address may be used."""

    @classmethod
    def parse(cls, text: str) -> SwitchedPort:
        """`SOCKET[,pvid=N][,vlans=N+N...][,mac=ADDRESS]`. Raises `LocalError`."""
        path, *fields = text.split(",")
        values = dict(field.partition("=")[::2] for field in fields)
        if not path or len(values) < len(fields) or set(values) - {"pvid", "vlans", "mac"}:
            raise LocalError(f'port "{text}"; expected SOCKET[,pvid=N][,vlans=N+N...][,mac=ADDRESS], each once')
        try:
            pvid = int(values.get("pvid", "1"))
            vlans = tuple(int(vlan) for vlan in values["vlans"].split("+")) if "vlans" in values else ()
        except ValueError:
            raise LocalError(f'port "{text}"; a VLAN is a number') from None
        return cls(path, pvid, vlans, parse_mac(values["mac"]) if "mac" in values else None)


class NetSwitch:
    """A switch with an adapter at each of its ports, whose mapped queues one thread forwards between."""

    def __init__(self, ports: Sequence[SwitchedPort], *, mtu: int = 1500, pairs: int = 1, spin: float = 0.0) -> None:
        """`spin` is the seconds for which empty rings are looked at. Raises `LocalError`."""
        self.switch = Switch()
        self.forwarder = Forwarder(self.switch, spin=spin)
        self.devices: list[NetDevice] = []
        self.paths = [port.path for port in ports]
        try:
            if len(set(self.paths)) < len(ports):
                raise LocalError("two ports have the same socket")
            for number, port in enumerate(ports):
                options = PortOptions(name=f"port{number}", pvid=port.pvid, vlans=port.vlans, mac=port.mac, mtu=mtu)
                at = self.switch.add(options)
                self.devices.append(NetDevice(at, mac=port.mac, mtu=mtu, pairs=pairs, forwarder=self.forwarder))
        except BaseException:
            self.close()
            raise

    def report(self) -> list[str]:
        """What became of frames, for each port."""
        lines = []
        for path, device in zip(self.paths, self.devices, strict=True):
            lines += [f"{path}: {line}" for line in device.report()]
        return lines

    def close(self) -> None:
        """Nothing is served any more."""
        for device in self.devices:
            device.close()
        self.switch.close()
        self.forwarder.close()


def serve_switch(switch: NetSwitch, *, options: BackEndOptions, on_ready: Callable[[], None] = lambda: None) -> None:
    """Serve every adapter of a switch at its socket; return when a signal ended it. Raises `LocalError`."""
    with ExitStack() as undo:
        loop = Loop()
        undo.callback(loop.close)
        for path, device in zip(switch.paths, switch.devices, strict=True):
            listener = UnixListener(path)
            undo.callback(listener.close)
            undo.callback(Server(device, loop, listener.socket, options).close)
        _run(loop, on_ready)


def _run(loop: Loop, on_ready: Callable[[], None]) -> None:
    """Run a loop until a signal comes."""
    before = {number: signal.signal(number, lambda *_: loop.stop()) for number in SIGNALS}
    try:
        on_ready()
        loop.run()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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

        def ready() -> None:
            if connected is not None:
                server.connect(connected)
            on_ready()

        _run(loop, ready)
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

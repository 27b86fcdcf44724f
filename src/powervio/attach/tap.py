"""A client partition's network adapter as a TAP interface of the host, in a network namespace of its choice.

Programs there use it as any interface. Frames cross in both directions as the kernel and virtio have them: a
virtio_net_hdr in front, checksums partial and large ones unsegmented as far as the device takes them so. They are read
into the partition's memory and written from there (`drivers/net_rings.py`).

While the partition has no server, or its cable is unplugged, the interface has no carrier: what programs send is
dropped by the kernel, as at any cable. The interface goes when the system ends, whatever ends it.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import logging
import os
from contextlib import suppress
from dataclasses import dataclass, field
from struct import Struct

from powervio.attach.netns import Namespace
from powervio.attach.rtnetlink import PROMISCUOUS, Address, Interface, RouteSocket
from powervio.drivers.net import Link, NetDriver
from powervio.errors import LocalError, RemoteError
from powervio.network import tun
from powervio.virtio import net

_log = logging.getLogger(__name__)

_TURN = 64
"""Frames of a TAP that are read before everything else in the loop gets its turn."""
_STALE = 1024
"""Frames that may be in a TAP's queue when a session begins."""
_NUMBER = Struct("=i")
_BROADCAST = b"\xff" * 6


@dataclass(frozen=True, slots=True)
class TapOptions:
    """Which interface, where, with what."""

    name: str
    netns: str | None = None
    """Namespace; None: that of this process."""
    addresses: tuple[Interface, ...] = ()
    gateways: tuple[Address, ...] = ()
    owner: str = "powervio"
    """Who a namespace is marked for that has to be made."""
    queues: int = 1
    """Queue pairs that the driver may have."""


@dataclass(slots=True)
class _Queue:
    """One queue of the TAP."""

    fd: int
    number: int
    reading: bool = field(default=False)


class TapAttachment:
    """The interface of a driver, in an event loop that is its partition's thread."""

    def __init__(self, options: TapOptions, driver: NetDriver) -> None:
        self.options = options
        self.stale = 0
        """Frames that were sent before there was a session, and were dropped."""
        self._driver = driver
        self._namespace: Namespace | None = None
        self._queues: list[_Queue] = []
        self._route: RouteSocket | None = None
        self._watch: RouteSocket | None = None
        self._index = 0
        self._link: Link | None = None
        self._mac = b""
        self._loop: asyncio.AbstractEventLoop | None = None

    async def start(self) -> None:
        """Make it. Raises `LocalError`."""
        self._loop = asyncio.get_running_loop()
        try:
            self._namespace = Namespace(self.options.netns, self.options.owner)
            self._namespace.run(self._open)
            self._set_up()
        except OSError as error:
            await self.close()
            raise LocalError(f"TAP {self.options.name}: {error.strerror}") from error
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Remove it, and the namespace if it was made for it."""
        self._driver.on_link = self._driver.on_room = self._driver.on_announce = None
        for pair in self._driver.pairs:
            pair.receive.fd = -1
        self._stop_reading()
        if self._watch is not None and self._loop is not None:
            self._loop.remove_reader(self._watch.fileno())
        for one in (self._watch, self._route):
            if one is not None:
                one.close()
        self._watch = self._route = None
        for queue in self._queues:
            os.close(queue.fd)
        self._queues = []
        if self._namespace is not None:
            self._namespace.close()
            self._namespace = None

    def lend(self) -> int:
        """Let somebody else have the descriptor of the first queue, until `take_back`: nothing is read or written here.

        For measurements. Raises `LocalError` when there is no interface.
        """
        if not self._queues:
            raise LocalError(f"TAP {self.options.name} is not there")
        self._stop_reading()
        for pair in self._driver.pairs:
            pair.receive.fd = -1
        return self._queues[0].fd

    def take_back(self) -> None:
        """End what `lend` began."""
        self._connect()

    # -- making it

    def _open(self) -> None:
        """In the namespace: what is opened here belongs there."""
        flags = tun.IFF_MULTI_QUEUE if self.options.queues > 1 else 0
        for number in range(self.options.queues):
            self._queues.append(_Queue(tun.open_queue(self.options.name, flags), number))
        self._route = RouteSocket()
        self._watch = RouteSocket(watch=True)

    def _set_up(self) -> None:
        assert self._route is not None
        assert self._watch is not None
        assert self._loop is not None
        link = self._route.find(self.options.name)
        self._index = link.index
        self._driver.on_link = self._link_changed
        self._driver.on_room = self._has_room
        self._driver.on_announce = self._announce
        self._link_changed()
        self._route.change(self._index, up=True)
        for address in self.options.addresses:
            self._route.add_address(self._index, address)
        for gateway in self.options.gateways:
            try:
                self._route.add_gateway(self._index, gateway)
            except OSError as error:
                raise LocalError(f"TAP {self.options.name}: gateway {gateway}: {error.strerror}") from error
        self._loop.add_reader(self._watch.fileno(), self._interface_changed)

    # -- what the driver says

    def _link_changed(self) -> None:
        """A session began or ended, or the cable was plugged or unplugged."""
        before, self._link = self._link, self._driver.link
        link = self._link
        if link is None:
            self._stop_reading()
            self._set_carrier(False)
            return
        try:
            if before is None or before.features != link.features:
                self._begin(link)
            if self._route is not None and (before is None or (before.mac, before.mtu) != (link.mac, link.mtu)):
                self._mac = link.mac if any(link.mac) else b""
                self._route.change(self._index, mac=self._mac, mtu=link.mtu)
        except OSError as error:  # it was deleted from under us
            _log.warning("TAP %s: %s", self.options.name, error.strerror)
            return
        self._set_carrier(link.up)

    def _begin(self, link: Link) -> None:
        """A session begins: the kernel's side has to have headers as the driver has, and to finish what it does not
        take."""
        features = link.features
        wanted = 0
        if features & net.F_CSUM:
            wanted = tun.F_CSUM
            for feature, bit in (
                (net.F_HOST_TSO4, tun.F_TSO4),
                (net.F_HOST_TSO6, tun.F_TSO6),
                (net.F_HOST_ECN, tun.F_ECN),
                (net.F_HOST_USO, tun.F_USO),
            ):
                if features & feature:
                    wanted |= bit
        for queue in self._queues:
            fcntl.ioctl(queue.fd, tun.TUNSETVNETHDRSZ, _NUMBER.pack(link.header_bytes))
            self._leave(queue.fd, wanted)
            self._discard(queue.fd)
        self._connect()

    def _connect(self) -> None:
        for queue, pair in zip(self._queues, self._driver.pairs, strict=False):
            pair.receive.fd = queue.fd
            self._read_from(queue)

    @staticmethod
    def _leave(fd: int, offloads: int) -> None:
        """Let the kernel leave so much undone; one that does not know of UDP is not asked for it."""
        try:
            fcntl.ioctl(fd, tun.TUNSETOFFLOAD, offloads)
        except OSError as error:
            if error.errno != errno.EINVAL or not offloads & tun.F_USO:
                raise
            fcntl.ioctl(fd, tun.TUNSETOFFLOAD, offloads & ~tun.F_USO)

    def _discard(self, fd: int) -> None:
        """What was sent before is too old, and may be of another form."""
        for _ in range(_STALE):
            try:
                os.read(fd, 65536 + 64)
            except OSError:
                return
            self.stale += 1

    def _set_carrier(self, up: bool) -> None:
        for queue in self._queues[:1]:
            with suppress(OSError):  # it was deleted, or the kernel is older than 5.0
                fcntl.ioctl(queue.fd, tun.TUNSETCARRIER, _NUMBER.pack(up))

    # -- frames

    def _read_from(self, queue: _Queue) -> None:
        if not queue.reading and self._loop is not None:
            queue.reading = True
            self._loop.add_reader(queue.fd, self._readable, queue)

    def _stop_reading(self) -> None:
        for queue in self._queues:
            self._pause(queue)

    def _pause(self, queue: _Queue) -> None:
        if queue.reading and self._loop is not None:
            queue.reading = False
            self._loop.remove_reader(queue.fd)

    def _readable(self, queue: _Queue) -> None:
        if queue.number >= len(self._driver.pairs):
            self._pause(queue)
            return
        ring = self._driver.pairs[queue.number].transmit
        try:
            if ring.read(queue.fd, _TURN):
                ring.queue.kick()
        except OSError as error:
            _log.warning("TAP %s is of no use any more: %s", self.options.name, error.strerror)
            self._pause(queue)
        except RemoteError:
            self._pause(queue)  # the session is about to end
        if ring.starved:
            self._pause(queue)  # what is not read waits in the interface's own queue, which is bounded

    def _has_room(self, number: int) -> None:
        if number < len(self._queues):
            self._read_from(self._queues[number])

    def _announce(self) -> None:
        """Tell switches where the partition is, and neighbours whose address it is."""
        link = self._driver.link
        if link is None or not any(link.mac):
            return
        for frame in announcements(self._mac or link.mac, self.options.addresses):
            self._driver.send(frame)
        self._driver.kick()

    # -- what was done to the interface

    def _interface_changed(self) -> None:
        if self._watch is None:
            return
        for link in self._watch.changes():
            if link.index != self._index:
                continue
            promiscuous = bool(link.flags & PROMISCUOUS)
            if promiscuous != self._driver.promiscuous:
                self._driver.set_mode(promiscuous=promiscuous, all_multicast=True)
            if len(link.mac) == net.MAC_BYTES and self._mac and link.mac != self._mac:
                self._mac = link.mac
                self._driver.set_mac(link.mac)


def announcements(mac: bytes, addresses: tuple[Interface, ...]) -> list[bytes]:
    """Frames that tell where an adapter is: an ARP announcement for each IPv4 address (RFC 5227, 3), a RARP request if
    there is none."""
    known = [address.ip.packed for address in addresses if address.version == 4]
    if not known:
        ends = mac + bytes(4) + mac + bytes(4)
        return [_BROADCAST + mac + bytes.fromhex("8035 0001 0800 06 04 0003") + ends + bytes(18)]
    return [
        _BROADCAST + mac + bytes.fromhex("0806 0001 0800 06 04 0001") + mac + ip + bytes(6) + ip + bytes(18)
        for ip in known
    ]

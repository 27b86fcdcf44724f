"""The port of a partition that is a process of its own: every hcall goes through the shared region.

What a partition's software is given here is what phyp gives it in its own process, so `PartitionKernel` and everything
on it runs unchanged. There are no DMA engines: a VIO server in a process of its own copies all data.
"""

from __future__ import annotations

import logging
import os
import socket
import struct
import threading
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Self

from powervio.errors import LocalError, RemoteError
from powervio.gateway import ivshmem, layout
from powervio.gateway.calls import DONE, CallRing
from powervio.memory.area import MappedArea
from powervio.memory.hw import event_signal
from powervio.papr.codes import Hcall, ReturnCode
from powervio.papr.devicetree import virtual_adapters
from powervio.papr.fdt import Node, decode, to_cells, to_strings
from powervio.papr.nodes import VdeviceNode
from powervio.papr.port import HcallPort

_log = logging.getLogger(__name__)

LIMIT = 1.0
"""Seconds after which an hcall that is not answered is withdrawn: H_BUSY."""
CONNECT_LIMIT = 10.0
"""Seconds that a hypervisor has for the whole of its greeting."""
SPIN_US = 0
"""Looking for the answer before sleeping pays only where hypervisor and partition have a processor each."""
_NOTHING = (0,) * layout.REGISTERS
_BUSY = (int(ReturnCode.H_BUSY), *_NOTHING)
_HARDWARE = (int(ReturnCode.H_HARDWARE), *_NOTHING)
_TREE = struct.Struct("<QI")
_WORD = struct.Struct("<I")
_RTAS_SOURCE = "hot-plug-events"


class RemotePort(HcallPort):
    """Made by `connect`; usable from any thread, one hcall at a time.

    A hypervisor that does not answer within `limit` seconds makes an hcall H_BUSY: it is not carried out then, and may
    be tried again. One that was taken and is not answered in another `limit`, and any hcall once the hypervisor has
    gone, is H_HARDWARE; `lost` says why then, and stays so.
    """

    def __init__(
        self, connection: socket.socket, shake: ivshmem.Handshake, memory_fd: int, limit: float, spin_us: int
    ) -> None:
        """Take over all descriptors. Raises `RemoteError`."""
        connection.setblocking(False)
        self._socket = connection
        self._fds = [fd for fd in shake.descriptors() if fd != shake.memory]
        self._doorbell = shake.eventfds[layout.HYPERVISOR_PEER][0]
        vectors = shake.eventfds[layout.PARTITION_PEER]
        self._region = MappedArea(shake.memory, os.fstat(shake.memory).st_size)
        self.where = layout.decode(self._region.view)
        size = os.fstat(memory_fd).st_size
        if size != self.where.memory_size:
            raise RemoteError(f"the memory has {size} bytes; the hypervisor says {self.where.memory_size}")
        self._area = MappedArea(memory_fd, size)
        self.memory = self._area.view
        self.interrupt_fd = vectors[layout.LINE_VECTOR]
        self.vectors: Sequence[int] = tuple(vectors)
        """Eventfds, non-blocking, of all interrupt vectors."""
        self.limit = limit
        self._spin = spin_us * 1000
        self._lock = threading.Lock()
        self._ring = CallRing(self._region.view, self.where, vectors[layout.CALL_VECTOR], connection.fileno())
        self.lost: str | None = None
        """Why the hypervisor cannot be reached any more."""
        self._nodes: dict[int, VdeviceNode] = {}
        self.nodes: Mapping[int, VdeviceNode] = MappingProxyType(self._nodes)
        self._read_tree()

    @classmethod
    def connect(
        cls, path: str, *, memory_path: str | None = None, limit: float = LIMIT, spin_us: int = SPIN_US
    ) -> Self:
        """Become the partition behind the door at `path`.

        Its memory is the file at `memory_path`, or what the hypervisor hands out. Raises `LocalError` when nobody is
        there or the partition runs already, `RemoteError` for a hypervisor that says something else.
        """
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(CONNECT_LIMIT)
        shake = ivshmem.Handshake(vectors=layout.FIRST_SOURCE_VECTOR, server=layout.HYPERVISOR_PEER)
        held: list[int] = []
        try:
            try:
                connection.connect(path)
                while not shake.done:
                    value, fd = _receive(connection)
                    held += [] if fd is None else [fd]
                    shake.take(value, fd)
                    if shake.memory >= 0:  # all of them are heard, so that afterwards there is only the end to hear
                        shake.vectors = layout.vectors_of(os.pread(shake.memory, layout.HEADER_SIZE, 0))
                if shake.own != layout.PARTITION_PEER:
                    raise RemoteError(f"ivshmem: this side is peer {shake.own} instead of {layout.PARTITION_PEER}")
                if memory_path is not None:
                    memory_fd = os.open(memory_path, os.O_RDWR | os.O_CLOEXEC)
                else:
                    memory_fd = _ask_memory(connection, shake, held)
            except OSError as error:
                raise LocalError(f"{path}: {error.strerror or error}") from error
            held.append(memory_fd)
            return cls(connection, shake, memory_fd, limit, spin_us)
        except BaseException:
            connection.close()
            for fd in held:
                os.close(fd)
            raise

    @property
    def connection_fd(self) -> int:
        """Readable when the hypervisor has gone; then `check` says so."""
        return self._socket.fileno()

    def check(self) -> bool:
        """Whether the hypervisor is there; if not, `lost` says why."""
        return not self._gone()

    # -- hcalls

    def hcall(self, token: int, *registers: int) -> tuple[int, ...]:
        """See `HcallPort.hcall`; always with nine result registers."""
        with self._lock:
            if self.lost is not None:
                return _HARDWARE
            ring = self._ring
            limit = int(self.limit * 1e9)
            if not ring.room():
                self._shout()
                if ring.wait(ring.number + 1 - self.where.slots, self._spin, limit) != DONE:
                    return self._unanswered(token)
            number = ring.post(token, registers)
            if ring.must_ring():
                self._shout()
            if ring.wait(number, self._spin, limit) == DONE:
                return ring.result(number)
            return self._late(token, number, limit)

    def batch(self, calls: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
        """Several hcalls, `(token, r4, ...)` each, posted together with one doorbell and carried out in their order.

        As many as there are slots. Of one that is late all behind it are withdrawn as well.
        """
        with self._lock:
            if self.lost is not None:
                return [_HARDWARE] * len(calls)
            ring, limit = self._ring, int(self.limit * 1e9)
            if len(calls) > self.where.slots:
                raise LocalError(f"{len(calls)} hcalls at once; the ring has {self.where.slots} slots")
            results: list[tuple[int, ...]] = []
            numbers: list[int] = []
            for call in calls:
                if not ring.room() and ring.wait(ring.number + 1 - self.where.slots, self._spin, limit) != DONE:
                    break
                numbers.append(ring.post(call[0], call[1:]))
            if numbers and ring.must_ring():
                self._shout()
            for number, call in zip(numbers, calls, strict=False):
                if ring.wait(number, self._spin, limit) == DONE:
                    results.append(ring.result(number))
                else:
                    results.append(self._late(call[0], number, limit))
                    limit = 0
            return results + [self._unanswered(call[0]) for call in calls[len(numbers) :]]

    def _shout(self) -> None:
        event_signal(self._doorbell)

    def _late(self, token: int, number: int, limit: int) -> tuple[int, ...]:
        """An hcall that was posted is not answered in time."""
        ring = self._ring
        if self._gone():
            return _HARDWARE
        if token == Hcall.H_EOI:
            # it stays posted: withdrawn, the processor's priority would stay raised for ever
            _log.error("partition %s: the hypervisor does not answer H_EOI", self.partition_name)
            return _BUSY
        if ring.withdraw(number):
            return self._unanswered(token)
        if ring.wait(number, 0, max(limit, int(self.limit * 1e9))) == DONE:
            return ring.result(number)
        self._lose(f"the hypervisor has taken hcall {token:#x} and does not answer")
        return _HARDWARE

    def _unanswered(self, token: int) -> tuple[int, ...]:
        """An hcall that is not carried out."""
        if self._gone():
            return _HARDWARE
        _log.error(
            "partition %s: the hypervisor did not answer hcall %#x within %g s", self.partition_name, token, self.limit
        )
        if token == Hcall.H_XIRR:
            event_signal(self.interrupt_fd)  # what the line told is still to be asked for
        return _BUSY

    def _gone(self) -> bool:
        if self.lost is None:
            ended = _WORD.unpack_from(self._region.view, layout.STATE)[0] != layout.RUNNING
            try:
                ended = ended or not self._socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
            except BlockingIOError:
                pass
            except OSError:
                ended = True
            if ended:
                self._lose("the hypervisor has closed the partition's connection")
        return self.lost is not None

    def _lose(self, why: str) -> None:
        _log.error("partition %s: %s", self.partition_name, why)
        self.lost = why

    def xirr(self) -> int:
        """See `HcallPort.xirr`; no source when the hypervisor does not answer."""
        code, value, *_ = self.hcall(Hcall.H_XIRR)
        return value if code == 0 else 0xFF00_0000

    # -- device tree

    def watch_tree(self) -> int:
        """See `HcallPort.watch_tree`; `nodes` are what they are at that moment."""
        code, generation, *_ = self.hcall(layout.G_TREE)
        if code == 0:
            self._read_tree()
        return generation

    def _read_tree(self) -> None:
        view = self._region.view
        _, length = _TREE.unpack_from(view, layout.TREE_GENERATION)
        if length > self.where.tree_room:
            raise RemoteError(f"a device tree of {length} bytes is not in its place of {self.where.tree_room}")
        start = self.where.tree_offset
        root = decode(bytes(view[start : start + length]))
        adapters = virtual_adapters(root)
        self.partition_id = _cell(root, "ibm,partition-no")
        self.partition_name = to_strings(root.properties["ibm,partition-name"])[0]
        vdevice, events = root.child("vdevice"), root.child("event-sources")
        assert vdevice is not None
        limit = vdevice.properties.get("ibm,max-virtual-dma-size")
        self.max_virtual_dma_size = to_cells(limit)[0] if limit else None
        event = events.child(_RTAS_SOURCE) if events is not None else None
        self.tree_source = to_cells(event.properties["interrupts"])[0] if event is not None else 0
        for gone in self._nodes.keys() - adapters.keys():
            del self._nodes[gone]
        for address, node in adapters.items():
            before = self._nodes.get(address)
            if before != node or before.release != node.release:
                self._nodes[address] = node

    # -- what only the gateway has

    def accept_features(self, features: int) -> None:
        """Take features that are offered (`layout.FEATURE_...`). Raises `LocalError`."""
        self._own(layout.G_FEATURES, features)

    def direct(self, source: int, vector: int) -> None:
        """Have an interrupt source tell of itself by a vector of its own; vector 1 is the line. Raises `LocalError`."""
        self._own(layout.G_DIRECT, source, vector)

    def _own(self, token: int, *registers: int) -> None:
        code = self.hcall(token, *registers)[0]
        if code:
            raise LocalError(f"the gateway's hcall {token:#x} returned {code}")

    def close(self) -> None:
        """Leave: the partition has failed, from its partners' view. The port is not used afterwards."""
        with self._lock:
            if self.lost is None:
                self.lost = "it was closed"
            self._socket.close()
            self._area.close()
            self._region.close()
            for fd in self._fds:
                os.close(fd)
            self._fds = []


def _cell(node: Node, name: str) -> int:
    if name not in node.properties:
        raise RemoteError(f"the device tree has no {name}")
    return to_cells(node.properties[name])[0]


def _receive(connection: socket.socket) -> tuple[int, int | None]:
    """One message with its descriptor. Raises `OSError`, `RemoteError`."""
    data, fds, _flags, _address = socket.recv_fds(connection, ivshmem.MESSAGE.size, 1)
    if len(data) != ivshmem.MESSAGE.size:
        for fd in fds:
            os.close(fd)
        raise LocalError("the partition cannot be entered: it runs in another process, or its hypervisor has gone")
    return ivshmem.MESSAGE.unpack(data)[0], fds[0] if fds else None


def _ask_memory(connection: socket.socket, shake: ivshmem.Handshake, held: list[int]) -> int:
    connection.sendall(ivshmem.MESSAGE.pack(ivshmem.ASK_MEMORY))
    while True:
        value, fd = _receive(connection)
        if value == ivshmem.ASK_MEMORY and fd is not None:
            return fd
        held += [] if fd is None else [fd]  # further vectors
        shake.take(value, fd)

"""Both ends of a virtual terminal as partitions use them: bytes by H_PUT_TERM_CHAR and H_GET_TERM_CHAR.

Each end moves bytes between two `ByteQueue`-like queues and the hypervisor, 16 at a time, in its partition's thread.
A full terminal (H_BUSY) is tried again after a short pause, since nothing tells when there is room (papr-vio 7.7).
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Protocol

from powervio.errors import LocalError
from powervio.memory.area import PAGE_SIZE
from powervio.papr.codes import Hcall, HcallError, ReturnCode
from powervio.papr.nodes import VdeviceNode
from powervio.vio.dispatcher import Timer
from powervio.vio.kernel import PartitionKernel

CHARS = 16
_ALL_ONES = 0xFFFF_FFFF_FFFF_FFFF
_RETRY = 0.001
"""Seconds until a full terminal is tried again."""
_CLOSED_RETRY = 0.25
"""Seconds until a closed one is."""
_ROUNDS = 512
"""Calls in one turn before the partition's other work."""


class Bytes(Protocol):
    """What is needed of a queue of bytes (`virtio/stream.py: ByteQueue`)."""

    on_data: Callable[[], None] | None
    on_consumed: Callable[[], None] | None

    @property
    def room(self) -> int:
        """Bytes that it takes."""

    def __len__(self) -> int: ...

    def put_all(self, data: bytes) -> None:
        """Append."""

    def peek(self, offset: int, length: int) -> bytes:
        """Look."""

    def consume(self, length: int) -> None:
        """Forget the first bytes."""


class VtermState(Enum):
    """Of one end."""

    CLOSED = "closed"
    RUNNING = "running"


class VtermEnd:
    """One end: what arrives goes to `incoming`, what is in `outgoing` is sent."""

    def __init__(self, kernel: PartitionKernel, node: VdeviceNode, incoming: Bytes, outgoing: Bytes) -> None:
        self.node = node
        self.state = VtermState.CLOSED
        self.on_received: Callable[[], None] | None = None
        """Called in the partition's thread after bytes arrived."""
        self.keeps_newest = False
        """Whether bytes are taken from the terminal though `incoming` has no room: its owner trims it."""
        self._kernel = kernel
        self._incoming = incoming
        self._outgoing = outgoing
        self._retry: Timer | None = None

    @property
    def running(self) -> bool:
        """Whether it was started."""
        return self.state is VtermState.RUNNING

    def start(self) -> None:
        """Take interrupts, and begin to move bytes; before the partition runs, or in its thread."""
        self.state = VtermState.RUNNING
        self._kernel.request_interrupt(self.node.interrupt, self.receive)
        self._kernel.port.vio_signal(self.node.unit_address, 1)
        self._incoming.on_consumed = self._soon(self.receive)
        self._outgoing.on_data = self._soon(self.send)
        self._kernel.call_soon(self.receive)
        self._kernel.call_soon(self.send)

    def stop(self) -> None:
        """Move nothing any more."""
        self.state = VtermState.CLOSED
        self._incoming.on_consumed = self._outgoing.on_data = None
        self._kernel.port.vio_signal(self.node.unit_address, 0)
        self._kernel.free_interrupt(self.node.interrupt)
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None

    def _soon(self, call: Callable[[], None]) -> Callable[[], None]:
        return lambda: self._kernel.call_soon_threadsafe(call)

    def receive(self) -> None:
        """Take what there is, as far as there is room for it."""
        got = bytearray()
        for _ in range(_ROUNDS):
            if not self.running or (self._incoming.room < len(got) + CHARS and not self.keeps_newest):
                break
            code, *registers = self._kernel.port.get_term_char(self.node.unit_address)
            if code or not registers[0]:
                break
            length, high, low = registers
            got += (high << 64 | low).to_bytes(CHARS, "big")[:length]
        else:
            self._kernel.call_soon(self.receive)
        if got:
            self._incoming.put_all(bytes(got))
            if self.on_received is not None:
                self.on_received()

    def send(self) -> None:
        """Send what waits, until the terminal is full."""
        for _ in range(_ROUNDS):
            if not self.running or not len(self._outgoing) or self._retry is not None:
                return
            data = self._outgoing.peek(0, CHARS)
            code = self._kernel.port.put_term_char(self.node.unit_address, data)
            if code:
                self._again(_RETRY if code == ReturnCode.H_BUSY else _CLOSED_RETRY)
                return
            self._outgoing.consume(len(data))
        self._kernel.call_soon(self.send)

    def _again(self, delay: float) -> None:
        def go_on() -> None:
            self._retry = None
            self.send()

        self._retry = self._kernel.call_later(delay, go_on)


class VtermServer(VtermEnd):
    """The vty-server's end: connects to the first vty that it may."""

    def start(self) -> None:
        """Connect and begin. Raises `LocalError` when there is no vty, `HcallError` when it is taken."""
        found = self.partners()
        if not found:
            raise LocalError(f"adapter {self.node.location_code} has no vty to connect to")
        partner_id, partner_ua, _ = found[0]
        code = self._kernel.port.register_vterm(self.node.unit_address, partner_id, partner_ua)
        if code:
            raise HcallError(Hcall.H_REGISTER_VTERM, code)
        super().start()

    def stop(self) -> None:
        """Disconnect."""
        super().stop()
        self._kernel.port.free_vterm(self.node.unit_address)

    def partners(self) -> list[tuple[int, int, str]]:
        """The vtys that may be connected to: partition id, unit address, location code."""
        port = self._kernel.port
        page = self._kernel.pages.allocate(PAGE_SIZE)
        found: list[tuple[int, int, str]] = []
        last = (_ALL_ONES, _ALL_ONES)
        try:
            while True:
                code = port.vterm_partner_info(self.node.unit_address, *last, page)
                if code:
                    raise HcallError(Hcall.H_VTERM_PARTNER_INFO, code)
                answer = bytes(port.memory[page : page + PAGE_SIZE])
                last = int.from_bytes(answer[:8], "big"), int.from_bytes(answer[8:16], "big")
                if last == (_ALL_ONES, _ALL_ONES):
                    return found
                found.append((*last, answer[16:].split(b"\0", 1)[0].decode()))
        finally:
            self._kernel.pages.free(page, PAGE_SIZE)

# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, nonecheck=False
"""A disk over CRQ, for `bench.load`: negotiated by the block driver, which then leaves its queue to the load.

Data is mapped for each request, headers and status bytes stay mapped, as the block driver does it. What the load lends
is mapped together, published and kicked when it has nothing more to take back; what the device has used is unmapped
together before the load sees any of it. So Python is called for a batch, and not for a request.
This file is compiled (Cython pure mode) and also runs interpreted.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import TracebackType

import cython
from cython.cimports.powervio.bench.load import LoadPort
from cython.cimports.powervio.memory.hw import ld16, pointer, st16
from cython.cimports.powervio.transport.crq.driver_queue import CrqDriverQueue

from powervio.bench.load import BLOCK, PATIENCE, Load
from powervio.bench.rig import Rig
from powervio.drivers.block import BlockDriver
from powervio.memory.abstract import Backing
from powervio.virtio.queue import Buffer, DriverQueue, DriverTransport

_DATA = cython.declare(cython.uint, 1)
_CONTROL = 8192
"""Bytes of memory for the headers and status bytes of the loads of one disk, before another piece is taken."""


@cython.cclass
class CrqPort(LoadPort):
    """The driver's side of one queue over CRQ; segment 1 of what is lent is data, at a logical address.

    A head of the ring is free again when its buffer is taken back from the device, which many are together, before the
    load hears of the first. So the load knows buffers by other numbers, which are free when it has heard of them.
    """

    _queue: CrqDriverQueue
    _turn: Callable[[int], bool]
    _views: tuple[bytearray, ...]
    # By head: the buffer's number. The numbers of what was collected. Numbers that are free.
    _number_of: cython.p_uchar
    _collected: cython.p_uchar
    _spare: cython.p_uchar
    _spares: cython.uint
    _ready: cython.uint
    _next: cython.uint

    def __init__(self, queue: CrqDriverQueue, turn: Callable[[int], bool]) -> None:
        """`turn` lets the partitions run, and waits up to so many milliseconds; it says whether anything happened."""
        number: cython.uint
        LoadPort.__init__(self, queue.ring, False)
        self.together = True
        size = queue.ring.size
        numbers, collected, spare = (bytearray(2 * size) for _ in range(3))
        self._queue = queue
        self._turn = turn
        self._views = (numbers, collected, spare)
        self._number_of = pointer(numbers)
        self._collected = pointer(collected)
        self._spare = pointer(spare)
        self._spares = size
        self._ready = self._next = 0
        for number in range(size):
            st16(self._spare, 2 * number, number)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(-2)
    def lend(
        self,
        segments: cython.p_uchar,
        count: cython.uint,
        readers: cython.uint,
        table: cython.p_uchar,
        table_address: cython.ulonglong,
    ) -> cython.int:
        """See `LoadPort`."""
        head: cython.int = -1
        number: cython.uint
        if self._spares != 0:
            head = self._queue.lend(segments, count, readers, _DATA)
        if head < 0:
            return -1
        self._spares -= 1
        number = ld16(self._spare, 2 * self._spares)
        st16(self._number_of, 2 * head, number)
        return number

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(-1)
    def show(self) -> cython.int:
        """See `LoadPort`: `wait` does it, for all together."""
        return 0

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(-2)
    def take_back(self) -> cython.int:
        """See `LoadPort`."""
        number: cython.uint
        if self._next == self._ready:
            with cython.gil:
                self._ready = self._queue.collect()
            self._next = 0
            for number in range(self._ready):
                st16(self._collected, 2 * number, ld16(self._number_of, 2 * self._queue.head_of(number)))
            if self._ready == 0:
                return -1
        number = ld16(self._collected, 2 * self._next)
        self._next += 1
        st16(self._spare, 2 * self._spares, number)
        self._spares += 1
        return number

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(-1)
    def wait(self, milliseconds: cython.int) -> cython.int:
        """See `LoadPort`."""
        with cython.gil:
            self.sleeps += 1
            self._queue.kick()
            return 1 if self._turn(milliseconds) else 0


class _HandsOff(BlockDriver):
    """The block driver up to its first request: the load makes them all."""

    def start(self, transport: DriverTransport) -> None:
        super().start(transport)
        queue = transport.queues[0]
        assert isinstance(queue, CrqDriverQueue)
        self.queue = queue

    def _make_slots(self, transport: DriverTransport, count: int) -> None:
        """The load has its own, in the same place: behind the ring, from where they come along with descriptors."""

    def completed(self, queue: DriverQueue) -> None:
        """The load looks by itself."""


class CrqDisk:
    """One disk of a rig, with one queue; a context manager. The rig is its owner's to close, after this."""

    def __init__(self, rig: Rig, backing: Backing, *, revision: int = 1, packed: bool = True) -> None:
        """Connect. Raises `LocalError` when that does not succeed."""
        driver = _HandsOff(max_queues=1)
        self.disk = rig.add_disk(backing, driver, revision=revision, packed=packed)
        self.blocks = driver.capacity // BLOCK
        """Whole blocks of 4 KiB."""
        self.port = CrqPort(driver.queue, self._turn)
        """The driver's side of the queue."""
        self._rig = rig
        # in one thread the server's partition has its turns here, too
        kernels = rig.client_kernels if rig.threaded else [*rig.client_kernels, rig.server_kernel]
        self._polls = tuple(kernel.poll for kernel in kernels)
        self._buffers: list[Buffer] = []
        self._control = self._allocate(_CONTROL, mapped=True)
        self._control_used = 0

    def _turn(self, milliseconds: int) -> bool:
        if self._poll():
            return True
        # In one thread only a timer can bring news.
        self._rig.client_kernels[0].wait(milliseconds / 1000 if self._rig.threaded else 0.001)
        return self._poll()

    def _poll(self) -> bool:
        worked: cython.bint = False
        for poll in self._polls:
            if poll():
                worked = True
        return worked

    def _allocate(self, length: int, *, mapped: bool) -> Buffer:
        buffer = self.disk.client.allocate(length, mapped=mapped)
        self._buffers.append(buffer)
        return buffer

    def _allocate_control(self, length: int) -> Buffer:
        begin, end = self._control_used, self._control_used + length
        if end > self._control.length:
            return self._allocate(length, mapped=True)
        self._control_used = end
        at = self._control.device_address
        assert at is not None
        return Buffer(self._control.view[begin:end], self._control.address + begin, at + begin)

    def load(
        self, depth: int, *, writes: bool = False, first: int = 0, seed: int = 4096, patience: float = PATIENCE
    ) -> Load:
        """A load of reads, or of writes: see `Load`. Loads of one disk run one after the other."""
        return Load(
            self.port,
            self._allocate_control,
            depth,
            self.blocks,
            writes=writes,
            first=first,
            seed=seed,
            patience=patience,
            allocate_data=partial(self._allocate, mapped=False),
        )

    def close(self) -> None:
        """Give the memory of the loads back; they are not used afterwards."""
        while self._buffers:
            self.disk.client.release(self._buffers.pop())

    def __enter__(self) -> CrqDisk:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

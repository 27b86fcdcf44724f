# cython: language_level=3
"""A physical storage adapter of a VIO server partition: a TCE table of its own and a DMA engine (papr-vio 2.5).

An operation has two ends. `begin` resolves its addresses and pins the pages, `end` unpins them and puts the bytes on
the ledgers; between the two it holds memoryviews of the memories themselves and no lock. `read` and `write` do all of
it at once, in the caller's thread. An engine that works while others run (threads, io_uring) keeps what `begin` gave
and calls `end` when the kernel is done with the memory, not sooner.
This file is compiled (Cython pure mode) and also runs interpreted; the class is an ordinary one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import cython  # noqa: F401  it provides cython.cimports
from cython.cimports.powervio.phyp.dma_table import DmaOperation
from cython.cimports.powervio.phyp.records import PhysicalRecord

from powervio.memory.abstract import Backing
from powervio.papr.codes import ReturnCode
from powervio.papr.engine import MOVE, DmaEngine, DmaFault, DmaSegment
from powervio.papr.nodes import DmaWindow, PhysicalNode
from powervio.papr.tce import TCE_PAGE_MASK, TCE_PAGE_SHIFT, TCE_READ, TCE_WRITE

if TYPE_CHECKING:
    from powervio.phyp.partition import Partition

_PARTIAL = int(ReturnCode.H_PARTIAL)


class PhysicalAdapter(PhysicalRecord, DmaEngine):
    """Made by `Hypervisor.create_physical_adapter`; `window` is bytes, a multiple of 4096."""

    partition: Partition

    def __init__(self, partition: Partition, number: int, window: int) -> None:
        super().__init__(partition, partition.hypervisor.new_liobn(), window)
        self.node = PhysicalNode(
            name="storage",
            location_code=f"U9117.MMA.0000001-P{partition.partition_id}-C{number}",
            window=DmaWindow(self.liobn, window),
        )

    # hcalls of the owner on this table, under the hypervisor's lock

    def get_tce(self, ioba: int) -> tuple[int, int]:
        """H_GET_TCE: of a client's page only the access bits are told (papr-vio 1.4)."""
        tce = self.table.redirected(ioba >> TCE_PAGE_SHIFT)
        if tce:
            return _PARTIAL, tce | TCE_PAGE_MASK
        return 0, self.own.get(ioba)

    def changed(self, code: int, ioba: int, count: int) -> int:
        """The owner put `count` entries of its own, if `code` is success: what was copied there is a copy no more."""
        if code == 0:
            self.table.forget(ioba >> TCE_PAGE_SHIFT, count)
            self.ledger.updated(count)
        return code

    # operations, from any thread

    def begin(self, segments: Sequence[DmaSegment], *, to_memory: bool) -> DmaOperation:
        """Resolve and pin what the segments name. Raises `DmaFault`, with nothing pinned."""
        record: PhysicalRecord = self
        with self._lock:
            operation = record.unused()
            self._take(operation, segments, to_memory)
            record.begun(operation)
        return operation

    def _take(self, operation: DmaOperation, segments: Sequence[DmaSegment], to_memory: bool) -> None:
        record: PhysicalRecord = self
        need = TCE_WRITE if to_memory else TCE_READ
        for ioba, length in segments:
            inside = self.alive and ioba >= 0 <= length and ioba + length <= self.size
            if not (inside and operation.take(self.table, ioba, length, need)):
                record.refused(operation)
                raise self._fault(f"DMA of {length} bytes at {ioba:#x}, {'in' if to_memory else 'out'}")

    def _fault(self, what: str) -> DmaFault:
        return DmaFault(f"{what}, of {self.node.location_code}: expected entries that are valid for it")

    def end(self, operation: DmaOperation, *, moved: bool) -> None:
        """The engine touches the memory no more; `moved` says whether all bytes are where they belong. Once."""
        record: PhysicalRecord = self
        if moved:
            operation.count_all()
        with self._lock:
            record.ended(operation)

    def read(self, backing: Backing, position: int, segments: Sequence[DmaSegment]) -> None:
        """See `DmaEngine`."""
        self._move(backing, position, segments, True)

    def write(self, backing: Backing, position: int, segments: Sequence[DmaSegment]) -> None:
        """See `DmaEngine`."""
        self._move(backing, position, segments, False)

    def _move(self, backing: Backing, position: int, segments: Sequence[DmaSegment], to_memory: bool) -> None:
        record: PhysicalRecord = self
        operation: DmaOperation = self.begin(segments, to_memory=to_memory)
        moved = False
        try:
            target = backing.target
            if target is None or not operation.carry_out_whole(target, position, to_memory):
                vector = backing.read_vector if to_memory else backing.write_vector
                vector(position, buffers_of(operation))
            moved = True
        finally:
            record.end_here(operation, moved)

    def move_all(self, backing: Backing, moves: bytearray, count: int) -> int:
        """See `DmaEngine`: one operation here."""
        if not 0 <= count <= len(moves) // MOVE.size:
            raise DmaFault(f"{count} moves in a list of {len(moves)} bytes: expected {MOVE.size} bytes for each")
        record: PhysicalRecord = self
        operation: DmaOperation | None = record.begin_moves(moves, count)
        if operation is None:
            raise self._fault(f"one of {count} DMA moves")
        try:
            return operation.carry_out(backing, moves, count)
        finally:
            record.end_here(operation, False)

    def stop(self) -> None:
        """The owner is gone: no operation begins any more; those under way end as they would."""
        self.alive = False
        self.table.forget(0, self.table.count)
        self.own.retire()


def buffers_of(operation: DmaOperation) -> list[memoryview]:
    """The memory of an operation that has begun, run by run; to be dropped before it ends."""
    return [memory[start:end] for memory, start, end in operation.runs]

"""A virtqueue's memory in the client's own partition, where the device reaches it through the TCE window."""

from __future__ import annotations

from powervio.memory.abstract import RingMemory
from powervio.transport.crq.protocol import QueueAddresses
from powervio.vio.dma import DmaSpace


class OwnRing(RingMemory):
    """Ring memory in the client's own partition: mapped for the device, plain memory for the driver."""

    def __init__(self, dma: DmaSpace, size: int, available_bytes: int, used_bytes: int) -> None:
        available_at = 16 * size
        used_at = (available_at + available_bytes + 7) & ~7
        self._dma = dma
        self._memory = dma.allocate(used_at + used_bytes)
        view = self._memory.view
        self.descriptors = view[:available_at]
        self.available = view[available_at : available_at + available_bytes]
        self.used = view[used_at : used_at + used_bytes]
        self._used_at = used_at

    def addresses(self, index: int, size: int) -> QueueAddresses:
        """The entry of FIND_VQS for this ring."""
        ioba = self._memory.ioba
        return QueueAddresses(index, size, ioba, ioba + 16 * size, ioba + self._used_at)

    def fetch_table(self, address: int, length: int) -> memoryview:
        """A driver never fetches a table."""
        raise NotImplementedError

    def release(self) -> None:
        """Unmap and free; the ring is not used afterwards."""
        for area in (self.descriptors, self.available, self.used):
            area.release()
        self._dma.release(self._memory)

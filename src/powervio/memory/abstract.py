"""The three abstract classes that keep rings, devices and drivers ignorant of where bytes are.

`RingMemory` is the memory of one virtqueue, `Payload` the data of one request, `Backing` what a storage device stands
on. A plain load/store interface would not do: over remote DMA every access costs a hypervisor call and is batched.
"""

from __future__ import annotations

import errno
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Protocol

from powervio.memory.space import AddressSpace
from powervio.memory.target import Target


class RingMemory(ABC):
    """The three areas of a virtqueue as local bytes, and the way to bring them up to date.

    When the areas are mapped (a driver's own memory, vhost-user regions) the methods do nothing; when they are remote
    the buffers are shadows and each method is one batch of copies. Sizes for a split queue of N: descriptors 16N,
    available 6+2N, used 6+8N bytes (virtio 1.4, 2.7). For a packed one: descriptor ring 16N, driver event suppression
    4 (`available`), device event suppression 4 (`used`; 2.8.10.1).
    """

    descriptors: memoryview
    available: memoryview
    used: memoryview

    space: AddressSpace | None = None
    """Where device addresses are mapped here, if they are: then indirect tables are read without `fetch_table`."""
    remote: ClassVar[bool] = False
    """Whether what is read is a copy made earlier. Then an index that is to be trusted must have been known before
    the copy of what it covers began, and suppression fields that were read are out of date by definition."""

    @abstractmethod
    def fetch_table(self, address: int, length: int) -> memoryview:
        """The bytes of an indirect descriptor table at a device address, read-only use.

        Raises `RemoteError` when the driver's address or length is not good.
        """

    def store_suppression(self) -> None:
        """Make what the device wants to be told of visible: split, used.flags and avail_event; packed, `used`."""

    # -- split

    def fetch_available(self) -> None:
        """Bring `available` up to date (flags, index, ring, used_event)."""

    def fetch_descriptors(self) -> None:
        """Bring `descriptors` and `available` up to date; descriptors are read first or in the same copy."""

    def store_used(self, first: int, count: int) -> None:
        """Make used elements `first .. first+count-1` (slot numbers, wrapping) visible, and after them used.idx."""

    # -- packed

    def fetch_run(self, first: int, count: int) -> None:
        """Bring `count` descriptors from slot `first` on (wrapping) up to date."""

    def store_run(self, first: int, count: int) -> None:
        """Make used descriptors visible: those from slot `first + 1` on (wrapping), `count - 1` slots of which some may
        be as they were fetched; after them length, id and flags of slot `first`, with the flags last or all at once."""


class Payload(Protocol):
    """The readable or the writable part of one request: a run of bytes in somebody's memory.

    Offsets count from the first byte of the part, whatever the descriptors look like (virtio 1.4, 2.7.4.1 forbids
    assumptions on framing). Every method raises `RemoteError` when the partner's memory cannot be reached, and
    `ValueError` for a range outside `length`. It is a protocol and no base class, for some payloads are compiled.
    """

    length: int

    @abstractmethod
    def read(self, offset: int, length: int) -> bytes:
        """A small piece (a header) as bytes."""

    @abstractmethod
    def write(self, offset: int, data: bytes) -> None:
        """Put a small piece (a status, a header)."""

    @abstractmethod
    def fill_from(self, backing: Backing, position: int, offset: int, length: int) -> None:
        """Move `length` bytes from `backing` at `position` to here at `offset`. Raises `OSError` from the backing."""

    @abstractmethod
    def drain_to(self, backing: Backing, position: int, offset: int, length: int) -> None:
        """Move `length` bytes from here at `offset` to `backing` at `position`. Raises `OSError` from the backing."""


class Backing(ABC):
    """Random-access bytes that a storage device stands on. Positions and lengths are bytes."""

    size: int
    """Capacity in bytes."""
    read_only: bool
    block_size: int
    """Smallest unit that is written without reading first; a power of two, 512 or more."""
    can_discard: bool
    can_secure_erase: bool = False
    vectored: bool = False
    """Whether `read_vector` and `write_vector` move bytes straight between the medium and the buffers, without a look
    at them: then it does not matter that another partition, whose memory they are, may write there meanwhile."""

    @property
    def target(self) -> Target | None:
        """How loops that run without the interpreter lock move data, in place of the methods here; None: not at all."""
        return None

    @abstractmethod
    def read_into(self, position: int, buffer: memoryview) -> None:
        """Fill `buffer` from `position`. Raises `OSError` if not all of it could be read."""

    @abstractmethod
    def write_from(self, position: int, buffer: memoryview) -> None:
        """Write all of `buffer` at `position`. Raises `OSError` if not all of it could be written."""

    def read_vector(self, position: int, buffers: Sequence[memoryview]) -> None:
        """Fill the buffers one after the other from `position`. Raises as `read_into`."""
        for buffer in buffers:
            self.read_into(position, buffer)
            position += len(buffer)

    def write_vector(self, position: int, buffers: Sequence[memoryview]) -> None:
        """Write all of the buffers, one after the other, at `position`. Raises as `write_from`."""
        for buffer in buffers:
            self.write_from(position, buffer)
            position += len(buffer)

    @abstractmethod
    def flush(self) -> None:
        """Make every completed write stable. Raises `OSError`."""

    @abstractmethod
    def discard(self, position: int, length: int) -> None:
        """Give up the contents of a range; what is read there afterwards is unspecified."""

    def secure_erase(self, position: int, length: int) -> None:
        """Make a range unreadable for ever, with every copy of it that the medium has; only if `can_secure_erase`."""
        raise OSError(errno.EOPNOTSUPP, "this backing cannot erase securely")

    @abstractmethod
    def write_zeroes(self, position: int, length: int, *, unmap: bool) -> None:
        """Make a range read as zeroes; with `unmap` the space may be given back."""

    @abstractmethod
    def extents(self, position: int, length: int) -> list[tuple[int, bool]]:
        """The range as consecutive `(bytes, is_data)` runs; not-data reads as zeroes."""

    @abstractmethod
    def close(self) -> None:
        """Release the backing; it is not used afterwards."""

"""Mapped memory that is shared by file descriptor: a partition's own memory, and regions of other processes."""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os

PAGE_SIZE = 4096
"""The I/O page of PAPR's virtual I/O, in bytes; TCEs map pages of this size whatever the kernel's page size."""
_MADV_POPULATE_WRITE = 23


class MappedArea:
    """A shared mapping of a file descriptor; zero-filled and untouched pages cost nothing."""

    def __init__(self, fd: int, size: int) -> None:
        """Take over `fd` (closed by `close`) and map its first `size` bytes, read and write, shared."""
        self.fd = fd
        self.size = size
        self._map = self._mapped(fd, size)
        self.view = memoryview(self._map)

    def _mapped(self, fd: int, size: int) -> mmap.mmap:
        return mmap.mmap(fd, size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)

    def look(self) -> None:
        """Find out whether `lost` is so, without an access that meets it."""

    @property
    def lost(self) -> bool:
        """Whether some of it is no longer there: what is read is void then, and what is written lost."""
        return False

    @classmethod
    def create(cls, name: str, size: int) -> MappedArea:
        """A new memfd of `size` bytes, sealed so that nobody can shrink it under a mapping (no SIGBUS)."""
        fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(fd, size)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        return cls(fd, size)

    def discard(self) -> None:
        """Give all pages back: the area reads as zeroes again (a partition's memory at reboot)."""
        self._map.madvise(mmap.MADV_REMOVE)

    def populate(self) -> None:
        """Have all pages there and mapped for writing, so that no first access to one is a fault."""
        try:
            self._map.madvise(_MADV_POPULATE_WRITE)
        except OSError:  # Linux before 5.14
            for offset in range(0, self.size, mmap.PAGESIZE):
                self.view[offset] = self.view[offset]

    def close(self) -> None:
        """Unmap and close. Views handed out by others keep the mapping alive until they are dropped."""
        self.view.release()
        # if somebody still holds a view, the mapping goes with the last of them
        with contextlib.suppress(BufferError):
            self._map.close()
        os.close(self.fd)

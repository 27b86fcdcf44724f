"""Memory that is somebody else's file: that of a virtual machine, or of a process that is a partition.

Its owner may cut the file off at any moment. The mapping is guarded (`mapping.py`): an access to what is missing then
goes to private memory, and `lost` says so from there on. Where nothing can be guarded (interpreted) it is SIGBUS.
"""

from __future__ import annotations

import mmap
import os
import stat

from powervio.errors import LocalError
from powervio.memory.area import PAGE_SIZE, MappedArea
from powervio.memory.mapping import GuardedMap


class SharedFile(MappedArea):
    """All of a file, mapped shared for reading and writing."""

    def _mapped(self, fd: int, size: int) -> mmap.mmap:
        return GuardedMap.of(fd, size, 0)

    @classmethod
    def of(cls, fd: int, what: str) -> SharedFile:
        """Map a file that is open for reading and writing as `fd`, which is taken over.

        Its size is a positive multiple of 4096 bytes. Raises `LocalError`, with `fd` closed.
        """
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise LocalError(f"{what} is no regular file that memory could be in")
            if status.st_size <= 0 or status.st_size % PAGE_SIZE:
                raise LocalError(f"{what} has {status.st_size} bytes; a positive multiple of {PAGE_SIZE} is needed")
            return cls(fd, status.st_size)
        except (OSError, ValueError, OverflowError) as error:
            os.close(fd)
            raise LocalError(f"{what} cannot be mapped: {error}") from error
        except LocalError:
            os.close(fd)
            raise

    @classmethod
    def open(cls, path: str) -> SharedFile:
        """Map the file at a path. Raises `LocalError`."""
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise LocalError(f"{path}: {error.strerror}") from error
        return cls.of(fd, path)

    _is_cut = False

    def look(self) -> None:
        """See `MappedArea.look`."""
        self._is_cut = self._is_cut or os.fstat(self.fd).st_size < self.size

    @property
    def lost(self) -> bool:
        """See `MappedArea.lost`."""
        return self._is_cut or (isinstance(self._map, GuardedMap) and self._map.broken)

    def discard(self) -> None:
        """Nothing: what is in the memory is its owner's, who boots in it."""

    def close(self) -> None:
        """Let go of the mapping, which ends with the last view of it, and close the descriptor."""
        self.view.release()
        os.close(self.fd)

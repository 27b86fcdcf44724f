"""O_DIRECT reads and writes of any position, length and memory, by way of an aligned bounce buffer where needed.

The kernel says itself what it takes: what is misaligned comes back with EINVAL and is done again through the bounce
buffer, so the aligned case costs no test. A write that covers a unit in part reads that unit first; the lock keeps two
such writes of this process apart, the image's lock all others.
"""

from __future__ import annotations

import errno
import mmap
import os
from threading import Lock

from powervio.errors import LocalError

_BOUNCE_BYTES = 1 << 20
_CANDIDATES = (512, 1024, 2048, 4096, 8192, 16384, 32768, 65536)


class DirectFile:
    """The data path of an image that is open with O_DIRECT."""

    def __init__(self, fd: int, path: str, least: int) -> None:
        """Find the alignment, which is `least` bytes or more. Raises `LocalError` when there is none up to 64 KiB."""
        self._fd = fd
        self._path = path
        self._lock = Lock()
        self._bounce = memoryview(mmap.mmap(-1, _BOUNCE_BYTES))
        self.alignment = self._probe(least)
        """Bytes that positions and lengths on the medium are multiples of."""

    def _probe(self, least: int) -> int:
        for size in _CANDIDATES:
            if size < least:
                continue
            try:
                os.preadv(self._fd, [self._bounce[:size]], 0)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
            else:
                return size
        raise LocalError(f"image {self._path}: no alignment up to 64 KiB suits its file system for direct I/O")

    def read_into(self, position: int, buffer: memoryview) -> int:
        """Read up to the end of the file; the bytes read."""
        done = 0
        while done < len(buffer):
            try:
                got = os.preadv(self._fd, [buffer[done:]], position + done)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                with self._lock:
                    got = self._read_bounced(position + done, buffer[done:])
            if got <= 0:
                break
            done += got
        return done

    def write_from(self, position: int, buffer: memoryview) -> None:
        """Write all of `buffer`. Raises `OSError`."""
        done = 0
        with self._lock:
            while done < len(buffer):
                try:
                    done += os.pwritev(self._fd, [buffer[done:]], position + done)
                except OSError as error:
                    if error.errno != errno.EINVAL:
                        raise
                    done += self._write_bounced(position + done, buffer[done:])

    def _window(self, position: int, length: int) -> tuple[int, int]:
        """The aligned range that holds as much of the wanted one as the bounce buffer does: start, length."""
        start = position - position % self.alignment
        end = position + length
        end += -end % self.alignment
        return start, min(end - start, _BOUNCE_BYTES)

    def _read_bounced(self, position: int, buffer: memoryview) -> int:
        start, length = self._window(position, len(buffer))
        got = os.preadv(self._fd, [self._bounce[:length]], start)
        lead = position - start
        count = min(got - lead, len(buffer))
        if count > 0:
            buffer[:count] = self._bounce[lead : lead + count]
        return count

    def _write_bounced(self, position: int, buffer: memoryview) -> int:
        start, length = self._window(position, len(buffer))
        lead = position - start
        count = min(length - lead, len(buffer))
        last = length - self.alignment
        if lead:
            self._read_unit(start, 0)
        if lead + count < length and not (lead and last == 0):
            self._read_unit(start + last, last)
        self._bounce[lead : lead + count] = buffer[:count]
        done = 0
        while done < length:
            done += os.pwritev(self._fd, [self._bounce[done:length]], start + done)
        return count

    def _read_unit(self, position: int, at: int) -> None:
        if os.preadv(self._fd, [self._bounce[at : at + self.alignment]], position) != self.alignment:
            raise OSError(errno.EIO, "the image became shorter while it was in use", self._path)

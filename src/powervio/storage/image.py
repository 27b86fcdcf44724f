"""Raw images: files (sparse or not) and block devices as `Backing`s.

What users meet:

- The size is that of the file, rounded up to whole sectors of 512 bytes as QEMU does for raw images: the missing bytes
  of the last sector read as zeroes, and the file grows to the whole sector when that sector is written.
- An image that became shorter behind our back fails what lies beyond its end with EIO, and every change too (a write
  would grow it and turn what was lost into silent zeroes). What is still there can be read. A full file system fails
  the write with ENOSPC.
- A flush that failed once fails for ever: the kernel has dropped the pages that it could not write, and a second
  fdatasync would say that all is well. Reopening the image is the way out (QEMU does the same).
- An image is locked for as long as it is open, in QEMU's way: see `hostfile`.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Sequence
from types import TracebackType

from powervio.errors import LocalError
from powervio.memory.abstract import Backing
from powervio.memory.mapping import map_file as map_image
from powervio.memory.target import FileTarget
from powervio.storage import hostfile
from powervio.storage.direct import DirectFile
from powervio.storage.hostfile import FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, FALLOC_ZERO_RANGE, NOT_SUPPORTED, ImageBusy

__all__ = ["SECTOR", "Image", "ImageBusy", "open_image"]

SECTOR = 512
"""Bytes of a sector, the unit of every image's size."""

_IOV_LIMIT = 1024
"""Buffers of one preadv or pwritev (IOV_MAX of Linux)."""
_ZEROES = memoryview(bytes(1 << 18))


class Image(Backing):
    """A raw image that is open; made by `open_image`.

    Positions and lengths are bytes and may be any; multiples of `block_size` are the fast ones. `OSError`s carry the
    errno of the host, EIO for what the file does not have any more, EINVAL for a range outside the image.
    """

    vectored = True

    def __init__(
        self, fd: int, path: str, *, read_only: bool, direct: bool, lock_fd: int = -1, map_file: bool | None = None
    ) -> None:
        """Take over `fd`, and `lock_fd` if the lock is another open file's. Raises `OSError`, `LocalError`."""
        self.path = path
        self.read_only = read_only
        self.direct = direct
        status = os.fstat(fd)
        self.is_block_device = stat.S_ISBLK(status.st_mode)
        self.physical_block_size = max(SECTOR, status.st_blksize)
        """Unit that the host writes without reading first, through its page cache; bytes."""
        self._fd = fd
        self._lock_fd = lock_fd
        self._length = os.lseek(fd, 0, os.SEEK_END)  # of a block device too, where st_size is 0
        self.size = self._length + -self._length % SECTOR
        self._sector = hostfile.logical_sector(fd) if self.is_block_device else 1
        self._direct_file = DirectFile(fd, path, self._sector) if direct else None
        self.block_size = SECTOR if self._direct_file is None else self._direct_file.alignment
        if self.is_block_device:
            self.block_size = max(self.block_size, self._sector)
        if direct and self._length % self.block_size:
            raise LocalError(
                f"image {path}: direct I/O wants a multiple of {self.block_size} bytes, not {self._length}"
            )
        self._target = self._make_target(map_file=map_file)
        self.can_discard = not read_only and self._probe_discard(status)
        self.can_secure_erase = self.is_block_device and not read_only and hostfile.block_device_secure_erases(fd)

    def _make_target(self, *, map_file: bool | None) -> FileTarget:
        if self.direct:
            if map_file:
                raise LocalError(f"image {self.path}: what is mapped is in the page cache; direct I/O goes around it")
            return FileTarget(self._fd, self.size, self._length, read_only=self.read_only, alignment=self.block_size)
        mapping = None
        if map_file is not False:
            mapping = map_image(self._fd, self._length, writable=not self.read_only, always=map_file is True)
        return FileTarget(self._fd, self.size, self._length, read_only=self.read_only, mapping=mapping)

    def _probe_discard(self, status: os.stat_result) -> bool:
        if self.is_block_device:
            return hostfile.block_device_discards(status.st_rdev)
        try:
            # Beyond the end of the file there is nothing to lose: only the answer counts.
            hostfile.fallocate(self._fd, FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE, self._length + (1 << 20), 4096)
        except OSError:
            return False
        # It counted as a change of the file. Nothing has changed, and who compares times should see that.
        with contextlib.suppress(OSError):
            os.utime(self._fd, ns=(status.st_atime_ns, status.st_mtime_ns))
        return True

    def __enter__(self) -> Image:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    @property
    def target(self) -> FileTarget | None:
        """See `Backing`; who reads and writes in a way of their own see all data."""
        return self._target if type(self) is Image else None

    def fileno(self) -> int:
        """The descriptor, for loops that move data themselves.

        They owe the image what its own methods do: `check_length` before a change, alignment when `direct`.
        """
        return self._fd

    def check_length(self) -> None:
        """Raise `OSError` (EIO) when the file is shorter than it was, so that no write can grow it over the loss."""
        length = os.lseek(self._fd, 0, os.SEEK_END)
        if length < self._length:
            raise OSError(errno.EIO, f"the image became shorter: {length} bytes, it had {self._length}", self.path)

    def _check(self, position: int, length: int) -> None:
        if position < 0 or position + length > self.size:
            raise OSError(
                errno.EINVAL, f"{length} bytes at {position} are outside the image of {self.size} bytes", self.path
            )

    def read_into(self, position: int, buffer: memoryview) -> None:
        """See `Backing`. What the file does not have any more is EIO."""
        self._check(position, len(buffer))
        if self._direct_file is not None:
            done = self._direct_file.read_into(position, buffer)
        else:
            done = os.preadv(self._fd, [buffer], position)
            while done < len(buffer):
                got = os.preadv(self._fd, [buffer[done:]], position + done)
                if not got:
                    break
                done += got
        if done < len(buffer):
            if position + done < self._length:
                self.check_length()
                raise OSError(errno.EIO, f"no data at byte {position + done} of the image", self.path)
            buffer[done:] = _ZEROES[: len(buffer) - done]  # the rest of the last sector, fewer than 512 bytes

    def write_from(self, position: int, buffer: memoryview) -> None:
        """See `Backing`. ENOSPC and the like pass on; some of the bytes may have been written then."""
        self._check(position, len(buffer))
        self.check_length()
        if self._direct_file is not None:
            self._direct_file.write_from(position, buffer)
        else:
            done = os.pwritev(self._fd, [buffer], position)
            while done < len(buffer):
                done += os.pwritev(self._fd, [buffer[done:]], position + done)
        if position + len(buffer) > self._length:
            self._has(position + len(buffer), self.size)

    def read_vector(self, position: int, buffers: Sequence[memoryview]) -> None:
        """See `Backing`: one preadv where that does it."""
        length = sum(map(len, buffers))
        self._check(position, length)
        one_call = 1 < len(buffers) <= _IOV_LIMIT and self._direct_file is None
        if not one_call or os.preadv(self._fd, buffers, position) != length:
            super().read_vector(position, buffers)  # this knows what it means that it ended early

    def write_vector(self, position: int, buffers: Sequence[memoryview]) -> None:
        """See `Backing`: one pwritev where that does it."""
        length = sum(map(len, buffers))
        self._check(position, length)
        one_call = 1 < len(buffers) <= _IOV_LIMIT and self._direct_file is None and position + length <= self._length
        if one_call:
            self.check_length()
        if not one_call or os.pwritev(self._fd, buffers, position) != length:
            super().write_vector(position, buffers)

    def flush(self) -> None:
        """See `Backing`: fdatasync. After one failure every later call fails."""
        if self.read_only:
            return
        if self._target.lost:
            raise OSError(self._target.lost, "an earlier flush failed and data was lost", self.path)
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            self._target.lost = error.errno or errno.EIO
            raise

    def discard(self, position: int, length: int) -> None:
        """See `Backing`: holes are punched. A hint: where the host cannot, nothing happens."""
        self._check(position, length)
        first = position + -position % self._sector
        length = (position + length) // self._sector * self._sector - first
        if length <= 0 or not self.can_discard:
            return
        self.check_length()
        try:
            hostfile.fallocate(self._fd, FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE, first, length)
        except OSError as error:
            if error.errno not in NOT_SUPPORTED:
                raise
            if self.is_block_device:  # its discard does not leave zeroes, so it has no holes: that is still a discard
                hostfile.block_device_discard(self._fd, first, length)
        self._target.forget(first, length)

    def secure_erase(self, position: int, length: int) -> None:
        """See `Backing`: BLKSECDISCARD of a block device. Never less than was asked for: whole sectors, or EINVAL."""
        self._check(position, length)
        if not self.is_block_device:
            super().secure_erase(position, length)
        if (position | length) % self._sector:
            raise OSError(errno.EINVAL, f"{length} bytes at {position} are not whole sectors", self.path)
        hostfile.block_device_secure_erase(self._fd, position, length)

    def write_zeroes(self, position: int, length: int, *, unmap: bool) -> None:
        """See `Backing`: by the file system or the device; zeroes are written where these cannot."""
        self._check(position, length)
        if not length:
            return
        self.check_length()
        first = position + -position % self._sector
        end = (position + length) // self._sector * self._sector
        if end <= first or not self._zero_range(first, end - first, unmap):
            self._write_zero_bytes(position, length)
            return
        self._write_zero_bytes(position, first - position)
        self._write_zero_bytes(end, position + length - end)

    def _zero_range(self, position: int, length: int, unmap: bool) -> bool:
        """Zero by fallocate; False when the file system has no way."""
        modes = (FALLOC_PUNCH_HOLE, FALLOC_ZERO_RANGE) if unmap else (FALLOC_ZERO_RANGE,)
        for mode in modes:
            try:
                hostfile.fallocate(self._fd, mode | FALLOC_KEEP_SIZE, position, length)
            except OSError as error:
                if error.errno not in NOT_SUPPORTED:
                    raise
            else:
                self._target.forget(position, length)
                return True
        return False

    def _write_zero_bytes(self, position: int, length: int) -> None:
        end = position + length
        while position < end:
            count = min(len(_ZEROES), end - position)
            self.write_from(position, _ZEROES[:count])
            position += count

    def extents(self, position: int, length: int) -> list[tuple[int, bool]]:
        """See `Backing`: by SEEK_DATA and SEEK_HOLE; a block device is all data."""
        self._check(position, length)
        self.check_length()
        if self.is_block_device:  # has no SEEK_DATA
            return [(length, True)] if length else []
        runs: list[tuple[int, bool]] = []
        end = position + length
        while position < end:
            try:
                data = min(os.lseek(self._fd, position, os.SEEK_DATA), end)
            except OSError as error:
                if error.errno == errno.ENXIO:
                    data = end  # no data from here to the end of the file
                elif error.errno == errno.EINVAL:
                    data = position  # not supported: all of it is data
                else:
                    raise
            if data > position:
                runs.append((data - position, False))
                position = data
            if position < end:
                hole = self._next_hole(position, end)
                runs.append((hole - position, True))
                position = hole
        return runs

    def _next_hole(self, position: int, end: int) -> int:
        try:
            return min(os.lseek(self._fd, position, os.SEEK_HOLE), end)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENXIO):
                raise
            return end

    def resize(self, size: int) -> None:
        """Make the file `size` bytes long, a multiple of 512; new bytes read as zeroes. Raises `LocalError`."""
        if self.is_block_device or self.read_only:
            raise LocalError(
                f"image {self.path}: a {'block device' if self.is_block_device else 'read-only image'}"
                " cannot be resized here"
            )
        if size <= 0 or size % max(SECTOR, self.block_size):
            raise LocalError(f"image {self.path}: size {size} is not a multiple of {max(SECTOR, self.block_size)}")
        try:
            os.ftruncate(self._fd, size)
        except OSError as error:
            raise LocalError(f"image {self.path}: cannot be made {size} bytes long ({error.strerror})") from error
        self._target.forget(size, max(0, self._length - size))
        self._has(size, size)

    def resized(self, size: int) -> None:
        """The image has `size` bytes, or will have: another open file of it is resized."""
        self._target.forget(size, max(0, self._length - size))
        self._has(size, size)

    def _has(self, length: int, size: int) -> None:
        self._length, self.size = length, size
        self._target.length, self._target.size = length, size

    def close(self) -> None:
        """See `Backing`. The lock is gone with it; a second call does nothing."""
        self._target.release()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1


def open_image(
    path: str | os.PathLike[str],
    *,
    read_only: bool = False,
    direct: bool = False,
    create_size: int | None = None,
    lock: bool = True,
    wait: float = 0.0,
    share: int | None = None,
    map_file: bool | None = None,
) -> Image:
    """Open a raw image file or a block device.

    With `create_size` (bytes, a multiple of 512) a missing file is made, sparse; one that exists must have that size.
    `direct` goes around the page cache (O_DIRECT). With `map_file` the file is mapped where that can be done, and a
    page that is not in memory is waited for; None is for files that are in memory anyway. A block device that is
    mounted is not opened for writing. `wait` is the seconds that another user of the image gets to end
    (`hostfile.lock_image`). `share` is the descriptor of an open file that has the image locked already
    (`share.ImageShare`): its lock is kept, too, for as long as this one is open.

    Raises `LocalError` with the reason, `ImageBusy` (a `LocalError`) when somebody else uses the image.
    """
    name = os.fspath(path)
    if create_size is not None and (create_size <= 0 or create_size % SECTOR):
        raise LocalError(f"image {name}: size {create_size} is not a positive multiple of {SECTOR} bytes")
    if create_size is not None and read_only:
        raise LocalError(f"image {name}: a read-only image cannot be created")
    fd, created = _open(name, read_only=read_only, create=create_size is not None, alone=share is None)
    lock_fd = -1
    try:
        if created and create_size is not None:
            os.ftruncate(fd, create_size)
        if direct:
            _go_direct(fd, name)
        if share is not None:
            if not hostfile.is_same_file(fd, share):
                raise LocalError(f"image {name} is another file now than the one that was opened and locked")
            lock_fd = fcntl.fcntl(share, fcntl.F_DUPFD_CLOEXEC, 0)
        elif lock:
            hostfile.lock_image(fd, name, read_only=read_only, wait=wait)
        image = Image(fd, name, read_only=read_only, direct=direct, lock_fd=lock_fd, map_file=map_file)
        if create_size is not None and image.size != create_size:
            raise LocalError(f"image {name} exists and has {image.size} bytes, not {create_size}")
    except BaseException as error:
        os.close(fd)
        if lock_fd >= 0:
            os.close(lock_fd)
        if created:
            os.unlink(name)
        if isinstance(error, OSError):
            raise LocalError(f"image {name}: {error.strerror}") from error
        raise
    return image


def _open(name: str, *, read_only: bool, create: bool, alone: bool) -> tuple[int, bool]:
    """The descriptor, and whether the file was made by this call."""
    flags = os.O_CLOEXEC | (os.O_RDONLY if read_only else os.O_RDWR)
    try:
        mode = os.stat(name).st_mode
    except FileNotFoundError:
        if not create:
            raise LocalError(f"image {name} does not exist") from None
        mode = stat.S_IFREG
        flags |= os.O_CREAT | os.O_EXCL
    except (OSError, ValueError) as error:
        raise LocalError(f"image {name}: {error}") from error
    if stat.S_ISDIR(mode):
        raise LocalError(f"image {name} is a directory; expected a file or a block device")
    if stat.S_ISBLK(mode) and not read_only and alone:
        flags |= os.O_EXCL  # of a block device: not while it is mounted or part of another device
    elif not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
        raise LocalError(f"image {name} is neither a file nor a block device")
    try:
        return os.open(name, flags, 0o644), bool(flags & os.O_CREAT)
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise ImageBusy(f"block device {name} is mounted or used by the kernel of this machine") from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS) and not read_only:
            raise LocalError(f"image {name} cannot be opened for writing ({error.strerror})") from error
        raise LocalError(f"image {name}: {error.strerror}") from error


def _go_direct(fd: int, name: str) -> None:
    try:
        fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_DIRECT)
    except OSError as error:
        raise LocalError(f"image {name}: its file system cannot do direct I/O ({error.strerror})") from error

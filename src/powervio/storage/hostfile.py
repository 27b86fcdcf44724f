"""Linux calls on image files and block devices that Python's `os` does not have: fallocate, discard, image locks.

The locks are QEMU's (docs/system/images, "image locking"): open-file-description read locks on single bytes. Byte
100+i says "I use permission i", byte 200+i says "I do not share permission i"; who wants a permission takes its own
bytes first and then looks whether anybody holds the opposite ones. So an image is served once, by powervio or by QEMU,
and `qemu-img` refuses an image in use with the words that its users know. A lock ends with the last descriptor of the
open file, and so never before the I/O of a dying process has ended.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import platform
import stat
import struct
import time

from powervio.errors import LocalError

FALLOC_KEEP_SIZE = 0x01
FALLOC_PUNCH_HOLE = 0x02
FALLOC_ZERO_RANGE = 0x10

NOT_SUPPORTED = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.ENODEV, errno.EINVAL, errno.ENOTTY})
"""What a file system or driver answers that cannot do it at all: the caller does it another way."""

_libc = ctypes.CDLL(None, use_errno=True)
_fallocate = getattr(_libc, "fallocate64", None) or _libc.fallocate
_fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
_fallocate.restype = ctypes.c_int

# _IO(0x12, n): "no data" is 0 in the generic encoding, bit 29 where _IOC_NONE is 1.
_IO_BLOCK = 0x2000_1200 if platform.machine().startswith(("ppc", "mips", "sparc", "alpha")) else 0x1200
_BLKSSZGET = _IO_BLOCK + 104
_BLKDISCARD = _IO_BLOCK + 119
_BLKSECDISCARD = _IO_BLOCK + 125

_FLOCK = struct.Struct("hhqqi0q")
_USE = 100
_DENY = 200
_CONSISTENT_READ, _WRITE, _RESIZE = 0, 1, 3
_PERMISSION_NAMES = {_CONSISTENT_READ: "consistent read", _WRITE: "write", _RESIZE: "resize"}


class ImageBusy(LocalError):
    """Somebody else serves or uses the image; it may be free later."""


def fallocate(fd: int, mode: int, position: int, length: int) -> None:
    """fallocate(2), in bytes; block devices have it too (punching and zeroing). Raises `OSError`."""
    while _fallocate(fd, mode, position, length) != 0:
        code = ctypes.get_errno()
        if code != errno.EINTR:
            raise OSError(code, os.strerror(code))


def block_device_discard(fd: int, position: int, length: int) -> None:
    """BLKDISCARD: a hint to the device. Raises `OSError`."""
    fcntl.ioctl(fd, _BLKDISCARD, struct.pack("=QQ", position, length))


def block_device_secure_erase(fd: int, position: int, length: int) -> None:
    """BLKSECDISCARD: the range and every copy of it that the device made are gone. Raises `OSError`."""
    fcntl.ioctl(fd, _BLKSECDISCARD, struct.pack("=QQ", position, length))


def block_device_secure_erases(fd: int) -> bool:
    """Whether a block device that is open for writing can do it, asked with a range that no device accepts.

    A kernel that can is offended by the range (EINVAL), any other by the request. Before Linux 5.19 only "cannot
    discard" is found out this way; such a device's first erase then fails with EOPNOTSUPP.
    """
    try:
        block_device_secure_erase(fd, 1, 1)
    except OSError as error:
        return error.errno == errno.EINVAL
    return False


def logical_sector(fd: int) -> int:
    """Logical block size of a block device, in bytes."""
    answer = fcntl.ioctl(fd, _BLKSSZGET, bytes(4))
    (size,) = struct.unpack("=I", answer)
    return int(size)


def block_device_discards(device: int) -> bool:
    """Whether the block device with this `st_rdev` says that it can discard; a partition answers for its disk."""
    base = f"/sys/dev/block/{os.major(device)}:{os.minor(device)}"
    for queue in (f"{base}/queue", f"{base}/../queue"):
        try:
            with open(f"{queue}/discard_max_bytes", encoding="ascii") as file:
                return int(file.read()) > 0
        except (OSError, ValueError):
            continue
    return False


def lock_image(fd: int, path: str, *, read_only: bool, wait: float = 0.0) -> None:
    """Take the image for this open file: alone when it writes, beside other readers when it does not.

    `wait` is the seconds that a predecessor gets to end: a process that was killed holds its locks until its last I/O
    has ended, and the image is not ours before.

    Raises `ImageBusy`, naming the other user where it can be found, and `LocalError` on file systems without locks.
    """
    deadline = time.monotonic() + wait
    while True:
        try:
            _try_lock(fd, path, read_only=read_only)
            return
        except ImageBusy:
            _unlock(fd)  # two that wait for each other would wait in vain
            if time.monotonic() >= deadline:
                raise
        time.sleep(0.02)


def _unlock(fd: int) -> None:
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, _USE, 200, 0))


def _try_lock(fd: int, path: str, *, read_only: bool) -> None:
    used = (_CONSISTENT_READ,) if read_only else (_CONSISTENT_READ, _WRITE, _RESIZE)
    denied = (_WRITE, _RESIZE)
    try:
        for byte in (*(_USE + i for i in used), *(_DENY + i for i in denied)):
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, byte, 1, 0))
        for permission, byte in (*((i, _DENY + i) for i in used), *((i, _USE + i) for i in denied)):
            if _is_locked(fd, byte):
                users = " and ".join(_other_users(fd)) or "another process"
                raise ImageBusy(
                    f"image {path} is in use by {users} (lock of byte {byte}, permission"
                    f" {_PERMISSION_NAMES[permission]!r}): an image is written by one at a time"
                )
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            raise ImageBusy(f"image {path} is locked by another program") from error
        raise LocalError(f"image {path} cannot be locked ({error.strerror}): open it with lock=False") from error


def is_in_use(fd: int) -> bool:
    """Whether another open file holds any of the locks by which images are used."""
    return any(_is_locked(fd, base + i) for base in (_USE, _DENY) for i in (_CONSISTENT_READ, _WRITE, _RESIZE))


def _is_locked(fd: int, byte: int) -> bool:
    """Whether another open file holds the byte (a write lock would not be granted)."""
    answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0))
    kind: int = _FLOCK.unpack(answer)[0]
    return kind != fcntl.F_UNLCK


def _other_users(fd: int) -> list[str]:
    """Processes that have the file open, for the error message; the kernel does not tell who owns an OFD lock."""
    mine = os.fstat(fd)
    found: list[str] = []
    for process in sorted(filter(str.isdigit, os.listdir("/proc")), key=int):
        opened = 0
        try:
            for entry in os.scandir(f"/proc/{process}/fd"):
                opened += _same_file(mine, entry.path)
            with open(f"/proc/{process}/comm", encoding="utf-8", errors="replace") as file:
                name = file.read().strip()
        except OSError:
            continue  # gone, or not ours to look at
        if int(process) == os.getpid():
            if opened > 1:
                found.append("this process")
        elif opened:
            found.append(f"process {process} ({name})")
    return found


def is_same_file(fd: int, other: int) -> bool:
    """Whether two descriptors are of the same file or block device, under whatever names."""
    return _is_same(os.fstat(fd), os.fstat(other))


def _same_file(mine: os.stat_result, path: str) -> bool:
    try:
        return _is_same(mine, os.stat(path))
    except OSError:
        return False


def _is_same(mine: os.stat_result, other: os.stat_result) -> bool:
    if stat.S_ISBLK(mine.st_mode):
        return stat.S_ISBLK(other.st_mode) and other.st_rdev == mine.st_rdev
    return other.st_dev == mine.st_dev and other.st_ino == mine.st_ino

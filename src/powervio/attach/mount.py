"""Mounting a FUSE file system: /dev/fuse, mount(2) and umount2(2), and mounts that a killed server left.

Why neither libfuse nor a package that wraps one: docs/dependencies.md. Mounting takes CAP_SYS_ADMIN in the mount
namespace.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from powervio.errors import LocalError

DEVICE = Path("/dev/fuse")
TYPE = "fuse.powervio"
"""What /proc/mounts calls it."""
_MS_RDONLY, _MS_NOSUID, _MS_NODEV = 1, 2, 4
_MNT_DETACH = 2


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of /proc/self/mountinfo."""

    device: str
    """MAJOR:MINOR."""
    path: Path
    kind: str
    source: str


def mounts() -> list[Mount]:
    """What is mounted in this process's namespace, in order."""
    found = []
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        left, _, right = line.partition(b" - ")
        fields = left.split(b" ")
        kind, source = right.split(b" ")[:2]
        found.append(
            Mount(fields[2].decode(), Path(os.fsdecode(_plain(fields[4]))), kind.decode(), os.fsdecode(_plain(source)))
        )
    return found


def _plain(text: bytes) -> bytes:
    """Without the octal escapes of proc(5)."""
    for code in (b"040", b"011", b"012"):
        text = text.replace(b"\\" + code, bytes([int(code, 8)]))
    return text.replace(b"\\134", b"\\")


def find(path: Path) -> Mount | None:
    """The uppermost mount at exactly this path, which must have no symbolic link in it."""
    return next((mount for mount in reversed(mounts()) if mount.path == path), None)


def place(path: str | Path) -> Path:
    """The directory to mount at, absolute and without links, after a mount that nobody serves there was taken away.

    Raises `LocalError` when it is no directory, or a mount of ours is alive there.
    """
    path = Path(path)
    try:
        # the last component is what may not answer: it is not looked at before it is known to be alive
        absolute = path.parent.resolve(strict=True) / path.name if path.name else path.resolve(strict=True)
        with suppress(OSError):  # no link, or a mount that is dead
            absolute = (absolute.parent / os.readlink(absolute)).resolve(strict=True)
        clear_stale(absolute)
        mode = absolute.stat().st_mode
    except OSError as error:
        raise LocalError(f"{path}: {error.strerror}") from error
    if not stat.S_ISDIR(mode):
        raise LocalError(f"{path} is no directory")
    mount = find(absolute)
    if mount is not None and mount.kind == TYPE:
        raise LocalError(f"{path}: {mount.source} is mounted there already")
    return absolute


def clear_stale(path: Path) -> int:
    """Take away mounts of ours at `path` whose server was killed (ENOTCONN); how many there were."""
    count = 0
    while (mount := find(path)) is not None and mount.kind == TYPE and _is_dead(path):
        unmount(path, lazy=True)
        count += 1
    return count


def _is_dead(path: Path) -> bool:
    try:
        os.stat(path)
    except OSError as error:
        return error.errno in (errno.ENOTCONN, errno.ECONNABORTED)
    return False


def open_device() -> int:
    """A new session of /dev/fuse, which answers no read before it is mounted. Raises `LocalError`."""
    try:
        return os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise LocalError(f"{DEVICE}: {error.strerror}: mounting takes the kernel's FUSE and access to it") from error


def mount(device: int, path: Path, *, source: str, max_read: int, readonly: bool, everybody: bool) -> None:
    """Mount the session at `path`, from `place`. With `everybody` other users may use it, too.

    The kernel checks permissions by mode, owner and ACL (default_permissions); set-user-ID programs and devices of the
    share have no effect here. Raises `LocalError`.
    """
    mode = stat.S_IFMT(path.stat().st_mode)
    options = f"fd={device},rootmode={mode:o},user_id={os.geteuid()},group_id={os.getegid()},max_read={max_read}"
    options += ",default_permissions" + (",allow_other" if everybody else "")
    flags = _MS_NOSUID | _MS_NODEV | (_MS_RDONLY if readonly else 0)
    if _libc().mount(os.fsencode(source), os.fsencode(path), TYPE.encode(), flags, options.encode()):
        code = ctypes.get_errno()
        why = "that takes root (CAP_SYS_ADMIN)" if code == errno.EPERM else os.strerror(code)
        raise LocalError(f"{path}: {source} cannot be mounted: {why}")


def unmount(path: Path, *, lazy: bool = False) -> None:
    """Unmount; with `lazy` also when files are open there, whose next use fails. Raises `OSError` (EBUSY, EINVAL).

    May wait for what is to be written first, so it is not called by the thread that serves the mount.
    """
    if _libc().umount2(os.fsencode(path), _MNT_DETACH if lazy else 0):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(path))


def set_read_ahead(path: Path, length: int) -> None:
    """Have the kernel read so many bytes ahead of sequential readers; it stays as it is where that is not allowed."""
    found = find(path)
    if found is not None:
        with suppress(OSError):
            Path(f"/sys/class/bdi/{found.device}/read_ahead_kb").write_text(str(length >> 10))


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)

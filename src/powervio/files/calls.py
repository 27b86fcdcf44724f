"""Interpreted stand-in for `calls.h`: the system calls that a share is made of; a result, or the negative errno.

Compiled modules call the inline C functions of `calls.h` through `calls.pxd`. Names are pointers to bytes (without a
NUL, which ends them in C); nothing here checks them. `proc` is a descriptor of /proc/self/fd: what a file is held by
(O_PATH) is opened again, linked or changed through it, and so never by a path that somebody may have changed.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import threading
import time
from collections.abc import Callable
from typing import Any

from powervio.files.sizes import PATH_BYTES
from powervio.memory.hw import Pointer

EMPTY_PATH = 0x1000
"""AT_EMPTY_PATH."""
SYMLINK_NOFOLLOW = 0x100
NO_AUTOMOUNT = 0x800
_STATX_WANTED = 0x1FFF
_CLONE_FS = 0x200
_GROUP_LIMIT = 64
_UNSPECIFIED = 0xFFFF_FFFF
_OFF_T = struct.Struct("=q")

_libc = ctypes.CDLL(None, use_errno=True)
for _name, _kinds in {
    "statx": (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_uint, ctypes.c_void_p),
    "renameat2": (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint),
    "name_to_handle_at": (ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int),
    "open_by_handle_at": (ctypes.c_int, ctypes.c_void_p, ctypes.c_int),
    "fallocate64": (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64),
    "getdents64": (ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t),
    "fchownat": (ctypes.c_int, ctypes.c_char_p, ctypes.c_uint, ctypes.c_uint, ctypes.c_int),
    "utimensat": (ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_int),
    "setfsuid": (ctypes.c_uint,),
    "setfsgid": (ctypes.c_uint,),
    "unshare": (ctypes.c_int,),
    "capget": (ctypes.c_void_p, ctypes.c_void_p),
    "capset": (ctypes.c_void_p, ctypes.c_void_p),
}.items():
    getattr(_libc, _name).argtypes = list(_kinds)
_SETGROUPS = {"x86_64": 116, "aarch64": 159, "riscv64": 159}.get(platform.machine(), 81)  # 81: powerpc
_FACCESSAT2 = 439
_CAPABILITIES = struct.pack("=Ii", 0x2008_0522, 0)
_TO_BECOME_ANOTHER = 1 << 6 | 1 << 7  # CAP_SETGID, CAP_SETUID
_CLOCK_REALTIME_COARSE = 5


def _call(function: Callable[..., Any], *arguments: Any) -> int:
    """A function of libc's that says -1 and sets errno."""
    while True:
        result = function(*arguments)
        if result != -1:
            return int(result)
        code = ctypes.get_errno()
        if code != errno.EINTR:
            return -code


def _ask(function: Callable[..., Any], *arguments: Any, **named: Any) -> int:
    """A function of Python's that raises."""
    try:
        result = function(*arguments, **named)
    except OSError as error:
        return -(error.errno or errno.EIO)
    return result if isinstance(result, int) else 0


def _place(memory: Pointer) -> int:
    return ctypes.addressof(ctypes.c_ubyte.from_buffer(memory)) if len(memory) else 0


def _path(fd: int) -> str:
    return f"/proc/self/fd/{fd}"


def name_kind(name: Pointer, length: int) -> int:
    """Whether a name is one component: 0, or -ENOENT, -EINVAL, -ENAMETOOLONG; 1 is ".", 2 is ".."."""
    text = bytes(name[:length])
    if not text:
        return -errno.ENOENT
    if text in (b".", b".."):
        return len(text)
    if b"\0" in text or b"/" in text:
        return -errno.EINVAL
    return -errno.ENAMETOOLONG if length >= PATH_BYTES else 0


def open_at(directory: int, name: Pointer, flags: int, mode: int) -> int:
    """Open one name in a directory: no link is followed, whoever made it. Without the process's umask."""
    return _without_umask(os.open, bytes(name), flags | os.O_NOFOLLOW, mode, dir_fd=directory)


def open_parent(directory: int) -> int:
    """Hold the directory that a directory is in."""
    return _ask(os.open, b"..", os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)


def reopen(proc: int, fd: int, flags: int) -> int:
    """Open the file that a descriptor holds."""
    return _ask(os.open, str(fd), flags, dir_fd=proc)


def stat_of(fd: int, out: Pointer) -> int:
    """What statx(2) has of the file that a descriptor holds; 256 bytes."""
    return _call(_libc.statx, fd, b"", EMPTY_PATH, _STATX_WANTED, _place(out))


def stat_at(directory: int, name: Pointer, out: Pointer) -> int:
    """The same of a name in a directory, whatever it is."""
    flags = SYMLINK_NOFOLLOW | NO_AUTOMOUNT
    return _call(_libc.statx, directory, bytes(name), flags, _STATX_WANTED, _place(out))


def hold_at(directory: int, name: Pointer, out: Pointer) -> int:
    """Hold a name in a directory, with what `stat_of` has of it; a descriptor (O_PATH)."""
    fd = open_at(directory, name, os.O_PATH | os.O_CLOEXEC, 0)
    done = fd if fd < 0 else stat_of(fd, out)
    if done < 0 <= fd:
        os.close(fd)
    return done if done < 0 else fd


def make_directory(directory: int, name: Pointer, mode: int) -> int:
    """mkdirat(2), without the process's umask."""
    return _without_umask(os.mkdir, bytes(name), mode, dir_fd=directory)


def make_node(directory: int, name: Pointer, mode: int, device: int) -> int:
    """mknodat(2), without the process's umask."""
    return _without_umask(os.mknod, bytes(name), mode, device, dir_fd=directory)


def make_symlink(directory: int, name: Pointer, target: Pointer) -> int:
    """symlinkat(2)."""
    return _ask(os.symlink, bytes(target), bytes(name), dir_fd=directory)


def make_link(proc: int, fd: int, directory: int, name: Pointer) -> int:
    """One more name for the file that a descriptor holds."""
    return _ask(os.link, str(fd), bytes(name), src_dir_fd=proc, dst_dir_fd=directory, follow_symlinks=True)


def remove_name(directory: int, name: Pointer, is_directory: int) -> int:
    """unlinkat(2)."""
    return _ask(os.rmdir if is_directory else os.unlink, bytes(name), dir_fd=directory)


def rename_at(directory: int, name: Pointer, new_directory: int, new_name: Pointer, flags: int) -> int:
    """renameat2(2)."""
    return _call(_libc.renameat2, directory, bytes(name), new_directory, bytes(new_name), flags)


def read_link(fd: int, out: Pointer, size: int) -> int:
    """The bytes of a symbolic link; how many."""
    try:
        target = os.readlink(b"", dir_fd=fd)
    except OSError as error:
        return -(error.errno or errno.EIO)
    out[: min(len(target), size)] = target[:size]
    return min(len(target), size)


def path_of(proc: int, fd: int, out: Pointer, size: int) -> int:
    """Where the kernel says that a file is, as one atomic answer; how many bytes."""
    try:
        path = os.readlink(str(fd).encode(), dir_fd=proc)
    except OSError as error:
        return -(error.errno or errno.EIO)
    out[: min(len(path), size)] = path[:size]
    return min(len(path), size)


def change_mode(proc: int, fd: int, mode: int) -> int:
    """fchmodat(2) of the file that a descriptor holds."""
    return _ask(os.chmod, str(fd), mode, dir_fd=proc)


def change_owner(fd: int, uid: int, gid: int) -> int:
    """fchownat(2); 0xFFFFFFFF leaves one as it is."""
    return _call(_libc.fchownat, fd, b"", uid, gid, EMPTY_PATH)


def change_times(fd: int, times: Pointer) -> int:
    """utimensat(2): {i64 seconds, i64 nanoseconds} of access and of modification, with UTIME_NOW and UTIME_OMIT."""
    return _call(_libc.utimensat, fd, b"", _place(times), EMPTY_PATH)


def cut_held(fd: int, size: int) -> int:
    """truncate(2) of the file that a descriptor holds, for which the caller needs the right to write."""
    return _ask(os.truncate, _path(fd), size)


def cut_open(fd: int, size: int) -> int:
    """ftruncate(2)."""
    return _ask(os.ftruncate, fd, size)


def file_system_of(fd: int, out: Pointer) -> int:
    """statfs(2) as u64: type, block size, blocks, free, available, files, free, id, name length, fragment, flags."""
    try:
        facts = os.fstatvfs(fd)
    except OSError as error:
        return -(error.errno or errno.EIO)
    block = facts.f_bsize
    struct.pack_into(
        "=11Q", out, 0, 0, block, facts.f_blocks, facts.f_bfree, facts.f_bavail, facts.f_files, facts.f_ffree,
        facts.f_fsid & 0xFFFF_FFFF_FFFF_FFFF, facts.f_namemax, facts.f_frsize, facts.f_flag,
    )  # fmt: skip
    return 0


def access_of(fd: int, mode: int) -> int:
    """faccessat2(2) with the effective (file system) identity."""
    return _call(_libc.syscall, _FACCESSAT2, fd, b"", mode, 0x200 | EMPTY_PATH)


def get_attribute(fd: int, name: Pointer, out: Pointer, size: int) -> int:
    """getxattr(2) of the file that a descriptor holds; with size 0 how many bytes there are."""
    try:
        value = os.getxattr(_path(fd), bytes(name))
    except OSError as error:
        return -(error.errno or errno.EIO)
    if size and len(value) > size:
        return -errno.ERANGE
    if size:
        out[: len(value)] = value
    return len(value)


def set_attribute(fd: int, name: Pointer, value: Pointer, size: int, flags: int) -> int:
    """setxattr(2)."""
    return _ask(os.setxattr, _path(fd), bytes(name), bytes(value[:size]), flags)


def list_attributes(fd: int, out: Pointer, size: int) -> int:
    """listxattr(2): names, each with a NUL behind it."""
    try:
        names = b"".join(os.fsencode(name) + b"\0" for name in os.listxattr(_path(fd)))
    except OSError as error:
        return -(error.errno or errno.EIO)
    if size and len(names) > size:
        return -errno.ERANGE
    if size:
        out[: len(names)] = names
    return len(names)


def remove_attribute(fd: int, name: Pointer) -> int:
    """removexattr(2)."""
    return _ask(os.removexattr, _path(fd), bytes(name))


def read_directory(fd: int, offset: int, out: Pointer, size: int) -> int:
    """getdents64(2) from an offset on, which is one that an entry had, or 0; -1 goes on where the last one ended."""
    if offset >= 0:
        moved = _ask(os.lseek, fd, offset, os.SEEK_SET)
        if moved < 0:
            return moved
    return _call(_libc.getdents64, fd, _place(out), size)


def sync_file(fd: int, data_only: int) -> int:
    """fsync(2) or fdatasync(2)."""
    return _ask(os.fdatasync if data_only else os.fsync, fd)


def allocate(fd: int, mode: int, position: int, length: int) -> int:
    """fallocate(2)."""
    return _call(_libc.fallocate64, fd, mode, position, length)


def seek_to(fd: int, position: int, whence: int) -> int:
    """lseek(2)."""
    return _ask(os.lseek, fd, position, whence)


def close_file(fd: int) -> int:
    """close(2)."""
    return _ask(os.close, fd)


def read_at(fd: int, out: Pointer, offset: int, size: int, position: int) -> int:
    """pread(2) to `out` at `offset`."""
    return _ask(os.preadv, fd, [out[offset : offset + size]], position)


def read_at_once(fd: int, out: Pointer, offset: int, size: int, position: int) -> int:
    """The same of what is in memory now; fewer bytes, or an error, when the rest would have to be waited for."""
    try:
        return os.preadv(fd, [out[offset : offset + size]], position, os.RWF_NOWAIT)
    except OSError as error:
        return -(error.errno or errno.EIO)


def write_at(fd: int, data: Pointer, offset: int, size: int, position: int) -> int:
    """pwrite(2) from `data` at `offset`."""
    return _ask(os.pwritev, fd, [data[offset : offset + size]], position)


def handle_of(fd: int, out: Pointer) -> int:
    """name_to_handle_at(2) of the file that a descriptor holds, `HANDLE_BYTES`."""
    struct.pack_into("=I", out, 0, 128)
    return _call(_libc.name_to_handle_at, fd, b"", _place(out), _place(out) + 136, EMPTY_PATH)


def open_handle(mount: int, handle: Pointer, flags: int) -> int:
    """open_by_handle_at(2), for which one has to be privileged."""
    return _call(_libc.open_by_handle_at, mount, _place(handle), flags)


def wall_clock() -> int:
    """The time that files are stamped with, in nanoseconds."""
    return time.clock_gettime_ns(_CLOCK_REALTIME_COARSE)


class _Thread(threading.local):
    def __init__(self) -> None:
        self.uid = self.gid = -1
        self.groups: tuple[int, ...] | None = None
        self.depth = 0
        self.own_folder = False
        self.rights: list[int] = []
        self.dropped: bool | None = None


_thread = _Thread()


def _without_umask(function: Callable[..., Any], *arguments: Any, **named: Any) -> int:
    if not _thread.own_folder:
        _libc.unshare(_CLONE_FS)  # the umask is this thread's from now on
        _thread.own_folder = True
    before = os.umask(0)
    try:
        return _ask(function, *arguments, **named)
    finally:
        os.umask(before)


def _take_rights(drop: bool) -> int:
    """As root all that the process has, as somebody else nothing but what it takes to become another again."""
    header = ctypes.create_string_buffer(_CAPABILITIES)
    if not _thread.rights:
        data = ctypes.create_string_buffer(24)
        code = _call(_libc.capget, header, data)
        if code < 0:
            return code
        _thread.rights = list(struct.unpack("=6I", data.raw[:24]))
        _thread.rights[0], _thread.rights[3] = _thread.rights[1], _thread.rights[4]
    if _thread.dropped is drop:
        return 0
    words = list(_thread.rights)
    if drop:
        words[0], words[3] = words[0] & _TO_BECOME_ANOTHER, 0
    _thread.dropped = None
    code = _call(_libc.capset, header, ctypes.create_string_buffer(struct.pack("=6I", *words)))
    if code >= 0:
        _thread.dropped = drop
    return code


def take_identity(uid: int, gid: int, groups: Pointer, count: int) -> int:
    """Have this thread act on files as somebody else; the identity that it has already costs nothing."""
    wanted = struct.unpack_from(f"={count}I", groups)
    if _thread.groups != wanted:
        place = (ctypes.c_uint32 * max(count, 1))(*wanted)
        code = _call(_libc.syscall, _SETGROUPS, ctypes.c_long(count), place)
        if code < 0:
            return code
        _thread.groups = wanted if count <= _GROUP_LIMIT else None
    if _thread.gid != gid:
        _thread.gid = -1
        _libc.setfsgid(gid)
        if _libc.setfsgid(_UNSPECIFIED) & _UNSPECIFIED != gid:
            return -errno.EPERM
        _thread.gid = gid
    if _thread.uid != uid:
        _thread.uid = -1
        _libc.setfsuid(uid)
        if _libc.setfsuid(_UNSPECIFIED) & _UNSPECIFIED != uid:
            return -errno.EPERM
        _thread.uid = uid
    return _take_rights(uid != 0)


def hold_identity(change: int) -> int:
    """How many scopes keep the identity of this thread from being given back, after a change of that number."""
    _thread.depth += change
    return _thread.depth

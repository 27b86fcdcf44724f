"""A process that makes file calls as somebody, for the POSIX table: one JSON line for each call, one for what it did.

Run as root with: user, group, supplementary groups (comma-separated, or -), and the folder to start in.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import shutil
import stat
import struct
import sys
import time
from collections.abc import Callable

_libc = ctypes.CDLL(None, use_errno=True)
_KINDS = {
    "f": stat.S_IFREG,
    "p": stat.S_IFIFO,
    "s": stat.S_IFSOCK,
    "b": stat.S_IFBLK,
    "c": stat.S_IFCHR,
    "d": stat.S_IFDIR,
}
_LETTERS = {stat.S_IFLNK: "l", **{kind: letter for letter, kind in _KINDS.items()}}
_RENAMES = {"NOREPLACE": 1, "EXCHANGE": 2}
_FALLOCATE = {"ALLOCATE": 0, "KEEP_SIZE": 1, "PUNCH_HOLE": 3, "ZERO_RANGE": 16}
_TICK = 0.02
"""Seconds after which a file system stamps a change with another time."""

opened: dict[str, int] = {}
marks: dict[str, tuple[int, int]] = {}


def checked(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def flags_of(text: str) -> int:
    flags = 0
    for name in text.split("|"):
        flags |= getattr(os, name)
    return flags


def path_of(text: str) -> str:
    for name, value in (
        ("{255}", "n" * 255),
        ("{256}", "n" * 256),
        ("{4096}", "/".join(["n" * 255] * 17)),
        ("{4095}", "t" * 4095),
    ):
        text = text.replace(name, value)
    return text


def facts_of(facts: os.stat_result, fields: str) -> str:
    known = {
        "mode": f"{stat.S_IMODE(facts.st_mode):04o}",
        "type": _LETTERS[stat.S_IFMT(facts.st_mode)],
        "nlink": str(facts.st_nlink),
        "size": str(facts.st_size),
        "uid": str(facts.st_uid),
        "gid": str(facts.st_gid),
        "rdev": f"{os.major(facts.st_rdev)}.{os.minor(facts.st_rdev)}",
        "atime": str(facts.st_atime_ns),
        "mtime": str(facts.st_mtime_ns),
    }
    return ",".join(known[field] for field in fields.split(","))


def create(path: str, mode: str) -> None:
    os.close(os.open(path_of(path), os.O_CREAT | os.O_EXCL | os.O_WRONLY, int(mode, 8)))


def open_(path: str, flags: str, mode: str = "0666") -> None:
    os.close(os.open(path_of(path), flags_of(flags), int(mode, 8)))


def openas(name: str, path: str, flags: str, mode: str = "0666") -> None:
    fd = os.open(path_of(path), flags_of(flags), int(mode, 8))
    if name in opened:
        close(name)
    opened[name] = fd


def read(path: str) -> str:
    fd = os.open(path_of(path), os.O_RDONLY)
    try:
        return os.read(fd, 65536).decode()
    finally:
        os.close(fd)


def write(path: str, text: str, offset: str = "0") -> None:
    fd = os.open(path_of(path), os.O_WRONLY)
    try:
        os.pwrite(fd, text.encode(), int(offset))
    finally:
        os.close(fd)


def mknod(path: str, kind: str, mode: str, device: str = "0.0") -> None:
    major, minor = map(int, device.split("."))
    os.mknod(path_of(path), _KINDS[kind] | int(mode, 8), os.makedev(major, minor))


def same(one: str, other: str) -> str:
    return "yes" if os.path.samestat(os.lstat(path_of(one)), os.lstat(path_of(other))) else "no"


def access(path: str, wanted: str) -> None:
    mode = sum({"r": 4, "w": 2, "x": 1, "f": 0}[letter] for letter in wanted)
    checked(_libc.access(path_of(path).encode(), mode))


def utime(path: str, atime: str, mtime: str) -> None:
    omit, now = (1 << 30) - 2, (1 << 30) - 1
    words: list[int] = []
    for when in (atime, mtime):
        words += (0, now) if when == "now" else (0, omit) if when == "omit" else divmod(int(when), 1_000_000_000)
    times = struct.pack("@qqqq", *words)
    checked(_libc.utimensat(-100, path_of(path).encode(), times, 0x100))


def renameat2(one: str, other: str, flags: str) -> None:
    numbers = sum(int(_RENAMES.get(flag, flag)) for flag in flags.split("|"))
    checked(_libc.renameat2(-100, path_of(one).encode(), -100, path_of(other).encode(), numbers))


def fallocate(name: str, mode: str, offset: str, length: str) -> None:
    asked = ctypes.c_int64(int(offset)), ctypes.c_int64(int(length))
    checked(_libc.fallocate(opened[name], _FALLOCATE[mode], *asked))


def seek(name: str, offset: str, whence: str) -> str:
    return str(os.lseek(opened[name], int(offset), {"DATA": os.SEEK_DATA, "HOLE": os.SEEK_HOLE}[whence]))


def times_of(path: str) -> tuple[int, int]:
    facts = os.lstat(path_of(path))
    return facts.st_ctime_ns, facts.st_mtime_ns


def mark(path: str) -> None:
    marks[path] = times_of(path)
    time.sleep(_TICK)


def changed(path: str, known_as: str = "") -> str:
    letters = [
        letter for letter, was, now in zip("cm", marks[known_as or path], times_of(path), strict=True) if was != now
    ]
    return "".join(letters) or "-"


def lock(name: str, kind: str, start: str, length: str) -> None:
    kinds = {"read": fcntl.LOCK_SH, "write": fcntl.LOCK_EX, "unlock": fcntl.LOCK_UN}
    asked = kinds[kind] | (fcntl.LOCK_NB if kind != "unlock" else 0)
    fcntl.lockf(opened[name], asked, int(length), int(start))


def setx(path: str, name: str, value: str, flag: str = "any") -> None:
    flags = {"any": 0, "create": os.XATTR_CREATE, "replace": os.XATTR_REPLACE}[flag]
    os.setxattr(
        path_of(path), path_of(name), value.encode() * (70000 if value == "HUGE" else 1), flags, follow_symlinks=False
    )


def forget() -> None:
    for fd in opened.values():
        os.close(fd)
    opened.clear()
    marks.clear()
    os.umask(0o022)


def close(name: str) -> None:
    os.close(opened.pop(name))


def ls(path: str) -> str:
    return ",".join(sorted(os.listdir(path_of(path)))) or "-"


def fchmod(name: str, mode: str) -> None:
    os.fchmod(opened[name], int(mode, 8))


def fread(name: str, count: str, offset: str) -> str:
    return os.pread(opened[name], int(count), int(offset)).decode() or "-"


def fwrite(name: str, text: str, offset: str = "") -> str:
    data = text.encode()
    return str(os.pwrite(opened[name], data, int(offset)) if offset else os.write(opened[name], data))


CALLS: dict[str, Callable[..., object]] = {
    "access": access,
    "cd": lambda path: os.chdir(path_of(path)),
    "changed": changed,
    "chmod": lambda path, mode: os.chmod(path_of(path), int(mode, 8)),
    "chown": lambda path, uid, gid: os.lchown(path_of(path), int(uid), int(gid)),
    "close": close,
    "create": create,
    "fallocate": fallocate,
    "fchmod": fchmod,
    "fchown": lambda name, uid, gid: os.fchown(opened[name], int(uid), int(gid)),
    "forget": forget,
    "fread": fread,
    "fstat": lambda name, fields: facts_of(os.fstat(opened[name]), fields),
    "fsync": lambda name: os.fsync(opened[name]),
    "fdatasync": lambda name: os.fdatasync(opened[name]),
    "ftruncate": lambda name, size: os.ftruncate(opened[name], int(size)),
    "fwrite": fwrite,
    "getx": lambda path, name: os.getxattr(path_of(path), name, follow_symlinks=False).decode() or "-",
    "link": lambda one, other: os.link(path_of(one), path_of(other), follow_symlinks=False),
    "lock": lock,
    "ls": ls,
    "lsx": lambda path: (
        ",".join(sorted(name for name in os.listxattr(path_of(path)) if name.startswith("user"))) or "-"
    ),
    "mark": mark,
    "mkdir": lambda path, mode: os.mkdir(path_of(path), int(mode, 8)),
    "mknod": mknod,
    "open": open_,
    "openas": openas,
    "read": read,
    "readlink": lambda path: os.readlink(path_of(path)),
    "rename": lambda one, other: os.rename(path_of(one), path_of(other)),
    "renameat2": renameat2,
    "rmdir": lambda path: os.rmdir(path_of(path)),
    "rmtree": shutil.rmtree,
    "rmx": lambda path, name: os.removexattr(path_of(path), name, follow_symlinks=False),
    "same": same,
    "seek": seek,
    "setx": setx,
    "stat": lambda path, fields: facts_of(os.lstat(path_of(path)), fields),
    "statvfs": lambda path: str(os.statvfs(path_of(path)).f_namemax),
    "symlink": lambda target, path: os.symlink(path_of(target), path_of(path)),
    "truncate": lambda path, size: os.truncate(path_of(path), int(size)),
    "umask": lambda mode: os.umask(int(mode, 8)) and None,
    "unlink": lambda path: os.unlink(path_of(path)),
    "utime": utime,
    "write": write,
}


def answer(name: str, arguments: list[str]) -> str:
    try:
        value = CALLS[name](*arguments)
    except (KeyError, ValueError, TypeError) as error:
        return f"{type(error).__name__}: {error}"
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))
    return f"= {value}" if isinstance(value, str) else "ok"


def say(result: str) -> None:
    print(json.dumps(result), flush=True)


def main(uid: int, gid: int, groups: str, folder: str) -> None:
    start = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    os.setgroups([int(group) for group in groups.split(",")] if groups != "-" else [])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    os.fchdir(start)
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        if name == "case":
            os.fchdir(start)
            forget()
            os.chdir(arguments[0])
            say("ok")
        elif name == "leave":
            forget()
            os.fchdir(start)
            say("ok")
        else:
            say(answer(name, arguments))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4])

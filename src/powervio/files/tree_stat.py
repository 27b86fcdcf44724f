# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, nonecheck=False
"""What a file is: the facts of statx(2), with the numbers by which a client knows it.

This file is compiled (Cython pure mode) and also runs interpreted.
"""

from __future__ import annotations

import hashlib
import os

import cython
from cython.cimports.powervio.files.calls import wall_clock
from cython.cimports.powervio.memory.hw import get16, get32, get64

_DEVICE_SHIFT = cython.declare(cython.ulonglong, 56)
_INODES = cython.declare(cython.ulonglong, 1 << 56)
_DEVICES = 127
_HASHED = 1 << 63
_KIND = cython.declare(cython.uint, 0xF000)
_ALL = cython.declare(cython.ulonglong, 0xFFFF_FFFF_FFFF_FFFF)
_LOW = cython.declare(cython.ulonglong, 0xFFFF_FFFF)
_HIGH_MINOR = cython.declare(cython.ulonglong, 0xFFFF_FF00)
_HIGH_MAJOR = cython.declare(cython.ulonglong, 0xFFFF_F000)
_SIGN = cython.declare(cython.ulonglong, 1 << 63)
_SECOND = cython.declare(cython.longlong, 1_000_000_000)
_SETTLED = cython.declare(cython.longlong, 20_000_000)
"""Nanoseconds after which a second change of a file is stamped with another time, on any kernel."""
_MIX = cython.declare(cython.ulonglong, 0x9E37_79B9_7F4A_7C15)


@cython.final
@cython.cclass
class Numbers:
    """The 64-bit numbers of a share's files: inode numbers, made unique across the devices that it spans."""

    device: cython.ulonglong
    changes: cython.ulonglong
    _others: dict[int, int]
    _secret: bytes

    def __init__(self, device: int) -> None:
        """`device` is that of the share's root, whose files have their inode numbers."""
        self.device = device
        self.changes = 0
        self._others = {}
        self._secret = os.urandom(16)

    @cython.ccall
    @cython.exceptval(0, check=True)
    def path_of(self, device: cython.ulonglong, inode: cython.ulonglong) -> cython.ulonglong:
        """The number of a file."""
        if device == self.device and inode < _INODES:
            return inode
        return self._elsewhere(device, inode)

    @cython.cfunc
    @cython.exceptval(0, check=True)
    def _elsewhere(self, device: cython.ulonglong, inode: cython.ulonglong) -> cython.ulonglong:
        number: cython.ulonglong = 0
        if device != self.device:
            if device not in self._others and len(self._others) < _DEVICES:
                self._others[device] = len(self._others) + 1
            number = self._others.get(device, 0)
        if number and inode < _INODES:
            return number << _DEVICE_SHIFT | inode
        key = int(device).to_bytes(8, "little") + int(inode).to_bytes(8, "little")
        digest = hashlib.blake2b(key, digest_size=8, key=self._secret).digest()
        return int.from_bytes(digest, "little") | _HASHED


@cython.final
@cython.no_gc
@cython.freelist(64)
@cython.cclass
class Stat:
    """One answer. Times are (seconds, nanoseconds); `uid` and `gid` are the client's, `size` is bytes.

    `path` is unique among the files of the share that exist at a time. `version` is another one after every change of
    contents or attributes. A kernel may stamp two changes that are close together with one time, so while the last
    change is younger than 20 ms each answer has a version of its own.
    """

    mode: cython.uint
    nlink: cython.uint
    uid: cython.uint
    gid: cython.uint
    blksize: cython.uint
    version: cython.uint
    ino: cython.ulonglong
    dev: cython.ulonglong
    rdev: cython.ulonglong
    size: cython.ulonglong
    blocks: cython.ulonglong
    path: cython.ulonglong
    atime_sec: cython.longlong
    mtime_sec: cython.longlong
    ctime_sec: cython.longlong
    btime_sec: cython.longlong
    atime_nsec: cython.uint
    mtime_nsec: cython.uint
    ctime_nsec: cython.uint
    btime_nsec: cython.uint

    @property
    def atime(self) -> tuple[int, int]:
        """Last access."""
        return self.atime_sec, self.atime_nsec

    @property
    def mtime(self) -> tuple[int, int]:
        """Last change of contents."""
        return self.mtime_sec, self.mtime_nsec

    @property
    def ctime(self) -> tuple[int, int]:
        """Last change of anything."""
        return self.ctime_sec, self.ctime_nsec

    @property
    def btime(self) -> tuple[int, int]:
        """When it was made; zeroes where a file system does not know."""
        return self.btime_sec, self.btime_nsec

    @property
    def kind(self) -> int:
        """The S_IFMT part of the mode."""
        return self.mode & _KIND


@cython.cfunc
def stat_from(base: cython.p_uchar, numbers: Numbers) -> Stat:
    """What `calls.stat_of` gave; owners are the host's."""
    facts: Stat = Stat.__new__(Stat)
    facts.blksize = get32(base, 4)
    facts.nlink = get32(base, 16)
    facts.uid = get32(base, 20)
    facts.gid = get32(base, 24)
    facts.mode = get16(base, 28)
    facts.ino = get64(base, 32)
    facts.size = get64(base, 40)
    facts.blocks = get64(base, 48)
    facts.atime_sec = _signed(get64(base, 64))
    facts.atime_nsec = get32(base, 72)
    facts.btime_sec = _signed(get64(base, 80))
    facts.btime_nsec = get32(base, 88)
    facts.ctime_sec = _signed(get64(base, 96))
    facts.ctime_nsec = get32(base, 104)
    facts.mtime_sec = _signed(get64(base, 112))
    facts.mtime_nsec = get32(base, 120)
    facts.rdev = _device_number(get32(base, 128), get32(base, 132))
    facts.dev = device_of(base)
    facts.path = numbers.path_of(facts.dev, facts.ino)
    facts.version = version_of(base, numbers)
    return facts


@cython.cfunc
@cython.exceptval(check=False)
def device_of(base: cython.p_uchar) -> cython.ulonglong:
    """The device that a file is on."""
    return _device_number(get32(base, 136), get32(base, 140))


@cython.cfunc
@cython.exceptval(check=False)
def version_of(base: cython.p_uchar, numbers: Numbers) -> cython.uint:
    """See `Stat.version`."""
    value: cython.ulonglong = get64(base, 32)
    nanoseconds: cython.longlong = get32(base, 104)
    age: cython.longlong = wall_clock() - (_signed(get64(base, 96)) * _SECOND + nanoseconds)
    value = _mixed(value, get64(base, 96))
    value = _mixed(value, get32(base, 104))
    value = _mixed(value, get64(base, 112))
    value = _mixed(value, get32(base, 120))
    if age < _SETTLED:
        numbers.changes += 1
        value = _mixed(value, numbers.changes)
    return cython.cast(cython.uint, value >> 32 & _LOW)


@cython.cfunc
@cython.inline
@cython.exceptval(check=False)
def _signed(value: cython.ulonglong) -> cython.longlong:
    if cython.compiled:
        return cython.cast(cython.longlong, value)
    return value - (1 << 64) if value & _SIGN else value


@cython.cfunc
@cython.inline
@cython.exceptval(check=False)
def _device_number(major: cython.ulonglong, minor: cython.ulonglong) -> cython.ulonglong:
    """As Linux's C library has it."""
    return (minor & 0xFF) | (major & 0xFFF) << 8 | (minor & _HIGH_MINOR) << 12 | (major & _HIGH_MAJOR) << 32


@cython.cfunc
@cython.inline
@cython.exceptval(check=False)
def _mixed(value: cython.ulonglong, more: cython.ulonglong) -> cython.ulonglong:
    value = ((value ^ more) * _MIX) & _ALL
    return value ^ (value >> 29)

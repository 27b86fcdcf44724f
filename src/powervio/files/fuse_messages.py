"""FUSE's kernel protocol 7 as values: numbers, and what each message consists of.

The contract is Linux's include/uapi/linux/fuse.h. Names are those of the header file without `FUSE_`; sizes and offsets
are bytes, times are seconds and nanoseconds.

A request is a row of `REQUESTS`: the fixed body, how many names that end with a zero byte follow, and whether data come
behind them. A reply's fixed part is a body of the same kind; `BODIES` has the layout of each. A further message is one
further class and one row. `fuse_codec` reads and writes them.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any, NamedTuple

MAJOR = 7
MINOR = 38
"""What this codec speaks; a kernel with a higher minor number speaks the lower one with us."""
ROOT_ID = 1
"""The node ID of the root."""
NAME_MAX = 1024
"""Longest name in bytes that the kernel lets through (its FUSE_NAME_MAX)."""
MIN_READ_BUFFER = 8192
"""Smallest buffer for a read(2) of /dev/fuse."""


class Opcode(IntEnum):
    """What the kernel asks for."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    SETXATTR = 21
    GETXATTR = 22
    LISTXATTR = 23
    REMOVEXATTR = 24
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    GETLK = 31
    SETLK = 32
    SETLKW = 33
    ACCESS = 34
    CREATE = 35
    INTERRUPT = 36
    BMAP = 37
    DESTROY = 38
    IOCTL = 39
    POLL = 40
    NOTIFY_REPLY = 41
    BATCH_FORGET = 42
    FALLOCATE = 43
    READDIRPLUS = 44
    RENAME2 = 45
    LSEEK = 46
    COPY_FILE_RANGE = 47
    SETUPMAPPING = 48
    REMOVEMAPPING = 49
    SYNCFS = 50
    TMPFILE = 51
    STATX = 52


NO_REPLY = frozenset({Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.INTERRUPT, Opcode.NOTIFY_REPLY})
"""Requests that are not answered."""

# Flags of INIT; those from bit 32 on travel in `flags2`.
ASYNC_READ = 1 << 0
POSIX_LOCKS = 1 << 1
ATOMIC_O_TRUNC = 1 << 3
EXPORT_SUPPORT = 1 << 4
BIG_WRITES = 1 << 5
DONT_MASK = 1 << 6
FLOCK_LOCKS = 1 << 10
AUTO_INVAL_DATA = 1 << 12
DO_READDIRPLUS = 1 << 13
READDIRPLUS_AUTO = 1 << 14
ASYNC_DIO = 1 << 15
WRITEBACK_CACHE = 1 << 16
PARALLEL_DIROPS = 1 << 18
HANDLE_KILLPRIV = 1 << 19
POSIX_ACL = 1 << 20
MAX_PAGES = 1 << 22
CACHE_SYMLINKS = 1 << 23
EXPLICIT_INVAL_DATA = 1 << 25
SUBMOUNTS = 1 << 27
HANDLE_KILLPRIV_V2 = 1 << 28
SETXATTR_EXT = 1 << 29
INIT_EXT = 1 << 30
CREATE_SUPP_GROUP = 1 << 34
DIRECT_IO_ALLOW_MMAP = 1 << 36

FATTR_MODE = 1 << 0
FATTR_UID = 1 << 1
FATTR_GID = 1 << 2
FATTR_SIZE = 1 << 3
FATTR_ATIME = 1 << 4
FATTR_MTIME = 1 << 5
FATTR_FH = 1 << 6
FATTR_ATIME_NOW = 1 << 7
FATTR_MTIME_NOW = 1 << 8
FATTR_LOCKOWNER = 1 << 9
FATTR_CTIME = 1 << 10
FATTR_KILL_SUIDGID = 1 << 11

FOPEN_DIRECT_IO = 1 << 0
FOPEN_KEEP_CACHE = 1 << 1
FOPEN_NONSEEKABLE = 1 << 2
FOPEN_CACHE_DIR = 1 << 3
FOPEN_NOFLUSH = 1 << 5
FOPEN_PARALLEL_DIRECT_WRITES = 1 << 6

OPEN_KILL_SUIDGID = 1 << 0
WRITE_CACHE = 1 << 0
WRITE_LOCKOWNER = 1 << 1
WRITE_KILL_SUIDGID = 1 << 2
GETATTR_FH = 1 << 0
FSYNC_FDATASYNC = 1 << 0
RELEASE_FLUSH = 1 << 0
RELEASE_FLOCK_UNLOCK = 1 << 1
LK_FLOCK = 1 << 0
SETXATTR_ACL_KILL_SGID = 1 << 0

STATX_BASIC_STATS = 0x7FF
STATX_BTIME = 0x800

EXT_GROUPS = 32
"""The type of an extension: supplementary groups of the caller that the kernel thinks are of use."""

NOTIFY_INVAL_INODE = 2
NOTIFY_INVAL_ENTRY = 3
NOTIFY_DELETE = 6

# --- bodies ---------------------------------------------------------------------------------------------------------


class InHeader(NamedTuple):
    """In front of every request."""

    length: int
    """Of the whole request, with this header."""
    opcode: int
    unique: int
    """What the reply carries; even."""
    nodeid: int
    uid: int
    """The caller's file system user and group."""
    gid: int
    pid: int
    """0 where no process is behind it, such as for write-back."""
    extensions: int = 0
    """Units of 8 bytes at the request's end."""


class OutHeader(NamedTuple):
    """In front of every reply."""

    length: int
    error: int
    """0 or a negative errno; of a notification its code."""
    unique: int
    """The request's; 0 of a notification."""


class ForgetIn(NamedTuple):
    """`nlookup` references to a node are given back."""

    nlookup: int


class ForgetOne(NamedTuple):
    """One item of BATCH_FORGET."""

    nodeid: int
    nlookup: int


class BatchForgetIn(NamedTuple):
    """`nodes` items of `ForgetOne` follow as data."""

    nodes: int


class GetattrIn(NamedTuple):
    """GETATTR; `fh` counts with GETATTR_FH."""

    flags: int
    fh: int


class SetattrIn(NamedTuple):
    """SETATTR; `valid` are FATTR_ flags."""

    valid: int
    fh: int
    size: int
    lock_owner: int
    atime: int
    mtime: int
    ctime: int
    atimensec: int
    mtimensec: int
    ctimensec: int
    mode: int
    uid: int
    gid: int


class MknodIn(NamedTuple):
    """MKNOD; `rdev` as the kernel's new_encode_dev."""

    mode: int
    rdev: int
    umask: int


class MkdirIn(NamedTuple):
    """MKDIR."""

    mode: int
    umask: int


class RenameIn(NamedTuple):
    """RENAME."""

    newdir: int


class Rename2In(NamedTuple):
    """RENAME2; flags as of renameat2(2)."""

    newdir: int
    flags: int


class LinkIn(NamedTuple):
    """LINK: the node that gets one more name."""

    oldnodeid: int


class OpenIn(NamedTuple):
    """OPEN and OPENDIR; flags as of open(2)."""

    flags: int
    open_flags: int


class CreateIn(NamedTuple):
    """CREATE and TMPFILE."""

    flags: int
    mode: int
    umask: int
    open_flags: int


class ReadIn(NamedTuple):
    """READ, READDIR and READDIRPLUS."""

    fh: int
    offset: int
    size: int
    read_flags: int
    lock_owner: int
    flags: int


class WriteIn(NamedTuple):
    """WRITE; `size` bytes follow."""

    fh: int
    offset: int
    size: int
    write_flags: int
    lock_owner: int
    flags: int


class ReleaseIn(NamedTuple):
    """RELEASE and RELEASEDIR."""

    fh: int
    flags: int
    release_flags: int
    lock_owner: int


class FsyncIn(NamedTuple):
    """FSYNC and FSYNCDIR."""

    fh: int
    flags: int


class SetxattrIn(NamedTuple):
    """SETXATTR; the name and `size` bytes of value follow."""

    size: int
    flags: int


class SetxattrExtIn(NamedTuple):
    """SETXATTR where SETXATTR_EXT was negotiated."""

    size: int
    flags: int
    setxattr_flags: int


class GetxattrIn(NamedTuple):
    """GETXATTR and LISTXATTR; a size of 0 asks for the size."""

    size: int


class FlushIn(NamedTuple):
    """FLUSH: a descriptor was closed."""

    fh: int
    lock_owner: int


class InitIn(NamedTuple):
    """INIT; `flags2` are the flags from bit 32 on."""

    major: int
    minor: int
    max_readahead: int
    flags: int
    flags2: int = 0


class LkIn(NamedTuple):
    """GETLK, SETLK and SETLKW; `end` is the last byte."""

    fh: int
    owner: int
    start: int
    end: int
    kind: int
    pid: int
    lk_flags: int


class AccessIn(NamedTuple):
    """ACCESS."""

    mask: int


class InterruptIn(NamedTuple):
    """INTERRUPT: the request that need not go on."""

    unique: int


class BmapIn(NamedTuple):
    """BMAP."""

    block: int
    blocksize: int


class IoctlIn(NamedTuple):
    """IOCTL."""

    fh: int
    flags: int
    cmd: int
    arg: int
    in_size: int
    out_size: int


class PollIn(NamedTuple):
    """POLL."""

    fh: int
    kh: int
    flags: int
    events: int


class FallocateIn(NamedTuple):
    """FALLOCATE; mode as of fallocate(2)."""

    fh: int
    offset: int
    length: int
    mode: int


class LseekIn(NamedTuple):
    """LSEEK with SEEK_DATA or SEEK_HOLE."""

    fh: int
    offset: int
    whence: int


class CopyFileRangeIn(NamedTuple):
    """COPY_FILE_RANGE."""

    fh_in: int
    off_in: int
    nodeid_out: int
    fh_out: int
    off_out: int
    length: int
    flags: int


class SyncfsIn(NamedTuple):
    """SYNCFS."""

    padding: int


class StatxIn(NamedTuple):
    """STATX."""

    getattr_flags: int
    fh: int
    sx_flags: int
    sx_mask: int


class Attr(NamedTuple):
    """What stat(2) says of a node, in replies."""

    ino: int
    size: int
    blocks: int
    """Units of 512 bytes."""
    atime: int
    mtime: int
    ctime: int
    atimensec: int
    mtimensec: int
    ctimensec: int
    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int
    blksize: int
    flags: int = 0


class EntryHead(NamedTuple):
    """The beginning of an answer to LOOKUP and what makes nodes; an `Attr` follows. Times are how long it is true."""

    nodeid: int
    """0: there is no such name, and that is true for as long as `entry_valid` says."""
    generation: int
    entry_valid: int
    attr_valid: int
    entry_valid_nsec: int
    attr_valid_nsec: int


class AttrHead(NamedTuple):
    """The beginning of an answer to GETATTR and SETATTR; an `Attr` follows."""

    attr_valid: int
    attr_valid_nsec: int


class StatxOut(NamedTuple):
    """Answer to STATX (7.39); `mask` says what is true."""

    attr_valid: int
    attr_valid_nsec: int
    flags: int
    mask: int
    blksize: int
    attributes: int
    nlink: int
    uid: int
    gid: int
    mode: int
    ino: int
    size: int
    blocks: int
    attributes_mask: int
    atime: int
    atimensec: int
    btime: int
    btimensec: int
    ctime: int
    ctimensec: int
    mtime: int
    mtimensec: int
    rdev_major: int
    rdev_minor: int
    dev_major: int = 0
    dev_minor: int = 0


class OpenOut(NamedTuple):
    """Answer to OPEN and OPENDIR, and behind the entry in an answer to CREATE."""

    fh: int
    open_flags: int


class WriteOut(NamedTuple):
    """Answer to WRITE."""

    size: int


class StatfsOut(NamedTuple):
    """Answer to STATFS; blocks are units of `frsize` bytes."""

    blocks: int
    bfree: int
    bavail: int
    files: int
    ffree: int
    bsize: int
    namelen: int
    frsize: int


class GetxattrOut(NamedTuple):
    """Answer to GETXATTR and LISTXATTR with a size of 0."""

    size: int


class LkOut(NamedTuple):
    """Answer to GETLK."""

    start: int
    end: int
    kind: int
    pid: int


class InitOut(NamedTuple):
    """Answer to INIT."""

    major: int
    minor: int
    max_readahead: int
    flags: int
    max_background: int
    congestion_threshold: int
    max_write: int
    time_gran: int
    """Nanoseconds."""
    max_pages: int
    map_alignment: int
    flags2: int


class LseekOut(NamedTuple):
    """Answer to LSEEK."""

    offset: int


class Dirent(NamedTuple):
    """The beginning of one entry of a directory; the name follows, and zero bytes up to a multiple of 8."""

    ino: int
    offset: int
    """Where READDIR goes on behind it."""
    namelen: int
    kind: int
    """S_IFMT's bits of the mode, shifted right by 12."""


class NotifyInvalInode(NamedTuple):
    """NOTIFY_INVAL_INODE; a negative offset is about attributes only."""

    nodeid: int
    offset: int
    length: int


class NotifyInvalEntry(NamedTuple):
    """NOTIFY_INVAL_ENTRY; the name and a zero byte follow."""

    parent: int
    namelen: int
    flags: int


BODIES: dict[type[Any], str] = {
    InHeader: "IIQQIIIH2x",
    OutHeader: "IiQ",
    ForgetIn: "Q",
    ForgetOne: "QQ",
    BatchForgetIn: "I4x",
    GetattrIn: "I4xQ",
    SetattrIn: "I4xQQQqqqIIII4xII4x",
    MknodIn: "III4x",
    MkdirIn: "II",
    RenameIn: "Q",
    Rename2In: "QI4x",
    LinkIn: "Q",
    OpenIn: "II",
    CreateIn: "IIII",
    ReadIn: "QQIIQI4x",
    WriteIn: "QQIIQI4x",
    ReleaseIn: "QIIQ",
    FsyncIn: "QI4x",
    SetxattrIn: "II",
    SetxattrExtIn: "III4x",
    GetxattrIn: "I4x",
    FlushIn: "Q8xQ",
    InitIn: "IIIII44x",
    LkIn: "QQQQIII4x",
    AccessIn: "I4x",
    InterruptIn: "Q",
    BmapIn: "QI4x",
    IoctlIn: "QIIQII",
    PollIn: "QQII",
    FallocateIn: "QQQI4x",
    LseekIn: "QQI4x",
    CopyFileRangeIn: "QQQQQQQ",
    SyncfsIn: "Q",
    StatxIn: "I4xQII",
    Attr: "QQQqqqIIIIIIIIII",
    EntryHead: "QQQQII",
    AttrHead: "QI4x",
    StatxOut: "QII16xIIQIIIH2xQQQQqI4xqI4xqI4xqI4xIIII112x",
    OpenOut: "QI4x",
    WriteOut: "I4x",
    StatfsOut: "QQQQQIII28x",
    GetxattrOut: "I4x",
    LkOut: "QQII",
    InitOut: "IIIIHHIIHHI28x",
    LseekOut: "Q",
    Dirent: "QQII",
    NotifyInvalInode: "Qqq",
    NotifyInvalEntry: "QII",
}
"""The layout of each body, in order of its fields; `x` is padding."""


@dataclass(frozen=True, slots=True)
class Row:
    """What follows the header of one kind of request."""

    body: type[Any] | None = None
    names: int = 0
    """How many names follow, each ended by a zero byte."""
    data: bool = False
    """Whether data come behind them, up to the end."""


REQUESTS: dict[int, Row] = {
    Opcode.LOOKUP: Row(names=1),
    Opcode.FORGET: Row(ForgetIn),
    Opcode.GETATTR: Row(GetattrIn),
    Opcode.SETATTR: Row(SetattrIn),
    Opcode.READLINK: Row(),
    Opcode.SYMLINK: Row(names=2),
    Opcode.MKNOD: Row(MknodIn, names=1),
    Opcode.MKDIR: Row(MkdirIn, names=1),
    Opcode.UNLINK: Row(names=1),
    Opcode.RMDIR: Row(names=1),
    Opcode.RENAME: Row(RenameIn, names=2),
    Opcode.LINK: Row(LinkIn, names=1),
    Opcode.OPEN: Row(OpenIn),
    Opcode.READ: Row(ReadIn),
    Opcode.WRITE: Row(WriteIn, data=True),
    Opcode.STATFS: Row(),
    Opcode.RELEASE: Row(ReleaseIn),
    Opcode.FSYNC: Row(FsyncIn),
    Opcode.SETXATTR: Row(SetxattrIn, names=1, data=True),
    Opcode.GETXATTR: Row(GetxattrIn, names=1),
    Opcode.LISTXATTR: Row(GetxattrIn),
    Opcode.REMOVEXATTR: Row(names=1),
    Opcode.FLUSH: Row(FlushIn),
    Opcode.INIT: Row(InitIn),
    Opcode.OPENDIR: Row(OpenIn),
    Opcode.READDIR: Row(ReadIn),
    Opcode.RELEASEDIR: Row(ReleaseIn),
    Opcode.FSYNCDIR: Row(FsyncIn),
    Opcode.GETLK: Row(LkIn),
    Opcode.SETLK: Row(LkIn),
    Opcode.SETLKW: Row(LkIn),
    Opcode.ACCESS: Row(AccessIn),
    Opcode.CREATE: Row(CreateIn, names=1),
    Opcode.INTERRUPT: Row(InterruptIn),
    Opcode.BMAP: Row(BmapIn),
    Opcode.DESTROY: Row(),
    Opcode.IOCTL: Row(IoctlIn, data=True),
    Opcode.POLL: Row(PollIn),
    Opcode.BATCH_FORGET: Row(BatchForgetIn, data=True),
    Opcode.FALLOCATE: Row(FallocateIn),
    Opcode.READDIRPLUS: Row(ReadIn),
    Opcode.RENAME2: Row(Rename2In, names=2),
    Opcode.LSEEK: Row(LseekIn),
    Opcode.COPY_FILE_RANGE: Row(CopyFileRangeIn),
    Opcode.SYNCFS: Row(SyncfsIn),
    Opcode.TMPFILE: Row(CreateIn, names=1),
    Opcode.STATX: Row(StatxIn),
}

"""`powervio bench files`: our 9P server beside diod, on one directory, by one compiled client over Unix sockets.

Each row is a kind of load at a depth. Both servers run at the same time, and are measured in short slices in turn, so
that what else the machine does meets both; a figure is the median of its slices.
"""

from __future__ import annotations

import os
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from powervio.bench import machine
from powervio.bench.folder import scratch_folder
from powervio.bench.images import filesystem
from powervio.bench.load_9p import Load9P
from powervio.errors import LocalError
from powervio.files import p9_codec as p9

PEER = "diod"
DEPTHS = (1, 32)
WANTED_MSIZE = 1 << 20
START_LIMIT = 20.0
"""Seconds for a server to listen."""
ANSWER_LIMIT = 20
"""Seconds for an answer."""
FILES = 256
"""In the directory that is looked up in."""
SMALL = 4096
"""Bytes of each of them."""
COPIED = 64
"""Files of a tree that is copied."""
_ROOT = 0
_FIDS = 1000
_NAME = b"file-%04d"


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of load: the messages that one slot plays again and again."""

    name: str
    what: str
    script: Callable[[int, int], list[bytes]]
    """Of the slot's number and msize."""
    per: float
    """Messages of which an operation is made."""
    prepare: Callable[[int], list[bytes]] = lambda _: []
    """What is said once for each slot."""
    data: bool = False
    names: bool = True
    """Whether it is all about names and attributes."""


def _name(slot: int) -> bytes:
    return _NAME % (slot * 7 % FILES)


def _own(slot: int) -> int:
    return _FIDS + 2 * slot


def _copy(slot: int, _: int) -> list[bytes]:
    """What a program that copies a tree has said for it, and what one that removes it has."""
    own, source, target, made = _own(slot), _own(slot) + 1, _FIDS * 10 + slot, _FIDS * 20 + slot
    folder = b"tree-%d" % slot
    group = os.getegid()
    script = [
        p9.pack(p9.TMKDIR, 0, own, folder, 0o755, group),
        p9.pack(p9.TWALK, 0, own, made, [folder]),
    ]
    for number in range(COPIED):
        name = _name(slot + number)
        script += [
            p9.pack(p9.TWALK, 0, _ROOT, source, [b"many", name]),
            p9.pack(p9.TGETATTR, 0, source, 0x7FF),
            p9.pack(p9.TLOPEN, 0, source, os.O_RDONLY),
            p9.pack(p9.TREAD, 0, source, 0, SMALL),
            p9.pack(p9.TWALK, 0, made, target, []),
            p9.pack(p9.TLCREATE, 0, target, name, 0o301, 0o600, group),  # O_WRONLY | O_CREAT | O_EXCL
            p9.pack(p9.TWRITE, 0, target, 0, b"x" * SMALL),
            p9.pack(p9.TSETATTR, 0, target, 0x1B1, 0o644, 0, 0, 0, 1, 0, 1, 0),  # mode and both times
            p9.pack(p9.TCLUNK, 0, target),
            p9.pack(p9.TCLUNK, 0, source),
        ]
    for number in range(COPIED):
        script += [
            p9.pack(p9.TWALK, 0, made, target, [_name(slot + number)]),
            p9.pack(p9.TREMOVE, 0, target),
        ]
    return [*script, p9.pack(p9.TREMOVE, 0, made)]


KINDS = (
    Kind(
        "getattr",
        "Tgetattr",
        lambda slot, _: [p9.pack(p9.TGETATTR, 0, _own(slot), 0x7FF)],
        1,
        lambda slot: [p9.pack(p9.TWALK, 0, _ROOT, _own(slot), [b"many", _name(slot)])],
    ),
    Kind(
        "lookup",
        "Twalk of two names, Tgetattr, Tclunk",
        lambda slot, _: [
            p9.pack(p9.TWALK, 0, _ROOT, _own(slot), [b"many", _name(slot)]),
            p9.pack(p9.TGETATTR, 0, _own(slot), 0x7FF),
            p9.pack(p9.TCLUNK, 0, _own(slot)),
        ],
        3,
    ),
    Kind(
        "open",
        "Twalk, Tlopen, Tread of 4 KiB, Tclunk",
        lambda slot, _: [
            p9.pack(p9.TWALK, 0, _ROOT, _own(slot), [b"many", _name(slot)]),
            p9.pack(p9.TLOPEN, 0, _own(slot), os.O_RDONLY),
            p9.pack(p9.TREAD, 0, _own(slot), 0, 4096),
            p9.pack(p9.TCLUNK, 0, _own(slot)),
        ],
        4,
    ),
    Kind(
        "create",
        "Twalk, Tlcreate, Tremove",  # diod has no Tunlinkat
        lambda slot, _: [
            p9.pack(p9.TWALK, 0, _ROOT, _own(slot), [b"new"]),
            p9.pack(p9.TLCREATE, 0, _own(slot), b"%d" % slot, 0o1101, 0o644, os.getegid()),
            p9.pack(p9.TREMOVE, 0, _own(slot)),
        ],
        3,
    ),
    Kind(
        "readdir",
        f"Twalk, Tlopen, Treaddir of {FILES} names, Tclunk",
        lambda slot, msize: [
            p9.pack(p9.TWALK, 0, _ROOT, _own(slot), [b"many"]),
            p9.pack(p9.TLOPEN, 0, _own(slot), os.O_RDONLY | os.O_DIRECTORY),
            p9.pack(p9.TREADDIR, 0, _own(slot), 0, msize - p9.IO_HEADER),
            p9.pack(p9.TCLUNK, 0, _own(slot)),
        ],
        4,
    ),
    Kind(
        "read",
        "sequential Tread as long as messages may be",
        lambda slot, msize: [p9.pack(p9.TREAD, 0, _own(slot), 0, msize - p9.IO_HEADER)],
        1,
        lambda slot: [
            p9.pack(p9.TWALK, 0, _ROOT, _own(slot), [b"large"]),
            p9.pack(p9.TLOPEN, 0, _own(slot), os.O_RDONLY),
        ],
        data=True,
        names=False,
    ),
    Kind(
        "copy",
        f"a tree of small files ({COPIED} of {SMALL} bytes) read, made again, and removed; operations are files",
        _copy,
        (12 * COPIED + 3) / COPIED,
        lambda slot: [p9.pack(p9.TWALK, 0, _ROOT, _own(slot), [b"new"])],
        names=False,
    ),
)
METADATA = tuple(kind.name for kind in KINDS if kind.names)


@dataclass(frozen=True)
class Row:
    """One kind at one depth: operations per second, or bytes per second of reads, of each slice."""

    kind: str
    depth: int
    ours: list[float]
    theirs: list[float]

    @property
    def rates(self) -> tuple[float, float]:
        """Medians, ours first."""
        return statistics.median(self.ours), statistics.median(self.theirs)

    @property
    def ratio(self) -> float:
        """Ours by theirs."""
        return self.rates[0] / self.rates[1]


@dataclass(frozen=True)
class Result:
    """What was measured, and under which conditions."""

    conditions: dict[str, object]
    others: float
    """Processors that were busy for anybody else, on average of all slices."""
    msize: int
    our_msize: int
    their_msize: int
    """What each agrees to by itself."""
    peer: str
    """The peer's package and version."""
    slices: int
    slice_seconds: float
    file_bytes: int
    rows: list[Row]
    longest: list[Row] = field(default_factory=list)
    """Reads of each server with the longest messages that it takes."""

    def row(self, kind: str, depth: int) -> Row:
        """One of them."""
        return next(row for row in self.rows if (row.kind, row.depth) == (kind, depth))

    @property
    def has_metadata(self) -> bool:
        """Whether all kinds that `metadata` is made of were measured."""
        return {row.kind for row in self.rows} >= set(METADATA)

    def metadata(self, depth: int) -> float:
        """The ratio of operations on names and attributes: geometric mean of all kinds."""
        return statistics.geometric_mean(self.row(kind, depth).ratio for kind in METADATA)

    def as_json(self) -> dict[str, Any]:
        """All of it."""
        return {
            "conditions": self.conditions,
            "others": self.others,
            "msize": self.msize,
            "peer": self.peer,
            "slices": self.slices,
            "slice_seconds": self.slice_seconds,
            "file_bytes": self.file_bytes,
            "metadata_ratio": {depth: round(self.metadata(depth), 3) for depth in DEPTHS}
            if self.has_metadata
            else None,
            "rows": [
                {
                    "kind": row.kind,
                    "depth": row.depth,
                    "ours": row.rates[0],
                    "theirs": row.rates[1],
                    "ratio": round(row.ratio, 3),
                    "slices": {"ours": row.ours, "theirs": row.theirs},
                }
                for row in self.rows
            ],
            "longest_msize": {"ours": self.our_msize, "theirs": self.their_msize},
            "longest_reads": [
                {"depth": row.depth, "ours": row.rates[0], "theirs": row.rates[1], "ratio": round(row.ratio, 3)}
                for row in self.longest
            ],
        }


class Connection:
    """A client's connection, on which loads are played."""

    def __init__(self, path: Path, share: bytes, msize: int) -> None:
        self._path = path
        self._share = share
        self.msize = msize
        """The longest message in bytes, as it was agreed on."""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._connect()

    def _connect(self) -> None:
        self._socket.close()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        limit = ANSWER_LIMIT.to_bytes(8, sys.byteorder) + bytes(8)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
        self._socket.connect(str(self._path))
        agreed, version = self.ask(p9.pack(p9.TVERSION, p9.NO_TAG, self.msize, p9.VERSION))
        if version != p9.VERSION:
            raise LocalError(f"the server speaks {version.decode(errors='replace')}")
        self.ask(p9.pack(p9.TATTACH, 0, _ROOT, p9.NO_FID, b"root", self._share, os.geteuid()))
        self.msize = int(agreed)

    def ask(self, message: bytes) -> tuple[Any, ...]:
        """One message and its answer. Raises `OSError` for an Rlerror."""
        self._socket.sendall(message)
        head = self._exactly(4)
        answer = head + self._exactly(int.from_bytes(head, "little") - 4)
        kind, _ = p9.head(answer)
        values = p9.unpack(kind, answer)
        if kind == p9.RLERROR:
            raise OSError(values[0], f"{p9.MESSAGES[message[4]].name}: {os.strerror(values[0])}")
        return values

    def _exactly(self, count: int) -> bytes:
        data = bytearray()
        while len(data) < count:
            part = self._socket.recv(count - len(data))
            if not part:
                raise LocalError("the server closed the connection")
            data += part
        return bytes(data)

    def play(self, kind: Kind, depth: int, seconds: float, file_bytes: int) -> float:
        """Operations, or bytes, per second, on a new connection. Raises `LocalError` when a message was refused."""
        self._connect()
        for slot in range(depth):
            for message in kind.prepare(slot):
                self.ask(message)
        scripts = [kind.script(slot, self.msize) for slot in range(depth)]
        load = Load9P(self._socket.fileno(), scripts, sequential=file_bytes if kind.data else 0)
        try:
            load.run(seconds)
        except ConnectionError as error:
            raise LocalError(str(error)) from error
        if load.failed:
            name = p9.MESSAGES[load.failed].name
            raise LocalError(f"{name} was refused: {os.strerror(load.failed_errno)}")
        return (load.moved if kind.data else load.answers / kind.per) / (load.nanoseconds / 1e9)

    def fileno(self) -> int:
        """The socket's descriptor."""
        return self._socket.fileno()

    def close(self) -> None:
        """Go."""
        self._socket.close()


def measure(
    seconds: float,
    folder: Path | None = None,
    *,
    kinds: Sequence[Kind] = KINDS,
    slices: int = 7,
    file_bytes: int = 64 << 20,
    progress: Callable[[str, float], None] = lambda _what, _part: None,
) -> Result:
    """Measure for `seconds` each server in each row. Raises `LocalError`, as when the peer is missing."""
    if shutil.which(PEER, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin") is None:
        raise LocalError(f"{PEER}, the peer that is measured beside ours, is missing: apt-get install {PEER}")
    conditions = machine.conditions()
    with ExitStack() as stack:
        place = stack.enter_context(scratch_folder("powervio-files-", folder))
        conditions["filesystem"] = filesystem(place)
        share = make_share(place / "share", file_bytes)
        ours = stack.enter_context(_ours(share, place / "ours"))
        theirs = stack.enter_context(_theirs(share, place / "theirs"))
        name = os.fsencode(share)
        largest = [Connection(path, name, WANTED_MSIZE) for path in (ours, theirs)]
        msize = min(one.msize for one in largest)
        both = [Connection(path, name, msize) for path in (ours, theirs)]
        for one in (*largest, *both):
            stack.callback(one.close)
        rows = [Row(kind.name, depth, [], []) for kind in kinds for depth in DEPTHS]
        longest = [Row("read", depth, [], []) for depth in DEPTHS] if any(kind.data for kind in kinds) else []
        each = {kind.name: kind for kind in kinds}
        work = [(row, both) for row in rows] + [(row, largest) for row in longest]
        others = machine.Others()
        for turn in range(slices):
            for index, (row, pair) in enumerate(work):
                progress(f"{row.kind}, depth {row.depth}", (turn + index / len(work)) / slices)
                order = (0, 1) if turn % 2 == 0 else (1, 0)
                for which in order:
                    try:
                        rate = pair[which].play(each[row.kind], row.depth, seconds / slices, file_bytes)
                    except (LocalError, OSError) as error:
                        who = ("our server", PEER)[which]
                        raise LocalError(f"{who}: {row.kind} at depth {row.depth}: {error}") from error
                    (row.ours, row.theirs)[which].append(rate)
        conditions["load_average_after"] = machine.load_average()
        return Result(
            conditions,
            others.so_far(),
            msize,
            largest[0].msize,
            largest[1].msize,
            _version(),
            slices,
            seconds / slices,
            file_bytes,
            rows,
            longest,
        )


def make_share(share: Path, file_bytes: int) -> Path:
    """What is served: a large file, and a directory of small ones."""
    (share / "many").mkdir(parents=True)
    (share / "new").mkdir()
    for number in range(FILES):
        (share / "many" / os.fsdecode(_NAME % number)).write_bytes(b"x" * SMALL)
    block = os.urandom(1 << 20)
    with (share / "large").open("wb") as large:
        for _ in range(file_bytes >> 20):
            large.write(block)
    return share


@contextmanager
def _ours(share: Path, path: Path) -> Iterator[Path]:
    command = [sys.executable, "-m", "powervio", "serve-9p", str(share), "--listen", f"unix:{path}"]
    with _running(command, path):
        yield path


@contextmanager
def _theirs(share: Path, path: Path) -> Iterator[Path]:
    share, path = share.absolute(), path.absolute()
    command = [PEER, "-f", "-n", "-N", "-c", os.devnull, "-e", str(share), "-l", str(path), "-L", "stderr"]
    place = path.with_suffix(".cwd")  # where it leaves a core if it crashes
    place.mkdir()
    with _running(command, path, place):
        yield path


@contextmanager
def _running(command: list[str], path: Path, place: Path | None = None) -> Iterator[None]:
    environment = os.environ | {"PATH": f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"}
    said = path.with_suffix(".log")
    with (
        said.open("wb") as log,  # no pipe: diod has a lot to say of fids that were left
        subprocess.Popen(
            command, cwd=place, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log
        ) as process,
    ):
        try:
            limit = time.monotonic() + START_LIMIT
            while not _listens(path):
                if process.poll() is not None or time.monotonic() > limit:
                    process.kill()
                    words = said.read_text(errors="replace").strip()[-500:]
                    raise LocalError(f"{command[0]} does not listen: {words}")
                time.sleep(0.02)
            yield
        finally:
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as trial, suppress(OSError):
        trial.connect(str(path))
        return True
    return False


def _version() -> str:
    told = subprocess.run(
        ["dpkg-query", "-W", "-f", "${Package} ${Version}", PEER], capture_output=True, text=True, check=False
    )
    return told.stdout or PEER

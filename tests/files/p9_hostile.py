"""A client that sends whatever bytes say, to a session over a folder of few files; what must hold is checked after each
message."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from powervio.files import p9_codec as p9
from powervio.files.p9_session import Session
from powervio.files.tree import Tree

MSIZE = 4096
FIDS = 16
OUTSIDE = b"outside"
_QUESTIONS = sorted(kind for kind in p9.MESSAGES if not kind & 1)
_WORDS = (b"f", b"d", b"d2", b"s", b"..", b".", b"", b"a/b", b"n\0", b"user.x", b"9P2000.L", b"n" * 256, b"groups=0")


class Choices:
    """Bytes as decisions; zeroes when there are no more."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    @property
    def more(self) -> bool:
        return self.at < len(self.data)

    def take(self, size: int = 1) -> int:
        part = self.data[self.at : self.at + size]
        self.at += size
        return int.from_bytes(part, "little")

    def bytes(self, size: int) -> bytes:
        part = self.data[self.at : self.at + size]
        self.at += size
        return part


def _value(code: str, choices: Choices) -> object:
    """A field: small numbers and known names mostly."""
    if code in "BHIQ":
        size = "BHIQ".index(code)
        first = choices.take()
        if first < 0xC0:
            return first & (FIDS - 1) if first < 0x80 else 1 << (first & 7) if size else first
        return choices.take(1 << size) if first < 0xF0 else (1 << (8 << size)) - 1
    if code == "s":
        first = choices.take()
        return _WORDS[first % len(_WORDS)] if first < 0xE0 else choices.bytes(first & 31)
    if code == "d":
        return choices.bytes(choices.take() & 63)
    return [_value("s", choices) for _ in range(choices.take() % 18)]


def _message(choices: Choices) -> bytes:
    form = choices.take()
    if form >= 0xF0:
        return choices.bytes(choices.take())
    kind = _QUESTIONS[choices.take() % len(_QUESTIONS)]
    values = [_value(code, choices) for _, code in p9.MESSAGES[kind].fields]
    message = bytearray(p9.pack(kind, choices.take(), *values))
    if form >= 0xE0:
        message[choices.take(2) % len(message)] = choices.take()
    elif form >= 0xD0:
        del message[choices.take(2) % len(message) :]
    return bytes(message)


def _populate(folder: Path) -> None:
    share = folder / "share"
    (share / "d" / "d2").mkdir(parents=True)
    (share / "f").write_bytes(b"contents")
    (share / "d" / "f").write_bytes(b"more")
    (share / "s").symlink_to("../outside")


def play(data: bytes) -> None:
    """Send what `data` says; raises `AssertionError` where the session does what it must not."""
    folder = Path(tempfile.mkdtemp(prefix="powervio-hostile-"))
    try:
        _populate(folder)
        (folder / "outside").write_bytes(OUTSIDE)
        with Tree(folder / "share") as tree:
            session = Session(tree, msize=MSIZE, most_fids=FIDS)
            session.handle(p9.pack(p9.TVERSION, p9.NO_TAG, MSIZE, p9.VERSION), None, None)
            session.handle(p9.pack(p9.TATTACH, 1, 0, p9.NO_FID, b"root", b"", 0), None, None)
            choices = Choices(data)
            while choices.more:
                message = _message(choices)
                _check(session, message, session.handle(message, None, None))
            session.close()
            assert not session.fids
            assert session.attribute_bytes == 0
            assert tree.open_count == 0
            assert tree.locks.count == 0
        assert sorted(path.name for path in folder.iterdir()) == ["outside", "share"]
        assert (folder / "outside").read_bytes() == OUTSIDE
    finally:
        shutil.rmtree(folder)


def _check(session: Session, message: bytes, answer: bytes) -> None:
    if len(message) < 7:
        assert answer == b""
        return
    kind, tag = p9.head(answer)
    assert tag == int.from_bytes(message[5:7], "little")
    assert kind in (p9.RLERROR, message[4] + 1)
    assert int.from_bytes(answer[:4], "little") == len(answer) <= session.most_msize
    p9.unpack(kind, answer)
    if kind == p9.TREADDIR + 1:
        p9.entries(answer[11:])
    assert len(session.fids) <= FIDS

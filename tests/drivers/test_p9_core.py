"""The client's end of a 9P connection, without any I/O: tags, answers in any order, withdrawal, loss, bad servers."""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from powervio.drivers.p9_core import MOST_CALLS, All, Connected, P9Call, P9Core, P9Error, P9Lost, Work
from powervio.errors import RemoteError, Verdict
from powervio.files import p9_codec as p9

pytestmark = pytest.mark.dual


class Recorder:
    """A channel whose other end is the test."""

    most_bytes = 1 << 16

    def __init__(self) -> None:
        self.sent: list[bytes] = []

    def send(self, message: bytes, payload: memoryview | bytes | None) -> None:
        self.sent.append(message + (b"" if payload is None else bytes(payload)))

    def last(self) -> tuple[int, int, bytes]:
        """Type, tag and the rest of what was sent last."""
        size, kind, tag = struct.unpack_from("<IBH", self.sent[-1])
        assert size == len(self.sent[-1])
        return kind, tag, self.sent[-1][7:]


def answer(kind: int, tag: int, body: bytes = b"") -> memoryview:
    return memoryview(struct.pack("<IBH", 7 + len(body), kind, tag) + body)


def connected(core: P9Core | None = None, msize: int = 8192) -> tuple[P9Core, Recorder]:
    core = core or P9Core()
    channel = Recorder()
    core.connect(channel, lambda: None)
    assert channel.last() == (p9.TVERSION, 0xFFFF, struct.pack("<IH", 1 << 16, 8) + b"9P2000.L")
    core.received(answer(p9.RVERSION, 0xFFFF, struct.pack("<IH", msize, 8) + b"9P2000.L"))
    assert core.msize == msize
    return core, channel


class Outcome:
    """What a call ended with."""

    def __init__(self) -> None:
        self.seen: list[tuple[Any, BaseException | None]] = []

    def __call__(self, value: Any, error: BaseException | None) -> None:
        self.seen.append((value, error))

    @property
    def error(self) -> BaseException | None:
        ((_, error),) = self.seen
        return error


def begin(core: P9Core, kind: int, *fields: Any) -> tuple[P9Call, Outcome]:
    call, outcome = core.call(kind, *fields), Outcome()
    call.wait(outcome)
    return call, outcome


def test_answers_come_in_any_order() -> None:
    core, channel = connected()
    outcomes = []
    tags = []
    for fid in range(3):
        outcomes.append(begin(core, p9.TREADLINK, fid)[1])
        kind, tag, body = channel.last()
        assert (kind, body) == (p9.TREADLINK, struct.pack("<I", fid))
        tags.append(tag)
    assert len(set(tags)) == 3
    for index in (1, 2, 0):
        core.received(answer(p9.TREADLINK + 1, tags[index], struct.pack("<H", 1) + b"abc"[index : index + 1]))
    assert [outcome.seen for outcome in outcomes] == [[((name,), None)] for name in (b"a", b"b", b"c")]
    assert core.in_flight == 0


def test_rlerror_is_its_errno() -> None:
    core, channel = connected()
    _, outcome = begin(core, p9.TCLUNK, 1)
    core.received(answer(p9.RLERROR, channel.last()[1], struct.pack("<I", errno.ENOENT)))
    assert isinstance(outcome.error, P9Error)
    assert outcome.error.errno == errno.ENOENT


@pytest.mark.parametrize("code", [0, 4096, 0xFFFF_FFFF])
def test_rlerror_without_an_errno_is_eio(code: int) -> None:
    core, channel = connected()
    _, outcome = begin(core, p9.TCLUNK, 1)
    core.received(answer(p9.RLERROR, channel.last()[1], struct.pack("<I", code)))
    assert isinstance(outcome.error, P9Error)
    assert outcome.error.errno == errno.EIO


def test_calls_beyond_the_tags_wait_in_order() -> None:
    core, channel = connected()
    outcomes = [begin(core, p9.TCLUNK, fid)[1] for fid in range(MOST_CALLS + 2)]
    assert len(channel.sent) == 1 + MOST_CALLS
    assert core.in_flight == MOST_CALLS + 2
    tag = struct.unpack_from("<H", channel.sent[1], 5)[0]
    core.received(answer(p9.TCLUNK + 1, tag))
    assert channel.last() == (p9.TCLUNK, tag, struct.pack("<I", MOST_CALLS))
    core.received(answer(p9.TCLUNK + 1, tag))
    assert channel.last() == (p9.TCLUNK, tag, struct.pack("<I", MOST_CALLS + 1))
    assert [bool(outcome.seen) for outcome in outcomes].count(True) == 2


def test_withdrawn_call_ends_when_the_server_has_confirmed() -> None:
    core, channel = connected()
    call, outcome = begin(core, p9.TLOCK, 1, 0, 1, 0, 0, 7, b"me")
    tag = channel.last()[1]
    call.cancel()
    call.cancel()
    kind, flush, body = channel.last()
    assert (kind, body, len(channel.sent)) == (p9.TFLUSH, struct.pack("<H", tag), 3)
    assert not outcome.seen
    core.received(answer(p9.RFLUSH, flush))
    assert isinstance(outcome.error, InterruptedError)
    assert core.in_flight == 0


def test_answer_before_the_confirmation_counts_and_its_tag_waits_for_it() -> None:
    core, channel = connected()
    call, outcome = begin(core, p9.TCLUNK, 1)
    tag = channel.last()[1]
    call.cancel()
    flush = channel.last()[1]
    core.received(answer(p9.TCLUNK + 1, tag))
    assert outcome.seen == [((), None)]
    with pytest.raises(RemoteError, match="not in use"):
        core.received(answer(p9.TCLUNK + 1, tag))
    used = set()
    for fid in range(MOST_CALLS - 2):
        begin(core, p9.TCLUNK, fid)
        used.add(channel.last()[1])
    assert tag not in used
    core.received(answer(p9.RFLUSH, flush))
    begin(core, p9.TCLUNK, 1)
    begin(core, p9.TCLUNK, 2)
    assert tag in {struct.unpack_from("<H", message, 5)[0] for message in channel.sent[-2:]}


def test_call_that_still_waited_is_withdrawn_at_once() -> None:
    core, channel = connected()
    for fid in range(MOST_CALLS):
        begin(core, p9.TCLUNK, fid)
    call, outcome = begin(core, p9.TCLUNK, 1000)
    call.cancel()
    assert isinstance(outcome.error, InterruptedError)
    assert len(channel.sent) == 1 + MOST_CALLS


def test_lost_connection_ends_everything_and_says_what_was_sent() -> None:
    core, _ = connected()
    outcomes = [begin(core, p9.TCLUNK, fid)[1] for fid in range(MOST_CALLS + 1)]
    core.lost()
    errors = [outcome.error for outcome in outcomes]
    assert [error.sent for error in errors if isinstance(error, P9Lost)] == [True] * MOST_CALLS + [False]
    _, late = begin(core, p9.TCLUNK, 1)
    assert isinstance(late.error, P9Lost)
    assert not late.error.sent


def test_fids_of_an_earlier_connection_are_never_sent() -> None:
    core, _ = connected()
    fid, epoch = core.new_fid(), core.epoch
    core.lost()
    core, channel = connected(core)
    core.clunk(fid, epoch)
    core.retire(fid, epoch)
    core.free_fid(fid, epoch)
    assert len(channel.sent) == 1
    assert core.new_fid() == fid
    assert core.new_fid() != fid


def test_retired_fid_is_clunked_after_what_may_be_about_it() -> None:
    core, channel = connected()
    fid = core.new_fid()
    begin(core, p9.TREADLINK, fid)
    tag = channel.last()[1]
    core.retire(fid, core.epoch)
    begin(core, p9.TREADLINK, 99)
    assert channel.last()[0] == p9.TREADLINK
    core.received(answer(p9.TREADLINK + 1, tag, struct.pack("<H", 0)))
    kind, _, body = channel.last()
    assert (kind, body) == (p9.TCLUNK, struct.pack("<I", fid))


def test_waiting_for_a_connection() -> None:
    core = P9Core()
    early, tired, late = Outcome(), Outcome(), Outcome()
    Connected(core).wait(tired)
    core.impatient()
    assert isinstance(tired.error, OSError)
    assert tired.error.errno == errno.EIO
    Connected(core).wait(early)
    assert not early.seen
    connected(core)
    assert early.error is None
    Connected(core).wait(late)
    assert late.error is None
    core.close()
    closed = Outcome()
    Connected(core).wait(closed)
    assert isinstance(closed.error, OSError)
    assert closed.error.errno == errno.ESHUTDOWN


def test_work_goes_on_with_answers_and_errors() -> None:
    core, channel = connected()
    done = Outcome()

    def work() -> Work:
        (first,) = yield core.call(p9.TREADLINK, 1)
        try:
            yield core.call(p9.TREADLINK, 2)
        except P9Error as error:
            return first, error.errno

    core.run(work(), done)
    core.received(answer(p9.TREADLINK + 1, channel.last()[1], struct.pack("<H", 1) + b"x"))
    core.received(answer(p9.RLERROR, channel.last()[1], struct.pack("<I", errno.EINVAL)))
    assert done.seen == [((b"x", errno.EINVAL), None)]


def test_several_together_end_when_the_last_has() -> None:
    core, channel = connected()
    done = Outcome()
    All((core.call(p9.TREADLINK, 1), core.call(p9.TREADLINK, 2))).wait(done)
    first, second = (struct.unpack_from("<H", message, 5)[0] for message in channel.sent[-2:])
    core.received(answer(p9.RLERROR, second, struct.pack("<I", errno.EIO)))
    assert not done.seen
    core.received(answer(p9.TREADLINK + 1, first, struct.pack("<H", 1) + b"x"))
    ((results, error),) = done.seen
    assert error is None
    assert results[0] == (b"x",)
    assert isinstance(results[1], P9Error)


def offence(core: P9Core, message: memoryview) -> None:
    with pytest.raises(RemoteError) as caught:
        core.received(message)
    assert caught.value.verdict is Verdict.CLOSE


@pytest.mark.parametrize(
    "make",
    [
        lambda tag: answer(p9.TCLUNK + 1, tag + 1),
        lambda tag: answer(p9.TREADLINK + 1, tag, b"\0\0"),
        lambda tag: answer(p9.TCLUNK + 1, tag, b"x"),
        lambda tag: answer(p9.RLERROR, tag, b"x"),
        lambda tag: memoryview(b"\7\0\0\0\x79"),
    ],
    ids=["tag", "kind", "long", "short error", "short"],
)
def test_answer_that_cannot_be_closes_the_connection(make: Callable[[int], memoryview]) -> None:
    core, channel = connected()
    begin(core, p9.TCLUNK, 1)
    offence(core, make(channel.last()[1]))


@pytest.mark.parametrize(
    "body",
    [
        struct.pack("<IH", 8192, 6) + b"9P2000",
        struct.pack("<IH", 8192, 7) + b"unknown",
        struct.pack("<IH", 1 << 17, 8) + b"9P2000.L",
        struct.pack("<IH", 0, 8) + b"9P2000.L",
    ],
)
def test_server_of_another_version_is_refused(body: bytes) -> None:
    core = P9Core()
    core.connect(Recorder(), lambda: None)
    offence(core, answer(p9.RVERSION, 0xFFFF, body))


@given(
    st.sampled_from([p9.TSTATFS, p9.TLOPEN, p9.TGETATTR, p9.TREADLINK, p9.TWALK, p9.TREAD, p9.TGETLOCK, p9.TXATTRWALK]),
    st.binary(max_size=64),
    st.integers(0, 1),
)
def test_any_answer_ends_the_call_or_is_a_remote_error(kind: int, body: bytes, right: int) -> None:
    core, channel = connected()
    call, outcome = core.call(kind, *[0] * 3 if kind in (p9.TREAD,) else _fields(kind)), Outcome()
    call.wait(outcome)
    try:
        core.received(answer(kind + right, channel.last()[1], body))
    except RemoteError:
        assert not outcome.seen
    else:
        assert len(outcome.seen) == 1


def _fields(kind: int) -> tuple[Any, ...]:
    return {
        p9.TSTATFS: (1,),
        p9.TLOPEN: (1, 0),
        p9.TGETATTR: (1, 0),
        p9.TREADLINK: (1,),
        p9.TWALK: (1, 2, [b"a"]),
        p9.TGETLOCK: (1, 0, 0, 0, 1, b"c"),
        p9.TXATTRWALK: (1, 2, b"n"),
    }[kind]


@given(st.binary(max_size=200))
def test_any_listing_is_read_or_a_remote_error(data: bytes) -> None:
    try:
        found = p9.entries(memoryview(data))
    except RemoteError:
        return
    assert sum(24 + len(name) for _, _, _, name in found) == len(data)

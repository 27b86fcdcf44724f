"""What a driver is told of its chains when no server serves them, or when it takes them back."""

from __future__ import annotations

import ctypes
import struct

import pytest

from .rig import BLOCK, FS, NET, P9, PAGE, SCSI, Part, Rig, rig

CONTROL = 1 << 17
"""VIRTIO_NET_F_CTRL_VQ: the last queue has commands."""
STATFS = struct.pack("<IBHI", 11, 8, 0x1234, 1)
RLERROR = struct.pack("<IBHI", 11, 7, 0x1234, 5)
FUSE_REQUEST = struct.pack("<IIQQIIII", 40, 1, 0x123456789ABC, 1, 0, 0, 0, 0)
FUSE_REPLY = struct.pack("<IiQ", 16, -5, 0x123456789ABC)
SCSI_FAILED = bytes(11) + b"\x09"


@pytest.mark.parametrize(
    ("device", "queue", "parts", "request_", "length", "reply"),
    [
        (BLOCK, 0, (Part(16), Part(512, written=True), Part(1, written=True)), bytes(16), 0, b"\x01"),
        (P9, 0, (Part(11), Part(PAGE, written=True)), STATFS, 11, RLERROR),
        (P9, 0, (Part(6), Part(5), Part(4, written=True), Part(PAGE, written=True)), STATFS, 11, RLERROR[4:]),
        (P9, 0, (Part(11), Part(10, written=True)), STATFS, 0, b"\xee"),
        (FS, 1, (Part(40), Part(16, written=True), Part(PAGE, written=True)), FUSE_REQUEST, 16, b"\xee"),
        (FS, 1, (Part(40), Part(PAGE, written=True)), FUSE_REQUEST, 16, FUSE_REPLY),
        (SCSI, 0, (Part(24), Part(5, written=True)), bytes(24), 0, b"\xee" * 4 + b"\x09"),
        (SCSI, 1, (Part(16, written=True),), b"", 0, bytes(4) + b"\xee"),
        (SCSI, 2, (Part(51), Part(108, written=True)), bytes(51), 12, SCSI_FAILED + b"\xee"),
    ],
)
def test_request_that_nobody_serves_is_answered_so_that_its_driver_sees_that_it_failed(
    library: ctypes.CDLL, device: int, queue: int, parts: tuple[Part, ...], request_: bytes, length: int, reply: bytes
) -> None:
    with rig(library, device, 3) as made:
        data, at = [], 0
        for part in parts:
            data.append(b"\xee" * part.length if part.written else request_[at : at + part.length])
            at += 0 if part.written else part.length
        _, chain = made.add(queue, *parts, data=data)
        made.notify(queue)
        assert made.shown(queue) == 1
        library.rig_quiet(queue)
        library.rig_fail(queue)
        assert made.used(queue) == (1, length)
        assert made.told(queue) == 1
        assert chain.read(len(parts) - 1)[: len(reply)] == reply
        if len(parts) == 3 and device == FS:
            assert chain.read(1) == FUSE_REPLY
        if len(parts) == 4:
            assert chain.read(2) == RLERROR[:4]


@pytest.mark.parametrize(
    ("device", "request_", "length", "reply"),
    [(P9, STATFS, 11, RLERROR), (FS, FUSE_REQUEST, 16, FUSE_REPLY), (BLOCK, bytes(16), 0, b"\xee")],
)
def test_request_that_a_server_gives_back_with_length_0_has_failed_where_an_answer_is_due(
    library: ctypes.CDLL, device: int, request_: bytes, length: int, reply: bytes
) -> None:
    with rig(library, device, 3) as made:
        head, chain = made.add(0, Part(len(request_)), Part(PAGE, written=True), data=[request_, b"\xee" * PAGE])
        made.notify(0)
        made.serve(0, head, 0)
        assert made.used(0) == (1, length)
        assert chain.read(1)[: len(reply)] == reply


@pytest.mark.parametrize("shared", [True, False])
def test_what_a_driver_takes_back_is_reached_by_no_server_any_more(library: ctypes.CDLL, shared: bool) -> None:
    with rig(library, BLOCK, 1, shared=shared) as made:
        own = made.count("mapped")
        if shared:
            ctypes.c_uint64.in_dll(library, "rig_use_word").value = 1
        made.add(0, Part(16), Part(16 * PAGE), Part(1, written=True))
        made.notify(0)
        assert made.shown(0) == 1
        library.rig_quiet(0)
        library.rig_refuse(2)
        library.rig_forget(0)
        assert made.count("mapped") == own
        assert made.used(0)[0] == 0


def test_queue_that_is_made_quiet_shows_its_server_nothing_new(library: ctypes.CDLL) -> None:
    with rig(library, BLOCK, 1) as made:
        head, _ = made.add(0, Part(16), Part(1, written=True))
        made.notify(0)
        library.rig_carry_out()
        kicked = made.count("kicked")
        made.use(0, head, 1)
        made.add(0, Part(16), Part(1, written=True))
        library.rig_quiet(0)
        library.rig_carry_out()
        assert made.used(0) == (1, 1)
        assert made.told(0) == 1
        assert made.shown(0) == 1
        assert made.count("kicked") == kicked


def test_driver_is_not_called_by_timer_when_it_has_taken_its_chains_back(library: ctypes.CDLL) -> None:
    with rig(library, BLOCK, 1, pool_kib=64) as made:
        made.add(0, *[Part(4000)] * 40, Part(1, written=True))
        made.notify(0)
        assert made.used(0)[0] == 1  # no pool is large enough for it
        library.rig_quiet(0)
        library.rig_forget(0)
        assert made.pass_time(20) == 0
        assert made.told(0) == 0


def test_kick_for_which_the_server_s_queue_has_no_room_is_repeated_less_and_less_often(library: ctypes.CDLL) -> None:
    with rig(library, BLOCK, 1) as made:
        library.rig_drop(1 << 30)
        made.add(0, Part(16), Part(1, written=True))
        made.notify(0)
        made.pass_time(250)
        assert 5 < made.count("kicked") < 30
        library.rig_drop(0)
        kicked = made.count("kicked")
        made.pass_time(25)
        assert made.count("kicked") == kicked + 1
        # the next one begins anew
        library.rig_drop(2)
        made.add(0, Part(16), Part(1, written=True))
        made.notify(0)
        made.pass_time(10)
        assert made.count("kicked") == kicked + 1 + 3


def test_hypervisor_that_stands_still_is_asked_less_and_less_often(library: ctypes.CDLL) -> None:
    with rig(library, BLOCK, 1, shared=False) as made:
        library.rig_stall(ctypes.c_bool(True))
        made.add(0, Part(16), Part(16 * PAGE), Part(1, written=True))
        made.notify(0)
        assert made.pass_time(250) < 30
        assert made.shown(0) == 0
        library.rig_stall(ctypes.c_bool(False))
        made.pass_time(13)
        assert made.shown(0) == 1
        assert made.used(0)[0] == 0


def test_network_command_is_answered_while_its_driver_lets_nobody_else_run(library: ctypes.CDLL) -> None:
    with rig(library, NET, 3, features=CONTROL) as made:
        head, _ = made.add(2, Part(2), Part(1), Part(1, written=True))
        made.answer(2, head, 1, after=5000)
        before = made.looked
        made.notify(2)
        assert made.used(2) == (1, 1)
        assert made.looked - before == 5001
        assert made.broken == ""


def test_network_command_that_nobody_answers_fails_after_a_while(library: ctypes.CDLL) -> None:
    with rig(library, NET, 3, features=CONTROL) as made:
        for queue in (0, 1):
            made.add(queue, Part(100, written=queue == 0))
            made.notify(queue)
        before = made.looked
        _, chain = made.add(2, Part(2), Part(1), Part(1, written=True), data=[b"", b"", b"\xff"])
        made.notify(2)
        assert 2_000_000 <= made.looked - before < 2_010_000
        assert made.used(2) == (1, 0)
        assert chain.read(2) == b"\xff"
        assert made.broken == "the server does not answer what its driver waits for"
        assert (made.used(0)[0], made.used(1)[0]) == (0, 0)
        # until the connection is another one nobody waits again
        before = made.looked
        made.add(2, Part(2), Part(1), Part(1, written=True))
        made.notify(2)
        assert made.looked - before < 10
        assert made.used(2) == (2, 0)


def test_network_command_without_a_server_fails_at_once(library: ctypes.CDLL) -> None:
    with rig(library, NET, 3, features=CONTROL) as made:
        library.rig_lose()
        before = made.looked
        made.add(2, Part(2), Part(1), Part(1, written=True))
        made.notify(2)
        assert made.looked - before < 10
        assert made.used(2) == (1, 0)
        assert made.broken == ""


PROMISCUOUS, QUIET, TABLE, OTHER_TABLE = b"\0\0\1", b"\0\0\0", b"\1\0" + bytes(20), b"\1\0" + bytes(26)
TAG_5, TAG_6, NO_TAG_5 = b"\2\0\5\0", b"\2\0\6\0", b"\2\1\5\0"
ANNOUNCED = b"\3\0"


def command(made: Rig, said: bytes, status: int = 0) -> None:
    """The driver says something, and the server answers."""
    parts = (Part(2), *([Part(len(said) - 2)] if len(said) > 2 else []), Part(1, written=True))
    head, chain = made.add(2, *parts, data=[said[:2], said[2:]] if len(said) > 2 else [said])
    chain.write(len(parts) - 1, bytes([status]))
    made.answer(2, head, 1, after=3)
    made.notify(2)


def test_new_server_is_told_what_a_network_driver_told_the_one_before(library: ctypes.CDLL) -> None:
    with rig(library, NET, 3, features=CONTROL) as made:
        for said in (PROMISCUOUS, TAG_5, TABLE, TAG_6, ANNOUNCED, TAG_5, QUIET, NO_TAG_5, OTHER_TABLE):
            command(made, said)
        command(made, b"\2\0\7\0", status=1)
        assert made.used(2)[0] == 10
        assert made.restart(2, [0] * 5) == (0, [TAG_6, QUIET, OTHER_TABLE])
        # what it refuses keeps nobody from going on, and is said again to the one after it
        assert made.restart(2, [0, 1, 0]) == (0, [TAG_6, QUIET, OTHER_TABLE])
        assert made.messages == "the new server refuses command 0 of class 0\n"
        library.rig_drop(2)
        assert made.restart(2, [0] * 3) == (0, [TAG_6, QUIET, OTHER_TABLE])
        command(made, TAG_5)
        assert made.used(2)[0] == 11
        library.rig_reset(2)
        assert made.restart(2, [0] * 5) == (0, [])


@pytest.mark.parametrize(("lost", "err"), [(True, -107), (False, -110)])
def test_server_that_goes_while_it_is_told_is_not_waited_for(library: ctypes.CDLL, lost: bool, err: int) -> None:
    with rig(library, NET, 3, features=CONTROL) as made:
        command(made, QUIET)
        command(made, TABLE)
        if lost:
            library.rig_lose()
        assert made.restart(2, [0])[0] == err

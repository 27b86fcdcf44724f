"""One disk, two VIO servers: who gets requests, what becomes of them when a server dies, hangs or is another disk's."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from powervio.devices.block import BlockOptions
from powervio.drivers.block_request import BlockError, BlockRequest
from powervio.drivers.multipath import MultipathCore
from powervio.errors import LocalError
from powervio.storage.image import Image, open_image
from powervio.transport.crq.driver_queue import CrqDriverQueue
from powervio.virtio import block as blk

from .two_servers import BLOCK, INTERVAL, SIZE, Make, TwoServers


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    made: list[TwoServers] = []

    def make_rig(**options: object) -> TwoServers:
        made.append(TwoServers(tmp_path, **options))  # type: ignore[arg-type]
        return made[-1]

    yield make_rig
    for rig in made:
        rig.close()


@pytest.fixture
def rig(make: Make) -> TwoServers:
    return make()


def assert_all_done(rig: TwoServers, contents: list[bytes]) -> None:
    """Each write completed, once and well, and is on the medium."""
    assert len(rig.done) == len({id(request) for request in rig.done}) == len(contents)
    assert [request.error for request in rig.done] == [None] * len(contents)
    assert rig.on_medium(len(contents)) == b"".join(contents)


# Who gets requests


def test_preferred_path_gets_the_requests_and_the_other_only_its_checks(rig: TwoServers) -> None:
    assert rig.states == ["active", "standby"]
    contents = rig.write_all()
    rig.settle()
    assert_all_done(rig, contents)
    assert [server.device.requests for server in rig.servers] == [33, 1]
    rig.advance(3 * INTERVAL)
    assert [path.checks for path in rig.paths] == [4, 4]
    assert rig.disk.requests == 32


def test_round_robin_takes_turns(make: Make) -> None:
    rig = make(policy="round-robin")
    assert rig.states == ["active", "active"]
    contents = rig.write_all()
    rig.settle()
    assert_all_done(rig, contents)
    assert [server.device.counters.writes for server in rig.servers] == [16, 16]


def test_what_the_disk_is_is_what_the_devices_say(make: Make) -> None:
    rig = make(options=(BlockOptions(serial="one", seg_max=20), BlockOptions(serial="one", seg_max=10)))
    disk = rig.disk
    assert (disk.capacity, disk.block_size, disk.serial.rstrip(b"\0")) == (SIZE, 512, b"one")
    assert disk.seg_max == 10  # what every path can do
    assert disk.can_discard
    assert not disk.read_only


# A server that dies


@pytest.mark.parametrize("policy", ["failover", "round-robin"])
@pytest.mark.parametrize("served", [False, True], ids=["not served", "served and not seen"])
def test_requests_in_flight_on_a_server_that_dies_are_completed_once_by_the_other(
    make: Make, policy: str, served: bool
) -> None:
    rig = make(policy=policy)
    contents = rig.write_all()
    if served:
        rig.servers[0].poll()
    rig.servers[0].die()
    rig.settle()
    assert_all_done(rig, contents)
    assert rig.states == ["waiting", "active"]
    rig.servers[0].boot()
    rig.settle()
    assert rig.states == (["active", "standby"] if policy == "failover" else ["active", "active"])


def test_requests_of_a_dead_path_keep_their_order(rig: TwoServers) -> None:
    rig.servers[1].hangs = True
    rig.write_all(8)
    rig.servers[0].die()
    rig.servers[1].hangs = True
    rig.settle()
    queue = rig.paths[1]._rings[0].queue
    assert isinstance(queue, CrqDriverQueue)
    orders = [request.order for request in queue.ring.in_flight if isinstance(request, BlockRequest)]
    assert len(orders) == rig.paths[1].in_flight == 8
    assert sorted(orders) == orders


def test_with_all_servers_dead_requests_wait_and_are_done_in_the_end(rig: TwoServers) -> None:
    contents = rig.write_all(16)
    for server in rig.servers:
        server.die()
    rig.settle()
    assert rig.disk.waiting == 16
    assert not rig.disk.connected
    contents += [bytes([7]) * BLOCK]
    rig.submit(blk.T_OUT, 16, contents[-1])
    rig.advance(4 * INTERVAL)
    assert rig.done == []
    rig.servers[1].boot()
    rig.settle()
    assert_all_done(rig, contents)


# A server that hangs


def test_hanging_path_keeps_what_it_has_and_gets_nothing_new(rig: TwoServers) -> None:
    contents = rig.write_all(8)
    rig.servers[0].hangs = True
    rig.advance(2 * INTERVAL + 1)
    assert rig.states == ["failed", "active"]
    assert rig.paths[0].in_flight == 9  # and the check
    assert rig.paths[0].reason == "no answer to the path check; 9 requests stay with it"
    assert rig.done == []
    contents.append(bytes([9]) * BLOCK)
    rig.submit(blk.T_OUT, 8, contents[-1])
    rig.settle()
    assert [request.position for request in rig.done] == [8 * BLOCK]
    rig.servers[0].hangs = False
    rig.settle()
    assert_all_done(rig, contents)
    assert rig.servers[1].device.counters.writes == 1
    assert rig.states == ["active", "standby"]  # it answered, and is preferred
    assert rig.paths[0].failures == 1


def test_what_waits_for_room_on_a_hanging_path_goes_to_the_other(make: Make) -> None:
    rig = make(options=(BlockOptions(queue_size=8), BlockOptions(queue_size=8)))
    contents = rig.write_all(30)
    rig.servers[0].hangs = True
    there = rig.paths[0].in_flight
    assert 0 < there < 30
    rig.advance(2 * INTERVAL + 1)
    assert len(rig.done) == 30 - there  # no device ever had these before
    rig.servers[0].hangs = False
    rig.settle()
    assert_all_done(rig, contents)
    assert rig.servers[1].device.counters.writes == 30 - there


def test_slow_path_that_still_completes_requests_is_not_failed(rig: TwoServers) -> None:
    for _ in range(4):
        rig.servers[0].hangs = True
        rig.write_all(1)
        rig.clock.now += INTERVAL * 0.7
        rig.client_kernel.poll()
        rig.servers[0].hangs = False
        rig.settle()
    assert rig.paths[0].failures == 0
    assert rig.states == ["active", "standby"]


def test_paths_that_hang_both_let_requests_wait(rig: TwoServers) -> None:
    for server in rig.servers:
        server.hangs = True
    rig.advance(2 * INTERVAL + 1)
    assert rig.states == ["failed", "failed"]
    contents = rig.write_all(4)
    rig.settle()
    assert rig.disk.waiting == 4
    rig.servers[1].hangs = False
    rig.settle()
    assert_all_done(rig, contents)


# The fence (P1.9): a session that is over proves nothing


def test_client_that_left_a_hanging_server_waits_for_its_answer(rig: TwoServers) -> None:
    """P1.9: the server may be in the middle of a write; only a new connection says that it is not."""
    contents = rig.write_all(8)
    rig.servers[0].hangs = True
    rig.clients[0].reset()
    rig.advance(4 * INTERVAL)
    assert rig.done == []
    assert (rig.paths[0].pending, rig.disk.waiting) == (8, 0)
    assert rig.servers[1].device.counters.writes == 0
    rig.servers[0].hangs = False
    rig.settle()
    assert_all_done(rig, contents)


def test_client_that_left_a_hanging_server_goes_on_elsewhere_when_that_dies(rig: TwoServers) -> None:
    contents = rig.write_all(8)
    rig.servers[0].hangs = True
    rig.clients[0].reset()
    rig.settle()
    assert rig.paths[0].pending == 8
    rig.servers[0].die()
    rig.settle()
    assert_all_done(rig, contents)
    assert rig.servers[1].device.counters.writes == 8


def test_server_that_died_while_the_client_was_closed_is_found_gone(rig: TwoServers) -> None:
    """Nobody sent the client an event: H_REG_CRQ says H_CLOSED (P1.9)."""
    contents = rig.write_all(8)
    rig.servers[0].hangs = True
    rig.clients[0].crq.close()
    rig.servers[0].die()
    rig.settle()
    assert rig.paths[0].pending == 8
    rig.clients[0].crq.register()
    rig.settle()
    assert_all_done(rig, contents)


def test_suspended_server_keeps_what_it_has(rig: TwoServers) -> None:
    """P1.9: FF06 ends the connection, and not the server's work."""
    contents = rig.write_all(8)
    rig.servers[0].hangs = True
    rig.hypervisor.suspend(rig.servers[0].partition)
    rig.settle()
    assert rig.states == ["waiting", "active"]
    assert rig.paths[0].pending == 8
    assert rig.servers[1].device.counters.writes == 0
    rig.hypervisor.resume(rig.servers[0].partition)
    rig.servers[0].hangs = False
    rig.advance(INTERVAL)
    assert_all_done(rig, contents)


def test_device_reset_gives_its_requests_back(rig: TwoServers) -> None:
    contents = rig.write_all(8)
    rig.clients[0].device_reset()
    rig.settle()
    assert_all_done(rig, contents)
    assert rig.states == ["active", "standby"]


# Paths to other disks


@pytest.mark.parametrize(
    ("first", "second", "why"),
    [
        ({"serial": "one"}, {"serial": "two"}, 'another disk: its serial number is "two"; expected "one"'),
        ({}, {"block_size": 4096}, "another disk: logical block 4096; expected 512"),
        ({}, {"read_only": True}, "another disk: readonly True; expected False"),
    ],
)
def test_path_to_another_disk_is_refused_and_says_why(
    make: Make, first: dict[str, str], second: dict[str, str], why: str
) -> None:
    rig = make(options=(BlockOptions(**first), BlockOptions(**second)))  # type: ignore[arg-type]
    assert rig.states == ["active", "refused"]
    assert rig.paths[1].reason == why
    rig.write_all(4)
    rig.servers[0].die()
    rig.settle()
    assert rig.done == []  # nobody writes to the other disk
    assert rig.disk.waiting == 4
    rig.servers[0].boot()
    rig.settle()
    assert len(rig.done) == 4


def test_path_to_a_disk_of_another_size_is_refused(make: Make, tmp_path: Path) -> None:
    rig = make(other_image=open_image(tmp_path / "other.img", create_size=2 * SIZE))
    assert rig.states == ["active", "refused"]
    assert rig.paths[1].reason == f"another disk: it has {2 * SIZE} bytes; expected {SIZE}"


def test_path_that_can_do_less_is_refused_once_requests_rely_on_more(rig: TwoServers) -> None:
    rig.servers[1].die()
    contents = rig.write_all(1)
    rig.settle()
    rig.servers[1].options = BlockOptions(seg_max=4, discard=False)
    rig.servers[1].boot()
    rig.settle()
    assert rig.states == ["active", "refused"]
    assert rig.paths[1].reason == "it can do less than the other paths (seg_max, max_discard)"
    assert_all_done(rig, contents)


def test_resize_reaches_all_paths(rig: TwoServers) -> None:
    sizes: list[int] = []
    rig.disk.on_resize = lambda: sizes.append(rig.disk.capacity)
    first, second = rig.servers
    first.image.resize(2 * SIZE)
    second.image.resized(2 * SIZE)
    first.device.resize(2 * SIZE)
    rig.settle()
    assert rig.states == ["active", "refused"]  # for as long as it has not heard of it
    second.device.resize(2 * SIZE)
    rig.settle()
    assert rig.states == ["active", "standby"]
    assert set(sizes) == {2 * SIZE}
    rig.submit(blk.T_OUT, SIZE // BLOCK, bytes(BLOCK))
    rig.settle()
    assert [request.error for request in rig.done] == [None]


def test_size_that_changed_while_all_were_away_is_believed_when_all_say_so(rig: TwoServers) -> None:
    for server in rig.servers:
        server.die()
    rig.settle()
    with rig.share.open() as image:
        image.resize(2 * SIZE)
    rig.servers[0].boot()
    rig.settle()
    assert rig.states == ["refused", "waiting"]
    rig.servers[1].boot()
    rig.settle()
    assert rig.states == ["active", "standby"]
    assert rig.disk.capacity == 2 * SIZE


# Single requests


def test_error_status_is_an_answer_and_not_tried_elsewhere(rig: TwoServers, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Image, position: int, buffer: memoryview) -> None:
        raise OSError(errno.EIO, "the medium is broken")

    monkeypatch.setattr(Image, "target", None)  # all data by the methods
    monkeypatch.setattr(Image, "write_from", broken)
    monkeypatch.setattr(Image, "write_vector", broken)
    request = rig.submit(blk.T_OUT, 0, bytes(BLOCK))
    rig.settle()
    assert rig.done == [request]
    assert request.error is not None
    assert request.error.errno == errno.EIO
    assert rig.disk.failed == 1
    assert rig.servers[1].device.requests == 1  # its check


def test_request_that_not_every_path_can_do_is_refused(rig: TwoServers) -> None:
    with pytest.raises(BlockError, match="the disk has 1048576 bytes"):
        rig.submit(blk.T_OUT, SIZE // BLOCK, bytes(BLOCK))
    with pytest.raises(LocalError, match="was submitted before"):
        rig.disk.submit(rig.submit(blk.T_FLUSH))


def test_withdrawn_request_that_waits_ends_at_once(rig: TwoServers) -> None:
    for server in rig.servers:
        server.die()
    rig.settle()
    request = rig.submit(blk.T_OUT, 0, bytes(BLOCK))
    rig.disk.withdraw(request)
    assert rig.done == [request]
    assert request.error is not None
    assert request.error.errno == errno.ECANCELED
    rig.servers[0].boot()
    rig.settle()
    assert rig.servers[0].device.counters.writes == 0


def test_disk_that_goes_away_fails_everything_once(rig: TwoServers) -> None:
    rig.write_all(8)
    rig.servers[0].hangs = True
    rig.clients[0].reset()
    rig.settle()
    rig.disk.fail_all("the end")
    assert len(rig.done) == 8
    assert {request.error and request.error.errno for request in rig.done} == {errno.ESHUTDOWN}
    rig.servers[0].hangs = False
    rig.advance(4 * INTERVAL)
    assert len(rig.done) == 8
    with pytest.raises(BlockError, match="the end"):
        rig.submit(blk.T_FLUSH)


def test_adapter_that_is_unplugged_fails_what_it_had_and_the_disk_goes_on(rig: TwoServers) -> None:
    rig.write_all(4)
    rig.hypervisor.remove_pair(rig.servers[0].client_adapter)
    rig.settle()
    assert [request.error and request.error.errno for request in rig.done] == [errno.ESHUTDOWN] * 4
    rig.done.clear()
    contents = rig.write_all(4)
    rig.settle()
    assert_all_done(rig, contents)
    rig.hypervisor.remove_pair(rig.servers[1].client_adapter)
    rig.settle()
    with pytest.raises(BlockError, match="unplugged"):
        rig.submit(blk.T_FLUSH)


def test_flush_at_one_server_follows_writes_at_the_other(make: Make) -> None:
    rig = make(policy="round-robin")
    rig.write_all(3)
    rig.settle()
    rig.submit(blk.T_FLUSH)
    rig.settle()
    assert [server.device.counters.flushes for server in rig.servers] in ([0, 1], [1, 0])
    assert len(rig.done) == 4


@pytest.mark.parametrize("names", [[], ["one"], ["one", "one"]])
def test_paths_need_two_names(rig: TwoServers, names: list[str]) -> None:
    with pytest.raises(LocalError, match="expected two or more, with a name of its own each"):
        MultipathCore(names, rig.client_kernel)


# Everything at once


_STEPS = st.lists(
    st.sampled_from(
        [
            *("write", "write", "write", "read", "flush", "die 0", "die 1", "boot 0", "boot 1", "hang 0", "hang 1"),
            *("go 0", "go 1", "leave 0", "leave 1", "server", "client", "settle", "time"),
        ]
    ),
    max_size=60,
)


@pytest.mark.dual
@given(steps=_STEPS, policy=st.sampled_from(["failover", "round-robin"]), blocks=st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_whatever_dies_each_request_completes_once_and_the_last_write_stays(
    tmp_path_factory: pytest.TempPathFactory, steps: list[str], policy: str, blocks: object
) -> None:
    rig = TwoServers(tmp_path_factory.mktemp("paths"), policy=policy)  # type: ignore[arg-type]
    try:
        _run(rig, steps, blocks)
    finally:
        rig.close()


def _run(rig: TwoServers, steps: list[str], blocks: object) -> None:
    choose = blocks.randrange  # type: ignore[attr-defined]
    newest: dict[int, bytes] = {}
    busy: set[int] = set()
    submitted: list[BlockRequest] = []
    seen = 0

    def look() -> None:
        """A block has one request at a time: what completed last is what it has to hold."""
        nonlocal seen
        for request in rig.done[seen:]:
            assert request.error is None, request.error
            block = request.position // BLOCK
            buffer = request.context
            if request.kind == blk.T_FLUSH:
                continue
            busy.remove(block)
            if request.kind == blk.T_OUT:
                newest[block] = bytes(buffer.view)
            else:
                assert bytes(buffer.view) == newest.get(block, bytes(BLOCK))
        seen = len(rig.done)

    for number, step in enumerate(steps):
        word, _, which = step.partition(" ")
        server = rig.servers[int(which or 0)]
        block = choose(8)
        if word == "write" and block not in busy:
            busy.add(block)
            submitted.append(rig.submit(blk.T_OUT, block, number.to_bytes(2, "big") * (BLOCK // 2)))
        elif word == "flush":
            submitted.append(rig.submit(blk.T_FLUSH))
        elif word == "read" and block not in busy:
            busy.add(block)
            submitted.append(rig.submit(blk.T_IN, block))
        elif word == "die" and server.kernel is not None:
            server.die()
        elif word == "boot" and server.kernel is None:
            server.boot()
        elif word in ("hang", "go"):
            server.hangs = word == "hang"
        elif word == "leave":
            rig.clients[int(which)].reset()
        elif word == "server":
            rig.servers[choose(2)].poll()
        elif word == "client":
            rig.client_kernel.poll()
        elif word == "time":
            rig.advance(INTERVAL)
        elif word == "settle":
            rig.settle()
        look()
    for server in rig.servers:
        server.hangs = False
        if server.kernel is None:
            server.boot()
    rig.advance(3 * INTERVAL)
    look()
    assert len(rig.done) == len(submitted)
    assert {id(request) for request in rig.done} == {id(request) for request in submitted}
    assert set(rig.states) <= {"active", "standby"}
    medium = rig.on_medium(8)
    for block, content in newest.items():
        assert medium[block * BLOCK : (block + 1) * BLOCK] == content

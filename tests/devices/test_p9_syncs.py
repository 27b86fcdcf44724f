"""Tfsync over virtio, beside a device's other messages: what goes on meanwhile, what waits, and what is left of it."""

from __future__ import annotations

import errno
import gc
import os
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.devices.test_p9_share import MSIZE, Rig
from tests.files.slow_disk import LIMIT, SlowDisk
from tests.files.test_p9_server import wait_for

from powervio.devices import p9 as device_module
from powervio.devices.p9 import P9Device
from powervio.errors import PowervioError
from powervio.files import p9_codec as p9
from powervio.files import p9_syncs
from powervio.files.identity import Identity
from powervio.files.p9_session import Session
from powervio.files.tree import Tree
from powervio.testing.direct import DirectLink
from powervio.testing.raw import Exchange, RawDriver

pytestmark = pytest.mark.dual


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowDisk]:
    made = SlowDisk()
    monkeypatch.setattr(p9_syncs, "sync", made.sync)
    yield made
    made.gate.set()


@pytest.fixture(params=["direct", "copied"])
def rig(request: pytest.FixtureRequest, tmp_path: Path, disk: SlowDisk) -> Iterator[Rig]:
    """Fid 2 is a file that is open for writing."""
    rig = made(tmp_path, request.param)
    yield rig
    disk.gate.set()
    rig.close()


def made(tmp_path: Path, way: str) -> Rig:
    (tmp_path / "share").mkdir()
    (tmp_path / "share/f").touch()
    rig = Rig(tmp_path / "share", way)
    begin(rig)
    return rig


def begin(rig: Rig) -> None:
    rig.attach()
    rig.open(2, b"f", os.O_RDWR)


def send(rig: Rig, kind: int, *fields: object, tag: int) -> Exchange:
    return rig.driver.send([p9.pack(kind, tag, *fields)], [160])


def said(exchange: Exchange) -> bytes:
    assert exchange.times == 1
    assert exchange.used is not None
    return exchange.answer[: exchange.used]


def come(rig: Rig, *exchanges: Exchange) -> list[bytes]:
    """The answers, which come by themselves."""

    def all_there() -> bool:
        rig.run()
        return all(each.times for each in exchanges)

    wait_for(all_there)
    return [said(each) for each in exchanges]


@pytest.mark.parametrize("together", [False, True])
def test_others_are_answered_before_it(rig: Rig, disk: SlowDisk, together: bool) -> None:  # F3.6
    before = send(rig, p9.TWRITE, 2, 0, b"data", tag=7) if together else None
    sync = send(rig, p9.TFSYNC, 2, 1, tag=8)
    if together:
        others = [send(rig, p9.TGETATTR, 2, 0x7FF, tag=tag) for tag in (9, 10)]
        rig.run()
        assert before is not None
        assert [said(each)[4] for each in (before, *others)] == [p9.TWRITE + 1, *[p9.TGETATTR + 1] * 2]
    else:
        rig.run()
    disk.wait()
    for _ in range(10):
        rig.ask(p9.TGETATTR, 2, 0x7FF)
    assert sync.times == 0
    disk.gate.set()
    assert come(rig, sync) == [p9.pack(p9.TFSYNC + 1, 8)]
    assert come(rig, send(rig, p9.TFSYNC, 2, 0, tag=8)) == [p9.pack(p9.TFSYNC + 1, 8)]
    assert disk.calls == [True, False]


def test_it_costs_the_hypervisor_what_any_message_does(tmp_path: Path, disk: SlowDisk) -> None:
    """The answer goes by a write, which a message that is answered at once has as one more copy."""
    disk.gate.set()
    rig = made(tmp_path, "copied")
    assert rig.pair is not None
    ledger = rig.pair.server_adapter.ledger
    before = ledger.snapshot()
    come(rig, send(rig, p9.TFSYNC, 2, 0, tag=8))
    calls = (ledger.snapshot() - before)["hcalls"]
    assert {name: count for name, count in calls.items() if "RDMA" in name} == {"H_COPY_RDMA": 4, "H_WRITE_RDMA": 1}
    rig.close()


def test_its_error_is_told_and_counted(rig: Rig, disk: SlowDisk) -> None:
    disk.fails = errno.EIO
    disk.gate.set()
    assert come(rig, send(rig, p9.TFSYNC, 2, 0, tag=8)) == [p9.pack(p9.RLERROR, 8, errno.EIO)]
    assert (rig.device.counters.errors, rig.device.counters.refused) == (1, 0)


def test_what_is_none_is_refused_in_its_place(rig: Rig, disk: SlowDisk) -> None:
    for fid in (1, 99):
        with pytest.raises(OSError, match="Rlerror") as refused:
            rig.ask(p9.TFSYNC, fid, 0)
        assert refused.value.errno == errno.EBADF
    assert rig.raw(p9.pack(p9.TFSYNC, 8, 2, 0)[:11]) == p9.pack(p9.RLERROR, 8, errno.EPROTO)
    assert disk.calls == []


def test_tag_that_is_in_use_is_done_in_its_place(rig: Rig, disk: SlowDisk) -> None:  # F3.7
    sync = send(rig, p9.TFSYNC, 2, 0, tag=8)
    rig.run()
    disk.wait()
    assert rig.raw(p9.pack(p9.TFSYNC, 8, 2, 0)) == p9.pack(p9.TFSYNC + 1, 8)
    assert (sync.times, len(disk.calls)) == (0, 1)


def test_flush_is_answered_behind_it_and_a_flush_of_the_flush_behind_that(rig: Rig, disk: SlowDisk) -> None:  # F3.6
    sync = send(rig, p9.TFSYNC, 2, 0, tag=8)
    rig.run()
    disk.wait()
    flushes = [send(rig, p9.TFLUSH, 8, tag=9), send(rig, p9.TFLUSH, 9, tag=10)]
    rig.ask(p9.TFLUSH, 99)
    assert [each.times for each in (sync, *flushes)] == [0, 0, 0]
    disk.gate.set()
    assert come(rig, sync, *flushes) == [p9.pack(p9.TFSYNC + 1, 8), *(p9.pack(p9.TFLUSH + 1, tag) for tag in (9, 10))]
    rig.ask(p9.TFLUSH, 8)


def test_as_many_wait_as_the_ring_has(rig: Rig, disk: SlowDisk) -> None:
    """One thread has them all. A split ring takes two descriptors for each."""
    syncs = [send(rig, p9.TFSYNC, 2, 0, tag=tag) for tag in range(100, 150)]
    rig.run()
    disk.wait()
    rig.ask(p9.TGETATTR, 2, 0x7FF)
    assert [each.times for each in syncs] == [0] * 50
    disk.gate.set()
    assert come(rig, *syncs) == [p9.pack(p9.TFSYNC + 1, tag) for tag in range(100, 150)]
    assert (len(disk.calls), len(disk.threads)) == (50, 1)


def test_disk_that_is_faster_than_who_asks(rig: Rig, disk: SlowDisk, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is done before `add` has returned, as when the threads change places there."""
    add = p9_syncs.SyncThread.add
    done = threading.Event()

    def slow(thread: p9_syncs.SyncThread, one: p9_syncs.Sync, identity: Identity) -> bool:
        tell = one.done

        def told(each: p9_syncs.Sync, code: int) -> None:
            tell(each, code)
            done.set()

        one.done = told
        added = add(thread, one, identity)
        assert done.wait(LIMIT)
        return added

    monkeypatch.setattr(p9_syncs.SyncThread, "add", slow)
    disk.gate.set()
    assert come(rig, send(rig, p9.TFSYNC, 2, 0, tag=8)) == [p9.pack(p9.TFSYNC + 1, 8)]


def test_thread_keeps_nothing_of_what_is_over(rig: Rig, disk: SlowDisk, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request leads to the driver's memory, which may be gone long before the next one."""
    syncs: list[weakref.ref[p9_syncs.Sync]] = []
    add = p9_syncs.SyncThread.add

    def noted(thread: p9_syncs.SyncThread, one: p9_syncs.Sync, identity: Identity) -> bool:
        syncs.append(weakref.ref(one))
        return add(thread, one, identity)

    monkeypatch.setattr(p9_syncs.SyncThread, "add", noted)
    disk.gate.set()
    come(rig, send(rig, p9.TFSYNC, 2, 0, tag=8))
    wait_for(lambda: gc.collect() >= 0 and syncs[0]() is None)
    disk.gate.clear()
    send(rig, p9.TFSYNC, 2, 0, tag=8)
    flush = send(rig, p9.TFLUSH, 8, tag=9)
    rig.run()
    disk.wait()
    disk.wait()
    rig.device.queue_reset(0)
    one = syncs[1]()
    assert one is not None
    assert (one.request, one.flushes, flush.times) == (None, [], 0)


def test_fid_that_ends_meanwhile(rig: Rig, disk: SlowDisk, tmp_path: Path) -> None:
    sync = send(rig, p9.TFSYNC, 2, 0, tag=8)
    rig.run()
    disk.wait()
    rig.ask(p9.TREMOVE, 2)
    assert os.listdir(tmp_path / "share") == []
    assert rig.tree.open_count == 1
    rig.ask(p9.TWALK, 1, 2, [])  # the number is another's now
    disk.gate.set()
    assert come(rig, sync) == [p9.pack(p9.TFSYNC + 1, 8)]
    assert rig.tree.open_count == 0


def test_version_cancels_what_waits(rig: Rig, disk: SlowDisk) -> None:  # F4.2
    syncs = [send(rig, p9.TFSYNC, 2, 0, tag=tag) for tag in (8, 9)]
    flush = send(rig, p9.TFLUSH, 8, tag=10)
    rig.run()
    disk.wait()
    assert rig.ask(p9.TVERSION, MSIZE, p9.VERSION) == (MSIZE, p9.VERSION)
    assert [said(each) for each in syncs] == [p9.pack(p9.RLERROR, tag, errno.ECANCELED) for tag in (8, 9)]
    assert said(flush) == p9.pack(p9.TFLUSH + 1, 10)
    begin(rig)
    again = send(rig, p9.TFSYNC, 2, 0, tag=8)
    rig.run()
    assert again.times == 0
    disk.gate.set()
    assert come(rig, again) == [p9.pack(p9.TFSYNC + 1, 8)]
    assert [each.times for each in (*syncs, flush)] == [1, 1, 1]
    assert (len(disk.calls), len(disk.threads)) == (2, 1)
    assert rig.tree.open_count == 1


def test_reset_leaves_its_buffers_alone(tmp_path: Path, disk: SlowDisk) -> None:  # F4.1
    """The next session's wait for the same thread; what had not begun is not done."""
    rig = made(tmp_path, "copied")
    assert rig.pair is not None
    for tag in (8, 9):
        send(rig, p9.TFSYNC, 2, 0, tag=tag)
    rig.run()
    disk.wait()
    rig.pair.server.reset()
    rig.pair.settle()
    begin(rig)
    sync = send(rig, p9.TFSYNC, 2, 1, tag=8)
    rig.run()
    assert rig.tree.open_count == 2
    disk.gate.set()
    assert come(rig, sync) == [p9.pack(p9.TFSYNC + 1, 8)]
    assert disk.calls == [False, True]
    assert len(disk.threads) == 1
    assert rig.tree.open_count == 1
    assert rig.device.counters.refused == 0
    rig.close()


def test_queue_that_is_reset_forgets_them_and_fids_stay(tmp_path: Path, disk: SlowDisk) -> None:
    rig = made(tmp_path, "copied")
    transport = rig.driver.transport
    assert transport is not None
    syncs = [send(rig, p9.TFSYNC, 2, 0, tag=tag) for tag in (8, 9)]
    rig.run()
    disk.wait()
    unused: list[object] = []
    transport.reset_queue(transport.queues[0], unused.extend)
    rig.run()
    assert unused == syncs
    rig.ask(p9.TGETATTR, 2, 0x7FF)
    again = send(rig, p9.TFSYNC, 2, 1, tag=8)
    disk.gate.set()
    assert come(rig, again) == [p9.pack(p9.TFSYNC + 1, 8)]
    assert [each.times for each in syncs] == [0, 0]
    assert disk.calls == [False, True]
    rig.close()


def test_device_is_suspended_when_all_are_answered_and_its_server_goes_on_meanwhile(  # F4.4
    tmp_path: Path, disk: SlowDisk
) -> None:
    rig = made(tmp_path, "copied")
    assert rig.pair is not None
    syncs = [send(rig, p9.TFSYNC, 2, 0, tag=tag) for tag in (8, 9)]
    rig.run()
    disk.wait()
    outcomes: list[PowervioError | None] = []
    rig.pair.client.suspend(outcomes.append)
    rig.run()
    assert (outcomes, [each.times for each in syncs]) == ([], [0, 0])
    disk.gate.set()
    assert [each[4] for each in come(rig, *syncs)] == [p9.TFSYNC + 1] * 2
    rig.run()
    assert outcomes == [None]
    rig.pair.client.resume()
    rig.run()
    rig.ask(p9.TGETATTR, 2, 0x7FF)
    rig.close()


def test_memory_that_is_not_there_any_more_fails_its_answer_alone(tmp_path: Path, disk: SlowDisk) -> None:  # F5.1
    rig = made(tmp_path, "copied")
    transport = rig.driver.transport
    assert transport is not None
    here, gone = (transport.allocate(4096, mapped=True) for _ in range(2))
    here.view[:15] = p9.pack(p9.TFSYNC, 8, 2, 0)
    exchange = Exchange(gone, 0, 512)
    assert transport.queues[0].add([(here, 0, 15)], [(gone, 0, 512)], exchange)
    transport.queues[0].kick()
    rig.run()
    disk.wait()
    transport.release(gone)
    disk.gate.set()
    wait_for(lambda: (rig.run(), exchange.times)[1] == 1)  # type: ignore[func-returns-value]
    assert exchange.used == 0
    assert rig.device.counters.refused == 1
    assert come(rig, send(rig, p9.TFSYNC, 2, 0, tag=8)) == [p9.pack(p9.TFSYNC + 1, 8)]
    rig.close()


def test_server_that_ends_waits_so_long_and_leaves_nothing(
    tmp_path: Path, disk: SlowDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_module, "ENDING", 0.05)
    rig = made(tmp_path, "copied")
    for tag in (8, 9):
        send(rig, p9.TFSYNC, 2, 0, tag=tag)
    rig.run()
    disk.wait()
    threads = threading.active_count()
    rig.close()
    assert rig.tree.open_count == 1
    disk.gate.set()
    wait_for(lambda: threading.active_count() < threads)
    assert (rig.tree.open_count, len(disk.calls)) == (0, 1)


def test_used_in_order_all_wait_for_it(tmp_path: Path, disk: SlowDisk) -> None:
    (tmp_path / "f").touch()
    tree = Tree(tmp_path)
    device, driver = P9Device("share", lambda: Session(tree), close=tree.close), RawDriver()
    link = DirectLink(device, driver, in_order=True)
    link.connect()
    texts = [
        p9.pack(p9.TVERSION, p9.NO_TAG, MSIZE, p9.VERSION),
        p9.pack(p9.TATTACH, 1, 1, p9.NO_FID, b"", b"", os.geteuid()),
        p9.pack(p9.TWALK, 2, 1, 2, [b"f"]),
        p9.pack(p9.TLOPEN, 3, 2, os.O_RDWR),
        p9.pack(p9.TFSYNC, 4, 2, 0),
        p9.pack(p9.TGETATTR, 5, 2, 0x7FF),
    ]
    exchanges = [driver.send([text], [160]) for text in texts]
    link.run()
    disk.wait()
    assert [each.times for each in exchanges] == [1, 1, 1, 1, 0, 0]
    disk.gate.set()
    wait_for(lambda: (link.run(), exchanges[-1].times)[1] == 1)  # type: ignore[func-returns-value]
    assert [said(each)[4] for each in exchanges[4:]] == [p9.TFSYNC + 1, p9.TGETATTR + 1]
    link.close()
    device.close()


def test_without_a_thread_it_is_done_in_its_place(rig: Rig, disk: SlowDisk, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", start)
        rig.ask(p9.TFSYNC, 2, 0)
    assert disk.calls == []

"""The loopback port."""

from __future__ import annotations

import threading

from tests.network.test_segment import large as large_frame

from powervio.network.checksum import finished
from powervio.network.loopback import LoopbackPort
from powervio.network.port import GSO_TCPV4, Frame, Offload
from powervio.network.segment import segments


def test_frames_come_back_in_order_with_what_is_left_to_do() -> None:
    port = LoopbackPort()
    port.take(Offload.CSUM)
    frames = [Frame(b"a" * 60), Frame(b"b" * 60, (14, 6))]
    arrivals: list[int] = []
    port.on_arrival = lambda: arrivals.append(len(port))
    assert all(port.send(frame) for frame in frames)
    assert [port.receive(), port.receive(), port.receive()] == [*frames, None]
    assert (port.sent, port.received, port.dropped) == (2, 2, {})
    assert arrivals == [1, 2]


def test_queue_is_bounded_and_drops_are_counted() -> None:
    port = LoopbackPort(limit=2)
    assert [port.send(Frame(bytes([n]) * 60)) for n in range(4)] == [True, True, False, False]
    assert port.dropped == {"queue full": 2}
    assert port.sent == 2
    first = port.receive()
    assert first is not None
    assert first.data[0] == 0
    assert port.put(Frame(b"z" * 60))


def test_what_is_not_taken_is_finished() -> None:
    port = LoopbackPort()
    large, partial = large_frame(b"x" * 99, 50), Frame(b"b" * 60, (14, 6))
    assert port.send(large)
    assert port.send(partial)
    assert port.send(Frame(b"c" * 60, (14, 6), gso=GSO_TCPV4, gso_size=9))
    assert port.send(Frame(b"d" * 60))
    assert [port.receive() for _ in range(5)] == [*segments(large), finished(partial), Frame(b"d" * 60), None]
    assert (port.sent, port.received, port.dropped) == (4, 4, {"malformed": 1})


def test_frames_may_be_put_by_other_threads() -> None:
    port = LoopbackPort(limit=10_000)
    threads = [
        threading.Thread(target=lambda: [port.put(Frame(b"x" * 60)) for _ in range(500)], daemon=True) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(port) == 2000

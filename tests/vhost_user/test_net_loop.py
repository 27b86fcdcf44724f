"""Two drivers at a switch whose rings one thread forwards between: what arrives is what was sent, whatever it is."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest
from tests.devices.net_frames import HEADER, TCP4, UDP4, header, ipv4, ipv6, tcp, udp
from tests.vhost_user.harness import until
from tests.vhost_user.test_switch import Served, served

from powervio.devices.net import NetDevice
from powervio.network.loopback import LoopbackPort
from powervio.testing.raw import Exchange, RawDriver
from powervio.transport.vhost_user.back_end import BackEndOptions
from powervio.transport.vhost_user.front_end import FrontEnd
from powervio.virtio import features as feature
from powervio.virtio import net

pytestmark = pytest.mark.dual

EVERYTHING = BackEndOptions(packed=True, in_order=True)
SPLIT = feature.VERSION_1
RINGS = {
    "split": SPLIT,
    "split-event": SPLIT | feature.INDIRECT_DESC | feature.EVENT_IDX,
    "packed": SPLIT | feature.RING_PACKED,
    "packed-event": SPLIT | feature.RING_PACKED | feature.INDIRECT_DESC | feature.EVENT_IDX,
    "in-order": SPLIT | feature.IN_ORDER,
}
EACH = pytest.mark.parametrize("ring", list(RINGS.values()), ids=list(RINGS))
A, B = b"\2\0\0\0\0\x0a", b"\2\0\0\0\0\x0b"
TYPES = NetDevice(LoopbackPort()).features & ~net.F_CTRL_VQ


class Ends:
    """Both drivers, and their front ends."""

    def __init__(self, back: Served, ring: int, features: tuple[int, int] = (TYPES, TYPES)) -> None:
        self._back = back
        self.drivers = [RawDriver(one, queues=2) for one in features]
        for driver in self.drivers:
            driver.device_id = net.DEVICE_ID  # type: ignore[misc]
        self.ends = [
            FrontEnd(path, driver, ring_features=ring) for path, driver in zip(back.paths, self.drivers, strict=True)
        ]

    async def __aenter__(self) -> Ends:
        for end in self.ends:
            await end.start()
        for who in (0, 1):  # what comes before a ring was kicked comes to nobody
            self.offer(who, 1)  # and goes back empty
            self.send(who, b"x")
        await until(lambda: all(len(device._loops) == 2 for device in self._back.switch.devices))
        return self

    async def __aexit__(self, *_: object) -> None:
        for end in self.ends:
            await end.close()

    def send(self, who: int, *parts: bytes) -> Exchange:
        return self.drivers[who].send([part for part in parts if part], [], net.TRANSMIT)

    def offer(self, who: int, *lengths: int) -> Exchange:
        return self.drivers[who].send([], list(lengths), net.RECEIVE)


def to_b(data: bytes) -> bytes:
    return B + A + data[12:]


@EACH
def test_frames_of_all_sizes_arrive_as_they_were_sent(tmp_path: Path, ring: int) -> None:
    frames = [to_b(ipv4(udp(size, size))) for size in (0, 1, 100, 214, 215, 230, 1000, 1472)]

    async def use(back: Served) -> None:
        async with Ends(back, ring) as ends:
            got = [ends.offer(1, 600, 1000) for _ in frames]
            sent = [
                ends.send(0, bytes(12), frame[:20], frame[20:300], frame[300:]) if number & 1 else
                ends.send(0, bytes(12) + frame)
                for number, frame in enumerate(frames)
            ]  # fmt: skip
            await until(lambda: all(exchange.used is not None for exchange in got + sent))
            for exchange, frame in zip(got, frames, strict=True):
                assert exchange.used == 12 + len(frame)
                assert exchange.answer[:12] == bytes(10) + b"\1\0"
                assert exchange.answer[12 : exchange.used] == frame
            assert [exchange.used for exchange in sent] == [0] * len(frames)

    with served(tmp_path, "", "", options=EVERYTHING) as back:
        asyncio.run(use(back))
        first, second = back.switch.devices
        assert first.from_driver.frames == second.to_driver.frames == len(frames)
        assert first.from_driver.bytes == second.to_driver.bytes == sum(map(len, frames))


@EACH
def test_large_frame_crosses_as_one_over_many_buffers(tmp_path: Path, ring: int) -> None:
    large = to_b(ipv4(tcp(50_000), 6))

    async def use(back: Served) -> None:
        async with Ends(back, ring) as ends:
            got = [ends.offer(1, 2048) for _ in range(30)]
            ends.send(0, TCP4, large)
            ends.send(0, header(net.H_NEEDS_CSUM, start=34, offset=6), to_b(ipv4(udp(100))))
            needed = -(-(12 + len(large)) // 2048)
            await until(lambda: got[needed].used is not None)
            data = b"".join(exchange.answer[: exchange.used] for exchange in got[:needed])
            assert HEADER.unpack(data[:12]) == (1, net.GSO_TCPV4, 54, 1448, 34, 16, needed)
            assert data[12:] == large
            assert HEADER.unpack(got[needed].answer[:12]) == (1, 0, 0, 0, 34, 6, 1)

    with served(tmp_path, "", "", options=EVERYTHING) as back:
        asyncio.run(use(back))
        assert back.switch.devices[1].to_driver.frames == 2


def test_receiver_that_takes_segments_only_gets_them(tmp_path: Path) -> None:
    large = to_b(ipv4(tcp(14_480), 6))

    async def use(back: Served) -> None:
        async with Ends(back, SPLIT, (TYPES, TYPES & ~net.F_GUEST_TSO4)) as ends:
            got = [ends.offer(1, 2048) for _ in range(12)]
            ends.send(0, TCP4, large)
            await until(lambda: got[9].used is not None)
            assert b"".join(exchange.answer[12 + 54 : exchange.used] for exchange in got[:10]) == large[54:]
            assert got[10].used is None

    with served(tmp_path, "", "") as back:
        asyncio.run(use(back))
        assert back.switch.devices[1].to_driver.frames == 10


def test_offsets_of_a_checksum_move_with_the_tag(tmp_path: Path) -> None:
    plain = to_b(ipv4(tcp(3000), 6))

    async def use(back: Served) -> None:
        async with Ends(back, SPLIT) as ends:
            there, here = ends.offer(1, 4000), ends.offer(0, 4000)
            ends.send(0, TCP4, plain)
            await until(lambda: there.used is not None)
            tagged = there.answer[12 : there.used]
            assert tagged == plain[:12] + b"\x81\0\0\x0a" + plain[12:]
            assert HEADER.unpack(there.answer[:12])[2:6] == (58, 1448, 38, 16)
            ends.send(1, header(1, 1, 0, 1448, 38, 16), A + B + tagged[12:])
            await until(lambda: here.used is not None)
            assert here.answer[12 : here.used] == A + B + plain[12:]
            assert HEADER.unpack(here.answer[:12])[2:6] == (54, 1448, 34, 16)

    with served(tmp_path, ",pvid=10", ",vlans=10") as back:
        asyncio.run(use(back))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    "ring", [RINGS["split"], RINGS["packed"], RINGS["in-order"]], ids=["split", "packed", "in-order"]
)
def test_junk_is_dropped_or_passed_on_and_every_buffer_comes_back(tmp_path: Path, ring: int, seed: int) -> None:
    dice = random.Random(seed)

    def junk() -> list[bytes]:
        head = dice.choice(
            [
                bytes(12),
                TCP4,
                UDP4,
                dice.randbytes(12),
                header(1, dice.randrange(8), 0, dice.randrange(2000), dice.randrange(60), dice.randrange(20)),
            ]
        )
        data = dice.choice(
            [
                to_b(ipv4(tcp(dice.randrange(9000)), 6)),
                to_b(ipv4(udp(dice.randrange(3000)))),
                ipv6(udp(50)),
                dice.randbytes(dice.randrange(200)),
                b"",
            ]
        )
        whole = (head + data)[: dice.choice([1, 5, 12, 20, 26, 40, 100_000])]
        cut = sorted(dice.randrange(len(whole) + 1) for _ in range(dice.randrange(3)))
        return [whole[at:end] for at, end in zip([0, *cut], [*cut, len(whole)], strict=True)]

    async def use(back: Served) -> int:
        async with Ends(back, ring) as ends:
            sent: list[Exchange] = []
            for _ in range(40):
                for _ in range(dice.randrange(4)):
                    if sum(exchange.used is None for exchange in offered) < 60:
                        offered.append(ends.offer(1, *[dice.choice([1, 11, 12, 100, 2000])] * dice.randrange(1, 3)))
                batch = [ends.send(0, *junk()) for _ in range(dice.randrange(1, 8))]
                if dice.random() < 0.2:
                    batch.append(ends.drivers[0].send([bytes(80)], [10], net.TRANSMIT))
                await until(lambda batch=batch: all(exchange.used is not None for exchange in batch))  # type: ignore[misc]
                sent += batch
            assert {(exchange.used, exchange.times) for exchange in sent} == {(0, 1)}
            before = back.switch.devices[1].to_driver.frames
            ends.offer(1, 4000)
            ends.send(0, bytes(12), to_b(ipv4(udp(77, 7, 7))))
            await until(lambda: back.switch.devices[1].to_driver.frames > before)
            assert {exchange.times for exchange in offered} <= {0, 1}
            return len(sent) + 2

    offered: list[Exchange] = []
    with served(tmp_path, "", "", options=EVERYTHING) as back:
        count = asyncio.run(use(back))
        counters = back.switch.devices[0].from_driver
        assert counters.frames + counters.lost == count

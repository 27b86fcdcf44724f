"""Several pairs of queues: automatic steering, RSS (virtio 1.4, 5.1.6.5.5 and 5.1.6.5.7)."""

from __future__ import annotations

from struct import Struct

import pytest
from tests.devices.net_frames import ALL, MAC, ipv4, ipv6, tcp, udp
from tests.devices.net_joined import Joined

from powervio.devices.net_rules import FrameRules
from powervio.virtio import net

OK, ERR = b"\0", b"\1"
KEY = bytes.fromhex("6d5a56da255b0ec24167253d43a38fb0d0ca2bcbae7b30b477cb2da38030f20c6a42b73bbeac01fa")


def set_pairs(pairs: int) -> bytes:
    return bytes([net.CTRL_MQ, net.MQ_VQ_PAIRS_SET]) + pairs.to_bytes(2, "little")


def rss(types: int, table: list[int], *, unclassified: int = 0, pairs: int = 4, key: bytes = KEY) -> bytes:
    return (
        bytes([net.CTRL_MQ, net.MQ_RSS_CONFIG])
        + Struct("<IHH").pack(types, len(table) - 1, unclassified)
        + Struct(f"<{len(table)}H").pack(*table)
        + Struct("<HB").pack(pairs, len(key))
        + key
    )


def with_pairs(pairs: int = 4, features: int = ALL) -> Joined:
    return Joined(features, pairs=pairs, queues=2 * pairs + 1)


@pytest.mark.dual
def test_flow_comes_back_on_the_pair_that_sent_it() -> None:
    joined = with_pairs()
    assert joined.command(set_pairs(4)) == OK
    ports = {0: 1000, 1: 2001, 2: 3002, 3: 4003}
    here, there = b"\x0a\0\0\1", b"\x0a\0\0\2"
    for pair, port in ports.items():
        joined.transmit(bytes(12), ipv4(udp(10, port, 53), source=here, target=there), pair=pair)
    answers = {pair: ipv4(udp(10, 53, port), source=there, target=here) for pair, port in ports.items()}
    offered = {pair: [joined.offer(1600, pair=pair) for _ in range(3)] for pair in ports}
    for _ in range(2):
        joined.arrive(*answers.values())
    for pair, exchanges in offered.items():
        assert [exchange.used is not None for exchange in exchanges] == [True, True, False]
        assert exchanges[0].answer[12:][: len(answers[pair])] == answers[pair]
    assert joined.device.to_driver.frames == 8


def test_only_pairs_that_the_driver_uses_get_frames() -> None:
    joined = with_pairs()
    frame = ipv4(udp(10))
    exchanges = [joined.offer(1600, pair=pair) for pair in (0, 0, 3)]
    joined.transmit(bytes(12), frame, pair=3)
    joined.arrive(frame)
    assert [exchange.used is not None for exchange in exchanges] == [True, False, False]
    assert joined.command(set_pairs(4)) == OK
    joined.transmit(bytes(12), frame, pair=3)
    joined.arrive(frame)
    assert [exchange.used is not None for exchange in exchanges] == [True, False, True]


def test_frames_that_wait_for_a_pair_that_is_given_up_go_to_another() -> None:
    joined = with_pairs()
    joined.command(set_pairs(2))
    frame = ipv4(udp(10))
    joined.transmit(bytes(12), frame, pair=1)
    joined.offer(1600)
    joined.offer(1600)
    joined.arrive(frame)
    assert joined.device.to_driver.frames == 0  # nobody gave pair 1 a buffer
    assert joined.command(set_pairs(1)) == OK
    assert joined.device.to_driver.frames == 1


def test_pair_without_buffers_does_not_hold_up_another() -> None:
    joined = with_pairs(2)
    joined.command(set_pairs(2))
    slow, quick = ipv4(udp(10, 1, 1)), ipv4(udp(10, 7, 9))
    joined.transmit(bytes(12), slow, pair=1)
    exchanges = [joined.offer(1600) for _ in range(60)]
    for _ in range(50):
        joined.arrive(*[slow] * 10, quick)
    assert sum(exchange.used is not None for exchange in exchanges) == 50
    assert joined.device.to_driver.dropped == {"queue full": 500 - 256}


@pytest.mark.parametrize("pairs", [0, 5, 0xFFFF])
def test_number_of_pairs_that_cannot_be_is_refused(pairs: int) -> None:
    joined = with_pairs()
    assert joined.command(set_pairs(pairs)) == ERR
    assert joined.command(set_pairs(4) + b"\0") == ERR


# the vectors of the specification of receive-side scaling: addresses, ports, hash without and with ports
VECTORS4 = [
    ("66.9.149.187", 2794, "161.142.100.80", 1766, 0x323E8FC2, 0x51CCC178),
    ("199.92.111.2", 14230, "65.69.140.83", 4739, 0xD718262A, 0xC626B0EA),
    ("24.19.198.95", 12898, "12.22.207.184", 38024, 0xD2D0A5DE, 0x5C2B394A),
]


def address(text: str) -> bytes:
    return bytes(int(part) for part in text.split("."))


@pytest.mark.dual
@pytest.mark.parametrize(("source", "port", "target", "to", "plain", "with_ports"), VECTORS4)
def test_hash_is_that_of_the_specification(
    source: str, port: int, target: str, to: int, plain: int, with_ports: int
) -> None:
    rules = FrameRules()
    frames = [
        ipv4(transport, protocol, source=address(source), target=address(target))
        for transport, protocol in ((tcp(0, port, to), 6), (udp(0, port, to), 17))
    ]
    for types, expected in (
        (net.HASH_IPV4, [plain, plain]),
        (net.HASH_IPV4 | net.HASH_TCPV4, [with_ports, plain]),
        (net.HASH_UDPV4, [-1, with_ports]),
        (net.HASH_IPV6, [-1, -1]),
    ):
        rules.steering.set_rss(1, types, [0], 0, KEY)
        assert [rules.hashed(frame) for frame in frames] == expected


@pytest.mark.dual
def test_hash_of_ipv6_is_that_of_the_specification() -> None:
    rules = FrameRules()
    frame = ipv6(
        tcp(0, 2794, 1766),
        6,
        source=bytes.fromhex("3ffe250102001fff0000000000000007"),
        target=bytes.fromhex("3ffe2501020000030000000000000001"),
    )
    rules.steering.set_rss(1, net.HASH_IPV6, [0], 0, KEY)
    assert rules.hashed(frame) == 0x2CC18CD5
    rules.steering.set_rss(1, net.HASH_TCPV6, [0], 0, KEY)
    assert rules.hashed(frame) == 0x40207D3D


@pytest.mark.dual
def test_rss_steers_by_the_drivers_table() -> None:
    joined = with_pairs()
    table = [1, 2, 3, 0] * 32
    assert joined.command(rss(net.HASH_IPV4 | net.HASH_TCPV4, table, unclassified=3)) == OK
    exchanges = {pair: [joined.offer(1600, pair=pair) for _ in range(3)] for pair in range(4)}
    source, port, target, to, plain, with_ports = VECTORS4[0]
    joined.arrive(ipv4(tcp(0, port, to), 6, source=address(source), target=address(target)))
    joined.arrive(ipv4(udp(0, port, to), source=address(source), target=address(target)))
    joined.arrive(MAC + MAC + b"\x08\x06" + bytes(46))
    expected = [table[with_ports & 127], table[plain & 127], 3]
    counts = [sum(exchange.used is not None for exchange in exchanges[pair]) for pair in range(4)]
    assert counts == [expected.count(pair) for pair in range(4)]
    # plain steering again
    assert joined.command(set_pairs(1)) == OK
    joined.arrive(MAC + MAC + b"\x08\x06" + bytes(46))
    assert sum(exchange.used is not None for exchange in exchanges[0]) == counts[0] + 1


@pytest.mark.parametrize(
    "command",
    [
        rss(0, [0] * 3),
        rss(0, [0] * 256),
        rss(1 << 6, [0]),
        rss(0, [4]),
        rss(0, [0], unclassified=4),
        rss(0, [0], pairs=0),
        rss(0, [0], pairs=5),
        rss(0, [0], key=bytes(41)),
        rss(0, [0])[:-1],
        rss(0, [0]) + b"\0",
        rss(0, [0])[:9],
        bytes([net.CTRL_MQ, net.MQ_HASH_CONFIG]) + bytes(60),
    ],
)
def test_rss_that_cannot_be_is_refused(command: bytes) -> None:
    joined = with_pairs()
    assert joined.command(command) == ERR
    assert not joined.device.control.rules.steering.rss


def test_control_queue_is_behind_the_first_pair_without_mq() -> None:
    joined = Joined(ALL & ~(net.F_MQ | net.F_RSS), pairs=4, queues=3)
    exchange = joined.driver.send([bytes([net.CTRL_RX, net.RX_PROMISC, 0])], [1], 2)
    joined.link.run()
    assert exchange.answer == OK


def test_front_end_that_has_the_control_queue_itself_enables_queues() -> None:
    joined = Joined(ALL & ~net.F_CTRL_VQ, pairs=2, queues=4)
    frame = ipv4(udp(10))
    joined.link.device_queues[2].enabled = False
    exchanges = [joined.offer(1600, pair=pair) for pair in (0, 1)]
    joined.transmit(bytes(12), frame, pair=1)
    joined.arrive(frame)
    assert [exchange.used is not None for exchange in exchanges] == [True, False]
    joined.link.device_queues[2].enabled = True
    joined.arrive(frame)
    joined.transmit(bytes(12), frame, pair=1)
    joined.arrive(frame)
    assert exchanges[1].used is not None

"""The control queue of the network device (virtio 1.4, 5.1.6.5)."""

from __future__ import annotations

from struct import Struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.devices.net_frames import ALL, MAC, OTHER, TCP4, ipv4, tcp, udp
from tests.devices.net_joined import Joined, QueuePort

from powervio.devices.net import NetDevice
from powervio.errors import LocalError
from powervio.network.port import Offload
from powervio.virtio import net

OK, ERR = b"\0", b"\1"
BROADCAST = b"\xff" * 6
GROUP = b"\x01\0\x5e\0\0\1"
STRANGER = b"\2\0\0\0\0\x99"


def with_control(features: int = ALL, **options: int) -> Joined:
    return Joined(features, queues=3, **options)  # type: ignore[arg-type]


def listening(joined: Joined, *frames: bytes) -> list[bool]:
    """Which of these frames reach the driver."""
    heard = []
    for frame in frames:
        before = joined.device.to_driver.frames
        joined.offer(1600)
        joined.arrive(frame)
        heard.append(joined.device.to_driver.frames > before)
    return heard


def frame(to: bytes, tag: int | None = None) -> bytes:
    return ipv4(udp(20), to=to, tag=b"" if tag is None else b"\x81\0" + tag.to_bytes(2, "big"))


def rx(mode: int, value: int) -> bytes:
    return bytes([net.CTRL_RX, mode, value])


def table(*lists: list[bytes]) -> bytes:
    parts = [len(addresses).to_bytes(4, "little") + b"".join(addresses) for addresses in lists]
    return bytes([net.CTRL_MAC, net.MAC_TABLE_SET]) + b"".join(parts)


@pytest.mark.dual
def test_driver_hears_everything_until_it_says_otherwise() -> None:
    joined = with_control()
    kinds = [frame(MAC), frame(STRANGER), frame(GROUP), frame(BROADCAST), frame(MAC, 7)]
    assert listening(joined, *kinds) == [True] * 5
    assert joined.command(rx(net.RX_PROMISC, 0)) == OK
    assert listening(joined, *kinds) == [True, False, False, True, False]
    assert joined.device.to_driver.dropped == {"filtered": 3}
    assert joined.command(rx(net.RX_ALLMULTI, 1)) == OK
    assert listening(joined, *kinds) == [True, False, True, True, False]
    assert joined.command(rx(net.RX_ALLUNI, 1)) == OK
    assert listening(joined, *kinds) == [True, True, True, True, False]
    for mode in (net.RX_NOMULTI, net.RX_NOUNI, net.RX_NOBCAST):
        assert joined.command(rx(mode, 1)) == OK
    assert listening(joined, *kinds) == [False] * 5
    joined.link.disconnect()
    joined.link.connect()
    assert listening(joined, *kinds) == [True] * 5


@pytest.mark.dual
def test_table_of_addresses() -> None:
    joined = with_control()
    joined.command(rx(net.RX_PROMISC, 0))
    assert joined.command(table([STRANGER, OTHER], [GROUP])) == OK
    assert listening(joined, frame(MAC), frame(STRANGER), frame(OTHER), frame(GROUP)) == [True] * 4
    assert joined.command(table([], [])) == OK
    assert listening(joined, frame(MAC), frame(STRANGER), frame(GROUP)) == [True, False, False]
    many = [number.to_bytes(6, "big") for number in range(1000)]
    assert joined.command(table([], many)) == OK  # more than are told apart: all groups, and no stranger
    assert listening(joined, frame(STRANGER), frame(GROUP)) == [False, True]


@pytest.mark.parametrize(
    "command",
    [
        table([STRANGER])[:-1],
        table([STRANGER]),
        table([STRANGER], [GROUP])[:-1],
        table([STRANGER], [GROUP]) + b"\0",
        bytes([net.CTRL_MAC, net.MAC_TABLE_SET]) + b"\xff\xff\xff\xff" + MAC,
        bytes([net.CTRL_MAC, net.MAC_TABLE_SET]),
        bytes([net.CTRL_MAC, 2]) + MAC,
    ],
)
def test_table_that_is_not_whole_changes_nothing(command: bytes) -> None:
    joined = with_control()
    joined.command(rx(net.RX_PROMISC, 0))
    joined.command(table([OTHER], []))
    assert joined.command(command) == ERR
    assert listening(joined, frame(OTHER), frame(STRANGER), frame(GROUP)) == [True, False, False]


@pytest.mark.dual
def test_vlans_pass_by_their_number() -> None:
    joined = with_control()
    joined.command(rx(net.RX_PROMISC, 0))
    assert listening(joined, frame(MAC), frame(MAC, 5), frame(MAC, 0)) == [True, False, False]
    assert joined.command(bytes([net.CTRL_VLAN, net.VLAN_ADD, 5, 0])) == OK
    assert joined.command(bytes([net.CTRL_VLAN, net.VLAN_ADD, 0xFF, 0x0F])) == OK
    assert listening(joined, frame(MAC, 5), frame(MAC, 0xE005), frame(MAC, 4095), frame(MAC, 6)) == [
        True,
        True,
        True,
        False,
    ]
    assert joined.command(bytes([net.CTRL_VLAN, net.VLAN_DEL, 5, 0])) == OK
    assert listening(joined, frame(MAC, 5)) == [False]
    assert joined.command(bytes([net.CTRL_VLAN, net.VLAN_ADD, 0, 0x10])) == ERR
    assert joined.command(bytes([net.CTRL_VLAN, 2, 5, 0])) == ERR


def test_driver_that_has_no_vlan_filter_gets_all_of_them() -> None:
    joined = with_control(ALL & ~net.F_CTRL_VLAN)
    joined.command(rx(net.RX_PROMISC, 0))
    assert listening(joined, frame(MAC, 5)) == [True]


def test_address_that_the_driver_sets_is_the_adapters_until_reset() -> None:
    joined = with_control()
    assert joined.command(bytes([net.CTRL_MAC, net.MAC_ADDR_SET]) + STRANGER) == OK
    assert joined.device.mac == STRANGER
    joined.command(rx(net.RX_PROMISC, 0))
    assert listening(joined, frame(MAC), frame(STRANGER)) == [False, True]
    for wrong in (GROUP, MAC[:5], MAC + b"\0"):
        assert joined.command(bytes([net.CTRL_MAC, net.MAC_ADDR_SET]) + wrong) == ERR
    joined.link.disconnect()
    joined.link.connect()
    assert joined.device.mac == MAC


def test_announcement_is_asked_for_until_it_is_acknowledged() -> None:
    joined = with_control()
    acknowledge = bytes([net.CTRL_ANNOUNCE, net.ANNOUNCE_ACK])
    assert joined.command(acknowledge) == ERR
    joined.device.announce()
    joined.link.run()
    assert joined.driver.config_changes == 1
    assert joined.device.config("little")[6] == net.S_LINK_UP | net.S_ANNOUNCE
    assert joined.command(acknowledge + b"\0") == ERR
    assert joined.command(acknowledge) == OK
    assert joined.device.config("little")[6] == net.S_LINK_UP


def test_nobody_is_asked_to_announce_who_cannot() -> None:
    joined = with_control(ALL & ~net.F_GUEST_ANNOUNCE)
    joined.device.announce()
    joined.link.run()
    assert joined.driver.config_changes == 0


def test_offloads_can_be_given_up_and_taken_again() -> None:
    joined = with_control()
    command = bytes([net.CTRL_OFFLOADS, net.OFFLOADS_SET])
    assert joined.port.taken == Offload.CSUM | Offload.TSO4 | Offload.TSO6 | Offload.ECN | Offload.USO4 | Offload.USO6
    assert joined.command(command + (net.F_GUEST_CSUM | net.F_GUEST_TSO6).to_bytes(8, "little")) == OK
    assert joined.port.taken == Offload.CSUM | Offload.TSO6
    assert joined.command(command + bytes(8)) == OK
    assert joined.port.taken == 0
    for wrong in (b"", bytes(7), bytes(9), net.F_GUEST_UFO.to_bytes(8, "little"), b"\xff" * 8):
        assert joined.command(command + wrong) == ERR
    joined = with_control(ALL & ~net.F_GUEST_TSO4)
    assert joined.command(command + net.F_GUEST_TSO4.to_bytes(8, "little")) == ERR


@pytest.mark.parametrize(
    ("without", "command"),
    [
        (net.F_CTRL_RX, rx(net.RX_PROMISC, 1)),
        (net.F_CTRL_RX, table([], [])),
        (net.F_CTRL_RX_EXTRA, rx(net.RX_NOBCAST, 1)),
        (net.F_CTRL_VLAN, bytes([net.CTRL_VLAN, net.VLAN_ADD, 5, 0])),
        (net.F_CTRL_MAC_ADDR, bytes([net.CTRL_MAC, net.MAC_ADDR_SET]) + MAC),
        (net.F_GUEST_ANNOUNCE, bytes([net.CTRL_ANNOUNCE, net.ANNOUNCE_ACK])),
        (net.F_CTRL_GUEST_OFFLOADS, bytes([net.CTRL_OFFLOADS, 0]) + bytes(8)),
        (net.F_NOTF_COAL, bytes([net.CTRL_COAL, net.COAL_RX_SET]) + bytes(8)),
        (net.F_VQ_NOTF_COAL, bytes([net.CTRL_COAL, net.COAL_VQ_GET]) + bytes(4)),
        (0, bytes([net.CTRL_MQ, net.MQ_VQ_PAIRS_SET, 1, 0])),  # it has one pair
        (0, bytes([net.CTRL_MQ, net.MQ_RSS_CONFIG]) + bytes(20)),
    ],
)
def test_command_of_a_feature_that_was_not_negotiated_is_refused(without: int, command: bytes) -> None:
    joined = with_control(ALL & ~without)
    joined.device.control.announcing = True
    assert joined.command(command) == ERR
    assert joined.device.control.refused == 1


@pytest.mark.dual
@pytest.mark.parametrize("packed", [False, True])
def test_command_comes_in_whatever_pieces(packed: bool) -> None:
    joined = with_control(packed=packed)
    command = table([STRANGER], [GROUP])
    joined.command(rx(net.RX_PROMISC, 0))
    assert joined.command(*(bytes([byte]) for byte in command)) == OK
    assert listening(joined, frame(STRANGER), frame(GROUP), frame(OTHER)) == [True, True, False]
    # more room than the acknowledgement needs
    assert joined.command(command, answer=20) == OK


def test_command_without_room_for_an_answer_is_not_carried_out() -> None:
    joined = with_control()
    exchange = joined.driver.send([rx(net.RX_PROMISC, 0)], [], 2)
    joined.link.run()
    assert (exchange.used, exchange.times) == (0, 1)
    assert joined.device.control.rules.filter.promiscuous


@given(
    st.lists(
        st.one_of(
            st.binary(min_size=1, max_size=40),
            st.tuples(st.integers(0, 9), st.integers(0, 7), st.binary(max_size=40)).map(lambda c: bytes(c[:2]) + c[2]),
        ),
        max_size=12,
    ),
    st.integers(1, 12),
)
def test_whatever_is_sent_is_answered_once_and_frames_go_on(commands: list[bytes], room: int) -> None:
    joined = Joined(queues=7, pairs=3)
    control = joined.device.control
    for command in commands:
        answer = joined.command(command, answer=room)
        assert answer[:1] in (OK, ERR)
        assert len(answer) == 1 or command[0] == net.CTRL_COAL
    assert control.commands + control.refused == len(commands)
    joined.device.announce()
    joined.transmit(TCP4, ipv4(tcp(5000), 6))
    assert len(joined.port.out) == 1
    state = joined.device.state()
    NetDevice(QueuePort(), pairs=3).restore(state)
    for pair in range(3):
        joined.offer(1600, pair=pair)
    joined.arrive(ipv4(udp(30)))
    joined.link.advance(5000.0)  # longer than the driver can have its notifications kept back
    counters = joined.device.to_driver
    assert counters.frames + counters.lost == 1


def test_state_of_a_driver_that_goes_on_elsewhere() -> None:
    joined = with_control()
    joined.command(rx(net.RX_PROMISC, 0))
    joined.command(table([STRANGER], [number.to_bytes(6, "big") for number in range(500)]))
    joined.command(bytes([net.CTRL_VLAN, net.VLAN_ADD, 5, 0]))
    joined.command(bytes([net.CTRL_MAC, net.MAC_ADDR_SET]) + OTHER)
    joined.command(bytes([net.CTRL_OFFLOADS, net.OFFLOADS_SET]) + net.F_GUEST_CSUM.to_bytes(8, "little"))
    joined.command(bytes([net.CTRL_COAL, net.COAL_VQ_SET]) + Struct("<HHII").pack(0, 0, 4, 50))
    state = joined.device.state()
    successor = with_control()
    successor.link.disconnect()
    successor.device.restore(state)
    assert successor.device.mac == OTHER
    successor.link.connect()
    assert successor.device.state() == state
    assert successor.port.taken == Offload.CSUM
    heard = listening(
        successor, frame(OTHER), frame(STRANGER), frame(MAC), frame(GROUP), frame(OTHER, 5), frame(OTHER, 6)
    )
    successor.link.advance(0.001)
    assert sum(heard) <= successor.device.to_driver.frames == 4
    assert successor.device.to_driver.dropped == {"filtered": 2}
    successor.link.disconnect()  # another driver begins anew
    successor.link.connect()
    assert successor.device.mac == MAC


@pytest.mark.parametrize("field", ["mac", "vlans", "tables", "pairs", "rss", "promiscuous", "offloads", "coalescing"])
def test_state_that_cannot_be_is_refused(field: str) -> None:
    state = with_control().device.state()
    control = state["control"]
    assert isinstance(control, dict)
    device = with_control().device
    for wrong in ([5], "x", -1, None):
        if (field, wrong) not in (("rss", None), ("promiscuous", wrong), ("offloads", -1)):
            with pytest.raises(LocalError):
                device.restore({**state, "control": {**control, field: wrong}})
    with pytest.raises(LocalError):
        device.restore({**state, "control": {name: value for name, value in control.items() if name != field}})


# -- notification coalescing (5.1.6.5.9)


def coalesce(queue: int, packets: int, microseconds: int) -> bytes:
    return bytes([net.CTRL_COAL, net.COAL_VQ_SET]) + Struct("<HHII").pack(queue, 0, packets, microseconds)


def test_frames_are_shown_together_or_when_their_time_is_up() -> None:
    joined = with_control()
    assert joined.command(coalesce(net.RECEIVE, 3, 100)) == OK
    exchanges = [joined.offer(1600) for _ in range(8)]
    before = joined.link.notifications
    for _ in range(4):
        joined.arrive(frame(MAC))
    assert [exchange.used is not None for exchange in exchanges] == [True] * 3 + [False] * 5
    joined.link.advance(0.00009)
    assert exchanges[3].times == 0
    joined.link.advance(0.00002)
    assert exchanges[3].times == 1
    assert joined.link.notifications == before + 2
    assert joined.device.to_driver.frames == 4
    joined.arrive(frame(MAC))
    joined.device.suspend()
    joined.link.run()
    assert exchanges[4].used is not None
    joined.arrive(frame(MAC))
    joined.link.disconnect()
    assert joined.device.to_driver.dropped == {"no driver": 1}
    joined.link.advance(1)


def test_transmit_buffers_come_back_together_and_their_frames_go_at_once() -> None:
    joined = with_control()
    assert joined.command(bytes([net.CTRL_COAL, net.COAL_TX_SET]) + Struct("<II").pack(4, 1000)) == OK
    exchanges = [joined.transmit(bytes(12), frame(OTHER)) for _ in range(6)]
    assert len(joined.port.out) == 6
    assert [exchange.used for exchange in exchanges] == [0] * 4 + [None] * 2
    joined.link.advance(0.002)
    assert [exchange.used for exchange in exchanges] == [0] * 6


def test_coalescing_is_asked_back() -> None:
    joined = with_control()
    ask = bytes([net.CTRL_COAL, net.COAL_VQ_GET])
    assert joined.command(ask + bytes(4), answer=9) == OK + bytes(8)
    joined.command(bytes([net.CTRL_COAL, net.COAL_RX_SET]) + Struct("<II").pack(7, 9))
    assert joined.command(ask + bytes(4), answer=9) == OK + Struct("<II").pack(7, 9)
    assert joined.command(ask + b"\1\0\0\0", answer=9) == OK + bytes(8)
    assert joined.command(ask + b"\2\0\0\0", answer=9) == ERR
    assert joined.command(ask + bytes(3)) == ERR
    assert joined.command(coalesce(0, 1, 1)[:-1]) == ERR

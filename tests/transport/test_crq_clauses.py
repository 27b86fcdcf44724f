"""Clauses of docs/protocol.md that need to look at the wire or at the client's memory while both ends work."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

import pytest

from powervio.papr.tce import TCE_ACCESS, TCE_READ
from powervio.phyp.port import PartitionPort
from powervio.testing.echo import EchoDevice, EchoDriver
from powervio.testing.pair import PartitionPair
from powervio.transport.crq.protocol import LAYOUT, REPLY, HeaderR1, Message, Status, decode
from powervio.virtio import features as feature
from powervio.virtio.device import DeviceSession
from powervio.virtio.queue import Request


@dataclass
class Wire:
    """Everything that both ends send and copy, in order, as `(who, what, arguments)`."""

    pair: PartitionPair
    log: list[tuple[str, str, tuple[int, ...]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        for who, partition in (("client", self.pair.client_partition), ("server", self.pair.server_partition)):
            for what in ("send_crq", "copy_rdma", "put_tce", "stuff_tce"):
                self._tap(who, what, partition.port)
            self._tap_list(who, partition.port)
            write = partition.port.write_rdma

            def write_rdma(liobn: int, ioba: int, data: bytes, who: str = who, original: object = write) -> int:
                self.log.append((who, "write_rdma", (len(data), ioba)))
                return original(liobn, ioba, data)  # type: ignore[no-any-return, operator]

            setattr(partition.port, "write_rdma", write_rdma)  # noqa: B010 - a tap, not a method of the type

    def _tap_list(self, who: str, port: PartitionPort) -> None:
        """A call that stores a list of entries is noted as the calls that it stands for."""
        original = port.put_tce_indirect

        def call(liobn: int, ioba: int, address: int, count: int) -> int:
            entries = struct.unpack_from(f">{count}Q", port.memory, address)
            self.log += [(who, "put_tce", (liobn, ioba + 4096 * page, tce)) for page, tce in enumerate(entries)]
            return original(liobn, ioba, address, count)

        setattr(port, "put_tce_indirect", call)  # noqa: B010 - a tap, not a method of the type

    def _tap(self, who: str, what: str, port: object) -> None:
        original = getattr(port, what)

        def call(*arguments: int) -> int:
            self.log.append((who, what, arguments))
            return original(*arguments)  # type: ignore[no-any-return]

        setattr(port, what, call)

    def messages(self, who: str) -> list[dict[str, int]]:
        sent = [arguments[1:] for sender, what, arguments in self.log if (sender, what) == (who, "send_crq")]
        return [decode(high, low) for high, low in sent if high >> 56 == 0x80]


def traced(*, revision: int = 1, server_channels: bool = True) -> tuple[PartitionPair, Wire, EchoDriver, EchoDevice]:
    device, driver = EchoDevice(), EchoDriver()
    pair = PartitionPair(device, driver, revision=revision, server_channels=server_channels)
    wire = Wire(pair)
    pair.start()
    return pair, wire, driver, device


@pytest.mark.parametrize("revision", [0, 1])
def test_elements_are_messages_and_what_no_layout_names_is_zero(revision: int) -> None:
    """P2.1, P2.2."""
    pair, wire, driver, _ = traced(revision=revision)
    driver.send(b"x")
    pair.settle()
    for _, _, (_, high, low) in (entry for entry in wire.log if entry[1] == "send_crq"):
        element = high.to_bytes(8, "big") + low.to_bytes(8, "big")
        if element[0] == 0xC0:
            continue
        assert element[0] == 0x80
        named = {0, 1, 2, 3}
        for _, offset, size in LAYOUT[element[1]]:
            named |= set(range(offset, offset + size))
        assert all(element[at] == 0 for at in range(16) if at not in named)
        assert (int.from_bytes(element[2:4], "big") != 0) == (revision == 1)


@pytest.mark.parametrize("revision", [0, 1])
def test_every_message_but_kick_has_one_reply_in_order(revision: int) -> None:
    """P2.4."""
    pair, wire, driver, device = traced(revision=revision)
    driver.send(b"x")
    assert driver.transport is not None
    driver.transport.write_config(4, bytes(4))
    device.config_changed()
    pair.client.device_reset()
    pair.settle()
    asked = [message["type"] for message in wire.messages("client") if message["type"] != Message.KICK]
    answered = [message["type"] for message in wire.messages("server") if message["type"] & 0xC0 == REPLY]
    assert answered == [kind | REPLY for kind in asked]
    assert len(asked) > 10


def test_every_rdma_write_of_the_server_is_followed_by_a_message() -> None:
    """P2.4."""
    pair, wire, driver, _ = traced()
    driver.send(b"one", b"two")
    pair.settle()
    written = [
        at for at, (who, what, _) in enumerate(wire.log) if who == "server" and what in ("write_rdma", "copy_rdma")
    ]
    sent = [at for at, (who, what, _) in enumerate(wire.log) if who == "server" and what == "send_crq"]
    assert written
    assert max(written) < max(sent)


def test_header_of_revision_1_is_48_bytes_and_carries_both_feature_words() -> None:
    """P3.2, P4.3, P5.4: the driver's choice stands in the block before FEATURES_OK."""
    pair, wire, _, _ = traced()
    header = HeaderR1.unpack(bytes(pair.client._handshake.header_memory.view[:48]))
    assert ("server", "write_rdma", (48, pair.client._handshake.header_memory.ioba)) in wire.log
    always = feature.VERSION_1 | feature.ACCESS_PLATFORM
    assert header.device_features & always == header.driver_features & always == always
    never = feature.SR_IOV | feature.NOTIF_CONFIG_DATA | feature.ADMIN_VQ | feature.SOCKET_ONLY
    assert header.device_features & never == 0


def test_offer_of_revision_0_has_32_bits_and_never_bit_30() -> None:
    """P4.2."""
    pair, _, _, _ = traced(revision=0)
    offered = pair.client.header.device_features
    assert offered >> 32 == 0
    assert not offered & feature.SOCKET_ONLY
    assert offered & feature.ANY_LAYOUT


@pytest.mark.parametrize("revision", [0, 1])
def test_no_ring_is_touched_before_driver_ok(revision: int) -> None:
    """P5.5, P5.6: neither by the server, nor by a kick of the client; DRIVER (P5.3) is answered before."""
    pair, wire, _, _ = traced(revision=revision)
    rings = {queue.addresses().descriptors for queue in pair.client._queues}
    touched = [
        arguments
        for who, what, arguments in wire.log
        if who == "server" and what == "copy_rdma" and arguments[2] in rings
    ]
    assert touched == []
    assert Message.KICK not in [message["type"] for message in wire.messages("client")]
    asked = [message["type"] for message in wire.messages("client")]
    assert asked.index(Message.DRIVER) < asked.index(Message.FIND_VQS) < asked.index(Message.DRIVER_OK)


def test_channels_without_sub_crqs_is_answered_unsupported() -> None:
    """P5.13, P5.15."""
    pair, wire, _, _ = traced(server_channels=False)
    answers: list[int] = []
    pair.client._answered = lambda kind, reply: answers.append(reply["status"])  # type: ignore[method-assign]
    pair.client._request(Message.CHANNELS, count=1, length=32, address=0x1000)
    pair.settle()
    assert answers == [Status.UNSUPPORTED]
    assert wire.messages("server")[-1]["type"] == Message.CHANNELS | REPLY


def test_buffer_is_mapped_before_it_is_available_and_unmapped_when_used() -> None:
    """P6.1: readable buffers for reading only, writable ones for both; strictly, before the driver hears of it."""
    pair, wire, driver, _ = traced()
    wire.log.clear()
    driver.send(b"data")
    pair.settle()
    puts = [arguments for who, what, arguments in wire.log if (who, what) == ("client", "put_tce")]
    kick = next(at for at, (who, what, _) in enumerate(wire.log) if (who, what) == ("client", "send_crq"))
    access = [tce & TCE_ACCESS for _, _, tce in puts]
    assert access == [TCE_READ, TCE_ACCESS]
    assert [at for at, entry in enumerate(wire.log) if entry[:2] == ("client", "put_tce")][1] < kick
    (cleared,) = [arguments for who, what, arguments in wire.log if (who, what) == ("client", "stuff_tce")]
    assert cleared == (puts[0][0], puts[0][1], 0, 2)
    assert driver.answers == [(b"data", b"data")]


def test_header_and_rings_stay_mapped_while_the_session_lasts() -> None:
    """P3.4."""
    pair, _, driver, _ = traced()
    for _ in range(3):
        driver.send(b"data")
        pair.settle()
    port, liobn = pair.client_partition.port, pair.client.node.windows[0].liobn
    areas = [pair.client._handshake.header_memory.ioba]
    areas += [
        address for queue in pair.client._queues for address in (queue.addresses().descriptors, queue.addresses().used)
    ]
    assert pair.client._handshake.config_memory is not None
    for ioba in [*areas, pair.client._handshake.config_memory.ioba]:
        assert port.get_tce(liobn, ioba)[1] & TCE_ACCESS == TCE_ACCESS


def test_kicks_and_used_notifications_are_only_hints() -> None:
    """P6.3: more than needed, for any queue, with any index."""
    pair, _, driver, _ = traced()
    for queue, index in ((0, 0), (0, 5), (0, 0xFFFF), (1, 1), (0xFFFF, 7)):
        pair.client.crq.post(0x80 << 56 | Message.KICK << 48 | pair.client._number << 32 | queue << 16 | index, 0)
        pair.server.crq.post(0x80 << 56 | Message.USED << 48 | pair.client._number << 32 | queue << 16 | index, 0)
        pair.settle()
    driver.send(b"data")
    pair.settle()
    assert driver.answers == [(b"data", b"data")]
    assert pair.client.sessions == 1
    assert pair.server.state == "running"


def test_used_elements_are_written_before_the_index_and_data_before_both() -> None:
    """P6.4, P6.5: one USED for a batch, after everything."""
    pair, wire, driver, _ = traced()
    used = pair.client._queues[0].addresses().used
    wire.log.clear()
    driver.send(*[b"%d" % n for n in range(8)])
    pair.settle()
    writes = [
        (arguments[4] if what == "copy_rdma" else arguments[1])
        for who, what, arguments in wire.log
        if who == "server"
        and (what == "write_rdma" or (what == "copy_rdma" and arguments[3] != pair.server._dma.liobn))
    ]
    assert writes[-2:] == [used + 4, used + 2]
    assert all(not used <= address < used + 4 + 8 * 128 for address in writes[:-2])
    assert len(writes[:-2]) == 8
    assert [message["type"] for message in wire.messages("server")] == [Message.USED]
    assert wire.log.index(next(entry for entry in wire.log if entry[:2] == ("server", "send_crq"))) > len(writes)


def test_failed_ends_work_and_only_reset_or_probe_lead_on() -> None:
    """P5.10."""
    pair, wire, driver, device = traced()
    answers: list[tuple[int, int]] = []
    pair.client._answered = lambda kind, reply: answers.append((kind, reply["status"]))  # type: ignore[method-assign]
    pair.client._request(Message.FAILED)
    pair.client._request(Message.CONFIG_READ)
    pair.client._request(Message.DRIVER_OK)
    pair.settle()
    session: DeviceSession | None = device.session
    assert session is None
    assert [status for _, status in answers] == [Status.OK, Status.BAD_STATE, Status.BAD_STATE]
    driver.send(b"not served")
    pair.settle()
    assert driver.answers == []
    pair.client._request(Message.RESET)
    pair.settle()
    assert answers[-1] == (Message.RESET, Status.OK)
    assert wire.messages("server")[-1]["device_status"] == 0


def test_kick_that_is_kept_back_stays_behind_the_config_write_before_it() -> None:
    """P2.6, P5.8: the server's queue is full, and then has room for one element only."""
    seen: list[int] = []

    class Noting(EchoDevice):
        def handle(self, request: Request) -> None:
            seen.append(self.written)
            super().handle(request)

    driver = EchoDriver()
    pair = PartitionPair(Noting(), driver).start()
    port, unit = pair.client_partition.port, pair.client.node.unit_address
    foreign = 0x80 << 56 | Message.KICK << 48 | 0xFFFF << 32
    slots = 0
    while port.send_crq(unit, foreign, 0) == 0:
        slots += 1
    assert driver.transport is not None
    driver.transport.write_config(4, (1234).to_bytes(4, "little"))
    driver.send(b"hello")
    while pair.server_kernel.poll():
        pass
    for _ in range(slots - 1):
        port.send_crq(unit, foreign, 0)
    pair.clock.now += 0.2
    pair.client_kernel.poll()
    pair.advance(1)
    assert seen == [1234]

"""The configuration handshake as it happens: each step, who made it, by which hypervisor call, and what it carried.

The two ends tell of their steps through their trace callbacks, each in its partition's thread. A step of the client is
told before its message is sent, one of the server after its remote DMA is done; so what was counted between two steps
says which hypervisor calls a step was made of. What was carried is read from the server's session afterwards: that is
what came over the wire, and nothing else reaches it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from powervio.phyp.ledger import Costs
from powervio.transport.crq.client import VirtioVio
from powervio.transport.crq.server import VirtioCrq
from powervio.transport.crq.server_session import ServerSession
from powervio.virtio import features, ids

RDMA_CALLS = ("H_COPY_RDMA", "H_READ_RDMA", "H_WRITE_RDMA")


@dataclass(frozen=True, slots=True)
class Step:
    """One step of the handshake."""

    name: str
    by_client: bool
    """Whether the guest partition made it; else the VIO server did."""
    hcall: str
    """How it crossed to the partner: the hypervisor call, or nothing for what a partition did by itself."""
    rdma_bytes: int
    carried: tuple[str, ...]
    """What it carried, in words, one line each."""

    @property
    def to_client(self) -> bool:
        """Whether what it carried went from the VIO server to the guest."""
        return not self.by_client and self.hcall != "H_READ_RDMA"


@dataclass(frozen=True, slots=True)
class _Mark:
    name: str
    by_client: bool
    client: Costs
    server: Costs


class HandshakeRecorder:
    """Collects the steps of one adapter pair, from its first PROBE on. `client` and `server` are trace callbacks."""

    def __init__(self) -> None:
        self._marks: list[_Mark] = []
        self._costs: Callable[[], tuple[Costs, Costs]] | None = None

    def watch(self, costs: Callable[[], tuple[Costs, Costs]]) -> None:
        """`costs` gives what the client's and the server's adapter have cost so far; to be set before the start."""
        self._costs = costs

    def client(self, name: str) -> None:
        """The client made a step."""
        self._mark(name, True)

    def server(self, name: str) -> None:
        """The server made a step."""
        self._mark(name, False)

    def _mark(self, name: str, by_client: bool) -> None:
        assert self._costs is not None
        self._marks.append(_Mark(name, by_client, *self._costs()))

    def names(self) -> list[str]:
        """The steps in the order in which they happened."""
        return [mark.name for mark in self._marks]

    def steps(self, client: VirtioVio, server: VirtioCrq) -> list[Step]:
        """The steps with what they carried; to be called while the session that they made is on."""
        session = server.session
        assert session is not None
        assert self._costs is not None
        ends = [*self._marks[1:], _Mark("", True, *self._costs())]
        steps = []
        before = self._marks[0]
        for mark, after in zip(self._marks, ends, strict=True):
            if mark.by_client:
                sent = (after.client - mark.client)["hcalls"]
                hcall = "H_SEND_CRQ" if sent.get("H_SEND_CRQ") else ""
                moved = 0
            else:
                made = mark.server - before.server
                hcall = " + ".join(name for name in RDMA_CALLS if made["hcalls"].get(name))
                moved = made["rdma_bytes"]
            describe = _CARRIED.get(mark.name)
            carried = tuple(describe(client, server, session)) if describe is not None else ()
            steps.append(Step(mark.name, mark.by_client, hcall, moved, carried))
            before = mark
        return steps


def _plural(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _probe(client: VirtioVio, server: VirtioCrq, session: ServerSession) -> list[str]:
    order = "big" if session.big_endian else "little"
    return [
        f"header area at I/O address {session.header_address:#x}, {session.header_length} bytes",
        f"revision {session.revision}, {order}-endian rings",
    ]


def _header(client: VirtioVio, server: VirtioCrq, session: ServerSession) -> list[str]:
    header = client.header
    return [
        f"type {header.device_type} ({ids.name(header.device_type)}),"
        f" {_plural(header.queue_count, 'queue')} of {header.queue_size}",
        f"config length {_plural(header.config_length, 'byte')}",
        "device features " + " ".join(features.names(header.device_features, header.device_type)),
    ]


def _acknowledge(client: VirtioVio, server: VirtioCrq, session: ServerSession) -> list[str]:
    return [f"config space allocated at I/O address {session.config_address:#x}"]


def _config(client: VirtioVio, server: VirtioCrq, session: ServerSession) -> list[str]:
    return [f"config: {len(client.config_snapshot)} bytes, capacity {_capacity(client, session)}"]


def _capacity(client: VirtioVio, session: ServerSession) -> str:
    sectors = int.from_bytes(client.config_snapshot[:8], "big" if session.big_endian else "little")
    return f"{_plural(sectors, 'sector')} of 512 bytes"


def _driver(client: VirtioVio, server: VirtioCrq, session: ServerSession) -> list[str]:
    return ["virtio_dev_probe(): a driver was found"]


def _finalize(client: VirtioVio, server: VirtioCrq, session: ServerSession) -> list[str]:
    return ["guest features " + " ".join(features.names(session.accepted, server.device.device_id))]


def _features_ok(client: VirtioVio, server: VirtioCrq, session: ServerSession) -> list[str]:
    return ["the choice is final"]


def _find_vqs(client: VirtioVio, server: VirtioCrq, session: ServerSession) -> list[str]:
    return [
        f"queue {queue.index} of {queue.size}: descriptor table {queue.descriptors:#x},"
        f" available ring {queue.available:#x}, used ring {queue.used:#x}"
        for queue in session.queues.values()
    ]


def _driver_ok(client: VirtioVio, server: VirtioCrq, session: ServerSession) -> list[str]:
    return ["the queues may be used"]


def _features(client: VirtioVio, server: VirtioCrq, session: ServerSession) -> list[str]:
    return [f"guest features: {session.accepted.bit_count()} of {session.offered.bit_count()} offered were accepted"]


_CARRIED: dict[str, Callable[[VirtioVio, VirtioCrq, ServerSession], list[str]]] = {
    "PROBE": _probe,
    "RDMA_HEADER": _header,
    "ACKNOWLEDGE": _acknowledge,
    "RDMA_CONFIG": _config,
    "DRIVER": _driver,
    "FINALIZE_FEATURES": _finalize,
    "FEATURES_OK": _features_ok,
    "FIND_VQS": _find_vqs,
    "DRIVER_OK": _driver_ok,
    "RDMA_FEATURES": _features,
}

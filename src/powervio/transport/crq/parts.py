"""The state of a served device as one value: what a server has to hand over so that another goes on in its place.

The parts and their names follow virtio 1.4's device parts (offered features, driver features, status, queue
configuration); what the transport knows beside them stands in `session`. The value is made of what JSON has, with
feature masks as hexadecimal strings because 128 bits do not fit into everybody's integers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from powervio.errors import LocalError
from powervio.transport.crq.protocol import QueueAddresses

FORMAT = "powervio-device-parts"
VERSION = 1


@dataclass(slots=True)
class QueueParts:
    """One queue: where it is and how far it has come."""

    addresses: QueueAddresses
    last_available: int
    """How far the device has come in taking buffers and in giving them back: indices of a split ring, positions of a
    packed one (`virtio.packed_layout`)."""
    used_index: int


@dataclass(slots=True)
class DeviceParts:
    """Everything a server knows of its client and device between two requests."""

    device_id: int
    offered_features: int
    driver_features: int
    status: int
    revision: int
    session: int
    big_endian: bool
    header: tuple[int, int]
    """I/O address and length in bytes of the header area."""
    config: tuple[int, int]
    """I/O address and length in bytes of the config area."""
    queues: list[QueueParts] = field(default_factory=list)
    device: dict[str, Any] = field(default_factory=dict)
    """What the device type adds (`Device.state`)."""

    def to_json(self) -> dict[str, Any]:
        """As JSON-able values."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "device_id": self.device_id,
            "dev_features": hex(self.offered_features),
            "drv_features": hex(self.driver_features),
            "device_status": self.status,
            "session": {
                "revision": self.revision,
                "number": self.session,
                "big_endian": self.big_endian,
                "header": list(self.header),
                "config": list(self.config),
            },
            "vqs": [
                {
                    "index": queue.addresses.index,
                    "size": queue.addresses.size,
                    "descriptors": queue.addresses.descriptors,
                    "available": queue.addresses.available,
                    "used": queue.addresses.used,
                    "last_available": queue.last_available,
                    "used_index": queue.used_index,
                }
                for queue in self.queues
            ],
            "device": self.device,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> DeviceParts:
        """From what `to_json` gave. Raises `LocalError` for another format or version, or when a part is missing."""
        if value.get("format") != FORMAT or value.get("version") != VERSION:
            found = f"{value.get('format')!r} version {value.get('version')!r}"
            raise LocalError(f"this is {found}; expected {FORMAT!r} version {VERSION}")
        try:
            session = value["session"]
            return cls(
                device_id=value["device_id"],
                offered_features=int(value["dev_features"], 16),
                driver_features=int(value["drv_features"], 16),
                status=value["device_status"],
                revision=session["revision"],
                session=session["number"],
                big_endian=session["big_endian"],
                header=(session["header"][0], session["header"][1]),
                config=(session["config"][0], session["config"][1]),
                queues=[
                    QueueParts(
                        QueueAddresses(
                            part["index"], part["size"], part["descriptors"], part["available"], part["used"]
                        ),
                        part["last_available"],
                        part["used_index"],
                    )
                    for part in value["vqs"]
                ],
                device=value["device"],
            )
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise LocalError(f"device parts are incomplete: {error!r}") from None

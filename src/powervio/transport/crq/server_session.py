"""What a server knows of one client between PROBE and the end of the session, and how a message of it is refused."""

from __future__ import annotations

from dataclasses import dataclass, field

from powervio.errors import LocalError
from powervio.transport.crq.protocol import QueueAddresses, Status
from powervio.virtio import status as device_status
from powervio.virtio.queue import ByteOrder
from powervio.virtio.status import StatusMachine


class Later(Exception):
    """The reply to a message comes when something else has ended."""


class Refused(Exception):
    """A configuration message is answered with an error status; the reason goes to the log."""

    def __init__(self, status: Status, reason: str) -> None:
        super().__init__(reason)
        self.status = status


@dataclass(slots=True)
class ServerSession:
    """What a server knows of its client since PROBE."""

    number: int
    revision: int
    big_endian: bool
    header_address: int
    header_length: int
    status: StatusMachine
    offered: int
    accepted: int = 0
    config_address: int = 0
    config_length: int = 0
    queues: dict[int, QueueAddresses] = field(default_factory=dict)

    @property
    def byteorder(self) -> ByteOrder:
        """Of rings, config space and device structures."""
        return "big" if self.big_endian else "little"

    def step_status(self, bit: int) -> None:
        """The driver adds a status bit; what may follow what is the status machine's table.

        Raises `Refused` when this must not come now, or has come before.
        """
        machine = self.status
        if machine.status & bit:
            raise Refused(Status.BAD_STATE, f"device status {device_status.names(machine.status)} has this bit already")
        try:
            machine.write(machine.status | bit)
        except LocalError as error:
            raise Refused(Status.BAD_STATE, str(error)) from None

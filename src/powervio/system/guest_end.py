"""The client's end of a device where a guest has it: the system knows of it what the VIO server's side and the
hypervisor see.

These stand where `VirtioVio` and a driver stand for clients of ours. They do nothing, because nothing can be done: the
guest's own driver comes and goes as it likes, and learns of everything by its device tree and its server.
"""

from __future__ import annotations

from powervio.phyp.adapter import VioAdapter


class GuestEnd:
    """In place of the client's end of a connection."""

    running = False
    """Whether a driver of ours runs there; never."""

    def __init__(self, adapter: VioAdapter) -> None:
        self._adapter = adapter

    @property
    def connected(self) -> bool:
        """Whether the guest's driver uses the adapter: its CRQ is registered."""
        return self._adapter.registered

    def state(self, server: str) -> str:
        """For people, from what the server's end says of itself."""
        return server if self.connected else "closed"

    def start(self) -> None:
        """Nothing: the guest's driver starts by itself."""

    def stop(self) -> None:
        """Nothing: the guest's end goes with its partition."""

    def retire(self) -> None:
        """Nothing: the guest gives its memory back itself, when the adapter's node has gone."""


class GuestDriver:
    """In place of a client's driver of a disk."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        """Bytes that the guest was last told."""

    def fail_all(self, reason: str) -> None:
        """Nothing: what is in flight fails in the guest."""

    def limit_buffers(self, limit: int) -> None:
        """Nothing: a guest has memory of its own."""

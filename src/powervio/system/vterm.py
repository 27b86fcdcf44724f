"""A console over the platform's own virtual terminal: what `[[lpar.console]] type = "vterm"` makes.

The operator's and the program's side look like those of a virtio console, with what a terminal lacks left out: one
port, no sizes, and no way for the client to close it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

from powervio.drivers.console import PortStream, serve_stream
from powervio.errors import LocalError
from powervio.native.vterm import VtermEnd, VtermServer
from powervio.phyp.hypervisor import Hypervisor
from powervio.phyp.vterm import Vty, VtyServer, remove_vterm
from powervio.system.section import AdapterSection
from powervio.system.served import adapter_entry
from powervio.system.types import DeviceType
from powervio.vio.kernel import PartitionKernel
from powervio.virtio.stream import ByteQueue


class VtermPort:
    """The operator's side: see `operator.OperatorPort`. While nobody watches, the newest output is kept."""

    closings = 0
    removed = False
    """Whether its VIO server was terminated."""
    can_close = False
    on_change: Callable[[], None] | None = None

    def __init__(self, kernel: PartitionKernel, vty_server: VtyServer) -> None:
        self.to_driver = ByteQueue()
        self.from_driver = ByteQueue()
        self.end = VtermServer(kernel, vty_server.node, self.from_driver, self.to_driver)
        self.end.on_received = self._received
        self.end.keeps_newest = True
        self.dropped = 0
        self._kernel = kernel
        self._attached = False

    def attach(self) -> None:
        """Raises `LocalError` when somebody is there already."""
        if self._attached:
            raise LocalError("the console has somebody attached already")
        self._attached = True
        self.end.keeps_newest = False

    def detach(self) -> None:
        """Leave."""
        self._attached = False
        self.end.keeps_newest = True
        self.from_driver.on_data = None
        self._kernel.call_soon_threadsafe(self.end.receive)

    def close(self) -> None:
        """Its VIO server was terminated: an operator who is attached is let go."""
        self.removed = True
        if self.on_change is not None:
            self.on_change()

    def resize(self, columns: int, rows: int) -> None:
        """A virtual terminal knows no size."""

    def _received(self) -> None:
        if not self._attached:
            self.dropped += self.from_driver.trim()


class VtermClientPort:
    """The program's side: see `drivers.console.StreamPort`."""

    columns = rows = 0
    present = host_open = True
    on_change: Callable[[], None] | None = None

    def __init__(self) -> None:
        self.incoming = ByteQueue()
        self.outgoing = ByteQueue()

    @property
    def drained(self) -> bool:
        """Whether the hypervisor has everything."""
        return not self.outgoing

    def read(self, length: int) -> bytes:
        """Up to `length` bytes that have arrived."""
        return self.incoming.take(length)

    def set_open(self, opened: bool) -> None:
        """A virtual terminal is always open."""


class _ClientEnd(VtermEnd):
    failure = ""
    on_state: Callable[[Any], None] | None = None


class VtermDriver:
    """What `types.attach_console` needs of a driver."""

    def __init__(self) -> None:
        self.port = VtermClientPort()
        self._stream: PortStream | None = None

    def stream(self, number: int = 0) -> PortStream:
        """The one stream; to be had in the event loop."""
        if self._stream is None:
            self._stream = PortStream(self.port)
            self.port.outgoing.on_consumed = self._stream.wake  # drained is what the hypervisor has taken
        return self._stream

    def server(self, number: int) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], object]:
        """For the console's socket."""
        return partial(serve_stream, self.stream(number))

    def close(self) -> None:
        """The console goes away for good."""
        if self._stream is not None:
            self._stream.shut()


def _bytes_of(output: ByteQueue, given: ByteQueue) -> dict[str, Any]:
    return {"output": output.peek(0, len(output)).hex(), "input": given.peek(0, len(given)).hex()}


class ServedVterm:
    """See `served.ServedDevice`."""

    def __init__(
        self,
        row: DeviceType,
        where: str,
        declared: AdapterSection,
        server_adapter: VtyServer,
        client_adapter: Vty,
        server_kernel: PartitionKernel,
        client_kernel: PartitionKernel,
    ) -> None:
        self.row = row
        self.where = where
        self.declared = declared
        self.server_adapter = server_adapter
        self.client_adapter = client_adapter
        self.driver = VtermDriver()
        self.operator = VtermPort(server_kernel, server_adapter)
        self.server = self.operator.end
        port = self.driver.port
        self.attachments = row.attach(declared, self.driver)
        self.client = self.client_end = _ClientEnd(client_kernel, client_adapter.node, port.incoming, port.outgoing)

    def server_died(self) -> None:
        """See `served.ServedDevice`."""
        self.operator.close()

    def serve_anew(self, kernel: PartitionKernel) -> None:
        """See `served.ServedDevice`."""
        self.operator = VtermPort(kernel, self.server_adapter)
        self.server = self.operator.end

    def stop_client(self) -> None:
        """The client partition ends."""
        self.driver.close()
        self.client.stop()

    def device_state(self) -> dict[str, Any]:
        """What no operator has seen, and what an operator typed; what the hypervisor had is lost (papr-vio 7.7)."""
        return _bytes_of(self.operator.from_driver, self.operator.to_driver)

    def driver_state(self) -> dict[str, Any]:
        """What the program wrote, and what it has not read."""
        return _bytes_of(self.driver.port.outgoing, self.driver.port.incoming)

    def restore(self, device: dict[str, Any], driver: dict[str, Any]) -> None:
        """Take both over. Raises `LocalError`."""
        port = self.driver.port
        pairs = (
            (device, self.operator.from_driver, self.operator.to_driver),
            (driver, port.outgoing, port.incoming),
        )
        try:
            for state, output, given in pairs:
                output.put_all(bytes.fromhex(state["output"]))
                given.put_all(bytes.fromhex(state["input"]))
        except (KeyError, TypeError, ValueError) as error:
            raise LocalError(f"not the state of a virtual terminal: {error!r}") from None

    def retire_client(self) -> None:
        """The client's side ends for good."""
        self.stop_client()

    def retire_server(self) -> None:
        """The server's side ends for good; in its thread. An operator is told."""
        self.server.stop()
        self.operator.removed = True
        if self.operator.on_change is not None:
            self.operator.on_change()

    def unplug(self, hypervisor: Hypervisor) -> None:
        """Remove both adapters."""
        remove_vterm(self.server_adapter, self.client_adapter)

    def find_port(self, name: str) -> VtermPort:
        """The one port. Raises `LocalError` for any other name."""
        if name not in ("0", "console"):
            raise LocalError(f'a virtual terminal has no port "{name}"')
        return self.operator

    def entries(self) -> list[dict[str, Any]]:
        """What `ps` shows of both ends."""
        common = {"socket": self.declared.socket, "revision": None, "failure": "", "rejected": 0}
        requests = self.client_adapter.ledger.snapshot()["hcalls"].get("H_PUT_TERM_CHAR", 0)
        return [
            {**adapter_entry("vterm", adapter), **common, "state": end.state.value, "requests": requests, "sessions": 1}
            for adapter, end in ((self.client_adapter, self.client), (self.server_adapter, self.server))
        ]

"""The table of device types that a system file can declare: one row for each.

A row says which `[[lpar.SECTION]]` declares the device, with which options, and how the device and its driver are made
from them. What is common to all (VIO server, slot, protocol, a socket for programs) is `AdapterSection`, so a type
without options of its own needs nothing but its row. Disks stand beside the table: images and NBD are made in `system`.

To add a type: one file in `devices/`, one in `drivers/`, and `register(DeviceType(...))` here or in a module of yours
(docs/new-device.md).
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import msgspec
from msgspec import Meta, Struct

from powervio.attach.pty import PtyProgram
from powervio.attach.socket import SocketAttachment
from powervio.devices.console import ConsoleDevice
from powervio.devices.entropy import RATE, EntropyDevice
from powervio.drivers.console import ConsoleDriver
from powervio.drivers.entropy import EntropyDriver
from powervio.errors import LocalError
from powervio.system import fs_section, net_section
from powervio.system.net_section import Net, Place
from powervio.system.section import AdapterSection
from powervio.virtio.device import Device
from powervio.virtio.driver import Driver


class Attachment(Protocol):
    """Something by which programs use the device."""

    async def start(self) -> None:
        """Begin. Raises `LocalError`."""

    def close(self) -> Awaitable[None]:
        """End it."""


def serve_socket(declared: Any, driver: Any) -> list[Attachment]:
    """The usual way: `driver.serve(reader, writer)` has each connection at `socket`."""
    return [] if declared.socket is None else [SocketAttachment(declared.socket, driver.serve)]


@dataclass(frozen=True, slots=True)
class DeviceType:
    """One row."""

    section: str
    """Of `[[lpar.SECTION]]`."""
    name: str
    """What `powervio ps` calls it."""
    device: Callable[[Any], Device]
    """The device, from the options; raises `LocalError` for options that make none. Made anew when its VIO server boots
    again; if it has `close()`, that is called when the server is terminated."""
    driver: Callable[[Any], Driver]
    """The driver. If it has `close()`, that is called at the end."""
    options: type[AdapterSection] = AdapterSection
    attach: Callable[[Any, Any], Sequence[Attachment]] = serve_socket
    """What lets programs use it, from the options and the driver."""
    check: Callable[[Any], list[str]] = lambda declared: []
    """What is wrong with the options, each as `option: what; what was expected`."""
    standalone: bool = False
    """Whether the device is complete by itself, so that `powervio vhost-user SECTION` can serve it."""
    device_at: Callable[[Any, Place], Device] | None = None
    """In place of `device`, for one that stands on more than its options say: also where it is."""
    attach_at: Callable[[Any, Any, Place], Sequence[Attachment]] | None = None
    """In place of `attach`, likewise."""
    client_memory: int = 2 << 20
    """Bytes of the client's memory that rings and buffers of all its queues need."""
    server_memory: int = 384 * 1024
    """Bytes of the VIO server's."""

    def make_device(self, declared: Any, place: Place) -> Device:
        """The device of a section. Raises `LocalError`."""
        return self.device(declared) if self.device_at is None else self.device_at(declared, place)

    def make_attachments(self, declared: Any, driver: Any, place: Place) -> list[Attachment]:
        """What lets programs use it. Raises `LocalError`."""
        if self.attach_at is None:
            return list(self.attach(declared, driver))
        return list(self.attach_at(declared, driver, place))


TYPES: dict[str, DeviceType] = {}
"""By section."""


def register(row: DeviceType) -> None:
    """Add a row. Raises `LocalError` when the section is taken."""
    if row.section in TYPES or row.section in ("name", "memory", "guest", "arch", "exec", "disk"):
        raise LocalError(f"[[lpar.{row.section}]] is taken already")
    TYPES[row.section] = row


def load_types(path: str) -> None:
    """Run a Python file that registers rows. Raises `LocalError` for what it raises, and when it cannot be read."""
    spec = importlib.util.spec_from_file_location(f"powervio_types_{Path(path).stem}", path)
    try:
        if spec is None or spec.loader is None:
            raise LocalError(f"{path} is no Python file; expected one that ends in .py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[module.__name__] = module
        spec.loader.exec_module(module)
    except OSError as error:
        raise LocalError(f"{path} cannot be read ({error.strerror})") from error
    except LocalError:
        raise
    except Exception as error:
        raise LocalError(f"{path}: {type(error).__name__}: {error}") from error


# -- console

_PortName = Annotated[str, Meta(min_length=1, max_length=63, pattern="^[ -~]*$")]


class ConsolePort(Struct, forbid_unknown_fields=True, kw_only=True):
    """`[[lpar.console.port]]`: a stream beside the console."""

    name: _PortName
    """What `powervio console CLIENT --port` calls it; no other port of the console may have it."""
    exec: str | None = None
    """A command whose terminal is this port."""
    socket: str | None = None
    """A Unix socket whose connections, one at a time, are this port."""


class Console(AdapterSection):
    """`[[lpar.console]]`: what `powervio console CLIENT` attaches to."""

    type: Literal["virtio", "vterm"] = "virtio"
    """A virtio console, or the platform's own virtual terminal: one port, no sizes."""
    exec: str | None = None
    """A command of the client partition whose terminal is the console, such as "sh -i"; it is started again when it
    ends. Without it and without `socket` the console is there and nobody answers."""
    port: list[ConsolePort] = msgspec.field(default_factory=list)
    """`[[lpar.console.port]]`: further streams beside the console, which is port 0."""
    max_ports: Annotated[int, Meta(ge=1, le=16)] = 4
    """Most ports at a time, the console among them."""


def _check_console(declared: Console) -> list[str]:
    problems = []
    if declared.exec is not None and declared.socket is not None:
        problems.append("socket: there is exec; expected one of them")
    names = ["console", *(port.name for port in declared.port)]
    if len(set(names)) != len(names):
        problems.append(f"port: a name is there twice ({', '.join(names)}; the first is port 0)")
    if len(names) > declared.max_ports:
        problems.append(f"max_ports: {declared.max_ports}; there are {len(names)} with the console itself")
    if declared.type == "vterm" and declared.port:
        problems.append('port: a console with type = "vterm" has no ports')
    for number, port in enumerate(declared.port):
        if port.exec is not None and port.socket is not None:
            problems.append(f"port[{number}].socket: there is exec; expected one of them")
    return problems


def attach_console(declared: Console, driver: ConsoleDriver) -> list[Attachment]:
    """Programs on terminals and sockets, for the console and each port."""
    made: list[Attachment] = []
    ends: list[Console | ConsolePort] = [declared, *declared.port]
    for number, port in enumerate(ends):
        if port.exec is not None:
            made.append(PtyProgram(port.exec, driver.stream(number)))
        elif port.socket is not None:
            made.append(SocketAttachment(port.socket, driver.server(number), limit=1))
    return made


register(
    DeviceType(
        section="console",
        name="console",
        options=Console,
        device=lambda o: ConsoleDevice(ports=tuple(port.name for port in o.port), max_ports=o.max_ports),
        driver=lambda o: ConsoleDriver(max_ports=o.max_ports),
        attach=attach_console,
        check=_check_console,
    )
)

# -- entropy


class Rng(AdapterSection):
    """`[[lpar.rng]]`: random bytes of the host, for whoever reads the socket."""

    rate: Annotated[int, Meta(ge=1, le=1 << 40)] = RATE
    """Bytes a second."""


register(
    DeviceType(
        section="rng",
        name="entropy",
        options=Rng,
        device=lambda o: EntropyDevice(rate=o.rate),
        driver=lambda o: EntropyDriver(),
        standalone=True,
    )
)

# -- net


def _needs_a_switch(declared: Any) -> Device:
    raise LocalError("a network adapter is made with its place at a switch")


register(
    DeviceType(
        section="net",
        name="net",
        options=Net,
        device=_needs_a_switch,
        device_at=net_section.make_device,
        driver=net_section.make_driver,
        attach_at=net_section.attach,
        check=net_section.problems,
        client_memory=8 << 20,
        server_memory=1 << 20,
    )
)

# -- fs


register(
    DeviceType(
        section="fs",
        name="9p",
        options=fs_section.Fs,
        device=fs_section.make_device,
        driver=fs_section.make_driver,
        attach=fs_section.attach,
        check=fs_section.problems_of_section,
        client_memory=fs_section.CLIENT_MEMORY,
        server_memory=fs_section.SERVER_MEMORY,
    )
)


def with_sections(base: type[Struct]) -> type[Struct]:
    """`base`, the Struct of `[[lpar]]`, with an array of tables for each row."""
    fields: list[Any] = [
        (row.section, list[row.options], msgspec.field(default_factory=list))  # type: ignore[name-defined]
        for row in TYPES.values()
    ]
    return msgspec.defstruct("Lpar", fields, bases=(base,), forbid_unknown_fields=True, kw_only=True)

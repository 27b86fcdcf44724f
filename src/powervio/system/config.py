"""The system file: which partitions there are, and which VIO server serves which disk to which client.

It is TOML, read (`system.load`) into the Structs below; each field says what it means, which defaults it has and what
is allowed. Names, types and ranges are checked from the field, in the file's words (`system.explain`); what a type
cannot say is checked in `system.check`. To add an option, add a field here and use it in `system.system`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from powervio.system import types as device_types
from powervio.system.machine_ports import MachinePort
from powervio.system.sea_section import Sea
from powervio.system.section import AdapterSection
from powervio.system.types import DeviceType

MIN_CLIENT_MEMORY = 8 << 20
MIN_VIOS_MEMORY = 4 << 20
"""Bytes; what the disks need comes on top (`sizing`)."""
MAX_MEMORY = 1 << 44
"""Bytes; it is only reserved, not used, so this bounds nothing but typing errors."""
MAX_SIZE = 1 << 62
"""Bytes; the kernel's numbers for positions in files end at twice that."""
MAX_SOCKET_PATH = 107
"""Bytes of a Unix socket's path (unix(7))."""

NAME_PATTERN = "^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$"
NAME_WORDS = "a name of letters, digits, '_', '.' and '-', up to 63"
_SIZE = re.compile(r"(\d{1,20}) ?([KMGT]?)(?:iB)?", re.IGNORECASE)
_UNITS = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}

Name = Annotated[str, Meta(pattern=NAME_PATTERN)]


class Size(int):
    """A number of bytes; in the file an integer, or a string such as "256M" with the binary units K, M, G and T."""

    @classmethod
    def parse(cls, value: object) -> Size:
        """Raises `ValueError` with what was expected."""
        found = None
        if isinstance(value, int) and not isinstance(value, bool):
            found = value
        elif isinstance(value, str) and (match := _SIZE.fullmatch(value.strip())):
            found = int(match[1]) << _UNITS[match[2].upper()]
        if found is None or found <= 0:
            raise ValueError('expected a size such as "256M", "1G" or a positive number of bytes')
        if found > MAX_SIZE:
            raise ValueError(f"expected a size of at most {show_size(MAX_SIZE)}")
        return cls(found)


POLL = 500
"""See `SystemSection.poll`."""


class _Section(Struct, forbid_unknown_fields=True, kw_only=True):
    """Unknown fields are mistakes: a misspelt option must not be ignored."""


class SystemSection(_Section):
    """`[system]`: the managed system as a whole."""

    name: Name | None = None
    """What `powervio ps` and `down` call it; the file's name without ".toml" if it is not given."""
    poll: Annotated[int, Meta(ge=0, le=100_000)] = POLL
    """Microseconds for which the hypervisor goes on looking, on a processor of its own, after a guest had something for
    it; then it sleeps until it is woken, which takes longer."""


class Vios(_Section):
    """`[[vios]]`: a VIO server partition."""

    name: Name
    """No other partition may have it."""
    memory: Size = Size(64 << 20)
    """From 4M; a multiple of 4096 bytes. What its disks need is checked."""
    thread: bool | None = None
    """Whether the partition has a thread of its own. Without, it shares the clients' one: a single small request takes
    about a fifth less time, and everything waits while one of its images does. If it is not given it has one, unless
    it has virtio-net devices of clients and nothing else in the file, for these wait for nothing."""
    redirect: bool = True
    """Whether the partition has a physical storage adapter, whose DMA engine moves large transfers straight between
    images and client memory (redirected DMA). Without, all is copied through the partition's own memory."""
    process: bool = False
    """Whether the partition is a process of its own, which may be killed as a machine may fail; `powervio activate`
    starts it again. It serves disks and bridges networks (`[[sea]]`), and has no physical adapter."""


class Disk(_Section):
    """`[[lpar.disk]]`: a virtio block device at one client, of one VIO server or of several (multipath)."""

    vios: str | list[str]
    """Name of the VIO server; or an array of names, the preferred one first: each is a path to the same raw image, and
    the disk goes on while one of them is there."""
    image: str
    """An image or a block device, relative to the system file; `pool:POOL/VOLUME`; or an export of an NBD server,
    `nbd://HOST[:PORT]/EXPORT`, `nbd+unix:///EXPORT?socket=PATH`."""
    format: Literal["raw", "qcow2", "vmdk", "vhdx"] | None = None
    """What kind of image it is: raw if it is not given, and then an image that looks like another kind is refused."""
    policy: Literal["failover", "round-robin"] | None = None
    """With several VIO servers, who gets requests: the first that can, or each in turn; failover if it is not given."""
    check_interval: Annotated[float, Meta(ge=0.1, le=3600)] | None = None
    """With several VIO servers, seconds between two checks of each path; 5 if it is not given. One that does not answer
    from one to the next gets no new requests until it does."""
    bytes_per_second: Size | None = None
    """Limit of what the client reads and writes; what is over waits. With round-robin each VIO server has its part."""
    requests_per_second: Annotated[int, Meta(ge=1, le=1 << 40)] | None = None
    """Limit of the client's requests."""
    burst_bytes: Size | None = None
    """What may go at once after a pause; a tenth of a second's worth if it is not given."""
    burst_requests: Annotated[int, Meta(ge=1, le=1 << 40)] | None = None
    """The same of requests."""
    size: Size | None = None
    """Make the image, sparse and this long, if it does not exist. One that exists keeps its size, and that is said."""
    nbd: str | None = None
    """Path of the Unix socket at which programs of the host find the client's disk; relative to the system file."""
    slot: Annotated[int, Meta(ge=2, le=0xFFFF)] | None = None
    """The client adapter's virtual slot; the lowest free one if it is not given."""
    readonly: bool = False
    """Whether the client can only read it."""
    discard: bool | None = None
    """Whether to offer DISCARD; if not given, as the image can."""
    direct: bool = False
    """O_DIRECT: go around the page cache of the host."""
    write_cache: bool = True
    """Whether the disk says that it has a volatile write cache; without, each write is made stable at once."""
    serial: Annotated[str, Meta(max_length=20, pattern="^[ -~]*$")] = ""
    """What the client reads as the disk's serial number."""
    block_size: Annotated[int, Meta(ge=512, le=65536)] | None = None
    """Logical block in bytes, a power of two; if not given, the image's."""
    queues: Annotated[int, Meta(ge=1, le=64)] = 1
    """Request queues."""
    queue_size: Annotated[int, Meta(ge=4, le=1024)] = 128
    """Descriptors in each queue, a power of two; revision 0 uses at most 128."""
    revision: Literal[0, 1] = 1
    """Highest revision of virtio over CRQ that the client proposes; 0 is the slides' protocol."""
    byteorder: Literal["little", "big"] = "little"
    """Of rings, config and requests in revision 0; revision 1 is always little-endian."""
    indirect: Literal["auto", "always", "never"] = "auto"
    """When the client uses indirect descriptors."""
    event_idx: bool = False
    """Whether the client uses EVENT_IDX."""
    ring: Literal["split", "packed"] = "split"
    """Which kind of ring the client wants; packed ones need revision 1."""
    unmapping: Literal["strict", "lazy"] = "strict"
    """When the client takes a buffer away from the VIO server: before the buffer is used for anything else, or up to 64
    buffers later, which saves calls and trusts the server with what is in the buffer then."""

    @property
    def servers(self) -> list[str]:
        """The VIO servers, the preferred one first."""
        return [self.vios] if isinstance(self.vios, str) else self.vios

    @property
    def paths(self) -> int:
        """How many ways there are to it."""
        return len(self.servers)


class StoragePool(_Section):
    """`[[pool]]`: a directory of logical volumes."""

    name: Name
    """What `image = "pool:NAME/VOLUME"` calls it; no other pool may have it."""
    path: str
    """The directory, relative to the system file; `powervio pool create` makes it with the first volume."""


class Lpar(_Section):
    """`[[lpar]]`: a client partition."""

    name: Name
    """No other partition may have it."""
    memory: Size = Size(256 << 20)
    """From 8M; a multiple of 4096 bytes. Reserved, used only as far as its disks need it. Of a guest it is all there
    is: a multiple of 1M, with ppc64le of 256M."""
    guest: Literal["door", "linux"] | None = None
    """What runs in it. Without it a client of powervio's own, whose disks programs reach by `nbd`. "linux" is a stock
    Debian kernel that the system boots in QEMU; `powervio console` has its shell. "door" is a virtual machine that
    somebody else starts: `powervio ps` has QEMU's options for it. The disks of both are for the guest's driver."""
    arch: Literal["x86_64", "ppc64le"] | None = None
    """With `guest`, its architecture; this machine's if it is not given and is one of them, else x86_64."""
    exec: str | None = None
    """With `guest = "linux"`, a command for its shell, after which it powers off; without it there is a shell on its
    console."""
    disk: list[Disk] = []
    """`[[lpar.disk]]` below the `[[lpar]]` that it belongs to."""


class SystemFile(_Section):
    """A system file as it is written."""

    vios: list[Vios]
    """`[[vios]]`: at least one."""
    lpar: list[Lpar] = []
    """`[[lpar]]`: any number."""
    pool: list[StoragePool] = []
    """`[[pool]]`: any number."""
    port: list[MachinePort] = []
    """`[[port]]`: any number."""
    sea: list[Sea] = []
    """`[[sea]]`: any number."""
    system: SystemSection = msgspec.field(default_factory=SystemSection)
    """`[system]`: not needed."""


@dataclass(frozen=True, slots=True)
class Config:
    """A managed system as declared, checked; the paths in it are absolute."""

    name: str
    vios: list[Vios]
    lpar: list[Lpar]
    file: str = "(declared in Python)"
    """Where it was read from, for messages."""
    path: str | None = None
    """The same as an absolute path, if it was read from a file."""
    pool: list[StoragePool] = field(default_factory=list)
    port: list[MachinePort] = field(default_factory=list)
    sea: list[Sea] = field(default_factory=list)
    poll: int = POLL
    """Microseconds."""

    def devices(self) -> Iterator[tuple[str, Lpar, DeviceType, AdapterSection]]:
        """Every device of the table of types, with its path in the file, its client and its row."""
        for at, lpar in enumerate(self.lpar):
            for row, number, declared in devices_of(lpar):
                yield f"lpar[{at}].{row.section}[{number}]", lpar, row, declared

    def has_thread(self, vios: Vios) -> bool:
        """Whether a VIO server is to run in a thread of its own."""
        if vios.thread is not None:
            return vios.thread
        if any(sea.vios == vios.name for sea in self.sea):
            return True
        if any(vios.name in ([disk.vios] if isinstance(disk.vios, str) else disk.vios) for _, _, disk in self.disks()):
            return True
        served = [(lpar, row) for _, lpar, row, declared in self.devices() if declared.vios == vios.name]
        return not served or any(lpar.guest or row.section != "net" for lpar, row in served)

    def disks(self) -> Iterator[tuple[str, Lpar, Disk]]:
        """Every disk with its path in the file and its client."""
        for at, lpar in enumerate(self.lpar):
            for number, disk in enumerate(lpar.disk):
                yield f"lpar[{at}].disk[{number}]", lpar, disk


def devices_of(lpar: Lpar) -> Iterator[tuple[DeviceType, int, AdapterSection]]:
    """A client's devices of the table of types: row, number in the row's section, options."""
    for row in device_types.TYPES.values():
        for number, declared in enumerate(getattr(lpar, row.section, ())):
            yield row, number, declared


def file_struct() -> type[SystemFile]:
    """`SystemFile` with the sections of every row of the table of device types."""
    lpar = device_types.with_sections(Lpar)
    fields: list[Any] = [("lpar", list[lpar], msgspec.field(default_factory=list))]  # type: ignore[valid-type]
    made = msgspec.defstruct("SystemFile", fields, bases=(SystemFile,), forbid_unknown_fields=True, kw_only=True)
    assert issubclass(made, SystemFile)
    return made


def show_size(size: int) -> str:
    """A size as people write it: "256M"; bytes if it is no whole number of units."""
    for unit, shift in reversed(_UNITS.items()):
        if unit and size and not size % (1 << shift):
            return f"{size >> shift}{unit}"
    return f"{size} bytes"

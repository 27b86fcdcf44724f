"""The system file: which partitions there are, and which VIO server serves which disk to which client.

It is TOML, read into the Structs below; each field says what it means, which defaults it has and what is allowed.
Every mistake is told with its path in the file and what was expected, as many of them at once as can be found.
To add an option, add a field here and use it in `system.system`; names, types and ranges are checked from the field.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
import stat
import tomllib
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct
from msgspec.structs import replace

from powervio.errors import LocalError
from powervio.storage import pool
from powervio.storage.open import check_format, is_uri, parse_uri
from powervio.system import sizing
from powervio.system import types as device_types
from powervio.system.sizing import PAGE
from powervio.system.types import AdapterSection, DeviceType

MIN_CLIENT_MEMORY = 8 << 20
MIN_VIOS_MEMORY = 4 << 20
"""Bytes; what the disks need comes on top (`sizing`)."""
MAX_MEMORY = 1 << 44
"""Bytes; it is only reserved, not used, so this bounds nothing but typing errors."""
MAX_SIZE = 1 << 62
"""Bytes; the kernel's numbers for positions in files end at twice that."""
MAX_SOCKET_PATH = 107
"""Bytes of a Unix socket's path (unix(7))."""

_NAME = "^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$"
_NAME_WORDS = "a name of letters, digits, '_', '.' and '-', up to 63"
_SIZE = re.compile(r"(\d{1,20}) ?([KMGT]?)(?:iB)?", re.IGNORECASE)
_UNITS = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}

Name = Annotated[str, Meta(pattern=_NAME)]


class ConfigError(LocalError):
    """Mistakes in a system file; the message has one line for each."""

    def __init__(self, file: str, problems: list[str]) -> None:
        self.problems = [_one_line(problem) for problem in problems]
        super().__init__("\n".join(f"{_one_line(file)}: {problem}" for problem in self.problems))


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


class _Section(Struct, forbid_unknown_fields=True, kw_only=True):
    """Unknown fields are mistakes: a misspelt option must not be ignored."""


class SystemSection(_Section):
    """`[system]`: the managed system as a whole."""

    name: Name | None = None
    """What `powervio ps` and `down` call it; the file's name without ".toml" if it is not given."""


class Vios(_Section):
    """`[[vios]]`: a VIO server partition."""

    name: Name
    """No other partition may have it."""
    memory: Size = Size(64 << 20)
    """From 4M; a multiple of 4096 bytes. What its disks need is checked."""
    thread: bool = True
    """Whether the partition has a thread of its own. Without, it shares the clients' one: a single small request takes
    about a fifth less time, and everything waits while one of its images does."""
    redirect: bool = True
    """Whether the partition has a physical storage adapter, whose DMA engine moves large transfers straight between
    images and client memory (redirected DMA). Without, all is copied through the partition's own memory."""


class Disk(_Section):
    """`[[lpar.disk]]`: a virtio block device of one VIO server, at one client."""

    vios: str
    """Name of the VIO server."""
    image: str
    """An image or a block device, relative to the system file; `pool:POOL/VOLUME`; or an export of an NBD server,
    `nbd://HOST[:PORT]/EXPORT`, `nbd+unix:///EXPORT?socket=PATH`."""
    format: Literal["raw", "qcow2", "vmdk", "vhdx"] | None = None
    """What kind of image it is: raw if it is not given, and then an image that looks like another kind is refused."""
    bytes_per_second: Size | None = None
    """Limit of what the client reads and writes; what is over waits."""
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
    """From 8M; a multiple of 4096 bytes. Reserved, used only as far as its disks need it."""
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

    def devices(self) -> Iterator[tuple[str, Lpar, DeviceType, AdapterSection]]:
        """Every device of the table of types, with its path in the file, its client and its row."""
        for at, lpar in enumerate(self.lpar):
            for row, number, declared in devices_of(lpar):
                yield f"lpar[{at}].{row.section}[{number}]", lpar, row, declared

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


def default_name(file: str | os.PathLike[str]) -> str:
    """What a system is called if its file does not say: the file's stem, made fit for a name."""
    return re.sub(r"[^A-Za-z0-9_.-]", "-", Path(file).stem).lstrip("_.-")[:63] or "system"


def load(file: str | os.PathLike[str], *, look_at_disks: bool = True) -> Config:
    """Read and check a system file. Raises `ConfigError`.

    Without `look_at_disks` its disks may still be missing or wrong: for who makes the volumes that they need.
    """
    shown = os.fspath(file)
    try:
        data = Path(file).read_bytes()
    except OSError as error:
        raise ConfigError(shown, [f"cannot be read ({error.strerror})"]) from error
    try:
        text = data.decode("utf-8-sig")  # some editors begin a file with a mark
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(shown, [f"line {line}: not UTF-8, which TOML has to be"]) from error
    path = Path(file).absolute()  # now: a system in the background leaves its folder
    return dataclasses.replace(parse(text, shown, path.parent, look_at_disks=look_at_disks), path=str(path))


def parse(text: str, file: str, folder: Path, *, look_at_disks: bool = True) -> Config:
    """A system file's text as a checked configuration; `file` is for messages, paths are relative to `folder`.

    Raises `ConfigError`.
    """
    try:
        raw = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: also for an integer of thousands of digits
        reason = str(error) or "nested too deeply"
        place = re.fullmatch(r"(.*) \(at (line \d+, column \d+|end of document)\)", reason, re.DOTALL)
        told = f"{place[2]}: {_lower(place[1])}" if place else _lower(reason)
        raise ConfigError(file, [f"{told}; not TOML"]) from None
    try:
        declared = msgspec.convert(raw, _file_struct(), dec_hook=_decode)
    except msgspec.ValidationError as error:
        raise ConfigError(file, [_explain(str(error), raw)]) from None
    pools = [replace(one, path=os.path.normpath(folder / one.path)) for one in declared.pool]
    problems = list(_check_pools(pools, declared.lpar if look_at_disks else []))
    if problems:
        raise ConfigError(file, problems)
    if not look_at_disks:
        return Config(declared.system.name or default_name(file), declared.vios, [], file, pool=pools)
    lpars = [_with_absolute_paths(lpar, folder, pools) for lpar in declared.lpar]
    config = Config(declared.system.name or default_name(file), declared.vios, lpars, file, pool=pools)
    problems = list(_check(config))
    if problems:
        raise ConfigError(file, problems)
    return config


def _file_struct() -> type[SystemFile]:
    """`SystemFile` with the sections of every row of the table of device types."""
    lpar = device_types.with_sections(Lpar)
    fields: list[Any] = [("lpar", list[lpar], msgspec.field(default_factory=list))]  # type: ignore[valid-type]
    made = msgspec.defstruct("SystemFile", fields, bases=(SystemFile,), forbid_unknown_fields=True, kw_only=True)
    assert issubclass(made, SystemFile)
    return made


def _decode(kind: type, value: object) -> object:
    if kind is Size:
        return Size.parse(value)
    raise NotImplementedError(kind)


def _with_absolute_paths(lpar: Lpar, folder: Path, pools: list[StoragePool]) -> Lpar:
    def absolute(path: str) -> str:
        return os.path.normpath(folder / path) if path else path

    disks = [
        replace(
            disk,
            image=_volume_file(absolute_image(disk.image, absolute), pools),
            nbd=None if disk.nbd is None else absolute(disk.nbd),
        )
        for disk in lpar.disk
    ]
    others = {
        row.section: [_absolute_sockets(declared, absolute) for declared in getattr(lpar, row.section, ())]
        for row in device_types.TYPES.values()
        if hasattr(lpar, row.section)
    }
    return replace(lpar, disk=disks, **others)


def absolute_image(image: str, absolute: Callable[[str], str]) -> str:
    """An image as a system file or an option names it, with whatever is a path in it made absolute."""
    if image.startswith("nbd+unix:"):  # the one part that is a path
        before, _, socket = image.partition("?socket=")
        return f"{before}?socket={absolute(socket)}"
    return image if is_uri(image) or image.startswith(pool.PREFIX) else absolute(image)


def _volume_file(image: str, pools: list[StoragePool]) -> str:
    """The file of an image that is a pool's volume; any other as it is. `_check_reference` found nothing wrong."""
    if not image.startswith(pool.PREFIX):
        return image
    name, volume = pool.split(image)
    (found,) = (one for one in pools if one.name == name)
    return os.path.join(found.path, volume)


def _absolute_sockets(declared: Struct, absolute: Callable[[str], str]) -> Struct:
    """A section with every `socket` in it, or in tables below it, absolute."""
    changes: dict[str, Any] = {}
    for name in declared.__struct_fields__:
        value = getattr(declared, name)
        if name == "socket" and value is not None:
            changes[name] = absolute(value)
        elif isinstance(value, list) and value and isinstance(value[0], Struct):
            changes[name] = [_absolute_sockets(part, absolute) for part in value]
    return replace(declared, **changes)


# -- disks that come and go while the system runs


def with_disk(config: Config, client: str, options: dict[str, Any]) -> tuple[Config, Disk]:
    """The configuration with one more disk at a client, and the disk; the options are those of the file, paths
    absolute (`absolute_image`).

    Raises `LocalError` with the words that the file's mistakes have; the disk is called "disk" there.
    """
    at = next((number for number, lpar in enumerate(config.lpar) if lpar.name == client), None)
    if at is None:
        names = ", ".join(sorted(lpar.name for lpar in config.lpar)) or "the system has none"
        raise LocalError(f'there is no client partition "{client}"; expected one of: {names}')
    raw = {"vios": [], "lpar": [{"name": client, "disk": [options]}]}
    try:
        disk = msgspec.convert(raw, SystemFile, dec_hook=_decode).lpar[0].disk[0]
    except msgspec.ValidationError as error:
        raise LocalError(_explain(str(error), raw).replace("lpar[0].disk[0]", "disk")) from None
    problems = list(_check_reference("disk.image", disk, config.pool))
    if problems:
        raise LocalError("\n".join(problems))
    disk = replace(disk, image=_volume_file(disk.image, config.pool))
    lpar = config.lpar[at]
    grown = dataclasses.replace(config, lpar=list(config.lpar))
    grown.lpar[at] = replace(lpar, disk=[*lpar.disk, disk])
    where = f"lpar[{at}].disk[{len(lpar.disk)}]"
    # Of the others only what the new disk does to them: their files may have changed since they were opened.
    concerned = (f"{where}.", f"lpar[{at}].memory", "vios[")
    problems = [problem for problem in _check(grown) if problem.startswith(concerned)]
    if problems:
        raise LocalError("\n".join(problems).replace(where, "disk"))
    return grown, disk


def without_disk(config: Config, gone: Disk) -> Config:
    """The configuration without this disk."""
    lpars = [replace(lpar, disk=[disk for disk in lpar.disk if disk is not gone]) for lpar in config.lpar]
    return dataclasses.replace(config, lpar=lpars)


# -- client partitions that come and go


def with_lpar(config: Config, raw: dict[str, Any]) -> tuple[Config, Lpar]:
    """The configuration with one more client partition, and the partition; `raw` is its section, paths absolute.

    Raises `LocalError` with the words that the file's mistakes have; the partition is called "lpar" there.
    """
    try:
        lpar = msgspec.convert({"vios": [], "lpar": [raw]}, _file_struct(), dec_hook=_decode).lpar[0]
    except msgspec.ValidationError as error:
        raise LocalError(_explain(str(error), {"vios": [], "lpar": [raw]}).replace("lpar[0]", "lpar")) from None
    where = f"lpar[{len(config.lpar)}]"
    grown = dataclasses.replace(config, lpar=[*config.lpar, lpar])
    problems = [problem for problem in _check(grown) if problem.startswith((where, "vios["))]
    if problems:
        raise LocalError("\n".join(problems).replace(where, "lpar"))
    return grown, lpar


def without_lpar(config: Config, name: str) -> Config:
    """The configuration without the client partition of this name."""
    return dataclasses.replace(config, lpar=[lpar for lpar in config.lpar if lpar.name != name])


# -- what a type cannot say


def _check(config: Config) -> Iterator[str]:
    yield from _check_partitions(config)
    servers = {vios.name for vios in config.vios}
    images: dict[tuple[int, int] | str, tuple[str, Disk]] = {}
    sockets: dict[str, str] = {}
    slots: dict[tuple[str, int], str] = {}
    for where, lpar, disk in config.disks():
        if servers and disk.vios not in servers:
            yield f"{where}.vios: {_show(disk.vios)} is not one of the VIO servers ({', '.join(sorted(servers))})"
        yield from _check_options(where, disk)
        yield from _check_image(where, disk, images)
        if disk.nbd is not None:
            yield from _check_socket(f"{where}.nbd", disk.nbd, sockets)
        if disk.slot is not None:
            other = slots.setdefault((lpar.name, disk.slot), where)
            if other != where:
                yield f"{where}.slot: slot {disk.slot} of {lpar.name} is taken by {other}"
    for where, lpar, row, declared in config.devices():
        if servers and declared.vios not in servers:
            yield f'{where}.vios: "{declared.vios}" is not one of the VIO servers ({", ".join(sorted(servers))})'
        if declared.byteorder == "big" and declared.revision != 0:
            yield f'{where}.byteorder: "big" needs revision = 0; revision 1 is little-endian as virtio 1 is'
        for problem in row.check(declared):
            yield f"{where}.{problem}"
        for at, path in _sockets(where, declared):
            yield from _check_socket(at, path, sockets)
        if declared.slot is not None:
            other = slots.setdefault((lpar.name, declared.slot), where)
            if other != where:
                yield f"{where}.slot: slot {declared.slot} of {lpar.name} is taken by {other}"
    paths = {disk.image for _, disk in images.values()}
    for where, disk in images.values():
        if disk.nbd in paths:
            yield f"{where}.nbd: {disk.nbd} is an image of this file; expected the path of a socket"


def _check_pools(pools: list[StoragePool], lpars: Sequence[Lpar]) -> Iterator[str]:
    names: dict[str, str] = {}
    paths: dict[str, str] = {}
    for at, one in enumerate(pools):
        for what, known, value in (("name", names, one.name), ("path", paths, os.path.realpath(one.path))):
            other = known.setdefault(value, f"pool[{at}]")
            if other != f"pool[{at}]":
                yield f"pool[{at}].{what}: {value} is that of {other} already"
        if not os.path.isdir(one.path) and (os.path.lexists(one.path) or not os.path.isdir(os.path.dirname(one.path))):
            yield f"pool[{at}].path: {one.path} is no directory, and none can be made there"
    for number, lpar in enumerate(lpars):
        for position, disk in enumerate(lpar.disk):
            yield from _check_reference(f"lpar[{number}].disk[{position}].image", disk, pools)


def _check_reference(where: str, disk: Disk, pools: list[StoragePool]) -> Iterator[str]:
    """What is wrong with an image that is no path: a URI or a pool's volume."""
    try:
        if is_uri(disk.image):
            parse_uri(disk.image)
        if not disk.image.startswith(pool.PREFIX):
            return
        name, volume = pool.split(disk.image)
        found = next((one for one in pools if one.name == name), None)
        if found is None:
            there = f"pools: {', '.join(one.name for one in pools)}" if pools else "there is no [[pool]]"
            yield f'{where}: there is no pool "{name}" ({there})'
        elif disk.size is not None:
            yield f"{where}: a volume has its size already; `powervio pool` makes and resizes volumes"
        else:
            pool.Pool(name, found.path).check(volume)
    except LocalError as error:
        yield f"{where}: {error}"


def _sockets(where: str, declared: Struct) -> Iterator[tuple[str, str]]:
    for name in declared.__struct_fields__:
        value = getattr(declared, name)
        if name == "socket" and value is not None:
            yield f"{where}.{name}", value
        elif isinstance(value, list):
            for number, part in enumerate(value):
                if isinstance(part, Struct):
                    yield from _sockets(f"{where}.{name}[{number}]", part)


def _check_partitions(config: Config) -> Iterator[str]:
    if not config.vios:
        yield "vios: there is none; expected at least one [[vios]]"
    names: dict[str, str] = {}
    groups: tuple[tuple[str, Sequence[Vios | Lpar], int], ...] = (
        ("vios", config.vios, MIN_VIOS_MEMORY),
        ("lpar", config.lpar, MIN_CLIENT_MEMORY),
    )
    for kind, partitions, least in groups:
        for at, partition in enumerate(partitions):
            where = f"{kind}[{at}]"
            other = names.setdefault(partition.name, where)
            if other != where:
                yield f'{where}.name: "{partition.name}" is the name of {other} already'
            if not least <= partition.memory <= MAX_MEMORY:
                limits = f"{show_size(least)} to {show_size(MAX_MEMORY)}"
                yield f"{where}.memory: {show_size(partition.memory)}; expected {limits}"
            elif partition.memory % PAGE:
                yield f"{where}.memory: {partition.memory} bytes; expected a multiple of {PAGE}"
            elif partition.memory < (need := _memory_need(config, partition)):
                yield f"{where}.memory: {show_size(partition.memory)}; its devices need at least {-(-need >> 20)}M"


def _memory_need(config: Config, partition: Vios | Lpar) -> int:
    if isinstance(partition, Lpar):
        others = sum(1 for _ in devices_of(partition))
        return sizing.client_need(partition.disk) + others * sizing.CLIENT_DEVICE
    others = sum(declared.vios == partition.name for _, _, _, declared in config.devices())
    disks = [disk for _, _, disk in config.disks() if disk.vios == partition.name]
    return sizing.server_need(disks) + others * sizing.SERVER_DEVICE


def _check_options(where: str, disk: Disk) -> Iterator[str]:
    for option in ("block_size", "queue_size"):
        value = getattr(disk, option)
        if value is not None and value & (value - 1):
            yield f"{where}.{option}: {value}; expected a power of two"
    if disk.byteorder == "big" and disk.revision != 0:
        yield f'{where}.byteorder: "big" needs revision = 0; revision 1 is little-endian as virtio 1 is'
    if disk.readonly and disk.discard:
        yield f"{where}.discard: a disk that is readonly cannot discard"
    if disk.readonly and disk.size is not None:
        yield f"{where}.size: a disk that is readonly cannot be made"
    if disk.size is not None and (disk.format not in (None, "raw") or is_uri(disk.image)):
        yield f"{where}.size: only a raw image can be made; make others with qemu-img create"
    for option, needs in (("burst_bytes", "bytes_per_second"), ("burst_requests", "requests_per_second")):
        if getattr(disk, option) is not None and getattr(disk, needs) is None:
            yield f"{where}.{option}: it limits nothing without {needs}"
    if is_uri(disk.image):
        for option in ("format", "direct"):
            if getattr(disk, option):
                yield f"{where}.{option}: it is the NBD server's to choose, not ours"
    if disk.size is not None and disk.size % 512:
        yield f"{where}.size: {disk.size} bytes; expected a multiple of 512"


def _check_image(where: str, disk: Disk, images: dict[tuple[int, int] | str, tuple[str, Disk]]) -> Iterator[str]:
    at = f"{where}.image"
    key: tuple[int, int] | str = disk.image
    try:
        found = None if is_uri(disk.image) else os.stat(disk.image)
    except FileNotFoundError:
        if not disk.image:
            yield f"{at}: it is empty; expected the path of a raw image"
            return
        if disk.size is None:
            yield f'{at}: {disk.image} does not exist (size = "1G" would make it)'
        elif not os.path.isdir(os.path.dirname(disk.image)):
            yield f"{at}: the folder of {disk.image} does not exist"
    except (OSError, ValueError) as error:
        yield f"{at}: {disk.image}: {_reason(error)}"
    else:
        if found is None:
            pass  # who is there is found out when it is connected to
        elif stat.S_ISDIR(found.st_mode):
            yield f"{at}: {disk.image} is a directory; expected a file or a block device"
        elif not (stat.S_ISREG(found.st_mode) or stat.S_ISBLK(found.st_mode)):
            yield f"{at}: {disk.image} is neither a file nor a block device"
        elif stat.S_ISREG(found.st_mode) and not found.st_size:
            yield f"{at}: {disk.image} is empty (0 bytes); expected at least one sector"
        elif stat.S_ISREG(found.st_mode):
            try:
                check_format(disk.image, disk.format)
            except LocalError as error:
                yield f"{where}.{'format' if disk.format else 'image'}: {error}"
        if found is not None:
            key = (0, found.st_rdev) if stat.S_ISBLK(found.st_mode) else (found.st_dev, found.st_ino)
    other_where, other = images.setdefault(key, (where, disk))
    if other_where != where and not (disk.readonly and other.readonly):
        yield f"{at}: {disk.image} is served by {other_where} already; an image has one disk unless all are readonly"


def _check_socket(at: str, path: str, sockets: dict[str, str]) -> Iterator[str]:
    length = len(os.fsencode(path))
    folder = os.path.dirname(path)
    if not path:
        yield f"{at}: it is empty; expected the path of a socket"
    elif "\0" in path:
        yield f"{at}: a path cannot have a zero byte"
    elif length > MAX_SOCKET_PATH:
        yield f"{at}: {path} has {length} bytes; the path of a Unix socket has at most {MAX_SOCKET_PATH}"
    elif not os.path.isdir(folder):
        yield f"{at}: the folder {folder} does not exist"
    elif os.path.lexists(path) and not stat.S_ISSOCK(os.lstat(path).st_mode):
        yield f"{at}: {path} exists and is not a socket"
    else:
        other = sockets.setdefault(os.path.join(os.path.realpath(folder), os.path.basename(path)), at)
        if other != at:
            yield f"{at}: {path} is the socket of {other} already"


def show_size(size: int) -> str:
    """A size as people write it: "256M"; bytes if it is no whole number of units."""
    for unit, shift in reversed(_UNITS.items()):
        if unit and size and not size % (1 << shift):
            return f"{size >> shift}{unit}"
    return f"{size} bytes"


def _reason(error: OSError | ValueError) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


# -- msgspec's messages in the words of a TOML file

_WORDS = {
    "int": "an integer",
    "str": "a string",
    "bool": "true or false",
    "array": "an array",
    "object": "a table",
    "float": "a number",
}


def _explain(message: str, raw: dict[str, Any]) -> str:
    what, _, path = message.partition(" - at `$")
    path = path.rstrip("`").lstrip(".")
    kind, value = _follow(path, raw)
    if match := re.fullmatch(r"Object missing required field `(\w+)`", what):
        section = f"{path}.{match[1]}" if path else match[1]
        return f"{section}: it is missing; expected {_expected(_field(kind, match[1])[0], section)}"
    if match := re.fullmatch(r"Object contains unknown field `(.*)`", what, re.DOTALL):
        return _unknown_field(kind, path, match[1])
    if what.startswith("expected"):  # our own `Size.parse`
        return f"{path}: {what}, found {_show(value)}"
    return f"{path}: expected {_expected(kind, path)}, found {_show(value)}"


def _unknown_field(kind: Any, path: str, name: str) -> str:
    name = _shortened(name)
    known = [field.name for field in msgspec.structs.fields(kind)]
    close = difflib.get_close_matches(name, known, n=1)
    hint = f'did you mean "{close[0]}"?' if close else f"expected one of {', '.join(known)}"
    return f"{f'{path}.' if path else ''}{name}: there is no such option; {hint}"


def _follow(path: str, raw: dict[str, Any]) -> tuple[Any, Any]:
    """The declared type and the value found at a path such as `lpar[0].disk[1].queues`."""
    kind: Any = _file_struct()
    value: Any = raw
    for name, index in re.findall(r"([^.\[\]]+)|\[(\d+)\]", path):
        if index:
            kind = typing.get_args(kind)[0]
            value = value[int(index)]
        else:
            kind = _field(kind, name)[0]
            value = value[name]
    return kind, value


def _field(kind: Any, name: str) -> tuple[Any, str]:
    """The type of a field, without an `| None`: TOML has no null."""
    declared = typing.get_type_hints(kind, include_extras=True)[name]
    if isinstance(declared, types.UnionType) or typing.get_origin(declared) is typing.Union:
        (declared,) = (option for option in typing.get_args(declared) if option is not types.NoneType)
    return declared, name


def expected(kind: type[Struct], name: str) -> str:
    """What a field of a section takes, in words."""
    return _expected(*_field(kind, name))


def _expected(kind: Any, path: str) -> str:
    """What the field at a path takes, in words."""
    if typing.get_origin(kind) is Annotated:
        base, meta = typing.get_args(kind)
        if meta.pattern == _NAME:
            return _NAME_WORDS
        if meta.max_length is not None:
            return f"a string of{' 1 to' if meta.min_length else ' at most'} {meta.max_length} characters of ASCII"
        return f"{_WORDS[base.__name__]} from {meta.ge} to {meta.le}"
    if typing.get_origin(kind) is Literal:
        return " or ".join(_show(value) for value in typing.get_args(kind))
    if kind is Size:
        return 'a size such as "256M" or a number of bytes'
    if typing.get_origin(kind) is list:
        section = re.sub(r"\[\d+\]", "", path)
        return f"an array of tables, [[{section}]]"
    if isinstance(kind, type) and issubclass(kind, Struct):
        return "a table"
    return _WORDS[kind.__name__]


def _show(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f'"{_shortened(value)}"'
    if isinstance(value, Mapping):
        return "a table"
    if isinstance(value, list):
        return "an array"
    if isinstance(value, int) and value.bit_length() > 4000:
        return "a number of more than a thousand digits"  # Python writes none of those
    return _shortened(str(value))


def _shortened(text: str) -> str:
    return text if len(text) < 60 else f"{text[:57]}..."


def _one_line(text: str) -> str:
    """Text of the user's as a part of one line: control characters escaped, what nobody reads cut out."""
    text = re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", lambda match: match[0].encode("unicode_escape").decode(), text)
    return re.sub(r"\S{300,}", lambda match: f"{match[0][:150]}...{match[0][-100:]}", text)


def _lower(sentence: str) -> str:
    return sentence[:1].lower() + sentence[1:]

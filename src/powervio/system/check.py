"""What is wrong with a declared system that a field's type cannot say: names, references, memory, files, sockets.

Each problem is one line that begins with its path in the file and says what was expected.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence

import msgspec
from msgspec import Struct

from powervio.boot import machine
from powervio.boot.qemu import LEAST_MEMORY
from powervio.errors import LocalError
from powervio.storage import pool
from powervio.storage.open import check_format, is_uri, parse_uri
from powervio.system import fs_section, machine_ports, sea_section, sizing
from powervio.system.config import (
    MAX_MEMORY,
    MAX_SOCKET_PATH,
    MIN_CLIENT_MEMORY,
    MIN_VIOS_MEMORY,
    Config,
    Disk,
    Lpar,
    StoragePool,
    Vios,
    devices_of,
    show_size,
)
from powervio.system.explain import show
from powervio.system.sea_end import adapter_memory
from powervio.system.sizing import PAGE


def config_problems(config: Config) -> Iterator[str]:
    """What is wrong with partitions, devices, images and sockets."""
    yield from _check_partitions(config)
    for number, lpar in enumerate(config.lpar):
        yield from _check_guest(f"lpar[{number}]", lpar)
    servers = {vios.name for vios in config.vios}
    images: dict[tuple[int, int] | str, tuple[str, Disk]] = {}
    sockets: dict[str, str] = {}
    slots: dict[tuple[str, int], str] = {}
    for where, lpar, disk in config.disks():
        yield from _check_servers(where, disk, servers)
        yield from _check_options(where, disk)
        yield from _check_image(where, disk, images)
        if disk.nbd is not None:
            yield from _check_socket(f"{where}.nbd", disk.nbd, sockets)
        if disk.slot is not None:
            other = slots.setdefault((lpar.name, disk.slot), where)
            if other != where:
                yield f"{where}.slot: slot {disk.slot} of {lpar.name} is taken by {other}"
    apart = {vios.name for vios in config.vios if vios.process}
    for number, vios in enumerate(config.vios):
        if vios.process and vios.thread is False:
            yield f"vios[{number}].thread: a VIO server in a process of its own has a thread of its own"
    for where, lpar, row, declared in config.devices():
        if declared.vios in apart:
            yield f"{where}.vios: {declared.vios} is a process of its own, and serves disks only; expected another one"
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
    yield from _check_interfaces(config)
    yield from _check_shares(config)
    yield from machine_ports.problems(config.port)
    yield from sea_section.problems(config.sea, servers)
    yield from _check_control_channels(config)
    for number, port in enumerate(config.port):
        yield from _check_socket(f"port[{number}].socket", port.socket, sockets)
    exports = {disk.nbd for _, _, disk in config.disks() if disk.nbd is not None}
    for where, _, disk in config.disks():
        if disk.image.startswith("nbd+unix:") and parse_uri(disk.image).address in exports:
            # the VIO server would wait for a client that waits for the VIO server
            yield f"{where}.image: {disk.image} is what this system exports; a disk cannot stand on another one of it"
    paths = {disk.image for _, disk in images.values()}
    for where, disk in images.values():
        if disk.nbd in paths:
            yield f"{where}.nbd: {disk.nbd} is an image of this file; expected the path of a socket"


def _check_control_channels(config: Config) -> Iterator[str]:
    channels = {(sea.switch, sea.control) for sea in config.sea}
    ports = [(where, declared) for where, _, row, declared in config.devices() if row.section == "net"]
    for where, declared in [*ports, *((f"port[{number}]", port) for number, port in enumerate(config.port))]:
        switch, pvid, vlans = (getattr(declared, option) for option in ("switch", "pvid", "vlans"))
        for vlan in (pvid, *vlans):
            if (switch, vlan) in channels:
                yield f"{where}: VLAN {vlan} of {switch} is the control channel of a [[sea]]; expected another one"


def _check_interfaces(config: Config) -> Iterator[str]:
    """What is wrong with network adapters beside each other."""
    interfaces: dict[tuple[str | None, str], str] = {}
    macs: dict[tuple[str, str], str] = {}
    for where, _, row, declared in config.devices():
        if row.section != "net":
            continue
        tap, netns, mac, switch = (getattr(declared, option) for option in ("tap", "netns", "mac", "switch"))
        if tap is not None:
            other = interfaces.setdefault((netns, tap), where)
            if other != where:
                place = "the host's own namespace" if netns is None else f"namespace {netns}"
                yield f"{where}.tap: {tap} in {place} is that of {other} already"
            if os.geteuid():
                yield f"{where}.tap: an interface takes root (CAP_NET_ADMIN); without tap nobody has the adapter"
        if mac is not None:
            other = macs.setdefault((switch, mac.lower().replace("-", ":")), where)
            if other != where:
                yield f"{where}.mac: {mac} is that of {other} already"


def _check_shares(config: Config) -> Iterator[str]:
    """What is wrong with shares beside each other. Mounts are not looked at: it is this process that would answer."""
    tags: dict[tuple[str, str], str] = {}
    mounts: dict[str, str] = {}
    shares = [
        (where, lpar, declared) for where, lpar, _, declared in config.devices() if isinstance(declared, fs_section.Fs)
    ]
    for where, lpar, declared in shares:
        other = tags.setdefault((lpar.name, declared.tag), where)
        if other != where:
            yield f"{where}.tag: {declared.tag} is that of {other} already; a client has each once"
        if declared.mount is not None:
            other = mounts.setdefault(declared.mount, where)
            if other != where:
                yield f"{where}.mount: {declared.mount} is that of {other} already"
    for where, _, declared in shares:
        for mount, other in mounts.items():
            if fs_section.is_inside(declared.dir, mount) or fs_section.is_inside(mount, declared.dir):
                yield f"{where}.dir: {declared.dir} and {other}.mount are in each other; expected another folder"


def pool_problems(pools: list[StoragePool], lpars: Sequence[Lpar]) -> Iterator[str]:
    """What is wrong with pools, and with what disks say of them."""
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
            yield from reference_problems(f"lpar[{number}].disk[{position}].image", disk, pools)


def reference_problems(where: str, disk: Disk, pools: list[StoragePool]) -> Iterator[str]:
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


def _check_servers(where: str, disk: Disk, servers: set[str]) -> Iterator[str]:
    for number, name in enumerate(disk.servers):
        at = f"{where}.vios" if isinstance(disk.vios, str) else f"{where}.vios[{number}]"
        if servers and name not in servers:
            yield f"{at}: {show(name)} is not one of the VIO servers ({', '.join(sorted(servers))})"
        if name in disk.servers[:number]:
            yield f"{at}: {show(name)} is there already; expected another VIO server for each path"
    if not disk.servers:
        yield f"{where}.vios: it is empty; expected a VIO server, or several"
    if disk.paths < 2:
        for option in ("policy", "check_interval"):
            if getattr(disk, option) is not None:
                yield f"{where}.{option}: it is about several VIO servers; vios names one"
        return
    if disk.format not in (None, "raw"):
        yield (
            f"{where}.format: several VIO servers can serve a raw image; of {disk.format} each would have tables of its"
            f" own in memory, and they would destroy the image"
        )
    if is_uri(disk.image):
        yield (
            f"{where}.image: several VIO servers can serve a raw image; of an NBD export each would keep a journal of"
            f" its own, and write old data again over the other's when the NBD server comes back"
        )


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


def _check_guest(where: str, lpar: Lpar) -> Iterator[str]:
    """What is wrong with a partition that is a guest, or says something that only guests have."""
    if lpar.guest is None:
        if lpar.arch is not None:
            yield f'{where}.arch: it is about guests; expected guest = "linux" or "door" beside it'
        if lpar.exec is not None:
            yield f'{where}.exec: it is about guests that the system boots; expected guest = "linux" beside it'
        return
    if lpar.guest != "linux" and lpar.exec is not None:
        yield f'{where}.exec: whoever starts the guest says what it runs; expected guest = "linux" beside it'
    arch = machine.find(lpar.arch or machine.of_this_machine())
    if lpar.memory % arch.memory_step:
        yield (
            f"{where}.memory: {show_size(lpar.memory)}; of a guest on {arch.name} expected a multiple of"
            f" {show_size(arch.memory_step)}"
        )
    elif lpar.guest == "linux" and lpar.memory < LEAST_MEMORY:
        yield f"{where}.memory: {show_size(lpar.memory)}; Linux needs {show_size(LEAST_MEMORY)} at least"
    whose = "the guest's own driver decides that"
    for number, disk in enumerate(lpar.disk):
        at = f"{where}.disk[{number}]"
        if disk.paths > 1:
            yield f"{at}.vios: a guest takes each path for a disk of its own; expected one VIO server"
        yield from _only_ours(at, disk, whose, "revision", "byteorder", "indirect", "event_idx", "ring", "unmapping")
        yield from _only_ours(at, disk, "the disk is for programs in the guest", "nbd")
    for row, number, declared in devices_of(lpar):
        at = f"{where}.{row.section}[{number}]"
        if lpar.guest == "linux" and row.section == "console":
            yield f"{at}: a guest that the system boots has a console already, its serial port"
            continue
        yield from _only_ours(at, declared, whose, "revision", "byteorder")
        yield from _only_ours(at, declared, "a guest has no virtual terminal, only virtio consoles", "type")
        for place, part in _parts(at, declared):
            for_guest = ("exec", "socket", "netns", "tap", "address", "gateway", "offloads", "mount")
            yield from _only_ours(place, part, "the device is for programs in the guest", *for_guest)


def _only_ours(where: str, declared: Struct, why: str, *options: str) -> Iterator[str]:
    """Options that only clients of powervio's own have, where they are not at their defaults."""
    for field in msgspec.structs.fields(declared):
        made = field.default_factory
        default = field.default if made is msgspec.NODEFAULT else made()
        if field.name in options and getattr(declared, field.name) != default:
            option = field.name
            yield f"{where}.{option}: the partition is a guest, and {why}"


def _parts(where: str, declared: Struct) -> Iterator[tuple[str, Struct]]:
    """A section and the tables below it."""
    yield where, declared
    for name in declared.__struct_fields__:
        value = getattr(declared, name)
        if isinstance(value, list):
            for number, part in enumerate(value):
                if isinstance(part, Struct):
                    yield f"{where}.{name}[{number}]", part


def _memory_need(config: Config, partition: Vios | Lpar) -> int:
    if isinstance(partition, Lpar):
        if partition.guest is not None:
            return 0  # its own business
        return sizing.client_need(partition.disk) + sum(row.client_memory for row, _, _ in devices_of(partition))
    others = sum(row.server_memory for _, _, row, declared in config.devices() if declared.vios == partition.name)
    disks = [disk for _, _, disk in config.disks() if partition.name in disk.servers]
    if partition.process:
        others += sum(
            adapter_memory(plan) for plan in sea_section.plans(config.sea, "") if plan.declared.vios == partition.name
        )
    return sizing.server_need(disks) + others


def _check_options(where: str, disk: Disk) -> Iterator[str]:
    for option in ("block_size", "queue_size"):
        value = getattr(disk, option)
        if value is not None and value & (value - 1):
            yield f"{where}.{option}: {value}; expected a power of two"
    if disk.byteorder == "big" and disk.revision != 0:
        yield f'{where}.byteorder: "big" needs revision = 0; revision 1 is little-endian as virtio 1 is'
    if disk.ring == "packed" and disk.revision == 0:
        yield f'{where}.ring: "packed" needs revision = 1'
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


def _reason(error: OSError | ValueError) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)

"""From the text of a system file to a checked configuration, and what attaching and detaching disks makes of one.

Every mistake is told with its path in the file and what was expected, as many of them at once as can be found.
"""

from __future__ import annotations

import dataclasses
import os
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from powervio.errors import LocalError
from powervio.storage import pool
from powervio.storage.open import is_uri
from powervio.system import types as device_types
from powervio.system.check import config_problems, pool_problems, reference_problems
from powervio.system.config import Config, Disk, Lpar, Size, StoragePool, SystemFile, file_struct
from powervio.system.explain import explain, one_line


class ConfigError(LocalError):
    """Mistakes in a system file; the message has one line for each."""

    def __init__(self, file: str, problems: list[str]) -> None:
        self.problems = [one_line(problem) for problem in problems]
        super().__init__("\n".join(f"{one_line(file)}: {problem}" for problem in self.problems))


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
        declared = msgspec.convert(raw, file_struct(), dec_hook=_decode)
    except msgspec.ValidationError as error:
        raise ConfigError(file, [explain(str(error), raw)]) from None
    pools = [replace(one, path=os.path.normpath(folder / one.path)) for one in declared.pool]
    problems = list(pool_problems(pools, declared.lpar if look_at_disks else []))
    if problems:
        raise ConfigError(file, problems)
    name, poll = declared.system.name or default_name(file), declared.system.poll
    if not look_at_disks:
        return Config(name, declared.vios, [], file, pool=pools, poll=poll)
    lpars = [_with_absolute_paths(lpar, folder, pools) for lpar in declared.lpar]
    ports = [replace(port, socket=os.path.normpath(folder / port.socket)) for port in declared.port]
    config = Config(name, declared.vios, lpars, file, pool=pools, port=ports, sea=declared.sea, poll=poll)
    problems = list(config_problems(config))
    if problems:
        raise ConfigError(file, problems)
    return config


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
        row.section: [_absolute_paths(declared, absolute) for declared in getattr(lpar, row.section, ())]
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
    """The file of an image that is a pool's volume; any other as it is. `reference_problems` found nothing wrong."""
    if not image.startswith(pool.PREFIX):
        return image
    name, volume = pool.split(image)
    (found,) = (one for one in pools if one.name == name)
    return os.path.join(found.path, volume)


def _absolute_paths(declared: Struct, absolute: Callable[[str], str]) -> Struct:
    """A section with every path in it, or in tables below it, absolute."""
    paths = getattr(declared, "paths", ("socket",))
    changes: dict[str, Any] = {}
    for name in declared.__struct_fields__:
        value = getattr(declared, name)
        if name in paths and value is not None:
            changes[name] = absolute(value)
        elif isinstance(value, list) and value and isinstance(value[0], Struct):
            changes[name] = [_absolute_paths(part, absolute) for part in value]
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
        raise LocalError(explain(str(error), raw).replace("lpar[0].disk[0]", "disk")) from None
    problems = list(reference_problems("disk.image", disk, config.pool))
    if problems:
        raise LocalError("\n".join(problems))
    disk = replace(disk, image=_volume_file(disk.image, config.pool))
    lpar = config.lpar[at]
    grown = dataclasses.replace(config, lpar=list(config.lpar))
    grown.lpar[at] = replace(lpar, disk=[*lpar.disk, disk])
    where = f"lpar[{at}].disk[{len(lpar.disk)}]"
    # Of the others only what the new disk does to them: their files may have changed since they were opened.
    concerned = (f"{where}.", f"lpar[{at}].memory", "vios[")
    problems = [problem for problem in config_problems(grown) if problem.startswith(concerned)]
    if problems:
        raise LocalError("\n".join(problems).replace(where, "disk"))
    return grown, disk


def without_disk(config: Config, gone: Disk) -> Config:
    """The configuration without this disk."""
    lpars = [replace(lpar, disk=[disk for disk in lpar.disk if disk is not gone]) for lpar in config.lpar]
    return dataclasses.replace(config, lpar=lpars)


def with_lpar(config: Config, raw: dict[str, Any]) -> tuple[Config, Lpar]:
    """The configuration with one more client partition, and the partition; `raw` is its section, paths absolute.

    Raises `LocalError` with the words that the file's mistakes have; the partition is called "lpar" there.
    """
    whole = {"vios": [], "lpar": [raw]}
    try:
        lpar = msgspec.convert(whole, file_struct(), dec_hook=_decode).lpar[0]
    except msgspec.ValidationError as error:
        raise LocalError(explain(str(error), whole).replace("lpar[0]", "lpar")) from None
    where = f"lpar[{len(config.lpar)}]"
    grown = dataclasses.replace(config, lpar=[*config.lpar, lpar])
    problems = [problem for problem in config_problems(grown) if problem.startswith((where, "vios["))]
    if problems:
        raise LocalError("\n".join(problems).replace(where, "lpar"))
    return grown, lpar


def without_lpar(config: Config, name: str) -> Config:
    """The configuration without the client partition of this name."""
    return dataclasses.replace(config, lpar=[lpar for lpar in config.lpar if lpar.name != name])


def _lower(sentence: str) -> str:
    return sentence[:1].lower() + sentence[1:]

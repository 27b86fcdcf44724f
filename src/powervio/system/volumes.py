"""Logical volumes of a declared system's pools: listed, made, resized, deleted; also while disks are served from them.

The same answers with and without a running system: `answer` is the control request `pool`, and `answer_without` works
on the pools of a system file. Only the running system can resize a volume that it serves.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import msgspec

from powervio.errors import LocalError
from powervio.storage.pool import Pool, check_shrink, split
from powervio.system.config import Config

if TYPE_CHECKING:
    from powervio.system.disks import ServedDisk
    from powervio.system.system import System


class _Arguments(msgspec.Struct, forbid_unknown_fields=True):
    verb: str
    """list, create, resize or delete."""
    target: str = ""
    """`POOL/VOLUME`, or for `list` a pool or nothing."""
    size: int = 0
    """Bytes."""
    shrink: bool = False


async def answer(system: System, arguments: dict[str, Any]) -> dict[str, Any]:
    """Carry out a request of `powervio pool` in the running system. Raises `LocalError`."""
    asked = _decode(arguments)
    if asked.verb != "list":
        pool, volume = _find(system.config, asked.target)
        served = [disk for disk in system.disks if _is_file_of(disk, pool, volume)]
        if served and asked.verb == "delete":
            raise LocalError(f"volume {asked.target} is served to {_whom(served)}: it cannot be deleted")
        if served and asked.verb == "resize":
            if len(served) > 1:
                raise LocalError(f"volume {asked.target} is served to {_whom(served)}: several disks cannot be resized")
            was = served[0].paths[0].server_end.size
            check_shrink(volume, was, asked.size, shrink=asked.shrink)
            await system.plug.resize(served[0], asked.size, shrink=asked.shrink)
            return {"pool": pool.name, "volume": volume, "size": asked.size, "was": was, "served_to": _whom(served)}
    return _carry_out(system.config, asked, system.disks)


def answer_without(config: Config, arguments: dict[str, Any]) -> dict[str, Any]:
    """The same for a system that does not run."""
    return _carry_out(config, _decode(arguments), [])


def _decode(arguments: dict[str, Any]) -> _Arguments:
    try:
        return msgspec.convert(arguments, _Arguments)
    except msgspec.ValidationError as error:
        raise LocalError(f"not a request for a pool: {error}") from None


def _carry_out(config: Config, asked: _Arguments, disks: list[ServedDisk]) -> dict[str, Any]:
    if asked.verb == "list":
        pools = [_pool(config, asked.target)] if asked.target else [Pool(one.name, one.path) for one in config.pool]
        return {"pools": [_listed(pool, disks) for pool in pools]}
    pool, volume = _find(config, asked.target)
    result: dict[str, Any] = {"pool": pool.name, "volume": volume}
    if asked.verb == "create":
        pool.create(volume, asked.size)
        return {**result, "size": asked.size}
    if asked.verb == "resize":
        was = pool.resize(volume, asked.size, shrink=asked.shrink)
        return {**result, "size": asked.size, "was": was, "served_to": None}
    if asked.verb == "delete":
        pool.delete(volume)
        return result
    raise LocalError(f'"{asked.verb}": expected list, create, resize or delete')


def _pool(config: Config, name: str) -> Pool:
    for one in config.pool:
        if one.name == name:
            return Pool(one.name, one.path)
    known = f"there are {', '.join(one.name for one in config.pool)}" if config.pool else "it declares none"
    raise LocalError(f'{config.file}: there is no pool "{name}" ({known})')


def _find(config: Config, target: str) -> tuple[Pool, str]:
    pool, volume = split(target)
    return _pool(config, pool), volume


def _is_file_of(disk: ServedDisk, pool: Pool, volume: str) -> bool:
    try:
        return os.path.samefile(disk.declared.image, pool.file_of(volume))
    except OSError:
        return False


def _whom(disks: list[ServedDisk]) -> str:
    return ", ".join(f"{disk.client_adapter.partition.name}/{disk.client_adapter.slot}" for disk in disks)


def _listed(pool: Pool, disks: list[ServedDisk]) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": pool.name, "path": str(pool.path), "size": 0, "free": 0, "volumes": []}
    if not pool.path.is_dir():
        return entry  # declared, and without a first volume
    space = pool.space()
    volumes = [
        {
            "name": volume.name,
            "size": volume.size,
            "allocated": volume.allocated,
            "in_use": volume.in_use,
            "served_to": _whom([disk for disk in disks if _is_file_of(disk, pool, volume.name)]) or None,
        }
        for volume in pool.volumes()
    ]
    return {**entry, "size": space.size, "free": space.free, "volumes": volumes}

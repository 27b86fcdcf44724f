"""POSIX access control lists in the attributes of files, whose users and groups are the client's or the host's.

The value is Linux's (uapi posix_acl_xattr.h): u32 version 2, then {u16 tag, u16 permissions, u32 id} for each entry,
all little-endian. Only entries of named users and groups have an id.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable

ATTRIBUTES = frozenset({b"system.posix_acl_access", b"system.posix_acl_default"})
_HEADER = struct.Struct("<I")
_ENTRY = struct.Struct("<HHI")
_VERSION = 2
_USER, _GROUP = 0x02, 0x08


def translated(value: bytes, uid: Callable[[int], int], gid: Callable[[int], int]) -> bytes:
    """The list with other ids. Raises `OSError` (EINVAL) for what is no list, or what a translation raises."""
    if len(value) < _HEADER.size or (len(value) - _HEADER.size) % _ENTRY.size:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    if _HEADER.unpack_from(value)[0] != _VERSION:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
    result = bytearray(value)
    for at in range(_HEADER.size, len(value), _ENTRY.size):
        tag, permissions, number = _ENTRY.unpack_from(value, at)
        if tag == _USER:
            _ENTRY.pack_into(result, at, tag, permissions, uid(number))
        elif tag == _GROUP:
            _ENTRY.pack_into(result, at, tag, permissions, gid(number))
    return bytes(result)

# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, nonecheck=False
"""Who acts: a client's user and groups, and whom the kernel is told that this is.

A server that is root lets the kernel decide: the thread takes the caller's identity for files (setfsuid, setfsgid,
supplementary groups) and gives up root's rights meanwhile. Any other server has its own rights and
no others. What a share does with its callers is one of `IDENTITIES`:

- `passthrough`: they are whom they say they are, with `translate` as a user namespace has its map: ids that are in no
  row act, and are shown, as nobody (65534), and no file can be given to them (EINVAL).
- `squash`: all act as one user and group; files have the owners that they have.
- `mapped`: all act as the server; owner, group, mode and device number of a file are in an attribute of it (`mapped`).

This file is compiled (Cython pure mode) and also runs interpreted.
"""

from __future__ import annotations

import errno
import os
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import cython
from cython.cimports.powervio.files.calls import hold_identity, take_identity
from cython.cimports.powervio.memory.hw import pointer

from powervio.errors import LocalError

IDENTITIES = ("passthrough", "squash", "mapped")
NOBODY = 65534
GROUP_LIMIT = 64
"""Supplementary groups of a caller; what is beyond does not count."""
_IDS = 0xFFFF_FFFF
_CAN_SWITCH = 1 << 6 | 1 << 7 | 1 << 1  # CAP_SETGID, CAP_SETUID, CAP_DAC_OVERRIDE


@dataclass(frozen=True)
class IdRange:
    """A row of a translation: `count` ids of the client from `client` on are those of the host from `host` on."""

    client: int
    host: int
    count: int


@cython.final
@cython.cclass
class Caller:
    """Who asks, as the client has them: user, group, and the other groups of the user."""

    uid: cython.uint
    gid: cython.uint
    groups: tuple[int, ...]
    _of: object
    _uid: cython.uint
    _gid: cython.uint
    _count: cython.uint
    _book: bytearray
    _table: cython.p_uchar

    def __init__(self, uid: int, gid: int, groups: Sequence[int] = ()) -> None:
        if not 0 <= uid < _IDS or not 0 <= gid < _IDS:
            raise ValueError(f"{uid}:{gid} is no user and group")
        self.uid = uid
        self.gid = gid
        self.groups = tuple(groups)[:GROUP_LIMIT]
        self._of = None
        self._uid = self._gid = 0
        self._set(())

    @cython.cfunc
    @cython.exceptval(-1)
    def _set(self, groups: Any) -> cython.int:
        self._book = bytearray(array("I", groups or (0,)))
        self._table = pointer(self._book)
        self._count = len(groups)
        return 0

    @cython.ccall
    def with_group(self, gid: cython.uint) -> Caller:
        """The same user with another group for what is made."""
        return self if gid == self.gid else Caller(self.uid, gid, self.groups)

    def __repr__(self) -> str:
        return f"Caller({self.uid}, {self.gid}, {self.groups})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Caller):
            return NotImplemented
        return self.uid == other.uid and self.gid == other.gid and self.groups == other.groups

    def __hash__(self) -> int:
        return hash((self.uid, self.gid, self.groups))


@cython.final
@cython.cclass
class Identity:
    """What a share does with its callers, in any thread."""

    kind: str
    switches: cython.bint
    mapped: cython.bint
    squashes: cython.bint
    translates: cython.bint
    _squashed: Caller
    _users: tuple[IdRange, ...]
    _groups: tuple[IdRange, ...]
    _own: Caller

    def __init__(
        self,
        kind: str = "passthrough",
        squash_uid: int | None = None,
        squash_gid: int | None = None,
        translate_uid: Sequence[IdRange] = (),
        translate_gid: Sequence[IdRange] = (),
    ) -> None:
        """Raises `LocalError` for what contradicts itself or cannot be done by this process."""
        if kind not in IDENTITIES:
            raise LocalError(f"identity {kind!r} is none of {', '.join(IDENTITIES)}")
        if kind != "passthrough" and (translate_uid or translate_gid):
            raise LocalError(f"identity {kind}: only passthrough translates ids")
        if kind != "squash" and (squash_uid is not None or squash_gid is not None):
            raise LocalError(f"identity {kind}: a user and a group to act as are for squash")
        self.kind = kind
        self.mapped = kind == "mapped"
        self.squashes = kind == "squash"
        self.translates = bool(translate_uid or translate_gid)
        """Whether ids of the client are not those of the host."""
        self._users = checked(translate_uid)
        self._groups = checked(translate_gid)
        uid, gid = os.geteuid(), os.getegid()
        can_switch = uid == 0 and _effective_capabilities() & _CAN_SWITCH == _CAN_SWITCH
        self.switches = can_switch and not self.mapped
        """Whether the kernel is told who acts; if not, it is the server's own user whatever the caller."""
        if kind == "squash":
            uid_wanted = NOBODY if squash_uid is None and can_switch else uid if squash_uid is None else squash_uid
            gid_wanted = NOBODY if squash_gid is None and can_switch else gid if squash_gid is None else squash_gid
            if not can_switch and (uid_wanted, gid_wanted) != (uid, gid):
                raise LocalError(f"only root can act as {uid_wanted}:{gid_wanted}; this is {uid}:{gid}")
            self._squashed = Caller(uid_wanted, gid_wanted)
            self._squashed._uid, self._squashed._gid = uid_wanted, gid_wanted
            self._squashed._of = self
        else:
            self._squashed = Caller(uid, gid)
        self._own = Caller(uid, gid, tuple(os.getgroups()))
        self._own._uid, self._own._gid = uid, gid
        self._own._set(self._own.groups)
        self._own._of = self

    @cython.cfunc
    @cython.exceptval(-1000)
    def enter(self, caller: Caller) -> cython.int:
        """Have this thread act as a caller until `leave`; 0 or the negative errno."""
        if not self.switches:
            return 0
        if self.squashes:
            return _take(self._squashed)
        if caller._of is not self:
            self._resolve(caller)
        return _take(caller)

    @cython.cfunc
    @cython.exceptval(check=False)
    def enter_own(self) -> cython.int:
        """Have it act as the server itself."""
        if not self.switches:
            return 0
        return _take(self._own)

    @cython.cfunc
    @cython.exceptval(check=False)
    def leave(self) -> cython.void:
        """It may be the server's own identity again; within a `held` it stays until that ends."""
        if self.switches and hold_identity(0) == 0:
            _take(self._own)

    @cython.ccall
    @cython.exceptval(check=False)
    def keep(self) -> cython.void:
        """Until `rest`, file operations of this thread leave its identity as it is, for the next may be by the same
        caller. The thread does nothing else meanwhile; one that it starts is born with the identity that it has.
        """
        hold_identity(1)

    @cython.ccall
    @cython.exceptval(check=False)
    def rest(self) -> cython.void:
        """The thread is the server again."""
        hold_identity(-1)
        self.leave()

    @contextmanager
    def held(self) -> Iterator[None]:
        """`keep` and `rest` around a block."""
        self.keep()
        try:
            yield
        finally:
            self.rest()

    @cython.cfunc
    @cython.exceptval(-1)
    def _resolve(self, caller: Caller) -> cython.int:
        uid, gid = caller.uid, caller.gid
        if self._users:
            uid = host_id(self._users, uid)
        if self._groups:
            gid = host_id(self._groups, gid)
        caller._uid = NOBODY if uid == _IDS else uid
        caller._gid = NOBODY if gid == _IDS else gid
        groups = caller.groups
        if self._groups:
            groups = tuple(group for group in (host_id(self._groups, group) for group in groups) if group != _IDS)
        if not groups and caller._uid == self._own._uid:
            groups = self._own.groups
        caller._set(groups)
        caller._of = self
        return 0

    def host_uid(self, uid: int) -> int:
        """The host's user for one of the client's; raises `OSError` (EINVAL) where there is none."""
        return _known(host_id(self._users, uid) if self._users else uid)

    def host_gid(self, gid: int) -> int:
        """The host's group for one of the client's; raises `OSError` (EINVAL) where there is none."""
        return _known(host_id(self._groups, gid) if self._groups else gid)

    def client_uid(self, uid: int) -> int:
        """The client's user for one of the host's; nobody where there is none."""
        return client_id(self._users, uid) if self._users else uid

    def client_gid(self, gid: int) -> int:
        """The client's group for one of the host's; nobody where there is none."""
        return client_id(self._groups, gid) if self._groups else gid


def _known(number: int) -> int:
    if number == _IDS:
        raise OSError(errno.EINVAL, "no such user or group in the translation")
    return number


@cython.cfunc
@cython.exceptval(check=False)
def _take(caller: Caller) -> cython.int:
    return take_identity(caller._uid, caller._gid, caller._table, caller._count)


def host_id(rows: Sequence[IdRange], number: int) -> int:
    """The host's id for one of the client's, 0xFFFFFFFF if there is none."""
    for row in rows:
        if row.client <= number < row.client + row.count:
            return row.host + number - row.client
    return _IDS


def client_id(rows: Sequence[IdRange], number: int) -> int:
    """The client's id for one of the host's."""
    for row in rows:
        if row.host <= number < row.host + row.count:
            return row.client + number - row.host
    return NOBODY


def checked(rows: Sequence[IdRange]) -> tuple[IdRange, ...]:
    """Rows of a translation; raises `LocalError` for one that is no range, or overlaps with another."""
    for side in ("client", "host"):
        end = 0
        for row in sorted(rows, key=attrgetter(side)):
            first = getattr(row, side)
            if row.count < 1 or first < 0 or first + row.count > _IDS:
                raise LocalError(f"translation {row.client}:{row.host}:{row.count} is no range of ids")
            if first < end:
                raise LocalError(f"translation {row.client}:{row.host}:{row.count} overlaps with another")
            end = first + row.count
    return tuple(rows)


def _effective_capabilities() -> int:
    with open("/proc/thread-self/status", encoding="ascii", errors="replace") as status:
        for line in status:
            if line.startswith("CapEff:"):
                return int(line.split()[1], 16)
    return 0

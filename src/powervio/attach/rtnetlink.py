"""As much of rtnetlink (rtnetlink(7)) as a network interface needs: its state, its addresses, its routes.

A socket works in the network namespace of the thread that made it, for good.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface
from struct import Struct
from typing import TypeAlias

from powervio.errors import LocalError

Address: TypeAlias = IPv4Address | IPv6Address
Interface: TypeAlias = IPv4Interface | IPv6Interface

UP = 0x1
PROMISCUOUS = 0x100
ALL_MULTICAST = 0x200

_HEADER = Struct("=IHHII")
"""nlmsghdr: length, type, flags, sequence number, port."""
_LINK = Struct("=BxHiII")
"""ifinfomsg: family, type, index, flags, mask of flags."""
_ADDRESS = Struct("=BBBBi")
"""ifaddrmsg: family, length of the prefix, flags, scope, index."""
_ROUTE = Struct("=BBBBBBBBI")
"""rtmsg: family, lengths of both prefixes, TOS, table, protocol, scope, type, flags."""
_ATTRIBUTE = Struct("=HH")
_NUMBER = Struct("=i")

_ERROR = 2
_NEW_LINK, _GET_LINK = 16, 18
_NEW_ADDRESS = 20
_NEW_ROUTE = 24
_REQUEST, _ACK, _EXCLUSIVE, _CREATE = 1, 4, 0x200, 0x400
_LINK_GROUP = 1

_A_ADDRESS, _A_NAME, _A_MTU, _A_ALIAS = 1, 3, 4, 20
_A_LOCAL, _A_BROADCAST, _A_FLAGS = 2, 4, 8
_NO_DAD = 0x02
_A_OUT, _A_GATEWAY = 4, 5
_TABLE_MAIN, _PROTOCOL_STATIC, _SCOPE_UNIVERSE, _UNICAST = 254, 4, 0, 1
_LIMIT = 5.0
"""Seconds for an answer."""


@dataclass(slots=True)
class Link:
    """An interface."""

    index: int
    flags: int
    attributes: dict[int, bytes] = field(default_factory=dict)

    @property
    def mac(self) -> bytes:
        """Its address."""
        return self.attributes.get(_A_ADDRESS, b"")

    @property
    def alias(self) -> str:
        """What its owner wrote at it; empty if nothing."""
        return self.attributes.get(_A_ALIAS, b"").rstrip(b"\0").decode(errors="replace")


class RouteSocket:
    """One socket; requests raise `OSError` with what the kernel said."""

    def __init__(self, *, watch: bool = False) -> None:
        """With `watch` it hears of changes of interfaces (`changes`), and is not to be asked anything."""
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        self._socket.bind((0, _LINK_GROUP if watch else 0))
        self._socket.settimeout(0 if watch else _LIMIT)
        self._sequence = 0

    def fileno(self) -> int:
        """Readable when there are `changes`."""
        return self._socket.fileno()

    def close(self) -> None:
        """It is not used afterwards."""
        self._socket.close()

    def find(self, name: str) -> Link:
        """The interface of a name; ENODEV if there is none."""
        answers = self._ask(_GET_LINK, 0, _LINK.pack(0, 0, 0, 0, 0) + _attribute(_A_NAME, name.encode() + b"\0"))
        return next(link for link in map(_link, answers) if link is not None)

    def change(
        self, index: int, *, up: bool | None = None, mac: bytes = b"", mtu: int = 0, alias: str | None = None
    ) -> None:
        """Change what is given of an interface."""
        body = _LINK.pack(0, 0, index, UP if up else 0, 0 if up is None else UP)
        if mac:
            body += _attribute(_A_ADDRESS, mac)
        if mtu:
            body += _attribute(_A_MTU, _NUMBER.pack(mtu))
        if alias is not None:
            body += _attribute(_A_ALIAS, alias.encode())
        self._ask(_NEW_LINK, _ACK, body)

    def add_address(self, index: int, address: Interface) -> None:
        """Give an interface an address, if it does not have it. IPv6 ones are good at once, without a search for
        others that have them (RFC 4862, 5.4)."""
        packed = address.ip.packed
        body = _ADDRESS.pack(_family(address.ip), address.network.prefixlen, 0, 0, index)
        body += _attribute(_A_LOCAL, packed) + _attribute(_A_ADDRESS, packed)
        if isinstance(address, IPv4Interface):
            if address.network.prefixlen < 31:
                body += _attribute(_A_BROADCAST, address.network.broadcast_address.packed)
        else:
            body += _attribute(_A_FLAGS, _NUMBER.pack(_NO_DAD))
        with suppress(FileExistsError):
            self._ask(_NEW_ADDRESS, _ACK | _CREATE | _EXCLUSIVE, body)

    def add_gateway(self, index: int, gateway: Address) -> None:
        """Route everything else to a gateway, if nothing is routed so."""
        body = _ROUTE.pack(
            _family(gateway), 0, 0, 0, _TABLE_MAIN, _PROTOCOL_STATIC, _SCOPE_UNIVERSE, _UNICAST, 0
        )  # fmt: skip
        body += _attribute(_A_GATEWAY, gateway.packed) + _attribute(_A_OUT, _NUMBER.pack(index))
        with suppress(FileExistsError):
            self._ask(_NEW_ROUTE, _ACK | _CREATE | _EXCLUSIVE, body)

    def changes(self) -> Iterator[Link]:
        """Interfaces that changed, as they are now."""
        while True:
            try:
                data = self._socket.recv(65536)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno == errno.ENOBUFS:  # more than the socket holds: what comes next is the newest
                    continue
                raise
            for kind, body in _messages(data):
                link = _link(body) if kind == _NEW_LINK else None
                if link is not None:
                    yield link

    def _ask(self, kind: int, flags: int, body: bytes) -> list[bytes]:
        self._sequence += 1
        self._socket.send(_HEADER.pack(_HEADER.size + len(body), kind, flags | _REQUEST, self._sequence, 0) + body)
        answers = []
        for answer, content in _messages(self._socket.recv(65536)):
            if answer == _ERROR:
                code = -_NUMBER.unpack_from(content)[0]
                if code:
                    raise OSError(code, os.strerror(code))
            else:
                answers.append(content)
        return answers


def _family(address: Address) -> int:
    return int(socket.AF_INET if address.version == 4 else socket.AF_INET6)


def _attribute(kind: int, value: bytes) -> bytes:
    length = _ATTRIBUTE.size + len(value)
    return _ATTRIBUTE.pack(length, kind) + value + bytes(-length % 4)


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= _HEADER.size:
        length, kind, _, _, _ = _HEADER.unpack_from(data)
        if length < _HEADER.size:
            raise LocalError("the kernel's rtnetlink answer makes no sense")
        yield kind, data[_HEADER.size : length]
        data = data[length + -length % 4 :]


def _link(body: bytes) -> Link | None:
    _, _, index, flags, _ = _LINK.unpack_from(body)
    link = Link(index, flags)
    rest = body[_LINK.size :]
    while len(rest) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(rest)
        if length < _ATTRIBUTE.size:
            return None
        link.attributes[kind & 0x3FFF] = rest[_ATTRIBUTE.size : length]
        rest = rest[length + -length % 4 :]
    return link

"""Whether a host interface has a link, and its address; who asks hears at once when that may have changed."""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
from contextlib import suppress
from struct import Struct
from typing import Protocol

from powervio.errors import LocalError
from powervio.network.inside import inside

_SIOCGIFFLAGS = 0x8913
_SIOCGIFHWADDR = 0x8927
_FLAGS = Struct("16sh22x")
_ADDRESS = Struct("16sH6s16x")
_SIOCETHTOOL = 0x8946
_ETHTOOL_GLINK = 0x0A
_POINTER = Struct("16sP16x")
_UP = 0x1
_RUNNING = 0x40
_LINK_GROUP = 1
"""RTMGRP_LINK of rtnetlink(7)."""
_NEWS = 65536


class Link(Protocol):
    """What is known of a port's link beside its frames."""

    address: bytes
    """MAC address of the interface."""

    def up(self) -> bool:
        """Whether frames can go and come now."""

    def fileno(self) -> int:
        """What is readable when that may have changed, until `hear`; -1: nobody says so, look from time to time."""

    def hear(self) -> None:
        """Forget what made `fileno` readable."""

    def close(self) -> None:
        """It is not used afterwards."""


class InterfaceLink:
    """That of an interface. It may be deleted and made again: then it is down meanwhile."""

    def __init__(self, interface: str, netns: str | None = None) -> None:
        """`netns`: where the interface is, see `inside`. Raises `LocalError`."""
        self.name = interface
        try:
            self._asker, self._news = inside(netns, self._open)
        except OSError as error:
            raise LocalError(f"interface {interface}: {error.strerror or error}") from error
        self.address = b""
        try:
            self.address = self._read_address()
        except OSError as error:
            self.close()
            raise LocalError(f"interface {interface}: {error.strerror or error}") from error

    @staticmethod
    def _open() -> tuple[socket.socket, socket.socket]:
        asker = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        try:
            kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
            news = socket.socket(socket.AF_NETLINK, kind, socket.NETLINK_ROUTE)
        except OSError:
            asker.close()
            raise
        try:
            news.bind((0, _LINK_GROUP))
        except OSError:
            asker.close()
            news.close()
            raise
        return asker, news

    def _read_address(self) -> bytes:
        answer = fcntl.ioctl(self._asker, _SIOCGIFHWADDR, _ADDRESS.pack(self.name.encode(), 0, b""))
        address: bytes = _ADDRESS.unpack(answer)[2]
        return address

    def up(self) -> bool:
        """See `Link`: it is up and has a carrier, which the driver is asked for: RUNNING may be a second late."""
        try:
            flags = _FLAGS.unpack(fcntl.ioctl(self._asker, _SIOCGIFFLAGS, _FLAGS.pack(self.name.encode(), 0)))[1]
        except OSError:
            return False
        if not flags & _UP:
            return False
        value = (ctypes.c_uint32 * 2)(_ETHTOOL_GLINK, 0)
        try:
            fcntl.ioctl(self._asker, _SIOCETHTOOL, _POINTER.pack(self.name.encode(), ctypes.addressof(value)))
        except OSError:
            return bool(flags & _RUNNING)
        return value[1] != 0

    def fileno(self) -> int:
        """See `Link`."""
        return self._news.fileno()

    def hear(self) -> None:
        """See `Link`. News that were too many for the socket are news all the same."""
        with suppress(BlockingIOError):
            while True:
                try:
                    os.read(self._news.fileno(), _NEWS)
                except BlockingIOError:
                    raise
                except OSError:
                    continue  # ENOBUFS, said once

    def close(self) -> None:
        """See `Link`."""
        self._asker.close()
        self._news.close()

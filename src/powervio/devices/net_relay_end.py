# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, nonecheck=False
"""What a relay of frames (`net_relay`) knows of one network device: whether frames may go straight to its buffers.

This file is compiled (Cython pure mode) and also runs interpreted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import cython
from cython.cimports.powervio.devices.net_rules import ReceiveFilter
from cython.cimports.powervio.network.switch_core import SwitchCore
from cython.cimports.powervio.virtio.device_queue import DeviceQueue

if TYPE_CHECKING:
    from powervio.devices.net_counters import Counters
    from powervio.devices.net_receive import Receiver
    from powervio.network.switch import SwitchPort


@cython.final
@cython.cclass
class RelayEnd:
    """One network device, of a `Relay`."""

    usable: cython.bint
    taken: cython.uint
    link_up: cython.bint
    receive: DeviceQueue | None
    port: Any
    _device: Any
    _receiver: Any
    _from_driver: Any
    _to_driver: Any
    _number: cython.int
    _handle: cython.uint
    _features: cython.ulonglong
    _mtu: cython.ulonglong
    _header_bytes: cython.ulonglong
    _mergeable: cython.bint
    _direct: cython.bint
    _filter: ReceiveFilter
    _turn: cython.ulonglong
    _straight: cython.bint
    _frames: cython.ulonglong
    _bytes: cython.ulonglong
    _touched: cython.bint

    def __init__(
        self, device: Any, port: SwitchPort, receiver: Receiver, from_driver: Counters, to_driver: Counters
    ) -> None:
        """`device` is called for what is not as usual; the others are its own."""
        self.usable = False
        """Whether there is a session, of a driver that the relay understands."""
        self.taken = 0
        """Bits of `Offload` that the driver takes."""
        self.link_up = True
        self.receive = None
        """The receive queue while frames may be put there, by the device."""
        self.port = port
        self._device = device
        self._receiver = receiver
        self._from_driver = from_driver
        self._to_driver = to_driver
        self._number = port.number
        self._handle = port.handle
        self._features = 0
        self._mtu = 0
        self._header_bytes = 0
        self._mergeable = False
        self._direct = port.options.line.perfect
        self._filter = device.control.rules.filter
        self._turn = 0
        self._straight = False
        self._frames = self._bytes = 0
        self._touched = False

    def begin(self, features: int, mtu: int, header_bytes: int, *, mergeable: bool) -> None:
        """A session begins, of a driver with little-endian headers."""
        self.usable = True
        self.receive = None
        self._features = features & 0xFFFF_FFFF_FFFF_FFFF
        self._mtu = mtu
        self._header_bytes = header_bytes
        self._mergeable = mergeable

    def end(self) -> None:
        """It is over."""
        self.usable = False
        self.receive = None

    @cython.cfunc
    @cython.exceptval(-1)
    def is_straight(self, turn: cython.ulonglong) -> cython.bint:
        """Whether frames of a turn, which has a number, may go to this device's buffers from here."""
        if self._turn != turn:
            self._turn = turn
            self._straight = (
                self._direct
                and self.usable
                and self.link_up
                and self.receive is not None
                and self.receive.live
                and self.receive.enabled
                and self.receive.staging is not None
                and self._is_idle()
            )
        return self._straight

    @cython.cfunc
    @cython.exceptval(-1)
    def _is_idle(self) -> cython.bint:
        """Whether no frame waits that came before."""
        receiver: Receiver = self._receiver
        return (
            receiver.frame is None
            and not receiver.pending
            and not receiver.held
            and not receiver.ready
            and not self.port.waiting
            and not self._device.control.coalescing
        )

    @cython.cfunc
    def show(self, core: SwitchCore) -> cython.void:
        """Let the driver see what it was given in a turn."""
        counters: Counters = self._to_driver
        frames: cython.ulonglong = self._frames
        length: cython.ulonglong = self._bytes
        self._touched = False
        self._frames = self._bytes = 0
        if frames:
            counters.frames += frames
            counters.bytes += length
            core.delivered_many(self._number, frames, length)
        if self.receive is not None:
            self.receive.flush()

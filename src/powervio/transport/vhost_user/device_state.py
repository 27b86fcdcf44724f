"""DEVICE_STATE: what a device has to hand over at a migration, through a pipe that the front end gives.

The state is `Device.state` as JSON. Ring positions are not in it: the front end has them from GET_VRING_BASE. The pipe
is written and read by the loop, for it may be slow; CHECK_DEVICE_STATE says whether all of it went well.
"""

from __future__ import annotations

import json
import logging
import os

from powervio.errors import LocalError, RemoteError
from powervio.transport.vhost_user.loop import Loop
from powervio.transport.vhost_user.vring import notification_fd
from powervio.virtio.device import Device

_log = logging.getLogger(__name__)

MAX_STATE = 16 << 20
"""Bytes of the largest state that is taken over."""
_PIECE = 1 << 16


class StateTransfer:
    """At most one transfer at a time, in one direction."""

    def __init__(self, device: Device, loop: Loop) -> None:
        self._device = device
        self._loop = loop
        self._fd = -1
        self._loading = False
        self._data = bytearray()
        self._failure = "nothing was transferred"

    def save(self, fd: int) -> None:
        """Write the device's state to `fd`, and close it. Raises `RemoteError` for what is no pipe."""
        self._begin(fd, loading=False)
        self._data += json.dumps({"device": self._device.device_id, "state": self._device.state()}).encode()
        self._loop.add_writer(self._fd, self._write)

    def load(self, fd: int) -> None:
        """Read a state from `fd` to its end, for `finish`. Raises `RemoteError` for what is no pipe."""
        self._begin(fd, loading=True)
        self._loop.add_reader(self._fd, self._read)

    def _begin(self, fd: int, *, loading: bool) -> None:
        self.cancel()
        self._fd = notification_fd(fd, "device state")
        self._loading = loading
        self._data.clear()
        self._failure = "the transfer has not ended"

    def _write(self) -> None:
        try:
            del self._data[: os.write(self._fd, self._data[:_PIECE])]
        except BlockingIOError:
            return
        except OSError as error:
            self._end(f"the state cannot be written ({error.strerror})")
            return
        if not self._data:
            self._end("")

    def _read(self) -> None:
        try:
            data = os.read(self._fd, _PIECE)
        except BlockingIOError:
            return
        except OSError as error:
            self._end(f"the state cannot be read ({error.strerror})")
            return
        self._data += data
        if len(self._data) > MAX_STATE:
            self._end(f"the state is larger than {MAX_STATE} bytes")
        elif not data:
            self._end(self._restore())

    def _restore(self) -> str:
        try:
            value = json.loads(bytes(self._data))
            if not isinstance(value, dict) or not isinstance(value.get("state"), dict):
                return "this is no state of a device"
            if value.get("device") != self._device.device_id:
                return f"this is the state of device type {value.get('device')}, not of {self._device.device_id}"
            self._device.restore(value["state"])
        except (ValueError, RecursionError, LocalError, RemoteError) as error:
            return f"the state is not taken over: {error}"
        return ""

    def finish(self) -> bool:
        """Whether the transfer has ended well: all that the other end wrote is read, all that it reads is written."""
        while self._fd >= 0 and self._loading:
            before = len(self._data)
            self._read()
            if self._fd >= 0 and len(self._data) == before:
                break
        if self._failure:
            _log.error("device state: %s", self._failure)
        return not self._failure

    def _end(self, failure: str) -> None:
        self.cancel()
        self._failure = failure

    def cancel(self) -> None:
        """Close the pipe."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            self._loop.remove_reader(fd)
            self._loop.remove_writer(fd)
            os.close(fd)

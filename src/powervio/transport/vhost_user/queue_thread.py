"""A queue that is served by a loop of its device, in a thread of its own."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from powervio.virtio.device import QueueLoop

_log = logging.getLogger(__name__)

_LIMIT = 30.0
"""Seconds that a loop gets to end what its medium has in hand, before it is complained about."""


class QueueThread:
    """Runs a loop from the moment it is made until `stop`."""

    def __init__(self, name: str, loop: QueueLoop, on_end: Callable[[BaseException], None]) -> None:
        """`on_end` is called, in the thread, when the loop ended by itself, with the reason."""
        self.loop = loop
        self._on_end = on_end
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.loop.run()
        except BaseException as error:
            self._on_end(error)

    def stop(self) -> None:
        """Return when the loop touches nothing any more; what its medium has is waited for."""
        self.loop.stop()
        self._thread.join(_LIMIT)
        while self._thread.is_alive():
            _log.warning("%s: its medium has had requests for more than %.0f s", self._thread.name, _LIMIT)
            self._thread.join(_LIMIT)
        self.loop.close()

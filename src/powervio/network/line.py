"""A line that is not perfect: frames take their time, get lost, overtake each other. For experiments and tests.

Which ones do is decided by numbers from a seed, and so the same in each run.
"""

from __future__ import annotations

import heapq
import random
from dataclasses import dataclass
from itertools import count

from powervio.errors import LocalError
from powervio.network.frame import Frame, Offload
from powervio.network.segment import fitted

_CSUM = int(Offload.CSUM)


@dataclass(frozen=True, slots=True, kw_only=True)
class LineOptions:
    """What happens to frames on their way."""

    delay: float = 0.0
    """Seconds that each takes."""
    jitter: float = 0.0
    """Seconds more or less, at most; frames stay in their order."""
    loss: float = 0.0
    """The share of frames that is lost, 0 to 1. Large frames are cut into segments before."""
    reorder: float = 0.0
    """The share of frames that overtakes those on their way: they take no time."""
    seed: int = 0
    limit: int = 10_000
    """Frames that are on their way at most."""

    @property
    def perfect(self) -> bool:
        """Whether there is nothing to do."""
        return not (self.delay or self.jitter or self.loss or self.reorder)

    def check(self) -> None:
        """Raises `LocalError` for what cannot be."""
        if self.delay < 0 or not 0 <= self.jitter <= self.delay:
            raise LocalError(f"a delay of {self.delay} s, more or less {self.jitter}; expected 0 <= jitter <= delay")
        for name, share in (("loss", self.loss), ("reorder", self.reorder)):
            if not 0 <= share <= 1:
                raise LocalError(f"{name} = {share}; expected a share, 0 to 1")
        if self.reorder and not self.delay:
            raise LocalError("frames that overtake others need a delay to do so")


class Line:
    """The frames on their way. It knows no clock: times are nanoseconds that only go up. For one thread at a time."""

    def __init__(self, options: LineOptions) -> None:
        """Raises `LocalError`."""
        options.check()
        self._options = options
        self._random = random.Random(options.seed)
        self._waiting: list[tuple[int, int, Frame]] = []
        self._order = count()
        self._last = 0
        self.lost = 0
        """Frames that were lost as the options say."""
        self.refused = 0
        """Frames for which there was no room."""

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, frame: Frame, now: int) -> None:
        """A frame sets out; its parts do if it is to be segmented and each may have a fate of its own."""
        options = self._options
        parts = fitted(frame, _CSUM) if frame.gso and (options.loss or options.reorder) else (frame,)
        for part in parts:
            if options.loss and self._random.random() < options.loss:
                self.lost += 1
            elif len(self._waiting) >= options.limit:
                self.refused += 1
            else:
                heapq.heappush(self._waiting, (self._due(now), next(self._order), part))

    def _due(self, now: int) -> int:
        options = self._options
        if options.reorder and self._random.random() < options.reorder:
            return now
        delay = options.delay
        if options.jitter:
            delay += self._random.uniform(-options.jitter, options.jitter)
        self._last = max(self._last, now + round(delay * 1e9))
        return self._last

    def due(self) -> int | None:
        """When the next frame arrives; None when none is on its way."""
        return self._waiting[0][0] if self._waiting else None

    def take(self, now: int) -> list[Frame]:
        """All that have arrived."""
        arrived = []
        while self._waiting and self._waiting[0][0] <= now:
            arrived.append(heapq.heappop(self._waiting)[2])
        return arrived

"""What became of frames."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Counters:
    """Of one direction."""

    frames: int = 0
    bytes: int = 0
    """Without the headers of virtio."""
    dropped: dict[str, int] = field(default_factory=dict)
    """Frames that were lost, by reason."""

    def drop(self, reason: str, count: int = 1) -> None:
        """Count lost frames."""
        self.dropped[reason] = self.dropped.get(reason, 0) + count

    @property
    def lost(self) -> int:
        """Frames that were lost, for whatever reason."""
        return sum(self.dropped.values())

    def line(self) -> str:
        """All of it, for an operator."""
        lost = ", ".join(f"{count} {reason}" for reason, count in sorted(self.dropped.items()))
        return f"{self.frames} frames, {self.bytes} bytes; " + (f"lost {self.lost}: {lost}" if lost else "none lost")

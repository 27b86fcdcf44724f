"""Device status: one state machine for both ends (virtio 1.4, 2.1, 2.4, 3.1 and 3.4).

Theory of operation. The driver writes the status byte and the device answers in it. A driver adds bits in the order of
`DRIVER_BITS` and takes none away but by writing 0, a reset. The device moves in few ways only: it lets a write take
effect, at once or later; it refuses FEATURES_OK; it sets NEEDS_RESET, at any time.

A `StatusMachine` stands at each end, and `status` is what the device shows or will show:

    at the device's end                                     at the driver's end
    write(new)          the driver's write takes effect     write(new)   before it is sent: may it be?
    refuse_features()   instead of keeping FEATURES_OK      read(shown)  after: has it taken effect? what came of it?
    need_reset()        the device cannot go on

A device whose answer takes time (it drains its queues before it shows 0 or SUSPEND, 2.4.1 and 3.4.2) shows the old
status and calls `write` when it is done. A machine does not know at which end it is: what must not be raises
`LocalError` and changes nothing; who made the call on behalf of the partner says so with `blaming_partner`.

For editors:
1. A rule about which bit may be written when is a row or a column of `DRIVER_BITS`, not an `if` elsewhere.
2. SUSPEND and DRIVER_OK change places; that is the one pair that is not only added, and `write` has it in one place.
3. Features, queues and notifications are not this machine's: its owner acts on what became of the status.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from powervio.errors import LocalError, RemoteError, Verdict

ACKNOWLEDGE = 1
DRIVER = 2
DRIVER_OK = 4
FEATURES_OK = 8
SUSPEND = 16
NEEDS_RESET = 64
FAILED = 128

RUNNING_MASK = DRIVER_OK | SUSPEND | NEEDS_RESET | FAILED
"""What of a status decides whether the queues may be used: then it is DRIVER_OK."""

_NAMES = {
    ACKNOWLEDGE: "ACKNOWLEDGE",
    DRIVER: "DRIVER",
    FEATURES_OK: "FEATURES_OK",
    DRIVER_OK: "DRIVER_OK",
    SUSPEND: "SUSPEND",
    NEEDS_RESET: "NEEDS_RESET",
    FAILED: "FAILED",
}
_DEFINED = sum(_NAMES)


@dataclass(frozen=True, slots=True)
class DriverBit:
    """A bit that a driver adds."""

    mask: int
    before: int = 0
    """Bits that must be there from an earlier write."""
    with_it: int = 0
    """Bits that must be there, from an earlier write or from this one."""
    legacy: bool = True
    """Whether the legacy interface has it; a bit that it does not have is no precondition there either (3.1.2)."""


DRIVER_BITS = (
    DriverBit(ACKNOWLEDGE),
    DriverBit(DRIVER, with_it=ACKNOWLEDGE),
    DriverBit(FEATURES_OK, with_it=ACKNOWLEDGE | DRIVER, legacy=False),
    # Not in one write with FEATURES_OK: the driver has to look whether the device kept that (3.1.1, step 6).
    DriverBit(DRIVER_OK, before=FEATURES_OK, with_it=ACKNOWLEDGE | DRIVER),
    DriverBit(FAILED),
)
_NOT_LEGACY = SUSPEND | sum(bit.mask for bit in DRIVER_BITS if not bit.legacy)


def names(status: int) -> str:
    """A status byte in words: "ACKNOWLEDGE DRIVER"; "0" when no bit is set."""
    words = [name for mask, name in _NAMES.items() if status & mask]
    rest = status & ~_DEFINED
    return " ".join([*words, *([f"{rest:#x}"] if rest else [])]) or "0"


@contextmanager
def blaming_partner(verdict: Verdict) -> Iterator[None]:
    """Around a call that carries out the partner's move: a `LocalError` in it was the partner's doing."""
    try:
        yield
    except LocalError as error:
        raise RemoteError(str(error), verdict) from error


class StatusMachine:
    """The status of one device, at one end."""

    def __init__(self, legacy: bool) -> None:
        self.legacy = legacy
        """Whether FEATURES_OK and SUSPEND do not exist (3.1.2)."""
        self.status = 0
        """What the device shows, or will show when the last write has taken effect."""
        self.suspend_negotiated = False
        """Set by the owner when the driver accepted SUSPEND (feature bit 43); a reset clears it."""
        self._earlier = 0

    @property
    def running(self) -> bool:
        """Whether the queues may be used (2.1.2, 2.4.1, 3.4.2).

        They may not in a device that needs a reset or was given up: nothing that happens on its rings counts.
        """
        return self.status & RUNNING_MASK == DRIVER_OK

    @property
    def features_settled(self) -> bool:
        """Whether no feature may be accepted any more (3.1.1, step 5; legacy: from DRIVER_OK on)."""
        return self.status & (FEATURES_OK | DRIVER_OK) != 0

    def write(self, new: int) -> None:
        """The driver writes `new`. Raises `LocalError`, naming the clause, when that must not be written now.

        SUSPEND is ignored unless it was negotiated and the device is running (3.4.2). NEEDS_RESET is the device's: a
        driver that wrote before it saw the bit has not cleared it.
        """
        if new == 0:
            self._become(0)
            self.suspend_negotiated = False
            return
        resuming = self.status & SUSPEND != 0 and new & DRIVER_OK != 0
        gone = self.status & ~new & ~NEEDS_RESET & ~(SUSPEND if resuming else 0)
        added = new & ~self.status & ~SUSPEND
        if new & ~_DEFINED or (self.legacy and new & _NOT_LEGACY):
            unknown = new & ~_DEFINED | (new & _NOT_LEGACY if self.legacy else 0)
            raise self._wrong(new, f"{names(unknown)} is not defined here (2.1, 3.1.2)")
        if gone:
            raise self._wrong(new, f"{names(gone)} cannot be cleared but by a reset (2.1.1)")
        if added & NEEDS_RESET:
            raise self._wrong(new, "NEEDS_RESET is the device's to set (2.1.2)")
        if added and self.status & FAILED:
            raise self._wrong(new, "a reset has to come after FAILED (2.1.1)")
        for bit in DRIVER_BITS:
            lacking = bit.before & ~self.status | bit.with_it & ~(self.status | new)
            if self.legacy:
                lacking &= ~_NOT_LEGACY
            if added & bit.mask and lacking:
                raise self._wrong(new, f"{_NAMES[bit.mask]} has to come after {names(lacking)} (3.1.1)")
        if resuming:
            self._become((self.status | added) & ~SUSPEND)
        elif new & SUSPEND and self.suspend_negotiated and self.running:
            self._become((self.status | added | SUSPEND) & ~DRIVER_OK)
        else:
            self._become(self.status | added)

    def refuse_features(self) -> None:
        """The device does not accept the features: FEATURES_OK is gone (2.2.2). Raises `LocalError` when it is late."""
        if not self.status & FEATURES_OK or self.status & (DRIVER_OK | SUSPEND):
            raise LocalError(f"device status {names(self.status)}: no features to be refused (virtio 1.4, 2.2.2)")
        self._become(self.status & ~FEATURES_OK)

    def need_reset(self) -> bool:
        """The device cannot go on. True when the driver must be told by a config change notification (2.1.2)."""
        first = not self.status & NEEDS_RESET
        self.status |= NEEDS_RESET
        return first and self.status & DRIVER_OK != 0

    def read(self, shown: int) -> bool:
        """The driver read `shown`: whether its last write has taken effect. `status` tells what came of it.

        Not yet, while the old status is shown: a reset or SUSPEND takes time (2.4.2, 3.4.1). FEATURES_OK that is not
        there was refused (3.1.1, step 6), so read that only when the write is known to have arrived.
        Raises `LocalError` for a status that the device cannot have.
        """
        settled = shown & ~NEEDS_RESET
        expected = self.status & ~NEEDS_RESET
        if self.status & ~shown & NEEDS_RESET:
            raise self._impossible(shown)
        if settled != expected:
            refused = expected & FEATURES_OK and not expected & (DRIVER_OK | SUSPEND)
            if refused and settled == expected & ~FEATURES_OK:
                expected = settled
            elif settled == self._earlier & ~NEEDS_RESET:
                return False
            else:
                raise self._impossible(shown)
        self.status = self._earlier = expected | shown & NEEDS_RESET
        return True

    def _become(self, status: int) -> None:
        self._earlier = self.status
        self.status = status

    def _wrong(self, new: int, why: str) -> LocalError:
        return LocalError(f"device status is {names(self.status)} and {names(new)} was written: {why}, virtio 1.4")

    def _impossible(self, shown: int) -> LocalError:
        return LocalError(f"device status is {names(self.status)} and {names(shown)} was read (virtio 1.4, 2.1)")

"""What an export is, which requests may be made of it, and how the others are refused: a row for each command."""

from __future__ import annotations

from dataclasses import dataclass

from powervio.errors import LocalError
from powervio.storage.nbd import protocol as nbd
from powervio.storage.nbd.protocol import Command, Error, Request


@dataclass(frozen=True, slots=True)
class Export:
    """What a server tells of one export. Sizes are bytes."""

    name: str
    size: int
    flags: int
    """Transmission flags that hold whatever is negotiated; HAS_FLAGS, and SEND_DF where it is due, are added."""
    description: str = ""
    minimum_block: int = 1
    """Offsets and lengths must be multiples of this; a power of two, at most 65536."""
    preferred_block: int = 4096
    maximum_payload: int = nbd.MAX_PAYLOAD
    """Largest READ or WRITE, at most 32 MiB."""
    largest_unfragmented: int = nbd.MAX_PAYLOAD
    """Largest READ with DF, at least 64 KiB."""

    def __post_init__(self) -> None:
        if not 1 <= self.minimum_block <= 65536 or self.minimum_block & (self.minimum_block - 1):
            raise LocalError(f"minimum block size {self.minimum_block} is not a power of two up to 65536")
        if not max(self.minimum_block, 512) <= self.preferred_block <= self.maximum_payload <= nbd.MAX_PAYLOAD:
            raise LocalError(
                f"block sizes {self.minimum_block}/{self.preferred_block}/{self.maximum_payload} are not in order"
                f" up to {nbd.MAX_PAYLOAD}, or the preferred one is below 512"
            )
        if self.largest_unfragmented < nbd.UNFRAGMENTED:
            raise LocalError(f"unfragmented reads of {nbd.UNFRAGMENTED} bytes must be possible")
        if max(len(self.name.encode()), len(self.description.encode())) > nbd.MAX_STRING:
            raise LocalError(f"name and description of an export are at most {nbd.MAX_STRING} bytes long")


@dataclass(frozen=True, slots=True)
class CommandRule:
    """What a command may look like, and how it is refused ("Request types", "Error values")."""

    flags: int = nbd.CMD_FUA
    """Command flags that go with it; FUA goes with all."""
    needs: int = 0
    """Transmission flag without which a client must not use it."""
    writes: bool = False
    ranged: bool = True
    """Offset and length name a range of the export; otherwise both are 0."""
    beyond: Error = Error.EINVAL
    """What a range outside the export is answered with."""
    oversized: Error | None = None
    """What more than the largest payload is answered with; None where the server's cost does not grow with length."""
    empty: bool = True
    """Whether length 0 is harmless. It is answered with success without troubling the disk."""


COMMANDS: dict[int, CommandRule] = {
    Command.READ: CommandRule(nbd.CMD_FUA | nbd.CMD_DF, oversized=Error.EOVERFLOW),
    Command.WRITE: CommandRule(writes=True, beyond=Error.ENOSPC, oversized=Error.EINVAL),
    Command.FLUSH: CommandRule(needs=nbd.SEND_FLUSH, ranged=False),
    Command.TRIM: CommandRule(needs=nbd.SEND_TRIM, writes=True),
    Command.CACHE: CommandRule(needs=nbd.SEND_CACHE, oversized=Error.EOVERFLOW),
    Command.WRITE_ZEROES: CommandRule(
        nbd.CMD_FUA | nbd.CMD_NO_HOLE | nbd.CMD_FAST_ZERO, nbd.SEND_WRITE_ZEROES, writes=True, beyond=Error.ENOSPC
    ),
    Command.BLOCK_STATUS: CommandRule(nbd.CMD_FUA | nbd.CMD_REQ_ONE, empty=False),
}
"""Every command but DISC, which is never answered."""

_FLAG_NEEDS = ((nbd.CMD_FUA, nbd.SEND_FUA), (nbd.CMD_DF, nbd.SEND_DF), (nbd.CMD_FAST_ZERO, nbd.SEND_FAST_ZERO))


class Refusal(Exception):
    """An option or request is answered with an error; the connection goes on."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


def check_request(request: Request, export: Export, offered: int, *, structured: bool, context: bool) -> None:
    """Raise `Refusal` unless the request may be carried out; DISC, which has no reply, is not for this.

    `offered` are the transmission flags the client was told, `structured` whether it negotiated structured replies,
    `context` whether it selected a metadata context for this export.
    """
    flags, command, _, offset, length = request
    rule = COMMANDS.get(command)
    if rule is None:
        raise Refusal(Error.EINVAL, f"command {command} is unknown")
    if rule.writes and export.flags & nbd.READ_ONLY:
        raise Refusal(Error.EPERM, "the export is read only")
    if rule.needs & ~offered:
        raise Refusal(Error.EINVAL, f"command {Command(command).name} was not offered")
    if flags:
        _check_flags(flags, rule, offered)
    if not rule.ranged:
        if offset or length:
            raise Refusal(Error.EINVAL, f"command {Command(command).name} takes no range")
        return
    if not length and not rule.empty:
        raise Refusal(Error.EINVAL, f"command {Command(command).name} with length 0")
    if (offset | length) & (export.minimum_block - 1):
        raise Refusal(Error.EINVAL, f"{length} bytes at {offset} are not in blocks of {export.minimum_block} bytes")
    if offset + length > export.size:
        raise Refusal(rule.beyond, f"{length} bytes at {offset} go beyond the export's {export.size}")
    if length > export.maximum_payload and rule.oversized:
        # EOVERFLOW is for those who know structured replies ("NBD_CMD_READ")
        code = rule.oversized if structured else Error.EINVAL
        raise Refusal(code, f"{length} bytes at once, at most {export.maximum_payload}")
    if flags & nbd.CMD_DF and length > export.largest_unfragmented:
        raise Refusal(Error.EOVERFLOW, f"{length} bytes in one chunk, at most {export.largest_unfragmented}")
    if command == Command.BLOCK_STATUS and not context:
        raise Refusal(Error.EINVAL, "no metadata context was selected for this export")


def _check_flags(flags: int, rule: CommandRule, offered: int) -> None:
    if flags & ~rule.flags:
        raise Refusal(Error.EINVAL, f"command flags {flags & ~rule.flags:#x} do not go with this command")
    for flag, needs in _FLAG_NEEDS:
        if flags & flag and not offered & needs:
            raise Refusal(Error.EINVAL, f"command flag {flag:#x} was not offered")

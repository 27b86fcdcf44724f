"""The table of hcalls: each is one function, found by its token.

A function takes the calling partition and its registers r4.. as unsigned 64-bit integers, runs under the hypervisor's
lock, never raises for what it was given, and answers with a return code or with `(return code, r4, ...)`. A function
set adds itself by being imported: `@hcall(Hcall.H_PUT_TCE, function_set="hcall-tce", registers=3)`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

if TYPE_CHECKING:
    from powervio.papr.codes import Hcall

HcallFunction: TypeAlias = Callable[..., int | tuple[int, ...]]
_F = TypeVar("_F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class HcallEntry:
    """One implemented hcall."""

    token: int
    name: str
    function_set: str
    """Name in `/rtas` property `ibm,hypertas-functions`, for example "hcall-tce"."""
    registers: int
    """How many of r4.. it reads; missing ones are 0, further ones are ignored."""
    function: HcallFunction


TABLE: dict[int, HcallEntry] = {}
"""Every implemented hcall by token; a token that is not here gives H_FUNCTION."""


def hcall(token: Hcall, *, function_set: str, registers: int) -> Callable[[_F], _F]:
    """Make a function the implementation of an hcall. It is a mistake of ours to do that twice for one token."""

    def enter(function: _F) -> _F:
        if int(token) in TABLE:
            raise RuntimeError(f"{token.name} has an implementation already: {TABLE[int(token)].function}")
        TABLE[int(token)] = HcallEntry(int(token), token.name, function_set, registers, function)
        return function

    return enter


def function_sets() -> list[str]:
    """The names of the function sets that are there, for `ibm,hypertas-functions`."""
    return sorted({entry.function_set for entry in TABLE.values()})

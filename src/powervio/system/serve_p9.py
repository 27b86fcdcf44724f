"""`powervio serve-9p`: a directory of this machine, served for as long as this process runs."""

from __future__ import annotations

import resource
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress

from powervio.errors import LocalError
from powervio.files.identity import IDENTITIES, IdRange
from powervio.files.p9_server import MOST_CONNECTIONS, P9Server, ServerCounters
from powervio.files.sizes import MOST_FIDS
from powervio.files.tree import Tree, TreeOptions

__all__ = ["IDENTITIES", "MOST_CONNECTIONS", "MOST_FIDS", "ServerCounters", "TreeOptions", "range_of", "run"]


def range_of(text: str) -> IdRange:
    """A row of a translation of ids, `CLIENT:HOST:COUNT`. Raises `LocalError`."""
    numbers = text.split(":")
    if len(numbers) != 3 or not all(number.isdigit() for number in numbers):
        raise LocalError(f"{text}: expected CLIENT:HOST:COUNT, the first ids of the client and of the host")
    return IdRange(*map(int, numbers))


def run(
    directory: str,
    listen: Sequence[str],
    options: TreeOptions,
    *,
    msize: int = 1 << 20,
    mode: int = 0o600,
    most_connections: int = MOST_CONNECTIONS,
    most_fids: int = MOST_FIDS,
    on_ready: Callable[[list[str]], None] = lambda _: None,
) -> ServerCounters:
    """Serve until SIGTERM or SIGINT, and say what was done. Raises `LocalError`.

    `on_ready` is called with where it listens, when clients may come.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    ending = {signal.SIGTERM, signal.SIGINT}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ending)  # threads inherit it, so that this one is woken
    try:
        with Tree(directory, options) as tree:
            with P9Server(
                tree, listen, msize=msize, mode=mode, most_connections=most_connections, most_fids=most_fids
            ) as server:
                on_ready(server.places)
                signal.sigwait(ending)
            return server.counters
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

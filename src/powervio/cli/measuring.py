"""How far a measurement is, for who waits for it at a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def measuring() -> Iterator[Callable[[str, float], None]]:
    """What is to be called with what is being done, and how much of all is done (0 to 1); nothing where nobody looks.

    It draws only when it is called: a thread that draws would take time from what is measured.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    with Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.percentage:>3.0f} %"),
        console=Console(stderr=True),
        transient=True,
        auto_refresh=False,
        disable=not sys.stderr.isatty(),
    ) as progress:
        task = progress.add_task("starting", total=1.0)

        def tell(what: str, part: float) -> None:
            progress.update(task, description=what, completed=part, refresh=True)

        yield tell

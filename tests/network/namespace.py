"""A network namespace of one test's own: interfaces are made in it, and all of them go with it."""

from __future__ import annotations

import ctypes
import os
import subprocess
import threading
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec

import pytest

P = ParamSpec("P")
LIMIT = 110.0
_CLONE_NEWNET = 0x4000_0000


def isolated(test: Callable[P, None]) -> Callable[P, None]:
    """Run a test in a thread that has a network namespace of its own, as have the threads and processes it starts."""

    @wraps(test)
    def run(*arguments: P.args, **keywords: P.kwargs) -> None:
        failures: list[BaseException] = []

        def body() -> None:
            try:
                libc = ctypes.CDLL(None, use_errno=True)
                if libc.unshare(_CLONE_NEWNET):
                    why = os.strerror(ctypes.get_errno())
                    pytest.fail(f"a network namespace cannot be made ({why}): these tests need root")
                test(*arguments, **keywords)
            except BaseException as failure:
                failures.append(failure)

        thread = threading.Thread(target=body, daemon=True)
        thread.start()
        thread.join(LIMIT)
        assert not thread.is_alive(), "still running"
        if failures:
            raise failures[0]

    return run


def ip(*words: str) -> None:
    """Run `ip` in the calling thread's namespace."""
    subprocess.run(["ip", *words], check=True, timeout=10)

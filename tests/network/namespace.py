"""A network namespace of one test's own: interfaces are made in it, and all of them go with it."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import threading
import time
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
    subprocess.run(["ip", *words], check=True, timeout=20)


def until_passing(*names: str) -> None:
    """Until interfaces pass frames, in the calling thread's namespace, and the bridges that have them forward these.

    The kernel looks at a new carrier when it has time; until then what is sent is dropped without a word.
    """
    end = time.monotonic() + 20
    while not all(map(_passes, names)):
        assert time.monotonic() < end, names
        time.sleep(0.01)


def _passes(name: str) -> bool:
    words = ["ip", "-details", "-json", "link", "show", name]
    (link,) = json.loads(subprocess.run(words, check=True, timeout=20, stdout=subprocess.PIPE).stdout)
    bridged = link.get("linkinfo", {}).get("info_slave_data", {}).get("state", "forwarding")
    return bool("LOWER_UP" in link["flags"] and link["qdisc"] != "noop" and bridged == "forwarding")

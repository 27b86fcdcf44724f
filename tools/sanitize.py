"""The compiled modules once more, under AddressSanitizer and UndefinedBehaviorSanitizer; a step of `./run test --all`.

    .venv/bin/python tools/sanitize.py [PYTEST ARGS ...]

A copy of the sources is compiled in a scratch folder with both sanitizers, so that neither the extension modules in
the source tree nor their stamps are touched, and the tests that reach compiled code from a partner's side run there.
What they can see: accesses beyond Python's objects and C's stack, and after their end, because PYTHONMALLOC=malloc
puts each object on the sanitizer's heap. Partition memory is a file mapping, of which a sanitizer knows nothing; so
here each area of it lies between two pages that nobody may touch (`guard_areas`). What they cannot see is an access to
the wrong place inside one partition's memory: that is for the models of tests/phyp. Undefined arithmetic ends a test.

A sanitizer that is not at work reports nothing. Therefore a module with known mistakes (`MISTAKES`) is compiled in the
same way, and each mistake must be reported before any test runs; and the tests themselves run only when every compiled
module was loaded from the scratch folder and calls the sanitizer (`pytest_sessionstart`, this file being a plugin too).
"""

from __future__ import annotations

import ctypes
import mmap
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import dataclass
from pathlib import Path

COMPILE = "from setuptools import setup; setup()"
FLAGS = "-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer"
TESTS = (
    "tests/phyp",
    "tests/vio",
    "tests/virtio",
    "tests/transport",
    "tests/gateway/test_mailbox.py",
    "tests/gateway/test_shared_tables.py",
    "tests/gateway/test_fuzz.py",
    "tests/devices/test_net_relay.py",
    "tests/devices/test_p9.py",
    "tests/devices/test_p9_share.py",
    "tests/files/test_p9_session.py",
    "tests/files/test_p9_syncs.py",
    "tests/files/test_fuse_codec.py",
    "tests/files/test_tree.py",
    "tests/native/test_lan_hcalls.py",
    "tests/native/test_lan_frames.py",
    "tests/native/test_lan_client.py",
)
"""Where tests give compiled code what a hostile partner could: the isolation models and the walk, the rings, the
hostile ends."""
SCRATCH = "POWERVIO_SANITIZED"
"""The environment variable that names the scratch folder to the processes in it."""

MODULE = "powervio.memory._mistakes"
MISTAKES = '''# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Accesses that are wrong on purpose: they show that the sanitizers are at work."""

import cython
from cython.cimports.powervio.memory.hw import ld8, pointer


def load(memory: object, offset: cython.ulonglong) -> int:
    """One byte at `offset` of a buffer, wherever that is."""
    return ld8(pointer(memory), offset)


@cython.cclass
class Kept:
    """Keeps the address of a buffer, but not the buffer."""

    _at: cython.p_uchar

    def __init__(self, memory: object) -> None:
        self._at = pointer(memory)

    def load(self) -> int:
        """The first byte."""
        return ld8(self._at, 0)


def shift(count: cython.int) -> int:
    """1 moved up by `count` bits of a C int."""
    one: cython.int = 1
    return one << count
'''


@dataclass(frozen=True)
class Trial:
    """A program that uses `MODULE`, and what its report has to say."""

    name: str
    program: str
    expected: str = ""
    """Words of the report; none: there must be no report."""


TRIALS = (
    Trial("correct accesses", "m.load(bytearray(64), 63); k = bytearray(64); m.Kept(k).load(); m.shift(3)"),
    Trial("a load beyond a Python object", "m.load(bytearray(64), 80)", "heap-buffer-overflow"),
    Trial("a load after the end of a Python object", "m.Kept(bytearray(9000)).load()", "heap-use-after-free"),
    Trial("a load beyond a partition's memory", "m.load(area(4096).view, 4096)", "SEGV"),
    Trial("a load before a partition's memory", "m.load(area(4096).view, 2**64 - 1)", "SEGV"),
    Trial("a shift that C does not define", "m.shift(40)", "shift exponent 40 is too large"),
)
PREAMBLE = f"""\
import sanitize; sanitize.guard_areas()
import {MODULE} as m
from powervio.memory.area import MappedArea
made = []
def area(size):
    made.append(MappedArea.create("trial", size))
    return made[-1]
"""


def main(arguments: list[str]) -> int:
    """Build, try the sanitizers out, run the tests; returns the exit status."""
    compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")
    runtimes = {name: find_runtime(compiler, name) for name in ("libasan.so", "libubsan.so")}
    missing = [name for name, path in runtimes.items() if path is None]
    if missing:
        print(
            f"sanitize: `{shlex.join(compiler)}` has no {' and no '.join(missing)}; gcc brings them (Debian:"
            " libgcc-12-dev with libasan8 and libubsan1)",
            file=sys.stderr,
        )
        return 1
    with tempfile.TemporaryDirectory(prefix="powervio-sanitize-") as folder:
        scratch = Path(folder)
        copy_sources(Path(), scratch)
        if not build(scratch):
            return 1
        environment = sanitized_environment(scratch, str(runtimes["libasan.so"]))
        if not all(try_out(scratch, trial, environment) for trial in TRIALS):
            return 1
        # pytest must not take standard error, where a report may be the last that a process says
        options = ["-p", "sanitize", "--capture=sys", "-o", "timeout=600", "-q"]
        command = [sys.executable, "-m", "pytest", *options, *(arguments or TESTS)]
        status = subprocess.run(command, cwd=scratch, env=environment, check=False).returncode
        reports = take_reports(scratch)
        for report in reports:
            print(report, file=sys.stderr)
        if reports:
            print(f"sanitize: {len(reports)} reports, see above", file=sys.stderr)
        return status or (1 if reports else 0)


def find_runtime(compiler: list[str], name: str) -> Path | None:
    """Where the compiler has a sanitizer's library."""
    try:
        found = subprocess.run([*compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=False)
    except OSError:
        return None
    path = Path(found.stdout.strip())
    return path.resolve() if path.is_absolute() and path.exists() else None


def copy_sources(root: Path, scratch: Path) -> None:
    """Copy what is compiled and tested, without what was compiled of it; `MODULE` is one more compiled module."""
    for name in ("src", "tests"):
        built = shutil.ignore_patterns("*.so", "*.c", "__pycache__")
        shutil.copytree(root / name, scratch / name, ignore=built)
    for name in ("README.md", "LICENSE"):
        shutil.copy(root / name, scratch / name)
    source = "src/" + MODULE.replace(".", "/") + ".py"
    (scratch / source).write_text(MISTAKES)
    project = (root / "pyproject.toml").read_text()
    first = re.search(r'\next-modules = \[\n(.*name = ")[^"]+(", sources = \[")[^"]+(".*"-g0".*\n)', project)
    if first is None:
        raise SystemExit("sanitize: pyproject.toml does not begin `ext-modules` with a line of name, sources and -g0")
    line = first[1] + MODULE + first[2] + source + first[3]
    at = first.start(1)
    (scratch / "pyproject.toml").write_text((project[:at] + line + project[at:]).replace('"-g0"', '"-g"'))


def build(scratch: Path) -> bool:
    """Compile in the scratch folder, as `./run` compiles in the source tree but for `FLAGS`."""
    print("sanitize: compiling", flush=True)
    environment = {**os.environ, "CFLAGS": FLAGS, "LDFLAGS": FLAGS}
    command = [sys.executable, "-W", "ignore", "-c", COMPILE, "--quiet", "build_ext", "--inplace", "--parallel"]
    result = subprocess.run(
        [*command, str(os.cpu_count() or 1)], cwd=scratch, env=environment, capture_output=True, text=True, check=False
    )
    if result.returncode:
        print(result.stdout + result.stderr, file=sys.stderr)
        print("sanitize: the modules could not be compiled; the text above says why", file=sys.stderr)
    return result.returncode == 0


def sanitized_environment(scratch: Path, runtime: str) -> dict[str, str]:
    """The environment in which Python runs with the sanitizers.

    AddressSanitizer's reports become files, `report.PID`; UndefinedBehaviorSanitizer's go to standard error.
    """
    inherited = {name: value for name, value in os.environ.items() if name != "POWERVIO_INTERPRETED"}
    return {
        **inherited,
        SCRATCH: str(scratch),
        "LD_PRELOAD": runtime,
        "PYTHONMALLOC": "malloc",
        "PYTHONPATH": f"{scratch / 'src'}:{Path(__file__).resolve().parent}",
        # CPython never frees all of its memory; a leak says nothing here
        "ASAN_OPTIONS": f"detect_leaks=0:log_path={scratch / 'report'}",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "POWERVIO_CHECK": "1",
    }


def take_reports(scratch: Path) -> list[str]:
    """What the sanitizers had to say since the last call."""
    files = sorted(scratch.glob("report.*"))
    reports = [file.read_text(errors="replace") for file in files]
    for file in files:
        file.unlink()
    return reports


def try_out(scratch: Path, trial: Trial, environment: dict[str, str]) -> bool:
    """Whether the sanitizers report what they should, and nothing else."""
    command = [sys.executable, "-c", PREAMBLE + trial.program]
    result = subprocess.run(command, cwd=scratch, env=environment, capture_output=True, text=True, check=False)
    report = "\n".join([result.stderr, *take_reports(scratch)])
    if trial.expected:
        as_it_should = trial.expected in report and result.returncode != 0
    else:
        as_it_should = not report.strip() and result.returncode == 0
    said = f"reported ({trial.expected})" if trial.expected else "nothing to report"
    print(f"sanitize: {trial.name}: {said if as_it_should else 'NOT AS IT SHOULD BE'}", flush=True)
    if not as_it_should:
        print(f"status {result.returncode}\n{result.stdout}{report}", file=sys.stderr)
    return as_it_should


# In the processes of the scratch folder


def guard_areas() -> None:
    """From here on every `MappedArea` lies between two pages that nobody may touch.

    Python's own mapping object owns the whole range, so what keeps a view alive or a mapping open is as it was.
    """
    from powervio.memory.area import MappedArea

    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    page = mmap.PAGESIZE
    fixed = 0x10  # MAP_FIXED, which the module mmap does not name

    def make(self: MappedArea, fd: int, size: int) -> None:
        self.fd = fd
        self.size = size
        self._map = mmap.mmap(-1, page + size + -size % page + page, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        start = ctypes.addressof(ctypes.c_char.from_buffer(self._map)) + page
        end = start + size + -size % page
        placed = libc.mmap(start, size, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED | fixed, fd, 0)
        if placed != start or libc.mprotect(start - page, page, 0) or libc.mprotect(end, page, 0):
            raise OSError(ctypes.get_errno(), "an area with guard pages cannot be mapped")
        self.view = memoryview(self._map)[page : page + size]

    def discard(self: MappedArea) -> None:
        self._map.madvise(mmap.MADV_REMOVE, page, self.size)

    MappedArea.__init__ = make  # type: ignore[method-assign]
    MappedArea.discard = discard  # type: ignore[method-assign]


def pytest_sessionstart() -> None:
    """Only what was compiled here, with the sanitizers, may be tested here."""
    import importlib

    from powervio import _compiled

    scratch = Path(os.environ[SCRATCH])
    wrong = [module for module in _compiled.COMPILED if not is_sanitized(importlib.import_module(module), scratch)]
    if wrong or not _compiled.is_compiled():
        raise SystemExit(f"sanitize: not compiled with the sanitizers: {', '.join(wrong) or 'anything'}")
    guard_areas()


def is_sanitized(module: object, scratch: Path) -> bool:
    """Whether a module was loaded from the scratch folder and calls AddressSanitizer."""
    file = Path(getattr(module, "__file__", None) or "")
    return file.suffix == ".so" and file.is_relative_to(scratch) and b"__asan_report_load" in file.read_bytes()


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        print("sanitize: interrupted", file=sys.stderr)
        sys.exit(130)

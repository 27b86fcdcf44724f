"""What holds for every test: profiles, the `slow` marker, and that nothing skips itself where it counts."""

from __future__ import annotations

import os
import resource
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "default", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
settings.register_profile("all", settings.get_profile("default"), max_examples=2000)

_DESCRIPTORS = 16384
"""Descriptors that a whole run may have open, if the system lets it."""
_skips_fail = any(os.environ.get(name) for name in ("CI", "POWERVIO_CHECK"))
_skipped: list[str] = []


@pytest.fixture(scope="session")
def boot_cache(pytestconfig: pytest.Config) -> Path:
    """One cache of kernels for all tests of a run, kept between runs; with its limits a boot cannot hold up a run."""
    assert pytestconfig.cache is not None
    return Path(pytestconfig.cache.mkdir("linux"))


@pytest.fixture
def memory_folder() -> Iterator[Path]:
    """A folder whose files are in memory (tmpfs)."""
    with tempfile.TemporaryDirectory(prefix="powervio-test-", dir="/dev/shm") as folder:
        yield Path(folder)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all", action="store_true", help="also the tests marked slow, and far more examples")


def pytest_configure(config: pytest.Config) -> None:
    # many tests leave the machines that they made to the collector, which closes no descriptors
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < _DESCRIPTORS:
        wanted = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _DESCRIPTORS)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    settings.load_profile("all" if config.getoption("--all") else "default")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--all"):
        return
    slow = [item for item in items if item.get_closest_marker("slow")]
    if slow:
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if item not in slow]


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.skipped and not hasattr(report, "wasxfail"):
        _skipped.append(report.nodeid)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if report.skipped:
        _skipped.append(report.nodeid)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if _skips_fail and _skipped and exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _skips_fail and _skipped:
        terminalreporter.write_line(f"a skipped test is a failure here: {', '.join(_skipped)}", red=True)

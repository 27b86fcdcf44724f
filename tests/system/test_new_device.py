"""The device of docs/new-device.md: joined directly, over CRQ, and in a system by its row alone."""

from __future__ import annotations

import asyncio
import importlib.util
import re
import socket
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from powervio.errors import LocalError
from powervio.system.types import TYPES, DeviceType, register
from powervio.testing.direct import DirectLink
from powervio.testing.pair import PartitionPair

from .harness import House

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "upper.py"


@pytest.fixture(scope="module")
def upper() -> Any:
    spec = importlib.util.spec_from_file_location("example_upper", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module: ModuleType = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        yield module
    finally:
        TYPES.pop("upper", None)


def test_directly(upper: Any) -> None:
    async def talk() -> None:
        driver = upper.UpperDriver()
        link = DirectLink(upper.UpperDevice(), driver, schedule=asyncio.get_running_loop().call_soon)
        link.connect()
        assert await driver.upper(b"hello") == b"HELLO"
        link.close()

    asyncio.run(talk())


def test_over_crq_with_a_server_that_starts_anew(upper: Any) -> None:
    async def talk() -> list[bytes]:
        driver = upper.UpperDriver()
        pair = PartitionPair(upper.UpperDevice(), driver).start()
        tasks = [asyncio.ensure_future(driver.upper(b"line %d" % number)) for number in range(200)]
        await asyncio.sleep(0)
        pair.server.reset()
        pair.settle()
        answers = await asyncio.gather(*tasks)
        pair.close()
        return list(answers)

    assert asyncio.run(talk()) == [b"LINE %d" % number for number in range(200)]


def test_in_a_system(house: House) -> None:
    text = (ROOT / "examples" / "upper.toml").read_text()
    (house.folder / "upper.toml").write_text(text)
    house.ok("up", "-d", "--types", str(EXAMPLE), "upper.toml")
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(20)
        client.connect(str(house.folder / "upper.sock"))
        client.sendall(b"hello")
        assert client.recv(100) == b"HELLO"
    assert house.client()["type"] == "upper"
    assert house.client()["requests"] == 1
    assert "there is no such option" in house.refused("up", "upper.toml")  # without --types nobody knows it
    house.ok("down")


def test_types_that_are_no_module_are_told(house: House) -> None:
    (house.folder / "bad.py").write_text("1/0\n")
    assert "bad.py: ZeroDivisionError" in house.refused("up", "--types", "bad.py", "x.toml")
    assert "cannot be read" in house.refused("up", "--types", "none.py", "x.toml")


def test_a_section_is_taken_once() -> None:
    row = TYPES["rng"]
    with pytest.raises(LocalError, match="taken"):
        register(DeviceType(section="rng", name="x", device=row.device, driver=row.driver))
    with pytest.raises(LocalError, match="taken"):
        register(DeviceType(section="disk", name="x", device=row.device, driver=row.driver))


def test_the_page_shows_the_example_as_it_is() -> None:
    """Every line of Python in docs/new-device.md stands in the example, but for the test's."""
    page = (ROOT / "docs" / "new-device.md").read_text()
    example = {line.strip() for line in EXAMPLE.read_text().splitlines()}
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 4
    for block in blocks[:3]:
        missing = [line for line in block.splitlines() if line.strip() and line.strip() not in example]
        assert not missing
    for link in re.findall(r"\]\(([^)]+)\)", page):
        assert (ROOT / "docs" / link).exists(), link

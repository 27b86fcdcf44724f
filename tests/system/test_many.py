"""A system of a thousand clients under the commands that people use."""

from __future__ import annotations

import pytest

from .harness import House

CLIENTS = 1000


@pytest.mark.slow
def test_1000_clients_are_started_listed_and_ended(house: House) -> None:
    parts = ['[[vios]]\nname = "vios1"\n']
    for number in range(CLIENTS):
        parts.append(
            f'[[lpar]]\nname = "client{number}"\n[[lpar.disk]]\nvios = "vios1"\n'
            f'image = "{number}.img"\nsize = "64K"\nnbd = "{number}.sock"\n'
        )
    (house.folder / "many.toml").write_text("".join(parts))
    assert house.ok("up", "-d", "many.toml").count("nbd+unix") == CLIENTS
    states = [adapter["state"] for adapter in house.ps()["adapters"] if adapter["role"] == "client"]
    assert states == ["running"] * CLIENTS
    assert "client999/2: " in house.ok("ps")
    house.ok("detach", f"client{CLIENTS // 2}/2")
    house.ok("down")
    assert house.leftovers() == []

"""docs/system-file.md has every option of the system file."""

from __future__ import annotations

import runpy
from pathlib import Path

import msgspec

ROOT = Path(__file__).parents[2]


def test_document_has_every_option_as_it_is() -> None:
    options = runpy.run_path(str(ROOT / "tools" / "options.py"))
    assert options["DOCUMENT"].read_text().partition(options["MARK"])[2] == options["tables"](), "run tools/options.py"


def test_every_section_has_a_table() -> None:
    from powervio.system.config import Lpar, SystemFile

    text = (ROOT / "docs" / "system-file.md").read_text()
    for field in msgspec.structs.fields(SystemFile):
        assert f"## `[{field.name}]`" in text or f"## `[[{field.name}]]`" in text
    assert all(f"| `{field.name}` |" in text for field in msgspec.structs.fields(Lpar))
    assert "system-file.md" in (ROOT / "README.md").read_text()

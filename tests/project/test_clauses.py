"""docs/protocol.md and the tests know of each other: every clause is named by a test, and every named clause exists."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
CLAUSE = re.compile(r"\bP\d+\.\d+\b")


def clauses() -> set[str]:
    text = (ROOT / "docs/protocol.md").read_text()
    return set(re.findall(r"^\*\*(P\d+\.\d+)", text, re.MULTILINE))


def named(folder: str) -> dict[str, str]:
    """Clause ids in the Python files below a folder, with a file that names each; `P1.3-P1.6` names all between."""
    found: dict[str, str] = {}
    for path in sorted((ROOT / folder).rglob("*.py")):
        text = path.read_text()
        for chapter, first, last in re.findall(r"\bP(\d+)\.(\d+)-P\1\.(\d+)\b", text):
            for number in range(int(first), int(last) + 1):
                found.setdefault(f"P{chapter}.{number}", path.name)
        for clause in CLAUSE.findall(text):
            found.setdefault(clause, path.name)
    return found


def test_every_clause_is_named_by_a_test() -> None:
    assert sorted(clauses() - set(named("tests"))) == []


def test_every_clause_that_is_cited_exists() -> None:
    cited = {**named("tests"), **named("src")}
    assert {clause: place for clause, place in cited.items() if clause not in clauses()} == {}

"""tables.py - FORMAT.md as data: its structs, its lists of numbers, its worked examples.

Why:        the tests compare with the document, so they read the document and no copy of it.
Used by:    reader.py and the tests in tests/format
Errors:     an AssertionError names the line that is no row of its table
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import shm_engine

__all__ = ["FORMAT", "Row", "constants", "example", "named_numbers", "struct_sizes", "structs"]

FORMAT: Final = Path(shm_engine.__file__).parent / "FORMAT.md"
COLUMNS: Final = ["offset", "size", "type", "field", "writer", "meaning", "valid values"]


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a struct's table; size 0: as long as another field says."""

    offset: int
    size: int
    kind: str
    field: str


def _tables() -> list[tuple[list[str], list[list[str]], str]]:
    """(columns, rows, the text since the table before) of every table."""
    found: list[tuple[list[str], list[list[str]], str]] = []
    text: list[str] = []
    rows: list[list[str]] = []
    for line in [*FORMAT.read_text("utf-8").splitlines(), ""]:
        if line.startswith("|"):
            rows.append([cell.strip() for cell in line.strip("|").split("|")])
            continue
        if rows:
            assert all(len(row) == len(rows[0]) for row in rows), rows[0]
            found.append((rows[0], rows[2:], "\n".join(text)))
            rows, text = [], []
        text.append(line)
    return found


def _struct_tables() -> list[tuple[str, list[list[str]], str]]:
    found = []
    for columns, rows, text in _tables():
        if columns == COLUMNS:
            name = re.findall(r"`(se_\w+)`, (?:\d+) bytes", text)[-1]
            found.append((name, rows, text))
    return found


def structs() -> dict[str, dict[str, Row]]:
    """The fields of each struct, by their names."""
    found: dict[str, dict[str, Row]] = {}
    for name, rows, _ in _struct_tables():
        assert name not in found, f"{name} has two tables"
        fields = found[name] = {}
        for offset, size, kind, field, *_ in rows:
            row = Row(int(offset), 0 if size == "-" else int(size), kind, field.strip("`"))
            fields[row.field] = row
    return found


def struct_sizes() -> dict[str, int]:
    """The size that the text in front of each table names."""
    return {
        name: int(re.findall(rf"`{name}`, (\d+) bytes", text)[-1])
        for name, _, text in _struct_tables()
    }


def named_numbers(first_column: str, column: int = 1) -> dict[str, int]:
    """The numbers of the one table whose first column has this title."""
    matching = [rows for columns, rows, _ in _tables() if columns[0] == first_column]
    assert len(matching) == 1, f"{len(matching)} tables begin with the column {first_column!r}"
    return {row[0].strip("`"): int(row[column], 0) for row in matching[0]}


def constants() -> dict[str, int]:
    """Section 1's constants, and the kinds of operations and nodes."""
    return {
        **named_numbers("constant"),
        **named_numbers("kind"),
        **named_numbers("node type"),
    }


def example(name: str) -> bytes:
    """The bytes of a worked example."""
    pattern = rf"<!-- example {name} -->\n```\n([0-9a-f \n]+)```"
    found = re.findall(pattern, FORMAT.read_text("utf-8"))
    assert len(found) == 1, f"{len(found)} examples are called {name!r}"
    return bytes.fromhex(found[0])

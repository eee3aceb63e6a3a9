"""Tables as columns: CSV, TSV, JSON lines and Parquet, read whole, with the place of every row for messages."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Literal

from warmstart.errors import DataError, closest, listed

SUFFIXES = frozenset({".csv", ".tsv", ".jsonl", ".ndjson", ".parquet"})
DELIMITERS = (",", ";", "\t")


@dataclass(frozen=True)
class Table:
    """Named columns of equal length, and where each row stands in its file."""

    path: Path
    columns: dict[str, list[object]]
    lines: Sequence[int]
    unit: Literal["line", "row"] = "line"
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.lines)

    def where(self, row: int) -> str:
        """Say where a row stands, such as `line 7`."""
        return f"{self.unit} {self.lines[row]}"

    def column(self, name: str, option: str) -> list[object]:
        """Return a column.

        Args:
            name: Which one.
            option: The option that named it, for the message.

        Raises:
            DataError: There is none of this name; the closest is given.
        """
        if name not in self.columns:
            raise DataError(
                f"no column {name!r} in {self.path} ({option}), which has {listed(list(self.columns))}",
                closest(name, self.columns),
            )
        return self.columns[name]


def read_table(path: Path) -> Table:
    """Read a table by its suffix; cells of CSV and TSV stay text.

    Raises:
        DataError: Not UTF-8 or UTF-16, no header, uneven rows, JSON that does not parse, no pyarrow for Parquet.
    """
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return _parquet(path)
    text = _decoded(path)
    table = _json_lines(path, text) if suffix in (".jsonl", ".ndjson") else _delimited(path, text)
    if not table.columns or not len(table):
        raise DataError(f"{path} has no rows, expected a header and one row per picture", "add rows to the table")
    return table


def _decoded(path: Path) -> str:
    data = path.read_bytes()
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        start = error.start + (3 if encoding == "utf-8-sig" and data.startswith(b"\xef\xbb\xbf") else 0)
        line = data.count(b"\n", 0, start) + 1
        raise DataError(
            f"{path} is not {'UTF-16' if encoding == 'utf-16' else 'UTF-8'}: "
            f"byte 0x{data[start]:02x} at position {start} (line {line})",
            f"iconv -f WINDOWS-1252 -t UTF-8 {path} > {path.with_suffix(f'.utf8{path.suffix}')}",
        ) from error


def _delimited(path: Path, text: str) -> Table:
    header = text.partition("\n")[0]
    delimiter = "\t" if path.suffix.lower() == ".tsv" else _delimiter(header)
    notes = () if delimiter == "," or path.suffix.lower() == ".tsv" else (f"cells are separated by {delimiter!r}",)
    rows = _rows(path, text, delimiter)
    _, names = next(rows, (1, []))
    names = [name.strip() for name in names]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise DataError(f"{path} has more than one column named {listed(repeated)}", "give every column its own name")
    lines, cells, uneven = [], [], []
    for line, row in rows:
        if len(row) == len(names):
            lines.append(line)
            cells.append(row)
        elif row:
            uneven.append(f"line {line} has {len(row)}")
    if uneven:
        raise DataError(
            f"{len(uneven)} rows of {path} do not have the {len(names)} cells of its header ({listed(uneven)})",
            f"put cells that contain {delimiter!r} in double quotes",
        )
    columns = dict(zip(names, map(list, zip(*cells, strict=True)), strict=False)) if cells else {}
    return Table(path, {name: list(column) for name, column in columns.items()}, lines, notes=notes)


def _delimiter(header: str) -> str:
    return max(DELIMITERS, key=lambda mark: (header.count(mark), mark == ","))


def _rows(path: Path, text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yield (first line, cells) of every row; a quoted cell may span lines."""
    reader = csv.reader(StringIO(text, newline=""), delimiter=delimiter, strict=True)
    line = 1
    try:
        for row in reader:
            yield line, row
            line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{path} cannot be read at line {line}: {error}", "close every double quote") from error


def _json_lines(path: Path, text: str) -> Table:
    lines, rows, bad = [], [], []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            bad.append(f"line {number}: {error.msg}")
            continue
        if isinstance(row, dict):
            lines.append(number)
            rows.append(row)
        else:
            bad.append(f"line {number}: no object")
    if bad:
        raise DataError(
            f"{len(bad)} lines of {path} are no JSON objects ({listed(bad)})", "write one JSON object per line"
        )
    names = list(dict.fromkeys(name for row in rows for name in row))
    return Table(path, {name: [row.get(name) for row in rows] for name in names}, lines)


def _parquet(path: Path) -> Table:
    try:
        from pyarrow import ArrowInvalid, parquet
    except ImportError as error:
        raise DataError(f"{path} is Parquet, which needs pyarrow", "pip install 'warmstart[tables]'") from error
    try:
        table = parquet.read_table(path)
    except (ArrowInvalid, OSError) as error:
        raise DataError(f"{path} cannot be read: {str(error).splitlines()[0]}", "write the file again") from error
    columns = {name: table.column(name).to_pylist() for name in table.column_names}
    if not table.num_rows:
        raise DataError(f"{path} has no rows, expected one row per picture", "add rows to the table")
    return Table(path, columns, range(1, table.num_rows + 1), "row")

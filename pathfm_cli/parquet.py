"""What a Parquet file claims, checked before polars believes it: counts, sizes, places of pages.

polars reserves memory for what a footer or page header claims: a changed byte ends the process,
which no handler can catch, and a small file can unpack to gigabytes. Here both are read with bounds
first. Source of the layout: parquet.thrift of the Apache Parquet format, Thrift's compact protocol.
"""

from __future__ import annotations

import contextlib
import mmap
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl

MAX_ITEMS = 1 << 22
"""Values in a footer: a thousand row groups of a hundred columns have three million."""
MAX_DEPTH = 32
"""Structs within structs, and groups within groups of a schema: both are read by recursion."""
MAX_PAGE_BYTES = 1 << 28
"""One page, unpacked; writers aim at 1 MB, and a row of patch tokens may be some tens."""
FREE_VALUES, VALUES_PER_BYTE = 1 << 24, 64
"""Values that any file may hold; and, where these are more, for each byte of the file.

A dictionary packs equal values into next to nothing; but a table has columns that differ by row.
"""
FREE_BYTES, INFLATION = 1 << 28, 100
"""Unpacked bytes that any file may hold; and, where these are more, for each byte of the file."""
SLACK_BYTES = 100
"""Some old writers leave the header of the dictionary out of a column's size."""

_MAGIC = b"PAR1"
_BYTE, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = 3, 7, 8, 9, 10, 11, 12
_REPEATED = 2
_PAGE_HEADERS = (5, 8)  # of data pages, version 1 and 2; each begins with its number of values
_DICTIONARY_HEADER = 7

Buffer = bytes | mmap.mmap


@contextlib.contextmanager
def guard() -> Iterator[None]:
    """Within it a panic of polars is an error of polars, which can be handled.

    Raises:
        polars.exceptions.ComputeError: polars panicked; its exception is not even an `Exception`.
    """
    try:
        yield
    except pl.exceptions.PanicException as panic:
        raise pl.exceptions.ComputeError("it is damaged") from panic


def read(source: Path | bytes) -> pl.DataFrame:
    """Read a whole file, or what one holds, once it is checked.

    Raises:
        polars.exceptions.PolarsError, OSError: as `check`, or polars cannot read it.
    """
    check(source)
    with guard():
        return pl.read_parquet(source)


def metadata(path: Path) -> dict[str, str]:
    """The key-value metadata of a file whose footer is checked.

    Raises:
        polars.exceptions.PolarsError, OSError: as `read`.
    """
    check(path, pages=False)
    with guard():
        pl.read_parquet_schema(path)  # who reads it later need not expect a panic
        return pl.read_parquet_metadata(path)


def check(source: Path | bytes, *, pages: bool = True) -> None:
    """See that a file claims nothing that it cannot hold.

    Args:
        source: a regular file, or what one holds.
        pages: whether the header of each page is read too, or only the footer.

    Raises:
        polars.exceptions.ComputeError: damaged, or it unpacks to implausibly much.
        OSError: it cannot be read.
    """
    try:
        if isinstance(source, bytes):
            _check(source, pages)
            return
        with source.open("rb") as file:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as buffer:
                _check(buffer, pages)
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, struct.error) as error:
        reason = str(error) if isinstance(error, _Implausible) else "it is damaged"
        raise pl.exceptions.ComputeError(reason) from error


class _Implausible(ValueError):
    """Well-formed, but too much."""


class _Reader:
    """Thrift's compact protocol: structs as {field id: value}, all lengths checked."""

    def __init__(self, buffer: Buffer, at: int, end: int) -> None:
        self.buffer, self.at, self.end = buffer, at, end
        self.items = 0

    def struct(self, depth: int = 0) -> dict[int, Any]:
        if depth > MAX_DEPTH:
            raise _Implausible("its metadata are nested without end")
        fields: dict[int, Any] = {}
        number = 0
        while head := self._byte():
            step, kind = head >> 4, head & 15
            number = number + step if step else self._signed()
            # A truth value of a field is in its type.
            fields[number] = kind == 1 if kind in (1, 2) else self._value(kind, depth)
        return fields

    def _value(self, kind: int, depth: int) -> Any:
        self.items += 1
        if self.items > MAX_ITEMS:
            raise _Implausible("its metadata have values without end")
        if kind in (1, 2, _BYTE):
            return self._byte()
        if kind in (4, 5, 6):
            return self._signed()
        if kind == _DOUBLE:
            return self._take(8)
        if kind == _BINARY:
            return self._take(self._unsigned())
        if kind in (_LIST, _SET):
            head = self._byte()
            count = self._count(head >> 4 if head >> 4 != 15 else self._unsigned())
            return [self._value(head & 15, depth + 1) for _ in range(count)]
        if kind == _MAP:
            count = self._count(self._unsigned())
            kinds = self._byte() if count else 0
            for _ in range(count):
                self._value(kinds >> 4, depth + 1)
                self._value(kinds & 15, depth + 1)
            return None
        if kind == _STRUCT:
            return self.struct(depth + 1)
        raise ValueError(f"type {kind}")

    def _count(self, count: int) -> int:
        if count > self.end - self.at:
            raise ValueError("a list is longer than the file")
        return count

    def _take(self, count: int) -> bytes:
        begin = self.at
        self.at += self._count(count)
        return self.buffer[begin : self.at]

    def _byte(self) -> int:
        if self.at >= self.end:
            raise ValueError("cut short")
        self.at += 1
        return self.buffer[self.at - 1]

    def _unsigned(self) -> int:
        value = shift = 0
        while shift < 70:
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7
        raise ValueError("an endless number")

    def _signed(self) -> int:
        value = self._unsigned()
        return (value >> 1) ^ -(value & 1)


class _Totals:
    """What a file has claimed so far, against its size."""

    def __init__(self, size: int) -> None:
        self.values = self.bytes = 0
        self.most_values = max(FREE_VALUES, VALUES_PER_BYTE * size)
        self.most_bytes = max(FREE_BYTES, INFLATION * size)

    def add(self, values: int = 0, unpacked: int = 0) -> None:
        if values < 0 or unpacked < 0:
            raise ValueError("a negative count")
        self.values += values
        self.bytes += unpacked
        if self.values > self.most_values:
            raise _Implausible(f"it claims {self.values} values, which is not plausible")
        if self.bytes > self.most_bytes or unpacked > MAX_PAGE_BYTES:
            raise _Implausible(f"it unpacks to {self.bytes} bytes, which is not plausible")


def _check(buffer: Buffer, pages: bool) -> None:
    size = len(buffer)
    if size < 12 or buffer[:4] != _MAGIC or buffer[-4:] != _MAGIC:
        raise ValueError("no Parquet")
    length = int.from_bytes(buffer[-8:-4], "little")
    end = size - 8 - length
    if end < 4:
        raise ValueError("no footer")
    footer = _Reader(buffer, end, size - 8).struct()
    leaves = _leaves(footer[2])
    totals = _Totals(size)
    rows = 0
    for group in footer.get(4, ()):
        if len(group[1]) != len(leaves):
            raise ValueError("columns")
        rows += group[3]
        for chunk, repeated in zip(group[1], leaves, strict=True):
            column = chunk[3]
            totals.add(values=column[5])
            if group[3] < 0 or (not repeated and column[5] != group[3]):
                raise ValueError("rows")
            at = _begin(column, end)
            if pages:
                _pages(buffer, column, at, end, totals)
    if rows != footer[3]:
        raise ValueError("rows")


def _leaves(schema: list[dict[int, Any]]) -> list[bool]:
    """Of each column in order, whether it is within something that repeats."""
    leaves: list[bool] = []
    # (children to come, whether they are repeated) of each group around the next element.
    around = [(schema[0].get(5, 0), False)]
    for element in schema[1:]:
        while around and not around[-1][0]:
            around.pop()
        left, repeated = around[-1]
        around[-1] = left - 1, repeated
        repeated = repeated or element.get(3) == _REPEATED
        if children := element.get(5, 0):
            around.append((children, repeated))
        else:
            leaves.append(repeated)
        if len(around) > MAX_DEPTH or children < 0:
            raise _Implausible("its columns are nested without end")
    if any(left for left, _ in around):
        raise ValueError("columns")
    return leaves


def _begin(column: dict[int, Any], end: int) -> int:
    """Where the first page of a column begins; the column ends before `end`."""
    data, dictionary = column[9], column.get(11)
    at: int = data if dictionary is None else dictionary
    if not 4 <= at <= data <= end or not 0 <= column[7] <= end - at:
        raise ValueError("a column lies beyond the end")
    return at


def _pages(buffer: Buffer, column: dict[int, Any], at: int, end: int, totals: _Totals) -> None:
    """Go from page to page of a column."""
    stop = min(end, at + column[7] + SLACK_BYTES)
    left = column[5]
    while left > 0:
        reader = _Reader(buffer, at, stop)
        header = reader.struct()
        packed = header[3]
        if not 0 <= packed <= stop - reader.at:
            raise ValueError("a page lies beyond the end")
        totals.add(unpacked=header[2])
        for kind in _PAGE_HEADERS:
            if kind in header:
                count = header[kind][1]
                if not 0 <= count <= left:
                    raise ValueError("values of a page")
                left -= count
        if _DICTIONARY_HEADER in header:
            totals.add(values=header[_DICTIONARY_HEADER][1])
        at = reader.at + packed

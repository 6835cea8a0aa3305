"""Parquet that claims too much is refused before polars reserves memory for it."""

import io
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from pathfm_cli import parquet

FRAME = pl.DataFrame(
    {"path": ["a.svs", "b.svs", None], "n": [1, 2, 3], "list": [[1.0], [2.0, 3.0], []]}
)
CHANGES = """
import sys
from pathlib import Path
import polars as pl
from pathfm_cli import parquet

path = Path(sys.argv[1])
good = path.read_bytes()
refused = 0
for at in range(4, len(good) - 8, 3):
    for value in (1, 3, 133, 255):
        path.write_bytes(good[:at] + bytes([value]) + good[at + 1 :])
        try:
            parquet.check(path)
            with parquet.guard():
                pl.read_parquet(path)
        except (pl.exceptions.PolarsError, OSError):
            refused += 1
print(refused)
"""


def written(frame: pl.DataFrame, **options: object) -> bytes:
    buffer = io.BytesIO()
    frame.write_parquet(buffer, **options)
    return buffer.getvalue()


def test_no_changed_byte_ends_the_process_or_is_a_panic(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    path.write_bytes(written(FRAME))
    done = subprocess.run(
        [sys.executable, "-c", CHANGES, path],
        capture_output=True,
        text=True,
        env={"RUST_BACKTRACE": "0", "POLARS_MAX_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) > 100


@pytest.mark.parametrize("compression", ["zstd", "snappy", "gzip", "uncompressed"])
@pytest.mark.parametrize("page", [None, 64])
def test_good_files_pass(compression: str, page: int | None) -> None:
    frame = pl.concat([FRAME] * 500).with_columns(
        at=pl.struct("n", x=pl.lit(0.5)),
        two=pl.Series([[1.0, 2.0]] * 1500, dtype=pl.Array(pl.Float32, 2)),
    )
    data = written(frame, compression=compression, data_page_size=page, row_group_size=700)
    parquet.check(data)


def test_values_that_a_dictionary_packs() -> None:
    """17 million equal values in some kilobytes: refused, however many row groups."""
    frame = pl.DataFrame({"x": pl.repeat(7, (1 << 24) + 1, dtype=pl.Int8, eager=True)})
    with pytest.raises(pl.exceptions.ComputeError, match="claims 167773.. values"):
        parquet.check(written(frame))


def test_bytes_that_compression_packs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "FREE_BYTES", 1 << 20)
    frame = pl.DataFrame({"x": ["a" * (1 << 20), "b" * (1 << 20)]})
    with pytest.raises(pl.exceptions.ComputeError, match="unpacks to 2"):
        parquet.check(written(frame))


@pytest.mark.parametrize(
    "footer",
    [
        b"\x19\xfc\xff\xff\xff\xff\x0f" + bytes(9),  # a list of 4 billion structs
        b"\x1c" * 4000,  # structs within structs
        b"\x19\xf1\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",  # an endless count
        b"\x15",  # cut short
        b"\x00",  # empty
    ],
)
def test_damaged_footer(footer: bytes) -> None:
    data = b"PAR1" + footer + len(footer).to_bytes(4, "little") + b"PAR1"
    with pytest.raises(pl.exceptions.ComputeError):
        parquet.check(data)


def test_a_panic_is_an_error() -> None:
    with pytest.raises(pl.exceptions.ComputeError, match="damaged"), parquet.guard():
        raise pl.exceptions.PanicException("x")

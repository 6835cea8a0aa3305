"""Time and memory of ODCorr on a large file, and its distance from the N x N definition.

python benchmarks/odcorr.py [--quick] [--json]

The file is a real embeddings artifact (Parquet, float32, zstd) of random vectors with 16 strong
directions. `seconds` is `pathfm_cli.tasks.odcorr` on it, opening and reading included, in a fresh
process; `peak_mb` is that process's growth over its size before opening the file. The peer is the
definition, `numpy.corrcoef`, on the first rows that it can hold; `max_abs_error` is the largest
difference of ODCorr over five kinds of matrix, `vs_definition` the ratio of the two times on the
same rows.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl

from pathfm_cli import artifacts
from pathfm_cli.tasks import features, odcorr

FULL = (327_680, 1024, 8192)
QUICK = (65_536, 384, 4096)
CHUNK_ROWS = 2048


def write_embeddings(path: Path, rows: int, width: int) -> None:
    """Write the file chunk by chunk, as `pathfm embed` does."""
    header = artifacts.Header(kind="embeddings", settings={"rows": rows, "width": width})
    parts = artifacts.Parts(path, header)
    directions = np.random.default_rng(0).standard_normal((16, width)).astype(np.float32) * 2
    for number, start in enumerate(range(0, rows, CHUNK_ROWS)):
        rng = np.random.default_rng((1, number))
        weights = rng.standard_normal((CHUNK_ROWS, 16), dtype=np.float32)
        z = rng.standard_normal((CHUNK_ROWS, width), dtype=np.float32) + weights @ directions
        frame = pl.DataFrame(
            {
                "id": [str(start + i) for i in range(CHUNK_ROWS)],
                "embedding": pl.Series(z, dtype=pl.Array(pl.Float32, width)),
                "error": pl.Series([None] * CHUNK_ROWS, dtype=pl.String),
            }
        )
        parts.write(number, frame)
    artifacts.write_table(path, parts.scan(), header)
    parts.discard()


def measure_in_process(path: str) -> None:
    """Print seconds and peak megabytes of one measurement; runs in a process of its own."""
    np.linalg.eigvalsh(np.eye(64))
    before = _peak_mb()
    start = time.perf_counter()
    record = odcorr.odcorr(features.open_features(path), None).record
    seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "peak_mb": _peak_mb() - before, **record["metrics"]}))


def definition(z: np.ndarray) -> float:
    """Equation 1 of the paper by the correlation coefficients of all pairs."""
    rho = np.corrcoef(z.astype(np.float64))
    np.fill_diagonal(rho, 0.0)
    return float(np.sqrt((rho**2).sum() / (len(z) * (len(z) - 1))))


def largest_error() -> float:
    """Largest difference from the definition over matrices that stress different parts."""
    rng = np.random.default_rng(2)
    normal = rng.standard_normal((1200, 256))
    orthogonal = np.linalg.qr(rng.standard_normal((256, 256)))[0]
    kinds = (
        normal,
        normal[:200],
        0.01 * normal + rng.standard_normal(256),
        np.concatenate([orthogonal, -orthogonal])[:400],
        (normal + 100).astype(np.float32),
    )
    return max(abs(odcorr.measure([z], *z.shape).odcorr - definition(z)) for z in kinds)


def versus_definition(path: Path, rows: int) -> float:
    """Time of the definition over ours, on the first rows, both from memory."""
    source = features.open_features(path)
    z = source.matrix(np.arange(rows))
    start = time.perf_counter()
    theirs = definition(z)
    middle = time.perf_counter()
    ours = odcorr.measure([z], *z.shape).odcorr
    end = time.perf_counter()
    if abs(ours - theirs) > 1e-9:
        raise SystemExit(f"ODCorr {ours} differs from the definition {theirs}")
    return (middle - start) / (end - middle)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a smaller file, under 45 s")
    parser.add_argument("--json", action="store_true", help="only the JSON line")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure_in_process(arguments.measure)
        return
    rows, width, fits = QUICK if arguments.quick else FULL
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "e.parquet"
        write_embeddings(path, rows, width)
        command = [sys.executable, __file__, "--measure", str(path)]
        result = json.loads(subprocess.check_output(command, text=True))
        result["file_mb"] = path.stat().st_size / 1e6
        result["vs_definition"] = versus_definition(path, fits)
    result["max_abs_error"] = largest_error()
    if not arguments.json:
        print(f"{rows:,} x {width}: {result['seconds']:.1f} s, {result['peak_mb']:.0f} MB")
        print(f"{result['vs_definition']:.1f}x numpy.corrcoef on {fits:,} rows")
        print(f"largest error {result['max_abs_error']:.1e}")
    print(json.dumps(result))


def _peak_mb() -> float:
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss would start at the size of the parent process
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024 / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


if __name__ == "__main__":
    main()

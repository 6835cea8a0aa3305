"""Time and memory of ODCorr on a large file, and its distance from the N x N definition.

python benchmarks/odcorr.py [--quick] [--json]

The file is a real embeddings artifact (Parquet, float32, zstd) of random vectors with 16 strong
directions; the same vectors lie in a safetensors file. `seconds` is `pathfm_cli.tasks.odcorr` on
the first, `safetensors_seconds` on the second, opening and reading included, in a fresh process;
`cpu_s` is the processor time (user and system, all threads) of the same work. `peak_mb` is that
process's growth over its size before opening the file. `vs_products` is `cpu_s` over the processor
time of the two symmetric K x K products alone, taken from 16 blocks and scaled to all: how much
reading, correlations and spectra add to what has to be multiplied. The peer is the definition,
`numpy.corrcoef` of all pairs for ODCorr and `numpy.linalg.svd` for RankMe, on the first rows that
it can hold: `vs_definition` and `vs_definition_cpu` are the ratios of times and processor times on
the same rows; `max_abs_error` is the largest difference of ODCorr over five kinds of matrix.

Threads that wait for one another count as processor time: OMP_NUM_THREADS=1 gives the work alone.
"""

from __future__ import annotations

import argparse
import json
import resource
import struct
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
    artifacts.write_table(path, parts.scan(), header, group_rows=CHUNK_ROWS)
    parts.discard()


def write_safetensors(path: Path, source: features.Features) -> None:
    """Write the same vectors as one float32 tensor, block by block."""
    rows = source.rows()
    size = 4 * len(rows) * source.width
    tensor = {"dtype": "F32", "shape": [len(rows), source.width], "data_offsets": [0, size]}
    head = json.dumps({"embeddings": tensor}).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(head)) + head)
        for block in source.chunks(rows):
            file.write(np.ascontiguousarray(block, dtype="<f4").tobytes())


def measure_in_process(path: str) -> None:
    """Print seconds and peak megabytes of one measurement; runs in a process of its own."""
    np.linalg.eigvalsh(np.eye(64))
    before = _peak_mb()
    wall, cpu = time.perf_counter(), time.process_time()
    metrics = odcorr.odcorr(features.open_features(path), None).record["metrics"]
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    found = {"seconds": wall, "cpu_s": cpu, "peak_mb": _peak_mb() - before}
    print(json.dumps({**metrics, **found}))


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


def rank_by_svd(z: np.ndarray) -> float:
    """RankMe by the singular values themselves."""
    singular = np.linalg.svd(z.astype(np.float64), compute_uv=False)
    shares = singular / singular.sum() + 1e-7
    return float(np.exp(-(shares * np.log(shares)).sum()))


def products_cpu_s(rows: int, width: int) -> float:
    """Processor time of Z^T Z, twice, for `rows` rows: of 16 blocks, scaled."""
    block = np.random.default_rng(0).standard_normal((4096, width))
    start = time.process_time()
    for _ in range(2 * 16):
        block.T @ block
    return (time.process_time() - start) * rows / (16 * len(block))


def versus_definition(path: Path, rows: int) -> tuple[float, float]:
    """Time and processor time of the definitions over ours, on the first rows, from memory."""
    source = features.open_features(path)
    z = source.matrix(np.arange(rows))
    times = [(time.perf_counter(), time.process_time())]
    theirs = definition(z), rank_by_svd(z)
    times.append((time.perf_counter(), time.process_time()))
    found = odcorr.measure([z], *z.shape)
    times.append((time.perf_counter(), time.process_time()))
    if abs(found.odcorr - theirs[0]) > 1e-9 or abs(found.rankme / theirs[1] - 1) > 1e-6:
        raise SystemExit(f"{found} differs from the definitions {theirs}")
    (wall, cpu), (own_wall, own_cpu) = np.diff(times, axis=0)
    return wall / own_wall, cpu / own_cpu


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
        path, other = Path(folder) / "e.parquet", Path(folder) / "e.safetensors"
        write_embeddings(path, rows, width)
        write_safetensors(other, features.open_features(path))
        result, more = _measured(path), _measured(other)
        if abs(result["odcorr"] - more["odcorr"]) > 1e-12:
            raise SystemExit("the two files differ")
        result |= {f"safetensors_{name}": more[name] for name in ("seconds", "cpu_s", "peak_mb")}
        result["file_mb"] = path.stat().st_size / 1e6
        result["vs_products"] = result["cpu_s"] / products_cpu_s(rows, width)
        result["vs_definition"], result["vs_definition_cpu"] = versus_definition(path, fits)
    result["max_abs_error"] = largest_error()
    if not arguments.json:
        for kind, prefix in (("Parquet", ""), ("safetensors", "safetensors_")):
            wall, cpu, peak = (result[f"{prefix}{n}"] for n in ("seconds", "cpu_s", "peak_mb"))
            print(f"{rows:,} x {width}, {kind}: {wall:.1f} s, processor {cpu:.1f} s, {peak:.0f} MB")
        wall, cpu = result["vs_definition"], result["vs_definition_cpu"]
        print(
            f"corrcoef and svd of {fits:,} rows: {wall:.1f} times ours, processor {cpu:.1f} times"
        )
        print(f"processor time over the products alone: {result['vs_products']:.2f}")
        print(f"largest error {result['max_abs_error']:.1e}")
    print(json.dumps(result))


def _measured(path: Path) -> dict[str, float]:
    """What `measure_in_process` prints of a file."""
    command = [sys.executable, __file__, "--measure", str(path)]
    found: dict[str, float] = json.loads(subprocess.check_output(command, text=True))
    return found


def _peak_mb() -> float:
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss would start at the size of the parent process
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024 / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


if __name__ == "__main__":
    main()

"""Processes of torchrun share the chunks of `embed`: the file is the one of a single process."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import polars as pl
from PIL import Image
from processes import commands

from pathfm_cli import artifacts
from pathfm_cli.tasks import ranks

SMALL_CHUNKS = """
import sys
from pathfm_cli.cli import app
from pathfm_cli.tasks import embed
embed.CHUNK = 4
raise SystemExit(app.run(sys.argv[1:]))
"""
MODEL = ("--model", "random/vit_tiny_patch16_224", "--image-size", "32", "--batch-size", "2")


def test_pieces_are_dealt_in_turn() -> None:
    of_three = [ranks.Ranks(rank, 3) for rank in range(3)]
    assert [[one.mine(n) for one in of_three].index(True) for n in range(7)] == [
        0, 1, 2, 0, 1, 2, 0,
    ]  # fmt: skip
    assert ranks.Ranks().mine(5) and ranks.Ranks().leads


def test_two_ranks_write_what_one_process_writes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "tiles").mkdir()
    for number in range(15):
        noise = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / "tiles" / f"{number:02}.png")
    (tmp_path / "tiles" / "09.png").write_bytes(b"no image")
    (tmp_path / "small.py").write_text(SMALL_CHUNKS)
    command = ["small.py", "embed", "--images", "tiles", *MODEL, "--json", "-o"]

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["python", *words],
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env=commands(),
        )

    one = run(*command, "one.parquet")
    start = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    two = run(*start, *command, "two.parquet")
    assert one.returncode == 4, one.stderr
    assert two.stdout.count("\n") == 1, two.stderr
    assert two.stderr.count("in fp32, 32 px") == 1, "only the first speaks"
    assert (tmp_path / "one.parquet").read_bytes() == (tmp_path / "two.parquet").read_bytes()
    frame = artifacts.read_table(tmp_path / "two.parquet", "embeddings").frame
    assert frame.height == 15
    assert frame.filter(pl.col("error").is_not_null())["id"].to_list() == ["09.png"]
    assert not list(tmp_path.glob("*.parts-*"))

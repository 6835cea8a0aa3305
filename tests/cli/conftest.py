"""A slide's tissue and a finished run, for the tests of `pathfm pretrain`."""

import json
from pathlib import Path

import pytest
from micro_runs import micro
from processes import pathfm

SLIDE = Path(__file__).parents[2] / "pathfm_cli" / "demo_data" / "CMU-1-Small-Region.svs"


@pytest.fixture(scope="session")
def tissue(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretrain")
    assert pathfm("index", SLIDE, "-o", folder / "s.parquet").returncode == 0
    assert pathfm("mask", folder / "s.parquet", "-o", folder / "t.parquet").returncode == 0
    return folder / "t.parquet"


@pytest.fixture(scope="session")
def finished(tissue):
    """A finished run, started from a record in a pipe, and what the process said."""
    run = tissue.with_name("run")
    header = {"schema": "pathfm.artifact/1", "kind": "tissue", "path": str(tissue)}
    done = pathfm("pretrain", "--recipe", "tiny", *micro(), "-o", run, stdin=json.dumps(header))
    return run, done

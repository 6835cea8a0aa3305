"""What the studies' shell scripts ask of `pathfm`: the programs only note their words."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
NOTE = """#!{python}
import json, os, sys
with open({log!r}, "a") as log:
    log.write(json.dumps([os.path.basename(sys.argv[0]), *sys.argv[1:]]) + "\\n")
"""


@pytest.fixture
def commands(tmp_path):
    """Run a study's script with `pathfm` and `python` noted; the words of each call in order."""
    log = tmp_path / "calls"
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("pathfm", "python"):
        (programs / name).write_text(NOTE.format(python=sys.executable, log=str(log)))
        (programs / name).chmod(0o755)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "results.md").write_text("")

    def run(study, *words):
        path = f"{programs}:{os.environ['PATH']}"
        script = ["bash", str(EXAMPLES / study / "run.sh"), *map(str, words)]
        done = subprocess.run(
            script, cwd=tmp_path, env={**os.environ, "PATH": path}, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in log.read_text().splitlines()]

    return run


def calls(found, verb):
    return [words[2:] for words in found if words[:2] == ["pathfm", verb]]


def after(words, flag):
    """What follows a flag wherever it stands."""
    return [words[n + 1] for n, word in enumerate(words[:-1]) if word == flag]


def test_table_3_takes_the_papers_shares_and_judges_each_encoder(commands):
    found = commands("table3-slides", "paper", "data", "out")
    trained = calls(found, "pretrain")
    assert [after(words, "--subset") for words in trained] == [["0.01"], ["0.1"], ["0.3"], ["1"]]
    for words in trained:
        assert words[0] == "data/tissue.parquet"
        assert after(words, "--recipe") == ["ablation-dino-vits16"]
        assert after(words, "--where") == ["preservation == 'FFPE'"]
        assert after(words, "--watch") == ["pcam"]
    runs = [f"out/runs/slides-{share}" for share in ("0.01", "0.1", "0.3", "1")]
    assert [after(words, "-o")[0] for words in trained] == runs
    models = [after(words, "--model")[0] for words in calls(found, "embed")]
    assert models == [one for one in [*runs, "out/runs/untrained"] for _ in range(4)]
    fresh = [words for words in found if words[1].endswith("fresh.py")]
    assert [words[2:] for words in fresh] == [["out/runs/slides-1", "out/runs/untrained"]]


@pytest.mark.parametrize(
    ("study", "flag", "values"),
    [
        ("table2-magnifications", "--set", ["data.mpp=[0.25]", "data.mpp=[0.25,0.5,1,2]"]),
        ("table4-distinct-patches", "--distinct-patches", ["1000", "0"]),
        ("fig1-initialisation", "--init", [None, "dino-s16"]),
    ],
)
def test_the_first_and_the_last_run_of_the_others(commands, study, flag, values):
    trained = calls(commands(study, "paper", "data", "out"), "pretrain")
    for words, value in zip((trained[0], trained[-1]), values, strict=True):
        assert (after(words, flag)[-1:] or [None]) == [value]


def test_odcorr_is_of_the_test_images_of_the_probed_embeddings(commands):
    found = commands("table4-distinct-patches", "paper", "data", "out")
    measured, probed = calls(found, "odcorr"), calls(found, "probe")
    embedded = [after(words, "-o")[0] for words in calls(found, "embed")]
    assert [words[0] for words in measured] == [words[0] for words in probed] == embedded
    assert len(set(embedded)) == 6 * 4  # five runs and the untrained network, four tasks
    assert all(after(words, "--split") == ["test"] for words in measured)
    assert all(after(words, "--protocol") == ["paper"] for words in probed)


def test_figure_5_measures_odcorr_of_the_test_images(commands):
    found = commands("fig5-timm-models", "images", "out", "a/b", "c")
    assert [after(words, "--model") for words in calls(found, "embed")] == [["a/b"], ["c"]]
    measured = calls(found, "odcorr")
    assert [words[0] for words in measured] == [
        "out/embeddings/a_b.parquet", "out/embeddings/c.parquet",
    ]  # fmt: skip
    assert all(after(words, "--split") == ["test"] for words in measured)

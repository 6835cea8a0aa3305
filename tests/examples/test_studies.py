"""The studies: what their shared parts make of known numbers, and one of them as a whole."""

import importlib.util
import json
import subprocess
from pathlib import Path

import pytest
from processes import commands

from pathfm_cli import artifacts
from pathfm_cli.tasks import scores

EXAMPLES = Path(__file__).parents[2] / "examples"
DATA = Path(__file__).parents[2].parent / "shared" / "data"
STUDIES = ("fig1-initialisation", "table2-magnifications", "table3-slides")
STUDIES += ("table4-distinct-patches", "fig5-timm-models", "fig6-odcorr-vs-accuracy")


def load(path):
    spec = importlib.util.spec_from_file_location(f"study_{path.stem}", EXAMPLES / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def shell(*words, cwd):
    environment = {**commands(), "STEPS": "10"}
    command = ["bash", *map(str, words)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("name", STUDIES)
def test_every_study_has_its_parts_and_says_how_it_is_used(name, tmp_path):
    folder = EXAMPLES / name
    readme = (folder / "README.md").read_text()
    assert "](plot.png)" in readme and (folder / "plot.png").read_bytes()[1:4] == b"PNG"
    assert json.loads((folder / "results.json").read_text())["rows"]
    asked = shell(folder / "run.sh", cwd=tmp_path)
    assert asked.returncode == 2 and "OUT" in asked.stderr
    assert all(line.startswith("#") for line in asked.stderr.splitlines()), asked.stderr
    assert not list(tmp_path.iterdir())


def test_a_scale_that_is_none(tmp_path):
    done = shell(EXAMPLES / "table3-slides" / "run.sh", "tiny", DATA, tmp_path / "o", cwd=tmp_path)
    assert done.returncode == 2 and "small or paper, not tiny" in done.stderr


def a_study(folder, accuracy, looks=()):
    """Scores of one encoder, called `one`, on one task."""
    for part, numbers in (
        ("probe", {"balanced_accuracy": accuracy, "balanced_accuracy_low": accuracy - 0.1}),
        ("odcorr", {"odcorr": 0.9, "rankme": 3.0, "k": 96, "seconds": 1.0}),
    ):
        header = artifacts.Header(kind="scores", settings={"task": part}, metrics=numbers)
        at = folder / "scores" / "organ4" / "one" / part
        scores.write(at, scores.table([(part, "", None, 1.0)]), header, {})
    (folder / "runs" / "one").mkdir(parents=True)
    if looks:
        text = "".join(json.dumps(look) + "\n" for look in looks)
        (folder / "runs" / "one" / "watch.jsonl").write_text(text)


def test_results_are_those_of_the_artifacts(tmp_path):
    module = load(Path("studies/results.py"))
    looks = [{"step": 0, "odcorr": 0.9, "seconds": 3}, {"step": 5, "odcorr": 0.8, "linear": 0.4}]
    a_study(tmp_path, 0.5, looks)
    row = {"name": "one", "task": "organ4", "balanced_accuracy": 0.5, "odcorr": 0.9}
    row |= {"balanced_accuracy_low": 0.4, "rankme": 3.0, "k": 96}
    assert module.rows(tmp_path, ["one"]) == [row]
    assert module.curve(tmp_path / "runs" / "one") == [
        {"step": 0, "odcorr": 0.9}, {"step": 5, "odcorr": 0.8, "linear": 0.4},
    ]  # fmt: skip
    assert module.curve(tmp_path / "absent") == []
    full = {**row, "balanced_accuracy_high": 0.6, "alpha": 1.25}
    last = module.markdown([full]).splitlines()[-1]
    assert last == "| one | organ4 | 0.500 | 0.400 to 0.600 | 0.900 | 3.0 | 1.25 |"


def test_encoders_that_two_studies_share_count_once(tmp_path):
    module = load(Path("fig6-odcorr-vs-accuracy/gather.py"))
    row = {"name": "untrained", "task": "organ4", "balanced_accuracy": 0.3, "odcorr": 0.9}
    row |= {"rankme": 9.0}
    for name, rows in (("a", [row]), ("b", [{**row, "name": "x"}, {**row, "odcorr": 0.8}])):
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(json.dumps({"rows": rows}))
    found = module.gather([tmp_path / "a", tmp_path / "b"])
    assert [(one["name"], one["odcorr"]) for one in found] == [
        ("a/untrained", 0.9), ("b/untrained", 0.8),
    ]  # fmt: skip


def test_plots_are_drawn_with_spearmans_rho(tmp_path):
    pytest.importorskip("matplotlib")
    module = load(Path("studies/plot.py"))
    names = ("a", "b", "c", "d")
    # Uneven, so that Pearson's correlation is another number: -0.83, +0.78, -0.53.
    numbers = {"odcorr": (0.1, 0.2, 0.3, 0.9), "rankme": (90, 8, 7, 6), "k": (96, 96, 96, 192)}
    accuracy = (0.5, 0.3, 0.4, 0.2)
    rows = [
        {"name": name, "task": "organ4", "balanced_accuracy": accuracy[n]}
        | {key: values[n] for key, values in numbers.items()}
        for n, name in enumerate(names)
    ]
    # Ranks 1 2 3 4 against 4 2 3 1: 1 - 6 x (9 + 0 + 0 + 9) / (4 x 15).
    assert module.spearman(rows, "odcorr", "balanced_accuracy") == pytest.approx(-0.8)
    assert module.spearman(rows[:2], "odcorr", "balanced_accuracy") is None
    looks = [{"step": s, "linear": 0.3, "knn": 0.2, "odcorr": 0.9, "rankme": 3.0} for s in (0, 5)]
    results = {"rows": rows, "curves": {"a": looks, "b": looks}}
    titles = [axis.get_title() for axis in module.scatter(results, "balanced_accuracy").axes]
    assert titles == [
        "organ4: n = 4, Spearman -0.80",
        "organ4: n = 4, Spearman +0.80",
        "organ4: n = 4, Spearman -1.00",
    ]
    table = module.table(results, "balanced_accuracy").axes
    assert [text.get_text() for text in table[0].get_xticklabels()] == list(names)
    curves = module.curves(results, "balanced_accuracy").axes
    assert [len(axis.lines) for axis in curves] == [2, 2, 2, 2]


def test_digits_become_an_image_folder(tmp_path):
    module = load(Path("fig5-timm-models/digits.py"))
    module.write(tmp_path, 6)
    found = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.png"))
    # The first six of the data set are 0 to 5; every third is for the test.
    assert found == [
        "test/0/0000.png", "test/3/0003.png", "train/1/0001.png",
        "train/2/0002.png", "train/4/0004.png", "train/5/0005.png",
    ]  # fmt: skip


@pytest.mark.slow
def test_figure_5_on_an_image_folder(tmp_path):
    load(Path("fig5-timm-models/digits.py")).write(tmp_path / "few", 60)
    script = EXAMPLES / "fig5-timm-models" / "run.sh"
    model = "random/vit_tiny_patch16_224"
    done = shell(script, tmp_path / "few", tmp_path / "out", model, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads((tmp_path / "out" / "results.json").read_text())["rows"]
    assert (row["name"], row["task"], row["k"]) == ("random_vit_tiny_patch16_224", "few", 192)
    assert 0 <= row["accuracy"] <= 1 and 0 < row["odcorr"] <= 1


@pytest.mark.slow(25)
@pytest.mark.skipif(not DATA.is_dir(), reason="needs the slides of ../shared/data")
def test_a_study_of_one_run(tmp_path):
    script = tmp_path / "run.sh"
    script.write_text(
        f'source "{EXAMPLES}/studies/study.sh"\nbegin "$@"\ntrain few --distinct-patches 32\n'
        'untrained untrained "$out/runs/few"\nfinish table\n'
    )
    out = tmp_path / "out"
    done = shell(script, "small", DATA, out, "--set", "train.batch_size=8", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    results = json.loads((out / "results.json").read_text())
    assert [row["name"] for row in results["rows"]] == ["few", "untrained"]
    assert [look["step"] for look in results["curves"]["few"]] == [0, 2, 4, 6, 8, 10]
    figure = EXAMPLES / "fig6-odcorr-vs-accuracy" / "run.sh"
    assert shell(figure, tmp_path / "all", out, cwd=tmp_path).returncode == 0
    assert "RankMe over ODCorr" in (tmp_path / "all" / "report.html").read_text()

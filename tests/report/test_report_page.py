"""Whole reports of artifacts written here, hostile ones too, and what a browser makes of them."""

import re

import numpy as np
import pytest
from browsers import chromium
from pages import Tags, a_probe, a_run, page_of, some_embeddings

from pathfm_cli import errors
from pathfm_cli.pretrain import folder
from pathfm_cli.report import inputs, maps, tables, write

EVIL = '<img src=x onerror="alert(1)">'


def test_a_run_shows_its_curves_looks_and_pictures(tmp_path):
    text = page_of(tmp_path, a_run(tmp_path / "run"))
    titles = re.findall(r"<figcaption>([^<]*)</figcaption>", text)
    assert titles == [
        "loss = teacher entropy + KL",
        "KL of student from teacher",
        "learning rate",
        "gradient norm",
        "images per second",
        "stall: share of time waiting for patches",
        "ODCorr of the fixed patches",
        "RankMe of the fixed patches",
        "balanced accuracy on labelled images",
        "Crops as the model sees them: a row a patch, global views first",
    ]
    said = dict(re.findall(r"<dt>([^<]*)</dt><dd>([^<]*)</dd>", text))
    assert (said["state"], said["seed"], said["stall, median"]) == ("finished", "3", "2.0%")
    assert (said["ODCorr"], said["linear probe"], said["loss"]) == ("0.5000", "0.8000", "2")
    assert 'width="40" height="20"' in text


def test_an_empty_and_a_half_written_run_are_no_trouble(tmp_path):
    empty = a_run(tmp_path / "empty", steps=0, looks=False, finished=False)
    (empty / folder.METRICS).unlink()
    text = page_of(tmp_path, empty)
    assert "No step has been logged yet." in text and "not finished: step 0 of 0" in text
    half = a_run(tmp_path / "half", finished=False)
    with (half / folder.METRICS).open("a") as file:
        file.write('{"step": 5, "loss": NaN, "lr": "fast"}\nnot json\n[1]\n')
        file.write('{"step": 6, "loss": null, "collapse": 1, "skipped_steps": 2}\n{"step": 7, "lo')
    text = page_of(tmp_path, half)
    assert "2 lines of the metrics are damaged" in text
    assert "collapsed by step 6" in text and "<dt>steps skipped</dt><dd>2</dd>" in text
    assert "not finished: step 6 of 4" in text


def test_a_picture_that_is_none_is_left_out(tmp_path):
    run = a_run(tmp_path / "run")
    (run / folder.CROPS).write_bytes(b"<svg onload=alert(1)>")
    assert "<img" not in page_of(tmp_path, run)


def test_a_probe_shows_intervals_recall_confusion_and_calibration(tmp_path):
    text = page_of(tmp_path, a_probe(tmp_path / "p", 0.5))
    assert "0.4000 to 0.6000" in text
    matrix = text.split('class="matrix"')[1].split("</table>")[0]
    assert re.findall(r'title="(\d+)">(\d+)<', matrix) == [
        ("4", "50"), ("4", "50"), ("0", "0"), ("8", "100"),
    ]  # fmt: skip
    assert "sure 0.900, right 1.000: 4 predictions" in text
    assert "reliability, expected error 0.1000" in text
    assert text.count('<polyline class="curve"') == 2
    recalls = text.split("recall by class")[1].split("</table>")[0]
    assert recalls.count("0.2500") == 2


@pytest.mark.parametrize(
    "document",
    [
        {"confusion": {"test": [[1, 2, 3]]}},
        {"confusion": {"test": [[["x"]]]}},
        {"confusion": {"test": [[-1, 0], [0, 1]]}},
        {"confusion": 7, "classes": "ab", "curves": [3, {"step": [1], "score": [[1], [2]]}]},
        {"calibration": {"count": [1], "confidence": [0.5, 0.6], "accuracy": [1]}},
        {"calibration": {"count": [1], "confidence": [[0.5]], "accuracy": [1]}},
        {"reported_on": ["test"], "notes": {"a": 1}},
    ],
)
def test_a_damaged_document_loses_only_what_is_damaged(tmp_path, document):
    assert "0.4000 to 0.6000" in page_of(tmp_path, a_probe(tmp_path / "p", 0.5, **document))


def test_scores_without_their_document_still_show_numbers(tmp_path):
    probe = a_probe(tmp_path / "p", 0.5)
    (probe / "scores.json").write_text("{")
    assert "0.4000 to 0.6000" in page_of(tmp_path, probe)


def test_many_classes_get_no_matrix(tmp_path):
    names = [f"c{n}" for n in range(41)]
    text = tables.confusion(names, np.eye(41))
    assert "41 classes" in text and "<table" not in text


def test_a_plane_of_embeddings(tmp_path):
    text = page_of(tmp_path, some_embeddings(tmp_path / "e.parquet"))
    assert text.count("<circle") == 30 and "PCA" in text and "by label" in text


def test_principal_components_by_hand():
    """Along (1, 1) and (1, -1): deviations 2 sqrt 2 and sqrt 2."""
    vectors = np.array([[2, 2], [-2, -2], [1, -1], [-1, 1]], dtype=float) + 5
    places, shares = maps.principal(vectors)
    expected = np.sqrt(2) * np.array([[2, 0], [2, 0], [0, 1], [0, 1]])
    assert np.allclose(np.abs(places), expected) and np.allclose(shares, [0.8, 0.2])


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_embeddings_are_no_trouble(tmp_path, count):
    assert "embeddings:" in page_of(tmp_path, some_embeddings(tmp_path / "e.parquet", count))


def test_hostile_names_are_text(tmp_path):
    run = a_run(tmp_path / "a<b>&'\"", name=EVIL)
    probe = a_probe(tmp_path / "p", 0.5, classes=(EVIL, "\u202eb\n"), notes=[EVIL])
    text = page_of(tmp_path, run, probe, some_embeddings(tmp_path / "e.parquet", label=EVIL))
    tags = Tags(text)
    assert tags.all.isdisjoint({"script", "iframe", "link", "object", "b>"})
    assert not [name for name in tags.attributes if name.startswith("on")]
    assert EVIL not in text and "\u202e" not in text
    assert text.count("<img") == 1


def test_the_page_needs_nothing_from_anywhere(tmp_path):
    text = page_of(tmp_path, a_run(tmp_path / "run"))
    assert not re.search(r'(src|href)="(?!data:|#)', text)
    assert "default-src 'none'" in text and "script-src" not in text


def test_names_tell_paths_apart(tmp_path):
    paths = [a_run(tmp_path / folder / "run") for folder in ("a", "b")]
    opened = inputs.open_inputs([*map(str, paths), str(paths[0])])
    assert [one.name for one in opened] == ["a/run", "b/run"]
    again = inputs.open_inputs([str(paths[0] / folder.RESULT), str(paths[0])])
    assert [one.name for one in again] == ["run"]


def test_what_is_no_input_is_refused(tmp_path):
    (tmp_path / "nothing").mkdir()
    (tmp_path / "text.parquet").write_text("no")
    broken = a_run(tmp_path / "broken", finished=False)
    (broken / folder.IDENTITY).write_text('{"kind": "checkpoint"}')
    for path, message in (
        ("absent", "does not exist"),
        ("nothing", "is no artifact of pathfm"),
        ("text.parquet", "text.parquet"),
        ("broken", "run.json is damaged"),
    ):
        with pytest.raises(errors.InputError, match=message):
            inputs.open_inputs([str(tmp_path / path)])


def test_a_foreign_page_is_not_written_over(tmp_path):
    run, out = a_run(tmp_path / "run"), tmp_path / "r.html"
    out.write_text('<meta name="generator" content="pathfm">')
    with pytest.raises(errors.OutputClash, match="is no report of pathfm"):
        write.report([str(run)], out)
    write.report([str(run)], out, overwrite=True)
    write.report([str(run)], out)
    with pytest.raises(errors.UsageError, match="no name of an HTML file"):
        write.check(tmp_path / "report")
    (tmp_path / "x.html").mkdir()
    with pytest.raises(errors.OutputClash, match="is a folder"):
        write.check(tmp_path / "x.html", overwrite=True)


def test_chromium_draws_it_within_the_width_of_a_phone(tmp_path):
    """Nothing sticks out of 390 px; the page is framed, since a window is never so narrow."""
    run = a_run(tmp_path / ("long-name-" * 12))
    probe = a_probe(tmp_path / "p", 0.5, classes=("a" * 60, "b"))
    out = tmp_path / "report.html"
    write.report([str(run), str(probe), str(some_embeddings(tmp_path / "e.parquet"))], out)
    asked = out.read_text().replace(
        "</body>",
        "<script>document.title = [innerWidth, document.documentElement.clientWidth,"
        " document.documentElement.scrollWidth,"
        " document.querySelectorAll('svg').length].join()</script></body>",
    )
    asked = re.sub(r"<meta http-equiv[^>]*>", "", asked)
    (tmp_path / "asked.html").write_text(asked)
    frame = tmp_path / "frame.html"
    frame.write_text(
        '<iframe id="f" width="390" height="800" src="asked.html" style="border:0"></iframe>'
        '<script>f.onload = () => document.title = "seen " + f.contentDocument.title</script>'
    )
    dom = chromium(frame, "--dump-dom", "--allow-file-access-from-files")
    width, free, needed, drawn = re.search(r"seen (\d+),(\d+),(\d+),(\d+)", dom).groups()
    assert width == "390" and needed == free and int(drawn) >= 12

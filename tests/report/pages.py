"""Artifacts that a report is about, written here, and the page made of them."""

import json
from html import parser

import numpy as np
import polars as pl
from PIL import Image

from pathfm_cli import artifacts
from pathfm_cli.pretrain import folder
from pathfm_cli.report import write


class Tags(parser.HTMLParser):
    """Counts elements that are open at the end, and keeps the names of all."""

    VOID = {"meta", "img", "br"}

    def __init__(self, page):
        super().__init__()
        self.open, self.all, self.attributes = [], set(), []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.all.add(tag)
        self.attributes += [name for name, _ in attributes]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def a_run(path, *, name="demo", steps=4, looks=True, finished=True):
    path.mkdir(parents=True)
    settings = {
        "name": name,
        "model": {"arch": "vit_tiny"},
        "head": {"prototypes": 64},
        "train": {"steps": steps, "batch_size": 8, "seed": 3},
    }
    header = artifacts.Header(kind="checkpoint", parents=("tissue:1",), settings=settings)
    (path / folder.IDENTITY).write_text(header.dumps())
    lines = [
        {"step": n, "loss": 4 - n / 2, "kl": 1 / n, "lr": 1e-3, "teacher_entropy": 2.0,
         "grad_norm": 1.0, "images_per_s": 100.0 + n, "stall": 0.02, "failed_patches": 0}
        for n in range(1, steps + 1)
    ]  # fmt: skip
    (path / folder.METRICS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    if looks:
        rows = [
            {"step": n, "odcorr": 0.9 - n / 10, "rankme": 10.0 + n, "floor": 0.2, "patches": 6,
             "knn": 0.3 + n / 10, "linear": 0.4 + n / 10, "chance": 0.25}
            for n in range(steps + 1)
        ]  # fmt: skip
        (path / folder.WATCH).write_text("".join(json.dumps(row) + "\n" for row in rows))
        Image.new("RGB", (40, 20), "purple").save(path / folder.CROPS, format="JPEG")
    if finished:
        from safetensors import numpy as safetensors_numpy

        weights = {"a": np.zeros(1, np.float32)}
        metadata = {"pathfm": header.dumps()}
        safetensors_numpy.save_file(weights, path / folder.RESULT, metadata=metadata)
    return path


def a_probe(path, score, *, parent="embeddings:aa", classes=("a", "b"), scored=None, **document):
    numbers = {"balanced_accuracy": score, "balanced_accuracy_low": score - 0.1,
               "balanced_accuracy_high": score + 0.1, "accuracy": score}  # fmt: skip
    settings = {"task": "probe", "protocol": {"name": "paper"}, "runs": 2}
    settings |= {"scored": scored} if scored else {}
    header = artifacts.Header(kind="scores", parents=(parent,), settings=settings, metrics=numbers)
    rows = [(name, "test", None, value) for name, value in numbers.items()]
    rows += [(f"recall:{name}", "test", None, 0.25) for name in classes]
    schema = {"metric": pl.String, "split": pl.String, "run": pl.Int64, "value": pl.Float64}
    frame = pl.DataFrame(rows, schema, orient="row")
    path.mkdir(parents=True)
    artifacts.write_table(path / "scores.parquet", frame, header)
    whole = {
        "classes": list(classes),
        "reported_on": "test",
        "confusion": {"test": [[[3, 1], [0, 4]], [[1, 3], [0, 4]]]},
        "calibration": {"count": [4, 0, 4], "confidence": [0.6, None, 0.9],
                        "accuracy": [0.5, None, 1.0], "ece": 0.1},
        "curves": [{"step": [1, 2], "score": [[0.1, 0.2], [0.3, 0.4]]}],
        **document,
    }  # fmt: skip
    (path / "scores.json").write_text(json.dumps(whole))
    return path


def an_odcorr(path, odcorr, parent="embeddings:aa"):
    numbers = {"odcorr": odcorr, "rankme": 20 * odcorr}
    header = artifacts.Header(
        kind="scores", parents=(parent,), settings={"task": "odcorr"}, metrics=numbers
    )
    rows = [(name, "", None, value) for name, value in numbers.items()]
    schema = {"metric": pl.String, "split": pl.String, "run": pl.Int64, "value": pl.Float64}
    path.mkdir(parents=True)
    frame = pl.DataFrame(rows, schema, orient="row")
    artifacts.write_table(path / "scores.parquet", frame, header)
    return path


def some_embeddings(path, count=30, label="a"):
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(count, 5)).astype(np.float32)
    frame = pl.DataFrame(
        {
            "id": [f"{label}{n}" for n in range(count)],
            "embedding": pl.Series(vectors, dtype=pl.Array(pl.Float32, 5)),
            "label": [label if n % 2 else "b" for n in range(count)],
            "error": pl.Series([None] * count, dtype=pl.String),
        }
    )
    header = artifacts.Header(kind="embeddings", settings={"model": "vit"})
    artifacts.write_table(path, frame, header)
    return path


def page_of(tmp_path, *paths):
    out = tmp_path / "report.html"
    write.report([str(path) for path in paths], out, overwrite=True)
    text = out.read_text()
    assert Tags(text).open == []
    return text

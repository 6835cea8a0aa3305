"""The paper's Table I for your encoders: every model on every task, as Markdown, CSV and HTML.

python examples/table1/table1.py examples/table1/example.toml -o table1/

The TOML file lists models and tasks (see `example.toml`). The work is done by `pathfm embed`,
`probe` and `segment`, whose results lie in OUT/scores: the same command again goes on where it was
stopped, and does only what is new. A cell that cannot be had says n/a, and why below the table,
where also stands what the verbs told of the scores, as that a data set is not complete.
Exit 4 if there is one.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import html
import io
import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

from pathfm_cli import errors
from pathfm_cli.tasks import reference

SOURCES = ("data", "images", "patches")
VERBS = ("probe", "embed", "segment")
SCORED = (0, errors.PARTIAL, errors.GateFailed.exit_code)
"""Exit codes with a record: also where `--reference` found another score than the published."""
STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif }
body { max-width: 70rem; margin: 2rem auto; padding: 0 1rem }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .3rem .8rem; border-bottom: 1px solid #8884; text-align: right }
th:nth-child(-n+2), td:nth-child(-n+2) { text-align: left }
caption, small { text-align: left; color: #888 }
"""


@dataclasses.dataclass(frozen=True, slots=True)
class Cell:
    """A score, or why there is none."""

    score: float | None = None
    deviation: float | None = None
    problem: str = ""
    notes: tuple[str, ...] = ()
    """What the verb told of the score."""

    def text(self) -> str:
        """Three digits, as the paper prints them."""
        return "n/a" if self.score is None else f"{self.score:.3f}"

    def long(self) -> str:
        """With the deviation over the runs, as in the paper's Table VIII."""
        deviation = "" if self.deviation is None else f" (±{self.deviation:.3f})"
        return self.text() + deviation


@dataclasses.dataclass(frozen=True, slots=True)
class Table:
    """Cells by model and task, in order."""

    models: list[str]
    tasks: list[dict[str, Any]]
    cells: dict[tuple[str, str], Cell]
    how: str

    def best(self, task: str) -> str:
        """The best score of a task as printed; empty if there is none."""
        known = [self.cells[model, task].score for model in self.models]
        scores = [score for score in known if score is not None]
        return f"{max(scores):.3f}" if scores else ""

    def rows(self) -> list[tuple[str, str, str]]:
        """Model, how the paper calls it, and what it was trained on where the paper says so."""
        published = reference.find("paper")
        found = []
        for model in self.models:
            row = reference.row(published, model)
            found.append((model, row.name if row else model, row.data if row else "?"))
        return found

    def problems(self) -> list[str]:
        """Why cells are empty."""
        return [
            f"{model} on {task}: {cell.problem}"
            for (model, task), cell in self.cells.items()
            if cell.score is None
        ]

    def notes(self) -> list[str]:
        """What is to be known of the scores of a task, once whatever the models."""
        told: dict[str, None] = {}
        for (_, task), cell in self.cells.items():
            told |= dict.fromkeys(f"{task}: {note}" for note in cell.notes)
        return sorted(told)


def read(path: Path) -> dict[str, Any]:
    """Read the list of models and tasks.

    Raises:
        errors.UsageError: it is no TOML, or an entry is missing or unknown.
    """
    try:
        asked = tomllib.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise errors.UsageError(f"{path} cannot be read: {error}.", "see example.toml") from error
    models, tasks = asked.get("models"), asked.get("tasks")
    if not models or not tasks or set(asked) - {"models", "tasks", *VERBS}:
        raise errors.UsageError(f"{path} needs models and tasks.", "see example.toml")
    if not _texts(models) or not isinstance(tasks, list):
        raise errors.UsageError(
            f"{path}: models is a list of names, tasks one of tables.", "see example.toml"
        )
    for task in tasks:
        _check_task(path, task)
    _check_words(path, asked)
    if len({task["name"] for task in tasks}) < len(tasks):
        raise errors.UsageError(f"{path}: two tasks have one name.", "see example.toml")
    return asked


def _texts(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)


def _check_task(path: Path, task: Any) -> None:
    if not isinstance(task, dict) or not _texts(list(task.values())):
        raise errors.UsageError(f"{path}: a task is a table of texts.", "see example.toml")
    if "name" not in task or sum(name in task for name in SOURCES) != 1:
        raise errors.UsageError(
            f"{path}: a task needs a name and one of {', '.join(SOURCES)}.", "see example.toml"
        )
    if "data" in task and "task" not in task:
        raise errors.UsageError(
            f"{path}: {task['name']} needs task, the data set's name.", "pathfm tasks"
        )
    if unknown := set(task) - {"name", "task", *SOURCES, *VERBS}:
        raise errors.UsageError(
            f"{path}: {task['name']} has an unknown {min(unknown)}.", "see example.toml"
        )
    _check_words(path, task)


def _check_words(path: Path, table: dict[str, Any]) -> None:
    """Options are one text that a shell would split."""
    for verb in VERBS:
        try:
            shlex.split(table.get(verb, ""))
        except (ValueError, AttributeError, TypeError) as error:
            raise errors.UsageError(
                f"{path}: {verb} is no text of options.", "probe = '--runs 5'"
            ) from error


def commands(
    asked: dict[str, Any], task: dict[str, Any], model: str, base: Path, out: Path
) -> list[list[str]]:
    """The verbs that make a cell; the last one prints the score."""
    stem = re.sub(r"[^A-Za-z0-9.-]+", "_", f"{task['name']}-{model}")
    kind = next(name for name in SOURCES if name in task)
    place = str(base / task[kind])
    more = {
        verb: shlex.split(asked.get(verb, "")) + shlex.split(task.get(verb, "")) for verb in VERBS
    }
    tail = ["-o", str(out / "scores" / stem), "--json"]
    if kind == "data":
        verb = "segment" if task.get("task") == "consep" else "probe"
        named = ["--task", task["task"], "--data", place, "--model", model]
        return [[verb, *named, *more[verb], *tail]]
    embedded = str(out / "embeddings" / f"{stem}.parquet")
    source = ["--images", place] if kind == "images" else [place]
    return [
        ["embed", *source, "--model", model, *more["embed"], "-o", embedded, "--json"],
        ["probe", embedded, *more["probe"], *tail],
    ]


def evaluate(verbs: list[list[str]]) -> Cell:
    """Run verbs; the score is in the last record."""
    for verb in verbs:
        done = subprocess.run(
            [sys.executable, "-m", "pathfm_cli", *verb],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        if done.returncode not in SCORED:
            said = [line for line in done.stderr.splitlines() if line.startswith("pathfm: ")]
            return Cell(problem=said[-1].removeprefix("pathfm: ") if said else done.stderr[-300:])
    record = json.loads(done.stdout)
    metrics = record["metrics"]
    name = "balanced_accuracy" if "balanced_accuracy" in metrics else "dice_micro_foreground"
    return Cell(metrics[name], metrics.get(f"{name}_std"), notes=_notes(record.get("path")))


def _notes(table: str | None) -> tuple[str, ...]:
    """What the document beside scores says a person was told."""
    try:
        document = json.loads(Path(table or "").with_name("scores.json").read_text())
        return tuple(map(str, document.get("notes", ())))
    except (OSError, ValueError):
        return ()


def markdown(table: Table) -> str:
    """The table of scores and the one with deviations."""
    parts = []
    for title, long in (("Table I", False), ("Table VIII", True)):
        lines = [f"### {title}: {table.how}", ""]
        lines += ["| Model | Training data | " + " | ".join(t["name"] for t in table.tasks) + " |"]
        lines += ["| --- | --- |" + " ---: |" * len(table.tasks)]
        for model, name, data in table.rows():
            cells = []
            for task in table.tasks:
                cell = table.cells[model, task["name"]]
                text = cell.long() if long else cell.text()
                cells.append(f"**{text}**" if cell.text() == table.best(task["name"]) else text)
            shown = name if name == model else f"{name} `{model}`"
            lines.append(f"| {shown} | {data} | {' | '.join(cells)} |")
        parts.append("\n".join(lines))
    told = [f"- n/a: {problem}" for problem in table.problems()]
    notes = "\n".join([*told, *(f"- {note}" for note in table.notes())])
    return "\n\n".join([*parts, *([notes] if notes else [])]) + "\n"


def comma_separated(table: Table) -> str:
    """One row a model and task, with the published score where there is one."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["model", "task", "score", "deviation", "published", "problem"])
    published = reference.find("paper")
    for (model, name), cell in table.cells.items():
        row = reference.row(published, model)
        task = next(t for t in table.tasks if t["name"] == name).get("task", "")
        known = row.scores.get(task, "") if row else ""
        numbers = ["" if v is None else f"{v:.6f}" for v in (cell.score, cell.deviation)]
        writer.writerow([model, name, *numbers, known, cell.problem])
    return text.getvalue()


def page(table: Table) -> str:
    """One HTML file that needs nothing else."""
    head = "".join(f"<th>{html.escape(task['name'])}</th>" for task in table.tasks)
    body = []
    for model, name, data in table.rows():
        cells = []
        for task in table.tasks:
            cell = table.cells[model, task["name"]]
            text = html.escape(cell.text())
            text = f"<b>{text}</b>" if cell.text() == table.best(task["name"]) else text
            cells.append(f'<td title="{html.escape(cell.long() + " " + cell.problem)}">{text}</td>')
        shown = html.escape(name)
        shown += "" if name == model else f" <small>{html.escape(model)}</small>"
        body.append(f"<tr><td>{shown}</td><td>{html.escape(data)}</td>{''.join(cells)}</tr>")
    told = [f"n/a: {problem}" for problem in table.problems()] + table.notes()
    notes = "".join(f"<li>{html.escape(one)}</li>" for one in told)
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Table I</title><style>{STYLE}</style><h1>Table I</h1>"
        f'<div class="wide"><table><caption>{html.escape(table.how)}</caption>'
        f"<thead><tr><th>Model</th><th>Training data</th>{head}</tr></thead>"
        f"<tbody>{''.join(body)}</tbody></table></div><ul>{notes}</ul></html>\n"
    )


def _make_folders(out: Path) -> None:
    for folder in ("scores", "embeddings"):
        try:
            (out / folder).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise errors.Unwritable(out, str(error.strerror)) from error


def main(arguments: list[str] | None = None) -> int:
    """Evaluate and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("list", type=Path, help="TOML with models and tasks")
    parser.add_argument("-o", "--out", type=Path, required=True)
    given = parser.parse_args(arguments)
    try:
        asked = read(given.list)
        _make_folders(given.out)
    except errors.PathfmError as error:
        print(f"table1: {error}\nhint: {error.hint}", file=sys.stderr)
        return error.exit_code
    cells = {}
    for model in asked["models"]:
        for task in asked["tasks"]:
            print(f"table1: {model} on {task['name']}", file=sys.stderr, flush=True)
            verbs = commands(asked, task, model, given.list.parent, given.out)
            cells[model, task["name"]] = evaluate(verbs)
    how = f"balanced accuracy (CoNSeP: Dice), {asked.get('probe', '--protocol paper')}"
    table = Table(asked["models"], asked["tasks"], cells, how)
    for name, text in (
        ("table1.md", markdown(table)),
        ("table1.csv", comma_separated(table)),
        ("table1.html", page(table)),
    ):
        (given.out / name).write_text(text)
    print(given.out / "table1.md")
    return errors.PARTIAL if table.problems() else 0


if __name__ == "__main__":
    sys.exit(main())

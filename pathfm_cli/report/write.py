"""`report`: runs, scores and embeddings as one HTML file that needs nothing else."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from pathfm_cli import errors, page
from pathfm_cli.report import inputs, maps, runs, scored, several, theme

SUFFIXES = (".html", ".htm")
SCHEMA = "pathfm.report/1"
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
{mark}<title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
{policy}
<style>{style}</style></head><body>
<header><h1>{title}</h1><nav>{links}</nav></header>
<main>
{sections}
</main></body></html>
"""


def check(out: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """See, before anything is read, that the report may be written.

    Raises:
        errors.UsageError: the name is none of a page.
        errors.OutputClash: something else is there; an earlier report may be replaced.
        errors.Unwritable: nothing can be written there.
    """
    out = Path(out)
    if out.suffix.lower() not in SUFFIXES:
        raise errors.UsageError(f"{out} is no name of an HTML file.", f"-o {out}.html")
    page.check(out, page.REPORT, "report", "another -o, or --overwrite", overwrite=overwrite)


def report(
    paths: Sequence[str], out: str | os.PathLike[str], *, overwrite: bool = False
) -> list[inputs.Input]:
    """Write the report and return what it is about, in the order given.

    Args:
        paths: run folders, scores and embeddings.
        out: the HTML file.
        overwrite: replace a file that is no report, too.

    Raises:
        errors.InputError: as `inputs.open_inputs`.
        errors.UsageError, errors.OutputClash, errors.Unwritable: as `check`.
    """
    check(out, overwrite=overwrite)
    given = inputs.open_inputs(paths)
    page.write(Path(out), document(given))
    return given


def document(given: Sequence[inputs.Input]) -> str:
    """The page."""
    together = several.section(given)
    sections = [("together", "All together", "", together)] if together else []
    sections += [(f"s{n}", one.name, _kind(one), _section(one)) for n, one in enumerate(given)]
    named = [f'<a href="#{key}">{page.text(name)}</a>' for key, name, _, _ in sections]
    title = f"pathfm report: {given[0].name}" if len(given) == 1 else "pathfm report"
    return _PAGE.format(
        mark=page.REPORT,
        title=page.text(title),
        policy=page.policy(scripts=False),
        style=theme.STYLE,
        links="".join(named) if len(named) > 1 else "",
        sections="\n".join(
            f'<section id="{key}"><h2>{page.text(name)}</h2><p class="kind">{page.text(kind)}</p>'
            f"{body}</section>"
            for key, name, kind, body in sections
        ),
    )


def _kind(one: inputs.Input) -> str:
    what = {inputs.Run: "training run", inputs.Embeddings: "embeddings"}.get(type(one))
    return f"{what or f'scores of {one.task}'}: {one.path}"  # type: ignore[union-attr]


def _section(one: inputs.Input) -> str:
    if isinstance(one, inputs.Run):
        return runs.section(one)
    return scored.section(one) if isinstance(one, inputs.Scores) else maps.section(one)

"""`pathfm models`: published encoders by short name."""

from __future__ import annotations

from typing import Annotated

import typer

from pathfm_cli import errors
from pathfm_cli.cli import options, output


def models(
    name: Annotated[str | None, typer.Argument(help="One encoder; without it all.")] = None,
    json: options.Json = False,
) -> int:
    r"""List published encoders: architecture, input, embedding rule, licence, how to load them.

    \b
    pathfm models
    pathfm models kaiko-b8 --json | jq .mean
    """
    import dataclasses

    from pathfm_cli.model import zoo

    sink = output.Sink(json)
    if name is None:
        if json:
            return sink.plan({"models": [dataclasses.asdict(e) for e in zoo.entries().values()]})
        lines = zoo.table()
    else:
        entry = zoo.find(name)
        if entry is None:
            close = zoo.suggestion(name)
            raise errors.UsageError(
                f"There is no model {name!r} in the list.",
                f"did you mean {close}?" if close else "pathfm models",
            )
        if json:
            return sink.plan(dataclasses.asdict(entry))
        lines = zoo.page(entry)
    for line in lines:
        sink.line(line)
    return 0

"""One training process, as `launch.py` starts it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pathfm_cli import errors
from pathfm_cli.pretrain import folder, launch, recipe, run, stop


def main(arguments: Sequence[str]) -> int:
    """Train as the rank that torchrun's environment names; return the exit code."""
    options = _parse(arguments)
    stop.with_launcher()
    launch.become_rank(quiet=options.quiet)
    machine = run.Machine(
        device=options.device,
        accumulate=options.accumulate,
        workers=options.workers,
        patch_cache=options.patch_cache,
    )
    try:
        settings = recipe.load(options.recipe)
        header = run.identity(options.source, settings)
        if not folder.inspect(options.run, header, overwrite=False):
            run.rank(options.source, options.run, settings, header, machine)
    except errors.PathfmError as error:
        launch.leave_error(error)
        return error.exit_code
    return 0


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="pathfm_cli.pretrain.worker", description=__doc__)
    parser.add_argument("source", help="a tissue or patches artifact")
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--recipe", required=True, help="the resolved recipe, a TOML file")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--accumulate", type=int, default=0)
    parser.add_argument("--patch-cache", type=Path)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--quiet", action="store_true")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    launch.leave(main(sys.argv[1:]))

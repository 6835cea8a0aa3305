"""The command `pathfm`: verbs in data-flow order; a known error becomes one sentence and a code."""

from __future__ import annotations

import importlib
import inspect
import os
import signal
import sys
import traceback
from typing import Annotated, Any

import typer

import pathfm_cli
from pathfm_cli import errors
from pathfm_cli.cli import output

VERBS = ("index", "mask", "sample", "pretrain", "embed", "probe", "segment", "odcorr")
HELPERS = ("mask-train", "report", "demo", "doctor", "show", "tasks", "models")

READER_GONE = 141
CTRL_C = 130
SIGTERM = 143


def build() -> typer.Typer:
    """Assemble the app; every verb is one module of `cli/` with a function of the same name."""
    app = typer.Typer(
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        no_args_is_help=True,
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    @app.callback()
    def pathfm(
        version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    ) -> None:
        """Train and evaluate pathology foundation models, from slides where they lie.

        \b
        pathfm demo -o demo/
        pathfm index slides/ -o s.parquet | pathfm mask -o t.parquet
        pathfm pretrain t.parquet --recipe dino-vits16 -o run/
        """

    for name in (*VERBS, *HELPERS):
        function = name.replace("-", "_")
        verb = getattr(importlib.import_module(f"pathfm_cli.cli.{function}"), function)
        app.command(name, help=_unwrapped(verb.__doc__))(verb)
    return app


def _unwrapped(doc: str) -> str:
    r"""A verb's help: the `\b` of its raw docstring as the character that keeps examples apart."""
    return inspect.cleandoc(doc).replace("\\b", "\b")


def main() -> None:
    """Run the command line and exit."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command line and return its exit code."""
    if arguments == ["--version"]:
        output.Sink().line(f"pathfm {pathfm_cli.__version__}")
        return 0
    signal.signal(signal.SIGTERM, _terminate)
    try:
        result = build()(arguments, standalone_mode=False, prog_name="pathfm")
    except output.ReaderGone:
        return _reader_gone()
    except KeyboardInterrupt:
        output.note("pathfm: stopped")
        return CTRL_C
    except errors.PathfmError as error:
        return _known(error)
    except OSError as error:
        return _known(_system(error))
    except (typer.TyperException, typer.Abort) as error:
        return _usage(arguments, error)
    return result if isinstance(result, int) else 0


def _terminate(number: int, frame: Any) -> None:
    raise SystemExit(SIGTERM)


def _known(error: errors.PathfmError) -> int:
    if os.environ.get("PATHFM_DEBUG"):
        traceback.print_exception(error)
    output.note(f"pathfm: {error}")
    if error.hint:
        output.note(f"hint: {error.hint}")
    return error.exit_code


def _system(error: OSError) -> errors.PathfmError:
    """A disk that is full, a file that vanished: what the system says, as a sentence."""
    if os.environ.get("PATHFM_DEBUG"):
        traceback.print_exception(error)
    where = f"{error.filename}: " if error.filename else ""
    return errors.PathfmError(
        f"{where}{error.strerror or error}.",
        "PATHFM_DEBUG=1 shows where; what was finished before is kept",
    )


def _usage(arguments: list[str], error: Exception) -> int:
    message = getattr(error, "format_message", lambda: "stopped")()
    if message.startswith("Usage:"):
        output.note(message)
    else:
        verb = f" {arguments[0]}" if arguments and arguments[0] in (*VERBS, *HELPERS) else ""
        output.note(f"pathfm: {message}")
        output.note(f"hint: pathfm{verb} --help")
    return int(getattr(error, "exit_code", 1))


def _reader_gone() -> int:
    """Keep the interpreter from complaining once more when it closes stdout."""
    output.note("pathfm: nobody reads stdout any more; what was written stays")
    if sys.stdout is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return READER_GONE

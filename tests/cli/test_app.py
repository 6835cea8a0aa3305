import os
import re
import subprocess
import sys

import pytest

import pathfm_cli
from pathfm_cli.cli import app

HEAVY = ("torch", "numpy", "polars", "timm", "shapely", "sklearn", "zarr", "rich")


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pathfm_cli", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **environment},
    )


@pytest.mark.parametrize("verb", ["", *app.VERBS, *app.HELPERS])
def test_help_imports_nothing_heavy_and_leads_with_examples(verb: str) -> None:
    code = (
        "import sys; from pathfm_cli.cli import app\n"
        f"code = app.run({[verb, '--help'] if verb else ['--help']!r})\n"
        f"print(code, [m for m in {HEAVY!r} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "0 []", done.stderr
    text = done.stdout.partition("Options:")[0]
    examples = [line for line in text.splitlines() if re.match(r"  (.* \| )?pathfm ", line)]
    assert len(examples) >= 2, "two examples to paste"


def test_version() -> None:
    assert run("--version").stdout == f"pathfm {pathfm_cli.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (["nope"], "No such command 'nope'.", "hint: pathfm --help"),
        (["show", "--nope"], "No such option: --nope", "hint: pathfm show --help"),
        (["index", "x"], "Missing option '--out'", "hint: pathfm index --help"),
    ],
)
def test_usage_errors_are_one_sentence_and_exit_2(
    arguments: list[str], message: str, hint: str
) -> None:
    done = run(*arguments)
    assert done.returncode == 2 and done.stdout == ""
    first, second = done.stderr.splitlines()
    assert first.startswith("pathfm: ") and message in first and second == hint


def test_known_errors_hide_their_traceback_unless_asked() -> None:
    assert "Traceback" not in run("show", "nowhere").stderr
    assert "Traceback" in run("show", "nowhere", PATHFM_DEBUG="1").stderr


def test_a_bug_shows_its_traceback() -> None:
    code = (
        "from pathfm_cli.cli import app, pipe\npipe.bind = lambda *a: 1 / 0\napp.run(['show', 'x'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "ZeroDivisionError" in done.stderr


def test_no_escape_codes_off_a_terminal() -> None:
    assert "\x1b" not in run("--help", GITHUB_ACTIONS="true", FORCE_COLOR="1").stdout

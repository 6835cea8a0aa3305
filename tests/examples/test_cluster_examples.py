"""The scripts for clusters: shell and YAML are sound, and every option in them exists."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
from typer import main

from pathfm_cli.cli import app

FOLDER = Path(__file__).parents[2] / "examples" / "cluster"
yaml = pytest.importorskip("yaml")


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.slurm")), ids=lambda path: path.name)
def test_shell_is_sound(path: Path) -> None:
    subprocess.run(["bash", "-n", path], check=True)


def commands() -> list[tuple[str, list[str]]]:
    """Verb and options of every command of pathfm in scripts, pages and pods."""
    found = []
    for path in sorted(FOLDER.iterdir()):
        text = path.read_text()
        if path.suffix == ".yaml":
            for document in yaml.safe_load_all(text):
                pod = document["spec"].get("template", {}).get("spec", {})
                for container in pod.get("containers", []):
                    words = container["command"] + container.get("args", [])
                    if words[0] == "pathfm":
                        found.append((words[1], words[2:]))
        else:
            lines = text.replace("\\\n", " ").splitlines()
            for line in lines:
                match = re.search(r"(?:pathfm|-m pathfm_cli) (\w+) ([^'`#]*-o [^'`#]*)", line)
                if match:
                    found.append((match[1], shlex.split(match[2])))
    return found


def test_options_exist() -> None:
    listed = commands()
    assert {verb for verb, _ in listed} == {"index", "mask", "sample", "embed", "pretrain"}
    known = main.get_command(app.build()).commands
    for verb, words in listed:
        options = {text for option in known[verb].params for text in option.opts}
        for word in words:
            assert not word.startswith("-") or word.partition("=")[0] in options, (verb, word)

"""Documents that must follow the code."""

import itertools
import re
import shlex
from pathlib import Path

import pytest
from typer import main

from pathfm_cli import artifacts, errors, kinds
from pathfm_cli.cli import app
from pathfm_cli.pretrain import recipe

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
ARTIFACTS = (ROOT / "docs" / "artifacts.md").read_text()


@pytest.mark.parametrize("kind", kinds.KINDS.values(), ids=lambda kind: kind.name)
def test_every_column_is_documented_with_type_and_unit(kind: kinds.Kind) -> None:
    section = ARTIFACTS.split(f"\n## {kind.name}\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| `([^`]+)` \| ([^|]*) \| ([^|]*) \|$", section, re.M)
    found = {name: (dtype, unit.strip(), doc.strip()) for name, dtype, unit, doc in rows}
    expected = {c.name: (c.dtype, c.unit, c.doc) for c in (*kind.columns, *kind.optional)}
    assert {name: found.get(name) for name in expected} == expected
    assert f"`pathfm {kind.verb.split()[0].rstrip(',')}`" in section


def test_schema_and_exit_codes_are_documented() -> None:
    assert artifacts.SCHEMA in ARTIFACTS
    for code in (0, 1, 2, 3, errors.PARTIAL, 5, errors.RESUMABLE, app.CTRL_C, app.READER_GONE, 143):
        assert f"| {code} |" in README


@pytest.mark.parametrize("verb", [*app.VERBS, *app.HELPERS])
def test_every_verb_has_an_example_in_the_readme(verb: str) -> None:
    assert re.search(rf"^(.*\| )?pathfm {verb}\b", README, re.M)


def examples() -> list[list[str]]:
    """Every command of pathfm in README, continued lines joined, as words."""
    blocks = "\n".join(re.findall(r"```sh\n(.*?)```", README, re.S)).replace("\\\n", " ")
    parts = [part.strip() for line in blocks.splitlines() for part in re.split(r"\||&&", line)]
    return [shlex.split(part) for part in parts if part.startswith("pathfm ")]


@pytest.mark.parametrize("words", examples(), ids=" ".join)
def test_options_and_settings_of_the_examples_exist(words: list[str]) -> None:
    command = main.get_command(app.build()).commands[words[1]]
    options = {text: option for option in command.params for text in option.opts}
    for word in words[2:]:
        assert not word.startswith("-") or word.partition("=")[0] in options or word == "-", word
    given = dict(itertools.pairwise(words))
    assignments = [value for flag, value in itertools.pairwise(words) if flag == "--set"]
    if "--recipe" in given:
        recipe.load(given["--recipe"], assignments)


def test_the_tree_in_the_readme_names_every_module() -> None:
    tree = README.split("```text\n")[1].split("```")[0]
    for path in (ROOT / "pathfm_cli").rglob("*.py"):
        if path.name not in ("__init__.py", "__main__.py"):
            assert re.search(rf"\b{path.name}\b", tree), f"{path.name} is not in README's tree"

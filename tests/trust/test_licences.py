"""The table of licences: every dependency stands in it, with one."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "licences.md").read_text()
COPYLEFT = re.compile(r"\bA?GPL-\d|General Public License", re.I)
RUN = {"core", "plots", "tensorboard", "dicom", "tasks", "dask"}
"""What may not be copyleft; openslide is LGPL, test and bench are not shipped."""


def rows() -> dict[str, list[str]]:
    return {
        cells[0]: cells[1:]
        for line in PAGE.splitlines()
        if (cells := [cell.strip() for cell in line.strip("| ").split(" | ")]) and len(cells) > 2
    }


def test_every_dependency_has_a_licence() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = {"core": project["dependencies"], **project["optional-dependencies"]}
    for group, requirements in groups.items():
        for requirement in requirements:
            name = re.match(r"[\w.-]+", requirement)[0].lower().replace("_", "-")
            version, licence, of = rows()[name]
            assert re.match(r"\d+(\.\d+)+", version), name
            assert licence not in ("", "not stated"), name
            assert of == "core" or group == "core" or group in of.split(", "), name


def test_what_is_shipped_with_pathfm_is_not_copyleft() -> None:
    for name, cells in rows().items():
        if len(cells) == 2 or RUN & set(cells[2].split(", ")):
            assert not COPYLEFT.search(cells[1]), name

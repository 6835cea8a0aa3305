"""docs/licences.md: every package that pathfm or its extras ask for, with its licence; --write."""

import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "licences.md"
HEAD = """\
# Licences of what pathfm needs

Made by `python docs/licences.py --write` from the metadata of the installed packages; versions are
those of `constraints.txt`. "Direct" packages are named in `pyproject.toml`: `core` is always
installed, the others come with the extra. "Below" are those that core packages bring along;
what the extras bring along is not listed.
pathfm itself is Apache-2.0. Encoders have licences of their own: `pathfm models`; so have data
sets: `pathfm tasks`.

"""
CLASSIFIER = "License :: OSI Approved :: "


def name_of(requirement: str) -> str:
    """The package of a requirement, in its normal spelling."""
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    return normal(found[0] if found else requirement)


def normal(name: str) -> str:
    """Lower case, with `-` for every run of signs."""
    return re.sub(r"[-_.]+", "-", name).lower()


def asked() -> dict[str, set[str]]:
    """Package to what asks for it: `core` or names of extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found: dict[str, set[str]] = {}
    groups = {"core": project["dependencies"], **project["optional-dependencies"]}
    for group, requirements in groups.items():
        for requirement in requirements:
            found.setdefault(name_of(requirement), set()).add(group)
    return found


def below(names: set[str]) -> set[str]:
    """Packages that these bring along on this platform, without extras."""
    seen: set[str] = set()
    waiting = list(names)
    while waiting:
        for requirement in _requirements(waiting.pop()):
            name = name_of(requirement)
            if name not in seen | names and _version(name):
                seen.add(name)
                waiting.append(name)
    return seen


def licence(name: str) -> str:
    """What a package's metadata says: its SPDX expression, else classifiers, else free text."""
    about = metadata.metadata(name)
    if expression := about.get("License-Expression"):
        return expression
    listed = [c for c in about.get_all("Classifier") or [] if c.startswith(CLASSIFIER)]
    if listed:
        return "; ".join(c.removeprefix(CLASSIFIER) for c in listed)
    lines = (about.get("License") or "").strip().splitlines()
    return lines[0][:60] if lines else "not stated"


def page() -> str:
    """The text of the page.

    Raises:
        SystemExit: a direct package is not installed, so its licence is not known here.
    """
    direct = asked()
    if absent := [name for name in direct if not _version(name)]:
        raise SystemExit(f"not installed: {', '.join(sorted(absent))}")
    core = {name for name, groups in direct.items() if "core" in groups}
    lines = ["| direct package | version | licence | of |", "| --- | --- | --- | --- |"]
    for name, groups in sorted(direct.items()):
        by = "core" if "core" in groups else ", ".join(sorted(groups))
        lines.append(f"| {name} | {_version(name)} | {licence(name)} | {by} |")
    lines += ["", "| below core | version | licence |", "| --- | --- | --- |"]
    for name in sorted(below(core) - direct.keys()):
        lines.append(f"| {name} | {_version(name)} | {licence(name)} |")
    return HEAD + "\n".join(lines) + "\n"


def _requirements(name: str) -> list[str]:
    try:
        listed = metadata.requires(name) or []
    except metadata.PackageNotFoundError:
        return []
    return [requirement for requirement in listed if "extra ==" not in requirement]


def _version(name: str) -> str:
    try:
        return metadata.version(name).partition("+")[0]
    except metadata.PackageNotFoundError:
        return ""


if __name__ == "__main__":
    if "--write" in sys.argv:
        PAGE.write_text(page())
    else:
        print(page(), end="")

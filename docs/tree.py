"""README's tree: every module with the first sentence of its docstring; --write puts it in."""

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PACKAGE = ROOT / "pathfm_cli"
ORDER = ("cli", "wsi", "data", "tissue", "model", "pretrain", "tasks", "report")
OTHERS = {
    "recipes": "presets as TOML, each number with its source",
}
OUTSIDE = """\
tests/                   mirror the package; real slides, real processes
benchmarks/              each prints ratios against a named peer in one run
docs/                    architecture, artifacts, decisions
examples/                scripts of verbs to start from
"""


def tree() -> str:
    """The text between the fences."""
    return "pathfm_cli/\n" + "".join(_folder(PACKAGE, 1)) + OUTSIDE


def _folder(folder: Path, depth: int) -> list[str]:
    indent = "  " * depth
    lines = [
        f"{indent}{path.name:{23 - 2 * depth}}{_sentence(path)}\n"
        for path in sorted(folder.glob("*.py"))
        if path.name not in ("__init__.py", "__main__.py")
    ]
    for inner in sorted(filter(Path.is_dir, folder.iterdir()), key=_rank):
        if inner.name in OTHERS:
            lines.append(f"{indent}{inner.name + '/':{23 - 2 * depth}}{OTHERS[inner.name]}\n")
        elif list(inner.glob("*.py")):
            lines += [f"{indent}{inner.name}/\n", *_folder(inner, depth + 1)]
    return lines


def _rank(folder: Path) -> tuple[int, str]:
    known = folder.name in ORDER
    return ORDER.index(folder.name) if known else len(ORDER), folder.name


def _sentence(path: Path) -> str:
    first = (ast.get_docstring(ast.parse(path.read_text())) or "").split("\n")[0]
    return re.split(r"\.$|\. |; | \(paper", first)[0]


def main() -> None:
    """Print the tree, or put it into README."""
    if "--write" not in sys.argv:
        print(tree(), end="")
        return
    before, rest = README.read_text().split("```text\n", 1)
    after = rest.split("```", 1)[1]
    README.write_text(f"{before}```text\n{tree()}```{after}")


if __name__ == "__main__":
    main()

"""The arrows of docs/architecture.md, checked against the imports in the code."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "pathfm_cli"
TOP = {"errors", "addresses", "kinds", "config", "disk", "parquet", "columns", "artifacts"}
TOP |= {"page", "cluster"}
ALLOWED = {
    "errors": set(),
    "kinds": set(),
    "config": {"errors"},
    "addresses": set(),
    "disk": {"errors", "addresses"},
    "parquet": set(),
    "columns": {"errors", "kinds", "addresses"},
    "artifacts": {"errors", "kinds", "disk", "parquet", "columns"},
    "page": {"errors", "disk"},
    "cluster": {"errors", "config"},
    "wsi": {"errors", "addresses", "artifacts", "wsi"},
    "data": TOP | {"wsi", "data", "model.unet"},
    "model": TOP | {"model"},
    "tissue": TOP | {"wsi", "data", "model", "tissue"},
    "pretrain": TOP | {"wsi", "data", "model", "pretrain", "tasks"},
    "tasks": TOP | {"wsi", "data", "model", "tasks"},
    "report": TOP | {"pretrain.folder", "tasks.scores", "report"},
    "cli": TOP | {"wsi", "data", "model", "tissue", "pretrain", "tasks", "report", "cli"},
}
NO_TORCH = [*sorted(TOP), "wsi", "data", "report"]
TENSORS = ("stream.py", "workers.py", "salvage.py")
"""Modules of `data` that hand over batches of tensors."""


def room(module: str) -> str:
    """`pathfm_cli.data.mask` lies in `data`."""
    return module.split(".")[1]


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def modules() -> list[Path]:
    return sorted(p for p in PACKAGE.rglob("*.py") if p.parent != PACKAGE or p.stem in TOP)


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_follow_the_arrows(path: Path) -> None:
    relative = path.relative_to(PACKAGE).with_suffix("")
    own = relative.parts[0]
    for name in imports(path):
        if not name.startswith("pathfm_cli."):
            continue
        target = name.removeprefix("pathfm_cli.")
        ok = any(target == a or target.startswith(f"{a}.") for a in ALLOWED[own])
        assert ok or target == "__version__", f"{own} must not import {target}"


@pytest.mark.parametrize("own", NO_TORCH)
def test_slides_and_tables_need_no_torch(own: str) -> None:
    for path in modules():
        relative = path.relative_to(PACKAGE).with_suffix("")
        if relative.parts[0] == own and path.name not in TENSORS:
            heavy = {n.split(".")[0] for n in imports(path)} & {"torch", "timm", "torchvision"}
            assert not heavy, f"{relative} imports {heavy}"


def test_only_one_module_imports_timm() -> None:
    users = {
        str(p.relative_to(PACKAGE))
        for p in modules()
        if any(n.split(".")[0] == "timm" for n in imports(p))
    }
    assert users <= {"model/vit.py", "cli/doctor.py"}


def test_only_watching_lets_training_see_tasks() -> None:
    users = {
        path.name
        for path in modules()
        if path.parent.name == "pretrain"
        and any(name.startswith("pathfm_cli.tasks") for name in imports(path))
    }
    assert users == {"watch.py"}


def test_no_module_is_longer_than_400_lines() -> None:
    long = {str(p.relative_to(PACKAGE)): len(p.read_text().splitlines()) for p in modules()}
    assert {name: n for name, n in long.items() if n > 400} == {}


def test_verbs_are_thin() -> None:
    from pathfm_cli.cli import app

    for verb in app.VERBS:
        assert len((PACKAGE / "cli" / f"{verb}.py").read_text().splitlines()) <= 160, verb

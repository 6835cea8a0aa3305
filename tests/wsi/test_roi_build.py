"""The extension is optional: an install without headers or compiler succeeds without it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pathfm_cli.wsi import roi

ROOT = Path(__file__).parents[2]


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """What a build of the extension needs, copied."""
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "pathfm_cli/__init__.py"):
        target = tmp_path / name
        target.parent.mkdir(exist_ok=True)
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, target)
    (tmp_path / "pathfm_cli" / "wsi").mkdir()
    shutil.copy(ROOT / "pathfm_cli" / "wsi" / "_roi.c", tmp_path / "pathfm_cli" / "wsi")
    return tmp_path


def build(folder: Path, environment: dict[str, str]) -> list[str]:
    pytest.importorskip("setuptools")
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", "built"],
        cwd=folder,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return [path.name for path in (folder / "built").rglob("_roi*")]


def test_a_build_without_headers_succeeds_without_the_extension(sources: Path) -> None:
    (sources / "jpeglib.h").write_text("#error no headers\n")
    assert build(sources, {"CPATH": str(sources)}) == []


def test_a_build_without_a_compiler_succeeds_without_the_extension(sources: Path) -> None:
    assert build(sources, {"CC": "no-such-compiler"}) == []


@pytest.mark.skipif(not roi.AVAILABLE, reason="the extension is not built")
def test_a_build_makes_one_module_for_all_versions_of_python(sources: Path) -> None:
    if shutil.which("cc") is None:
        pytest.skip("no compiler")
    assert build(sources, {}) == ["_roi.abi3.so"]


def test_without_the_extension_the_module_loads_and_says_so() -> None:
    code = (
        "import sys; sys.modules['pathfm_cli.wsi._roi'] = None\n"
        "from pathfm_cli.wsi import roi\n"
        "assert roi.AVAILABLE is False\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)

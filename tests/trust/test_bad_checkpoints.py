"""Hostile checkpoints: nothing of them runs, nothing huge is allocated, the sentence says why."""

import argparse
import ast
import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import badfiles
import pytest
import torch
from badfiles import Bomb, pickled, raw, safetensors, saved, zipped
from goodfiles import Good
from processes import pathfm
from refusals import refused
from safetensors.torch import save_file

from pathfm_cli import artifacts, errors
from pathfm_cli.model import hub, vit, weights

TINY = "test_vit"
"""timm's smallest vision transformer."""
VERSION = {"bad/version": b"3\n", "bad/byteorder": b"little"}


def claims(dtype: str, shape: list[int], end: int) -> badfiles.Make:
    """A safetensors file with one tensor as stated and 64 bytes of data."""
    entry = {"dtype": dtype, "shape": shape, "data_offsets": [0, end]}
    return safetensors({"norm.weight": entry}, bytes(64))


def sparse(indices: list[int]) -> torch.Tensor:
    return torch.sparse_coo_tensor(torch.tensor([indices]), torch.ones(len(indices)), (4,))


def endless() -> dict[str, Any]:
    loop: dict[str, Any] = {}
    loop["model"] = loop
    return loop


FILES: dict[str, Callable[[], badfiles.Make]] = {
    "missing": lambda: lambda folder: folder / "gone.pth",
    "empty": lambda: raw(b"", ".pth"),
    "text": lambda: raw(b"weights", ".pth"),
    "zeros": lambda: raw(bytes(4096), ".pt"),
    "half-pickle": lambda: raw(b"\x80\x02}q\x00(", ".pth"),
    "empty-zip": lambda: zipped({}),
    "zip-without-pickle": lambda: zipped(VERSION),
    "zip-noise": lambda: zipped(VERSION | {"bad/data.pkl": bytes(range(256))}),
    "zip-inflated": lambda: zipped(VERSION | {"bad/data.pkl": bytes(1 << 16)}, packed=True),
    "zip-bomb": lambda: zipped(VERSION | {"bad/data.pkl": bytes(64 << 20)}, packed=True),
    "tar": lambda: raw(b"data" + bytes(253) + b"ustar\x0000" + bytes(240), ".pth"),
    **{
        f"{how}-{name}": (
            lambda name=name, how=how: {
                "bare": pickled(Bomb(name)),
                "inside": pickled({"model": {"w": Bomb(name)}}),
                "zipped": zipped(VERSION | {"bad/data.pkl": badfiles.pickle.dumps(Bomb(name), 2)}),
                "saved": saved({"model": {"w": Bomb(name)}}),
            }[how]
        )
        for how in ("bare", "inside", "zipped", "saved")
        for name in ("system", "exec", "getenv")
    },
    "eval-protocol-5": lambda: pickled(Bomb("eval"), protocol=5),
    "open-in-bin": lambda: pickled(Bomb("open"), ".bin"),
    "open-in-ckpt": lambda: saved(Bomb("open"), ".ckpt", _use_new_zipfile_serialization=False),
    "whole-module": lambda: saved(torch.nn.Linear(2, 2)),
    "a-number": lambda: saved(7),
    "a-list": lambda: saved([torch.zeros(2)]),
    "a-tensor": lambda: saved(torch.zeros(2)),
    "nothing": lambda: saved({}),
    "arguments-only": lambda: saved({"args": argparse.Namespace(arch="vit")}),
    "wrong-keys": lambda: saved({"conv1.weight": torch.zeros(2)}),
    "no-tensors": lambda: saved({"model": {"a": 1, "b": "x"}}),
    "number-keys": lambda: saved({"model": {1: torch.zeros(2)}}),
    "endless": lambda: saved(endless()),
    "sparse": lambda: saved({"model": {"w": sparse([0])}}),
    "header-none": lambda: raw(b"", ".safetensors"),
    "header-short": lambda: raw(b"\x08\0\0", ".safetensors"),
    "header-huge": lambda: safetensors({}, size=1 << 62),
    "header-long": lambda: safetensors({}, size=99 << 20),
    "header-noise": lambda: safetensors(bytes(range(256))),
    "header-deep": lambda: safetensors(b"[" * 100_000),
    "header-list": lambda: safetensors([]),
    "claims-much": lambda: claims("F32", [1 << 40], 1 << 42),
    "claims-overflow": lambda: claims("F32", [1 << 62, 1 << 62], 64),
    "claims-less": lambda: claims("F32", [16], 32),
    "claims-dtype": lambda: claims("P32", [16], 64),
    "claims-negative": lambda: claims("F32", [-1], 64),
    "other-tensors": lambda: claims("F32", [16], 64),
}


@pytest.mark.parametrize("name", FILES)
def test_hostile_file(name: str, good: Good, tmp_path: Path) -> None:
    path = FILES[name]()(tmp_path)
    how = ["--model", path, "--arch", TINY, "-o", "e.parquet"]
    told = refused(tmp_path, "embed", good.patches, *how, codes=(3,), words="bad|gone")
    if any(word in name for word in ("bare", "inside", "zipped", "saved", "eval", "open")):
        assert "without running" in told and "safetensors" in told
    if name in ("zip-inflated", "zip-bomb"):
        assert "is compressed" in told
    assert not (tmp_path / "ran").exists()


INFO: dict[str, Any] = {
    "arch": TINY,
    "kwargs": {},
    "image_size_px": 160,
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
    "embedding": "cls",
    "prefix_tokens": 1,
    "recipe": "x",
    "step": 1,
}
INFOS: dict[str, Any] = {
    "no-json": b"{",
    "deep": b"[" * 100_000,
    "a-list": [],
    "no-arch": {"arch": None},
    "unknown-arch": {"arch": "vit_of_nobody"},
    "hub": {"arch": "hf-hub:somebody/evil"},
    "folder": {"arch": "local-dir:/etc"},
    "kwargs-list": {"kwargs": [1]},
    "unknown-argument": {"kwargs": {"colour": 1}},
    "checkpoint-path": {"kwargs": {"checkpoint_path": "/etc/passwd"}},
    "overlay": {"kwargs": {"pretrained_cfg_overlay": {"url": "https://example.org/x"}}},
    "pretrained": {"kwargs": {"pretrained": True}},
    "pretrained-cfg": {"kwargs": {"pretrained_cfg": {"url": "https://example.org/x"}}},
    "wide": {"kwargs": {"embed_dim": 1 << 40}},
    "wider-than-the-file": {"kwargs": {"embed_dim": 1 << 14}},
    "deep-network": {"kwargs": {"depth": 1 << 15}},
    "no-heads": {"kwargs": {"num_heads": 0}},
    "no-patch": {"kwargs": {"patch_size": 0}},
    "nested": {"kwargs": {"a": {"b": 1}}},
    "image-huge": {"image_size_px": 1 << 40},
    "image-large": {"kwargs": {"dynamic_img_size": True}, "image_size_px": 2064},
    "tokens": {"kwargs": {"patch_size": 4}, "image_size_px": 516},
    "image-zero": {"image_size_px": 0},
    "mean-short": {"mean": [0.5]},
    "mean-nan": {"mean": [0.5, float("nan"), 0.5]},
    "std-zero": {"std": [0.5, 0, 0.5]},
    "std-text": {"std": "abc"},
    "input": {"input": "smell"},
    "step": {"step": "many"},
    "embedding": {"embedding": "<x>"},
    "embedding-list": {"embedding": ["cls"]},
}


TOLD = {
    "checkpoint-path": "it sets checkpoint_path",
    "overlay": "it sets pretrained_cfg_overlay",
    "image-large": "image_size_px is 2064",
    "tokens": "asks for 16641 tokens",
}
"""Descriptions that would be refused later for another reason: by then it is too late."""


@pytest.mark.parametrize("name", INFOS)
def test_hostile_description(name: str, good: Good, tmp_path: Path) -> None:
    folder = tmp_path / "bad"
    folder.mkdir()
    claims("F32", [16], 64)(folder).rename(folder / "teacher.safetensors")
    change = INFOS[name]
    text = change if isinstance(change, bytes) else json.dumps(INFO | change if change else [])
    data = text if isinstance(text, bytes) else text.encode()
    (folder / "model.json").write_bytes(data)
    how = ["--model", folder, "-o", "e.parquet"]
    told = refused(tmp_path, "embed", good.patches, *how, codes=(3,), words="bad")
    if name in TOLD:
        assert TOLD[name] in told


ARGUMENTS: dict[str, Any] = {
    "pretrained": True,
    "pretrained_cfg": "x",
    "pretrained_cfg_overlay": [],
    "checkpoint_path": "/etc/passwd",
    "cache_dir": "/tmp",
}


def run_folder(folder: Path, **changes: Any) -> Path:
    """A run whose weights fit their description, but for these changes of it."""
    header = artifacts.Header(kind="checkpoint").dumps()
    state = {name: value.clone() for name, value in vit.build(TINY).state_dict().items()}
    save_file(state, folder / "teacher.safetensors", metadata={"pathfm": header})
    (folder / "model.json").write_text(json.dumps(INFO | changes))
    return folder


@pytest.mark.parametrize("name", ARGUMENTS)
def test_an_argument_that_reads_other_files(name: str, tmp_path: Path) -> None:
    """Refused by name, before timm sees it: the network would fit the weights."""
    with pytest.raises(errors.InputError, match=f"model.json .* sets {name}."):
        weights.load(run_folder(tmp_path, kwargs={name: ARGUMENTS[name]}), device="cpu")


@pytest.mark.parametrize("count", [-5, 0, 2, 10**9])
def test_prefix_tokens_are_those_of_the_network(count: int, tmp_path: Path) -> None:
    assert weights.load(run_folder(tmp_path), device="cpu").prefix_tokens == 1
    with pytest.raises(errors.InputError, match=f"states {count} prefix tokens; test_vit has 1"):
        weights.load(run_folder(tmp_path, prefix_tokens=count), device="cpu")


def test_a_description_without_weights_is_refused(good: Good, tmp_path: Path) -> None:
    (tmp_path / "model.json").write_text(json.dumps(INFO))
    how = ["--model", tmp_path, "-o", "e.parquet"]
    refused(tmp_path, "embed", good.patches, *how, codes=(3,), words="holds no teacher")


@pytest.mark.parametrize("online", [False, True])
def test_weights_of_the_hub_run_nothing(
    online: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where timm loads a file without saying `weights_only`."""
    path = pickled(Bomb("system"))(tmp_path)
    tries = iter([online])

    def build(name: str, **_: object) -> None:
        if next(tries, False):
            raise OSError("not in the cache")
        torch.load(path, weights_only=False)

    monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "0")
    monkeypatch.setattr(hub.vit, "build", build)
    monkeypatch.setattr(hub, "_reachable", lambda endpoint: True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Exception, match="[Ww]eights.only"):
        hub.pretrained("vit_tiny_patch16_224")
    assert not (tmp_path / "ran").exists()


def test_a_proxy_that_is_down_is_told_at_once(good: Good, tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        proxy = f"http://me:SECRET@127.0.0.1:{closed.getsockname()[1]}"
        environment = {"HTTPS_PROXY": proxy, "https_proxy": proxy, "NO_PROXY": "", "no_proxy": ""}
        how = ["--model", "test_vit3", "-o", "e.parquet"]
        done = pathfm("embed", good.patches, *how, cwd=tmp_path, env=environment, timeout=60)
    assert done.returncode == 3
    told, hint = done.stderr.splitlines()
    assert told.startswith("pathfm: ") and "the hub cannot be reached" in told
    assert hint.startswith("hint: --model random/")


PYTHON = [
    path
    for folder in ("pathfm_cli", "benchmarks", "examples", "docs")
    for path in sorted((Path(__file__).parents[2] / folder).rglob("*.py"))
]


def test_no_loader_that_unpickles_is_called() -> None:
    """`torch.load` says `weights_only=True`, `numpy.load` never that pickles are welcome."""
    loads = [
        (path.name, call)
        for path in PYTHON
        for call in ast.walk(ast.parse(path.read_text()))
        if isinstance(call, ast.Call) and ast.unparse(call.func) in ("torch.load", "np.load")
    ]
    assert {name for name, _ in loads} >= {"files.py", "eva_fit.py", "labelmaps.py"}
    for name, call in loads:
        given = {word.arg: ast.unparse(word.value) for word in call.keywords}
        safe = {"torch.load": ("weights_only", "True"), "np.load": ("allow_pickle", "False")}
        word, value = safe[ast.unparse(call.func)]
        assert given.get(word) == value, f"{name}:{call.lineno}"

"""Hostile checkpoints: nothing of them runs, nothing huge is allocated, the sentence says why."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import badfiles
import pytest
import torch
from badfiles import Bomb, pickled, raw, safetensors, saved, zipped
from goodfiles import Good
from refusals import refused

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


def test_a_description_without_weights_is_refused(good: Good, tmp_path: Path) -> None:
    (tmp_path / "model.json").write_text(json.dumps(INFO))
    how = ["--model", tmp_path, "-o", "e.parquet"]
    refused(tmp_path, "embed", good.patches, *how, codes=(3,), words="holds no teacher")

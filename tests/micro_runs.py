"""`pathfm pretrain` on a network so small that a step takes milliseconds."""

import json

MICRO = {
    "train.steps": 8,
    "train.steps_per_epoch": 2,
    "train.batch_size": 4,
    "train.checkpoint_every": 100,
    "train.probe_patches": 6,
    "data.size_px": 48,
    "crops.global_size_px": 32,
    "crops.local_size_px": 16,
    "crops.local_count": 2,
    "model.patch_size": 8,
    "model.embed_dim": 24,
    "model.depth": 2,
    "model.drop_path_rate": 0.0,
    "head.hidden": 32,
    "head.bottleneck": 16,
    "head.prototypes": 64,
}


def micro(**changes):
    values = {**MICRO, **{key.replace("__", "."): value for key, value in changes.items()}}
    return [part for key, value in values.items() for part in ("--set", f"{key}={value}")]


def metrics(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def refused(done, code, message, hint):
    """One sentence, one hint, nothing on stdout, no traceback."""
    assert done.returncode == code, done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith(("pathfm: ", "hint: "))]
    assert len(said) == 2 and said[0].startswith("pathfm: ") and said[1].startswith("hint: ")
    assert message in said[0] and hint in said[1]
    assert done.stdout == "" and "Traceback" not in done.stderr

"""The scripts for clusters: shell and YAML are sound, and every option in them exists."""

import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
from typer import main

from pathfm_cli.cli import app

FOLDER = Path(__file__).parents[2] / "examples" / "cluster"
yaml = pytest.importorskip("yaml")


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.slurm")), ids=lambda path: path.name)
def test_shell_is_sound(path: Path) -> None:
    subprocess.run(["bash", "-n", path], check=True)


def documents(name: str) -> dict[str, dict[str, Any]]:
    """By kind and name."""
    found = yaml.safe_load_all((FOLDER / name).read_text())
    return {f"{each['kind']}/{each['metadata']['name']}": each for each in found}


def commands() -> list[tuple[str, list[str]]]:
    """Verb and options of every command of pathfm in scripts, pages and pods."""
    found = []
    for path in sorted(FOLDER.iterdir()):
        text = path.read_text()
        if path.suffix == ".yaml":
            for document in documents(path.name).values():
                pod = document["spec"].get("template", {}).get("spec", {})
                for container in pod.get("containers", []):
                    words = container["command"] + container.get("args", [])
                    if words[0] == "pathfm":
                        found.append((words[1], words[2:]))
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


def test_shell_in_pods_is_sound() -> None:
    job = documents("dask.k8s.yaml")["Job/pathfm-chain"]
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert container["command"] == ["bash", "-euc"]
    subprocess.run(["bash", "-n", "-c", *container["args"]], check=True)
    assert [verb for verb, _ in commands()].count("index") == 3  # page, script, pod


@pytest.mark.parametrize(
    ("name", "job"),
    [("dask.k8s.yaml", "Job/pathfm-chain"), ("pretrain.k8s.yaml", "Job/pathfm-pretrain")],
)
def test_jobs_are_tried_again_but_for_wrong_usage(name: str, job: str) -> None:
    spec = documents(name)[job]["spec"]
    # Kubernetes takes a policy with this only.
    assert spec["template"]["spec"]["restartPolicy"] == "Never"
    rules = spec["podFailurePolicy"]["rules"]
    found = {code: rule["action"] for rule in rules for code in codes(rule)}
    ignored = {75: "Ignore"} if "pretrain" in name else {}
    assert found == {2: "FailJob", 3: "FailJob"} | ignored


def codes(rule: dict[str, Any]) -> list[int]:
    return rule.get("onExitCodes", {"values": []})["values"]


@pytest.mark.parametrize(
    ("name", "job", "policy"),
    [
        ("dask.k8s.yaml", "Job/pathfm-chain", "NetworkPolicy/pathfm-dask"),
        ("pretrain.k8s.yaml", "Job/pathfm-pretrain", "NetworkPolicy/pathfm-pretrain"),
    ],
)
def test_policies_let_the_jobs_in(name: str, job: str, policy: str) -> None:
    found = documents(name)
    labels = found[job]["spec"]["template"]["metadata"]["labels"]
    (rule,) = found[policy]["spec"]["ingress"]
    assert labels in [each["podSelector"]["matchLabels"] for each in rule["from"]]


@pytest.mark.parametrize(("code", "queued"), [(0, False), (1, False), (75, True), (137, False)])
def test_slurm_queues_again_what_ended_with_75(code: int, queued: bool, tmp_path: Path) -> None:
    programs = {
        "srun": f'echo "$@" > srun.txt; exit {code}',
        "scontrol": 'if [ "$1" = show ]; then echo n0; echo n1; else echo "$@" > queued.txt; fi',
    }
    for name, text in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    known = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[0-1]", "SLURM_CPUS_PER_TASK": "4"}
    known |= {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    script = ["bash", FOLDER / "pretrain.slurm", "t.parquet", "run"]
    assert subprocess.run(script, cwd=tmp_path, env=known).returncode == code
    assert (tmp_path / "queued.txt").exists() == queued
    if queued:
        assert (tmp_path / "queued.txt").read_text() == "requeue 7\n"
    # A node that is through first must not have the others killed.
    assert "--kill-on-bad-exit=0" in (tmp_path / "srun.txt").read_text()


def test_slurm_meets_at_the_first_node(tmp_path: Path) -> None:
    """`scontrol` of many nodes must not be cut short: under `pipefail` that ends the script."""
    for name, text in {"srun": "echo $first > first.txt", "scontrol": "seq -f n%g 99999"}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    known = {"SLURM_JOB_NODELIST": "n[1-99999]", "SLURM_CPUS_PER_TASK": "4"}
    known |= {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    subprocess.run(
        ["bash", FOLDER / "pretrain.slurm", "t", "r"], cwd=tmp_path, env=known, check=True
    )
    assert (tmp_path / "first.txt").read_text() == "n1\n"

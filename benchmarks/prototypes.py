"""Memory and time of the loss over many prototypes, in chunks against all at once.

python benchmarks/prototypes.py [--quick] [--json]

The step of DINOv2's patch objective behind the encoder: the teacher's logits are balanced by three
iterations of Sinkhorn-Knopp, the student's are compared with them, and gradients go back to the
student's features and prototypes. The peer does it on whole matrices as its formulas are written:
exponentials that are normalised in turns, a log-softmax. Each runs in a fresh process.
`memory_ratio` is its growth over its size with the inputs, ours over the peer's, `cpu_ratio` the
processor time of the fastest of three rounds, `error` and `gradient_error` relative differences.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch.nn import functional

from pathfm_cli.pretrain.losses import ibot, sinkhorn

FULL = (1024, 131_072, 256)
QUICK = (512, 65_536, 256)
TEACHER_TEMPERATURE, STUDENT_TEMPERATURE, ITERATIONS, IMAGES, ROUNDS = 0.07, 0.1, 3, 16, 3


def ours(teacher: torch.Tensor, x: torch.Tensor, w: torch.Tensor, weight: torch.Tensor):
    """The loss of `losses.ibot` on targets of `losses.sinkhorn`."""
    targets = sinkhorn.balance(teacher, TEACHER_TEMPERATURE, ITERATIONS)
    return ibot.patch_loss(x, w, targets.rows, weight, IMAGES, STUDENT_TEMPERATURE)


def plain(teacher: torch.Tensor, x: torch.Tensor, w: torch.Tensor, weight: torch.Tensor):
    """The same on whole matrices."""
    q = torch.exp(teacher / TEACHER_TEMPERATURE).T
    prototypes, samples = q.shape
    q /= q.sum()
    for _ in range(ITERATIONS):
        q /= q.sum(dim=1, keepdim=True)
        q /= prototypes
        q /= q.sum(dim=0, keepdim=True)
        q /= samples
    q *= samples
    log_p = functional.log_softmax(functional.linear(x, w) / STUDENT_TEMPERATURE, dim=-1)
    return -((q.T * log_p).sum(dim=-1) * weight).sum() / IMAGES


WAYS = {"ours": ours, "plain": plain}


def measure_in_process(way: str, rows: int, prototypes: int, width: int) -> None:
    """Print growth in megabytes, seconds, and the loss with two checksums of its gradients."""
    generator = torch.Generator().manual_seed(0)

    def unit(count: int) -> torch.Tensor:
        return functional.normalize(torch.randn(count, width, generator=generator), dim=-1)

    w, x = unit(prototypes).requires_grad_(), unit(rows).requires_grad_()
    teacher = unit(rows) @ w.detach().T
    weight = torch.full((rows,), IMAGES / rows)
    small = [t.detach()[:8].requires_grad_() for t in (x, w)]
    WAYS[way](teacher[:8, :8], *small, weight[:8]).backward()
    before, seconds = _peak_mb(), []
    for _ in range(ROUNDS):
        x.grad = w.grad = None
        start = time.process_time()
        loss = WAYS[way](teacher, x, w, weight)
        loss.backward()
        seconds.append(time.process_time() - start)
        del loss
    value = WAYS[way](teacher[:64], x[:64], w, weight[:64]).item()
    probe = [torch.dot(t.grad.flatten(), t.detach().flatten()).item() for t in (x, w)]
    print(
        json.dumps(
            {"mb": _peak_mb() - before, "s": min(seconds), "loss": value, "gradients": probe}
        )
    )


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rows and prototypes")
    parser.add_argument("--json", action="store_true", help="only the JSON line")
    parser.add_argument("--measure", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        way, *sizes = arguments.measure
        measure_in_process(way, *map(int, sizes))
        return
    rows, prototypes, width = QUICK if arguments.quick else FULL
    found = {}
    for way in WAYS:
        command = [sys.executable, __file__, "--measure", way, *map(str, (rows, prototypes, width))]
        found[way] = json.loads(subprocess.check_output(command, text=True))
    mine, peer = found["ours"], found["plain"]
    pairs = list(zip(mine["gradients"], peer["gradients"], strict=True))
    result = {
        "memory_ratio": mine["mb"] / peer["mb"],
        "cpu_ratio": mine["s"] / peer["s"],
        "peak_mb": mine["mb"],
        "plain_peak_mb": peer["mb"],
        "error": abs(mine["loss"] / peer["loss"] - 1),
        "gradient_error": max(abs(a / b - 1) for a, b in pairs),
    }
    if not arguments.json:
        print(f"{rows:,} rows, {prototypes:,} prototypes, width {width}")
        print(f"{mine['mb']:,.0f} MB against {peer['mb']:,.0f} MB: {result['memory_ratio']:.2f}")
        print(f"{mine['s']:.1f} s against {peer['s']:.1f} s of CPU: {result['cpu_ratio']:.2f}")
    print(json.dumps(result))


def _peak_mb() -> float:
    status = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in status if line.startswith("VmHWM")).split()[1]) / 1e3


if __name__ == "__main__":
    main()

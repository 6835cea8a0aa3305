"""Five runs of a linear probe: pathfm against plain PyTorch loops, with and without a DataLoader.

python benchmarks/probe.py [--size pcam|crc|small] [--steps N] [--peer-steps N] [--rounds N]

Both train on the same made-up float32 embeddings (PCam: 262,144 + 32,768 rows, 2 classes; CRC:
100,000 + 7,180, 9 classes; 384 wide) by the settings of `--protocol paper`. pathfm takes `--steps`
steps of all five runs at once, validation after each epoch included; a loop takes `--peer-steps`
steps of one run and its epochs' validations, times five. `loop` reads by a DataLoader, as one would
write it; `indexed` is the same without one: a batch is taken out of the matrix by its row numbers.
Figures are per step of five runs, the best of alternating rounds; `cpu` is the time of the
processor; a ratio is the peer's time over pathfm's. `peak_mb` is the process's largest size after
pathfm's first round, the embeddings included.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import resource
import time
from collections.abc import Callable, Iterable, Iterator

import torch
from torch.utils import data as torch_data

from pathfm_cli.tasks import heads, protocols

SIZES = {"pcam": (262_144, 32_768, 2), "crc": (100_000, 7_180, 9), "small": (2_175, 977, 2)}
WIDTH, RUNS = 384, 5
Part = tuple[torch.Tensor, torch.Tensor]


def embeddings(rows: int, classes: int, seed: int) -> Part:
    """Points around one centre a class, (rows, WIDTH), with their classes."""
    centres = torch.randn(classes, WIDTH, generator=torch.Generator().manual_seed(0)) * 0.1
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (rows,), generator=generator)
    return centres[labels] + torch.randn(rows, WIDTH, generator=generator), labels


def ours(train: Part, val: Part, classes: int, protocol: protocols.Protocol) -> int:
    """All five runs; returns the steps taken."""
    runs = [heads.Run(seed) for seed in range(RUNS)]
    return max(heads.fit(train, val, classes, protocol, runs).stopped_step)


class Indexed:
    """Batches of a matrix by their row numbers: what a DataLoader gives, without its work."""

    def __init__(self, part: Part, batch_size: int, shuffle: bool = False) -> None:
        self.part, self.batch_size, self.shuffle = part, batch_size, shuffle

    def __iter__(self) -> Iterator[Part]:
        x, y = self.part
        order = torch.randperm(len(y)) if self.shuffle else torch.arange(len(y))
        for rows in order.split(self.batch_size):
            yield x[rows], y[rows]


def loaded(part: Part, batch_size: int, shuffle: bool = False) -> Iterable[Part]:
    """Batches by a DataLoader."""
    rows = torch_data.TensorDataset(*part)
    return torch_data.DataLoader(rows, batch_size=batch_size, shuffle=shuffle)


PEERS: dict[str, Callable[..., Iterable[Part]]] = {"loop": loaded, "indexed": Indexed}


def plain(
    reader: Callable[..., Iterable[Part]],
    train: Part,
    val: Part,
    classes: int,
    plan: protocols.Schedule,
    steps: int,
) -> None:
    """One run as one would write it: Linear, SGD, a validation after each epoch."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(WIDTH, classes)
    optimiser = torch.optim.SGD(layer.parameters(), lr=plan.lr, momentum=0.9, nesterov=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, plan.steps)
    batches = reader(train, plan.batch_size, shuffle=True)
    judge = reader(val, plan.batch_size)
    done = 0
    while done < steps:
        for x, y in batches:
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(layer(x), y).backward()
            optimiser.step()
            schedule.step()
            done += 1
            if done == steps:
                break
        with torch.inference_mode():
            sum(int((layer(x).argmax(1) == y).sum()) for x, y in judge)


def timed(work: Callable[[], int]) -> tuple[float, float]:
    """Wall and processor seconds a step; `work` returns its steps."""
    start = time.perf_counter(), time.process_time()
    steps = work()
    return (time.perf_counter() - start[0]) / steps, (time.process_time() - start[1]) / steps


def main() -> None:
    """Measure and print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="pcam")
    parser.add_argument("--steps", type=int, default=256)
    parser.add_argument("--peer-steps", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=2)
    asked = parser.parse_args()
    n_train, n_val, classes = SIZES[asked.size]
    train, val = embeddings(n_train, classes, 1), embeddings(n_val, classes, 2)
    protocol = dataclasses.replace(protocols.find("paper"), steps=asked.steps, patience=1.0)
    plan = protocols.schedule(protocols.find("paper"), n_train)
    times: dict[str, list[tuple[float, float]]] = {"pathfm": [], **{name: [] for name in PEERS}}
    peak_mb = 0.0
    for _ in range(asked.rounds):
        times["pathfm"].append(timed(lambda: ours(train, val, classes, protocol)))
        peak_mb = peak_mb or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        for name, reader in PEERS.items():

            def peer(reader: Callable[..., Iterable[Part]] = reader) -> int:
                plain(reader, train, val, classes, plan, asked.peer_steps)
                return asked.peer_steps

            wall, cpu = timed(peer)
            times[name].append((RUNS * wall, RUNS * cpu))
    best = {
        name: [min(column) for column in zip(*all_, strict=True)] for name, all_ in times.items()
    }
    wall_ms, cpu_ms = (
        {name: round(1e3 * values[at], 2) for name, values in best.items()} for at in (0, 1)
    )
    report = {
        "size": asked.size,
        "threads": torch.get_num_threads(),
        "wall_ms_per_step": wall_ms,
        "cpu_ms_per_step": cpu_ms,
        "wall_ratio": {name: round(best[name][0] / best["pathfm"][0], 2) for name in PEERS},
        "cpu_ratio": {name: round(best[name][1] / best["pathfm"][1], 2) for name in PEERS},
        "minutes_for_12500_steps": round(best["pathfm"][0] * 12_500 / 60, 1),
        "peak_mb": round(peak_mb),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()

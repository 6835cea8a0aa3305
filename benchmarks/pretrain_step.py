"""A training step of DINO or DINOv2 here against the same step written out plainly.

python benchmarks/pretrain_step.py [--recipe R] [--quick] [--json] [--device D] [--batch B]

The peer is the recipe of Caron et al. 2021 as its paper and public description have it, in plain
PyTorch: one timm ViT forward a resolution, timm's drop path, `weight_norm` on the last layer, one
log-softmax a view and a term a pair, per-tensor clipping in a loop, `torch.optim.AdamW`, EMA in a
loop. Model, first weights, crops, head and schedule are the same. Both take turns in one process;
`*_ratio` is the mean of ours over theirs of the fastest step, `*_median` of the median one, in
processor time on the CPU (which other work on the machine disturbs less) and in wall time on CUDA.
`bf16_cpu_ratio` is our bf16 step over the peer's fp32 step: on a CPU that is the precision the
public code offers. It was 0.523 at batch 4 and 0.483 at batch 8; the aim is 0.5. Peak memory is
that of two fresh processes, one each. `stall` is the share of a short run from a real slide that
waits for patches. DINOv2's peer is in `plain_dinov2.py`; `--method dinov2` is the paper's ablation.
On CUDA `images_per_s` are patches of our bf16 step, `mfu` its floating-point operations, as torch
counts them, over what an H200 does at best, and the peaks of memory are told apart. For the paper's
largest model: `--recipe dinov2-vitl14 --device cuda --batch 32`.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import plain_dinov2
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations
from torch.utils import flop_counter

from pathfm_cli.data import index, mask
from pathfm_cli.model import vit
from pathfm_cli.pretrain import book, dino, folder, metrics, networks, place, recipe, run, train

SLIDE = Path(vit.__file__).parents[1] / "demo_data" / "CMU-1-Small-Region.svs"
SMALL = ("model.depth=6", "head.prototypes=8192", "head.hidden=1024", "crops.local_count=4")
H200_FLOPS = 790e12
"""bf16, as measured on an H200; `mfu` is relative to it."""
RECIPES = {"dino": "dino-vits16", "dinov2": "ablation-dinov2-vits16"}


class Plain:
    """The peer."""

    def __init__(self, settings: recipe.Recipe, device: torch.device, precision: str) -> None:
        self.settings, self.device, self.precision = settings, device, precision
        student, teacher = networks.pair(settings)
        arch, rate = settings.model.arch, settings.model.drop_path_rate
        arguments = networks.kwargs(settings)
        self.student = self._network(student, vit.build(arch, **arguments, drop_path_rate=rate))
        self.teacher = self._network(teacher, vit.build(arch, **arguments))
        self.teacher.requires_grad_(False)
        decayed = [p for n, p in self._named() if not (n.endswith(".bias") or p.ndim == 1)]
        bare = [p for n, p in self._named() if n.endswith(".bias") or p.ndim == 1]
        groups = [{"params": decayed}, {"params": bare, "weight_decay": 0.0}]
        self.optimiser = torch.optim.AdamW(groups)
        self.centre = torch.zeros(1, settings.head.prototypes, device=device)
        self.schedules = dino.schedules(settings)

    def _network(self, ours: networks.Network, backbone: nn.Module) -> nn.Module:
        """The same weights in timm's own blocks and torch's own weight norm."""
        backbone.load_state_dict(ours.backbone.state_dict())
        head = ours.head
        last = nn.Linear(head.last_layer.weight_v.shape[1], self.settings.head.prototypes, False)
        last = parametrizations.weight_norm(last)
        weight = last.parametrizations.weight
        weight.original0.data.fill_(1)
        weight.original1.data.copy_(head.last_layer.weight_v)
        weight.original0.requires_grad = not self.settings.head.norm_last_layer
        return nn.ModuleDict({"backbone": backbone, "mlp": head.mlp, "last": last}).to(self.device)

    def _named(self) -> list[tuple[str, nn.Parameter]]:
        return [(n, p) for n, p in self.student.named_parameters() if p.requires_grad]

    def _forward(self, network: nn.Module, crops: list[torch.Tensor]) -> torch.Tensor:
        features = torch.cat([network["backbone"](images) for images in crops])
        return network["last"](functional.normalize(network["mlp"](features), dim=-1))

    def step(self, step: int, crops: list[torch.Tensor]) -> torch.Tensor:
        """One step; returns the loss."""
        lr, decay, momentum, temperature = (schedule(step) for schedule in self.schedules)
        for group in self.optimiser.param_groups:
            group["lr"] = lr
        self.optimiser.param_groups[0]["weight_decay"] = decay
        bf16 = self.precision == "bf16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bf16):
            with torch.no_grad():
                teacher_out = self._forward(self.teacher, crops[:1])
            student_out = self._forward(self.student, crops)
        loss = self._loss(student_out.float(), teacher_out.float(), temperature)
        self.optimiser.zero_grad()
        loss.backward()
        clip = self.settings.optim.clip_norm
        for name, parameter in self._named():
            coefficient = clip / (parameter.grad.norm(2) + 1e-6)
            if coefficient < 1:
                parameter.grad.mul_(coefficient)
            if name.startswith("last") and step < self._frozen:
                parameter.grad = None
        self.optimiser.step()
        with torch.no_grad():
            for slow, fast in zip(
                self.teacher.parameters(), self.student.parameters(), strict=True
            ):
                slow.mul_(momentum).add_((1 - momentum) * fast)
        return loss.detach()

    @property
    def _frozen(self) -> int:
        return self.settings.loss.freeze_last_layer_epochs * self.settings.train.steps_per_epoch

    def _loss(
        self, student_out: torch.Tensor, teacher_out: torch.Tensor, temperature: float
    ) -> torch.Tensor:
        loss_settings = self.settings.loss
        views = (student_out / loss_settings.student_temperature).chunk(
            2 + self.settings.crops.local_count
        )
        targets = functional.softmax((teacher_out - self.centre) / temperature, dim=-1).chunk(2)
        total, terms = torch.zeros((), device=self.device), 0
        for number, target in enumerate(targets):
            for view, logits in enumerate(views):
                if view == number:
                    continue
                pair = torch.sum(-target * functional.log_softmax(logits, dim=-1), dim=-1)
                total = total + pair.mean()
                terms += 1
        mean = teacher_out.mean(dim=0, keepdim=True)
        momentum = loss_settings.centre_momentum
        self.centre = self.centre * momentum + mean * (1 - momentum)
        return total / terms


def settings_of(options: argparse.Namespace, precision: str) -> recipe.Recipe:
    """The paper's ViT-S/16 at a small batch, moving from the first step on."""
    changes = [
        "model.init=scratch",
        f"train.batch_size={options.batch}",
        f"train.precision={precision}",
        "loss.freeze_last_layer_epochs=0",
        "optim.warmup_epochs=0",
        *(SMALL if options.quick else ()),
    ]
    return recipe.load(options.recipe, changes)


def made_crops(settings: recipe.Recipe, device: torch.device) -> list[torch.Tensor]:
    """Views of noise: what they show costs nothing more or less."""
    generator = torch.Generator().manual_seed(0)
    batch, crops = settings.train.batch_size, settings.crops
    sizes = [(2, crops.global_size_px), (crops.local_count, crops.local_size_px)]
    return [
        torch.randn(views * batch, 3, size, size, generator=generator).to(device)
        for views, size in sizes
    ]


def side(name: str, options: argparse.Namespace) -> Callable[[int, list[torch.Tensor]], object]:
    """A function that takes one step: `ours-fp32`, `plain-bf16` and so on."""
    who, precision = name.split("-")
    settings, device = settings_of(options, precision), torch.device(options.device)
    if who == "plain":
        peer = Plain if settings.method == "dino" else plain_dinov2.Plain
        return peer(settings, device, precision).step
    method = train.begin(settings, place.Place(0, 1, device))
    return lambda step, crops: method.step(step, crops, measure=step % 10 == 9)


def timed(work: Callable[[], object], device: str) -> float:
    """Processor seconds on the CPU, wall seconds until a CUDA device is done."""
    if device == "cpu":
        start = time.process_time()
        work()
        return time.process_time() - start
    torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def compare(options: argparse.Namespace) -> dict[str, float]:
    """Times of all sides, step by step in turn."""
    device = options.device
    names = ["plain-fp32", "ours-fp32"]
    if device != "cpu" or "avx512_bf16" in cpu_flags():
        names += ["ours-bf16"]
    if device != "cpu":
        names += ["plain-bf16"]
    sides = {name: side(name, options) for name in names}
    crops = made_crops(settings_of(options, "fp32"), torch.device(device))
    times: dict[str, list[float]] = {name: [] for name in names}
    for step in range(1 + options.rounds):
        for name, work in sides.items():
            times[name].append(timed(lambda w=work, s=step: w(s, crops), device))
    best = {name: min(values[1:]) for name, values in times.items()}
    middle = {name: statistics.median(values[1:]) for name, values in times.items()}
    kind = "cpu" if device == "cpu" else "cuda"
    result: dict[str, float] = {}
    for precision in ("fp32", "bf16"):
        ours, peer = f"ours-{precision}", "plain-fp32" if kind == "cpu" else f"plain-{precision}"
        if ours in best:
            result[f"{precision}_{kind}_ratio"] = best[ours] / best[peer]
            result[f"{precision}_{kind}_median"] = middle[ours] / middle[peer]
            result[f"{precision}_step_s"] = best[ours]
    result["plain_fp32_step_s"] = best["plain-fp32"]
    if kind == "cuda":
        with flop_counter.FlopCounterMode(display=False) as counter:
            sides["ours-bf16"](1 + options.rounds, crops)
        per_s = counter.get_total_flops() / best["ours-bf16"]
        result |= {
            "images_per_s": options.batch / best["ours-bf16"],
            "mfu": per_s / H200_FLOPS,
        }
    return result


def cpu_flags() -> str:
    """What the processor can do, as Linux tells it."""
    path = Path("/proc/cpuinfo")
    return path.read_text() if path.exists() else ""


def peak(name: str, options: argparse.Namespace) -> float:
    """Peak memory in MB that steps add to a fresh process."""
    command = [sys.executable, __file__, "--peak", name, "--batch", str(options.batch)]
    command += [
        "--device",
        options.device,
        "--recipe",
        options.recipe,
        *(["--quick"] if options.quick else []),
    ]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def own_peak(name: str, options: argparse.Namespace) -> float:
    """The same, of this process, in MB."""
    work = side(name, options)
    crops = made_crops(settings_of(options, "fp32"), torch.device(options.device))
    for step in range(2):  # The optimiser has its moments from the first step on.
        work(step, crops)
    if options.device != "cpu":
        return torch.cuda.max_memory_allocated() / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def stall(options: argparse.Namespace) -> float:
    """Share of the time that a run from the bundled slide waits for patches, after its start."""
    settings = recipe.load(
        options.recipe,
        [
            *("model.init=scratch", "train.steps=4", "train.log_every=1", "train.probe_patches=0"),
            *("train.steps_per_epoch=4", "optim.warmup_epochs=0", "train.precision=auto"),
            f"train.batch_size={options.batch}",
            *(SMALL if options.quick else ()),
        ],
    )
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        index.index([str(SLIDE)], home / "s.parquet")
        mask.mask(home / "s.parquet", home / "t.parquet")
        header = run.identity(home / "t.parquet", settings)
        folder.prepare(home / "run", header, settings, overwrite=False)
        job = book.Job(home / "t.parquet", home / "run", header, settings)
        train.train(job, place.Place(0, 1, torch.device(options.device)), lambda: False)
        lines = metrics.lines(home / "run" / folder.METRICS)[1:]
        return math.fsum(line["stall"] for line in lines) / len(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="half the depth and views")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--method", choices=RECIPES, default="dino")
    parser.add_argument("--recipe", help="in the place of the method's own")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.recipe = options.recipe or RECIPES[options.method]
    options.batch = options.batch or (2 if options.quick else 4)
    options.rounds = options.rounds or (3 if options.quick else 8)
    if options.peak:
        print(own_peak(options.peak, options))
        return
    result = compare(options)
    peaks = {name: peak(name, options) for name in ("ours-fp32", "plain-fp32")}
    result["rss_ratio"] = peaks["ours-fp32"] / peaks["plain-fp32"]
    if options.device != "cpu":
        peaks["ours-bf16"] = peak("ours-bf16", options)
        result |= {f"{name}_peak_mb": value for name, value in peaks.items()}
    result["stall"] = stall(options)
    rounded = {key: round(value, 3) for key, value in result.items()}
    facts = {
        "recipe": options.recipe,
        "device": options.device,
        "threads": torch.get_num_threads(),
        "batch": options.batch,
    }
    if options.json:
        print(json.dumps({**rounded, **facts}))
        return
    for key, value in {**rounded, **facts}.items():
        print(f"{key:22}{value}")


if __name__ == "__main__":
    main()

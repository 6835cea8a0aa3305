"""Linear heads, several runs trained at once as one batched computation.

Legend: R = runs, B = batch, N = rows, K = width, C = outputs: one a class, or one for two classes.
Gradients are written out: the loss is the mean cross-entropy of softmax(x W + b), so dL/dlogits =
(softmax - onehot) / B; of one output it is the binary one, and dL/dlogit = (sigmoid - y) / B.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

from pathfm_cli.data import draw
from pathfm_cli.tasks import metrics, protocols

HEAD, ORDER = 101, 102
"""Purposes of the random numbers of a run: initial weights, order of an epoch."""
PREDICT_ROWS = 16_384
ONE_THREAD_FLOATS = 1 << 21
"""Floats in a step below which threads cost more than they bring: 0.3 against 6 ms a step, 2 cores
that others use too."""
TINY = 1e-300
"""Least probability that a logarithm is taken of."""
Report = Callable[[int, int], None]
Rate = float | torch.Tensor
"""A learning rate: one for all heads, or (R, 1, 1)."""
Point = tuple[int, list[float | None]]
"""Steps done, and the score of each run."""

BETAS, EPS = (0.9, 0.999), 1e-8
"""Of AdamW: torch's defaults."""


@dataclasses.dataclass(slots=True)
class Heads:
    """Weights, biases, momentum and mean squares of the gradients (AdamW) of R heads."""

    weight_RKC: torch.Tensor
    bias_R1C: torch.Tensor
    weight_momentum_RKC: torch.Tensor
    bias_momentum_R1C: torch.Tensor
    weight_square_RKC: torch.Tensor
    bias_square_R1C: torch.Tensor

    @classmethod
    def fresh(
        cls, seeds: Sequence[int], width: int, classes: int, device: torch.device | str = "cpu"
    ) -> Heads:
        """Draw each head from its own seed, uniform in +-1/sqrt(K) as torch.nn.Linear does."""
        bound = width**-0.5
        drawn = np.stack(
            [draw.rng(s, 0, HEAD).uniform(-bound, bound, (width + 1, classes)) for s in seeds]
        )
        both = torch.from_numpy(drawn.astype(np.float32)).to(device)
        weight, bias = both[:, :-1].contiguous(), both[:, -1:].contiguous()
        moments = [torch.zeros_like(value) for value in (weight, bias, weight, bias)]
        return cls(weight, bias, *moments)

    @property
    def classes(self) -> int:
        """Classes that the heads tell apart."""
        return max(2, self.weight_RKC.shape[2])

    def step(
        self, x_RBK: torch.Tensor, y_RB: torch.Tensor, lr: Rate, momentum: float, nesterov: bool
    ) -> None:
        """Take one step of SGD: m = mu m + g, then w -= lr (g + mu m), or lr m without Nesterov."""
        weight_grad, bias_grad = self._gradients(x_RBK, y_RB)
        for value, moment, grad in (
            (self.weight_RKC, self.weight_momentum_RKC, weight_grad),
            (self.bias_R1C, self.bias_momentum_R1C, bias_grad),
        ):
            moment.mul_(momentum).add_(grad)
            value.sub_((grad.add_(moment, alpha=momentum) if nesterov else moment) * lr)

    def step_adamw(
        self, x_RBK: torch.Tensor, y_RB: torch.Tensor, lr: Rate, weight_decay: float, number: int
    ) -> None:
        """Take step 1, 2, ... of AdamW: decoupled decay, both moments corrected for their start."""
        weight_grad, bias_grad = self._gradients(x_RBK, y_RB)
        first, second = BETAS
        for value, moment, square, grad in (
            (self.weight_RKC, self.weight_momentum_RKC, self.weight_square_RKC, weight_grad),
            (self.bias_R1C, self.bias_momentum_R1C, self.bias_square_R1C, bias_grad),
        ):
            value.mul_(1 - lr * weight_decay)
            moment.lerp_(grad, 1 - first)
            square.mul_(second).addcmul_(grad, grad, value=1 - second)
            spread = (square / (1 - second**number)).sqrt_().add_(EPS)
            value.sub_(moment / spread * (lr / (1 - first**number)))

    def probabilities(self, x_NK: torch.Tensor) -> torch.Tensor:
        """Probability of every class for every row by every head, (R, N, C) float64, on the CPU."""
        parts = []
        for part in torch.split(x_NK, PREDICT_ROWS):
            logits = part @ self.weight_RKC + self.bias_R1C
            logits_RNC = logits.cpu().double()
            if logits_RNC.shape[2] == 1:
                logits_RNC = torch.cat([torch.zeros_like(logits_RNC), logits_RNC], 2)
            parts.append(logits_RNC.softmax(2))
        return torch.cat(parts, 1)

    def convergence(self, x_NK: torch.Tensor, y_N: torch.Tensor) -> tuple[list[float], list[float]]:
        """Mean cross-entropy of every head on these rows, and the norm of its gradient, by run.

        The norm is 0 at the optimum of the head, whatever the protocol.
        """
        loss = torch.zeros(len(self.weight_RKC), dtype=torch.float64)
        gradients = [torch.zeros_like(value) for value in (self.weight_RKC, self.bias_R1C)]
        for x, y in zip(
            torch.split(x_NK, PREDICT_ROWS), torch.split(y_N, PREDICT_ROWS), strict=True
        ):
            share = len(x) / len(x_NK)
            runs = len(self.weight_RKC)
            for total, part in zip(
                gradients, self._gradients(x.expand(runs, -1, -1), y.expand(runs, -1)), strict=True
            ):
                total.add_(part, alpha=share)
            there = self.probabilities(x)[:, torch.arange(len(x)), y.cpu()]
            loss -= share * there.clamp_min(TINY).log().mean(1)
        squares = sum(g.double().square().sum((1, 2)).cpu() for g in gradients)
        return loss.tolist(), torch.as_tensor(squares).sqrt().tolist()

    def predict(self, x_NK: torch.Tensor) -> torch.Tensor:
        """Most likely class of every row by every head, (R, N) int64."""
        runs, width, outputs = self.weight_RKC.shape
        weight = self.weight_RKC.permute(1, 0, 2).reshape(width, runs * outputs)
        bias = self.bias_R1C.reshape(runs * outputs)
        parts = []
        for part in torch.split(x_NK, PREDICT_ROWS):
            logits = torch.addmm(bias, part, weight).view(-1, runs, outputs)
            parts.append(logits.argmax(-1) if outputs > 1 else (logits[..., 0] > 0).long())
        return torch.cat(parts).T

    def confusion(self, x_NK: torch.Tensor, y_N: torch.Tensor) -> metrics.Counts:
        """Confusion table of every head, (R, C, C)."""
        runs, classes = len(self.weight_RKC), self.classes
        cells = torch.arange(runs, device=y_N.device)[:, None] * classes + y_N
        pairs = (cells * classes + self.predict(x_NK)).ravel()
        counts = torch.bincount(pairs, minlength=runs * classes * classes)
        return counts.view(runs, classes, classes).cpu().numpy()

    def _gradients(
        self, x_RBK: torch.Tensor, y_RB: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Gradients of the loss by the weights (R, K, C) and the biases (R, 1, C)."""
        grad_RBC = torch.baddbmm(self.bias_R1C, x_RBK, self.weight_RKC)
        if grad_RBC.shape[2] == 1:
            grad_RBC = grad_RBC.sigmoid_().sub_(y_RB[..., None])
        else:
            grad_RBC = grad_RBC.softmax(-1)
            minus_one = grad_RBC.new_full((), -1.0).expand(*y_RB.shape, 1)
            grad_RBC.scatter_add_(-1, y_RB[..., None], minus_one)
        grad_RBC.div_(y_RB.shape[1])
        weight_grad = (grad_RBC.transpose(1, 2) @ x_RBK).transpose(1, 2)
        return weight_grad, grad_RBC.sum(1, keepdim=True)

    def take(self, runs: torch.Tensor) -> Heads:
        """The heads at these positions, copied."""
        return Heads(*(getattr(self, field.name)[runs] for field in dataclasses.fields(self)))

    def put(self, runs: torch.Tensor, other: Heads) -> None:
        """Overwrite the heads at these positions with those of `other`."""
        for field in dataclasses.fields(self):
            getattr(self, field.name)[runs] = getattr(other, field.name)


@dataclasses.dataclass(frozen=True, slots=True)
class Fit:
    """The best state of every run and how it came about."""

    heads: Heads
    best_step: list[int]
    """Steps taken when the state was the best on the selection split, by run."""
    stopped_step: list[int]
    """Steps taken in all, by run."""
    curve: list[Point]
    """(steps, what chooses the state by run) of the validations; None once a run has stopped."""


@dataclasses.dataclass(frozen=True, slots=True)
class Run:
    """One of the heads that are trained together.

    Attributes:
        seed: of its start and its order.
        scale: factor on the protocol's learning rate.
        rows: positions in train that it learns from, (n,) int64; None takes all. All runs of one
            fit have as many.
    """

    seed: int
    scale: float = 1.0
    rows: torch.Tensor | None = None


def order(seed: int, epoch: int, rows: int) -> torch.Tensor:
    """The order of the training rows in one epoch of one run, (rows,) int64."""
    return torch.from_numpy(draw.rng(seed, epoch, ORDER).permutation(rows))


def _order(run: Run, epoch: int, rows: int) -> torch.Tensor:
    if run.rows is None:
        return order(run.seed, epoch, rows)
    return run.rows[order(run.seed, epoch, len(run.rows))]


def fit(
    train: tuple[torch.Tensor, torch.Tensor],
    select: tuple[torch.Tensor, torch.Tensor] | None,
    classes: int,
    protocol: protocols.Protocol,
    runs: Sequence[Run],
    progress: Report | None = None,
) -> Fit:
    """Train one head a run; keep each run's state with the best score on `select`.

    `select` is looked at after every epoch and after the last step. A run stops once it has not
    improved for the protocol's patience; the others go on.

    Args:
        train: (N, K) float32 features and (N,) int64 classes.
        select: the same of the split that chooses the state; None takes all steps and keeps the
            last state.
        classes: C.
        protocol: how to train.
        runs: what differs; a run's numbers depend on nothing of the others.
        progress: called with (steps done, most steps).
    """
    x_NK, y_N = train
    rows = len(x_NK) if runs[0].rows is None else len(runs[0].rows)
    plan = protocols.schedule(protocol, rows)
    outputs = 1 if protocol.one_output and classes == 2 else classes
    starts = [runs[0].seed if protocol.shared_start else run.seed for run in runs]
    heads = Heads.fresh(starts, x_NK.shape[1], outputs, x_NK.device)
    score = _monitor(protocol, classes)
    going = list(range(len(runs)))
    best = heads.take(torch.tensor(going, device=x_NK.device))
    watch = _Watch(len(runs), plan.patience_epochs)
    for epoch in range(plan.max_epochs):
        orders = torch.stack([_order(runs[run], epoch, len(x_NK)) for run in going])
        scale = _scale([runs[run].scale for run in going], x_NK.device)
        with _threads(len(going) * plan.batch_size * x_NK.shape[1]):
            step = _train_epoch(heads, train, orders.to(x_NK.device), protocol, plan, epoch, scale)
        if select is None:
            if progress:
                progress(step, plan.steps)
            continue
        values = score(heads.confusion(*select))
        improved, kept = watch.update(going, step, values)
        better = torch.tensor([going[at] for at in improved], dtype=torch.int64)
        at_improved = torch.tensor(improved, dtype=torch.int64, device=x_NK.device)
        best.put(better.to(x_NK.device), heads.take(at_improved))
        if progress:
            progress(step if kept else plan.steps, plan.steps)
        if not kept:
            break
        if len(kept) < len(going):
            heads = heads.take(torch.tensor(kept, device=x_NK.device))
            going = [going[at] for at in kept]
    if select is None:
        return Fit(heads, [plan.steps] * len(runs), [plan.steps] * len(runs), [])
    return Fit(best, watch.best_step, watch.last_step, watch.curve)


def _scale(scales: Sequence[float], device: torch.device) -> Rate:
    """One factor where all are the same, else (R, 1, 1)."""
    if len(set(scales)) == 1:
        return scales[0]
    return torch.tensor(scales, dtype=torch.float32, device=device).view(-1, 1, 1)


def _monitor(
    protocol: protocols.Protocol, classes: int
) -> Callable[[metrics.Counts], metrics.Values]:
    if classes == 2 and protocol.binary_monitor == "accuracy":
        return metrics.accuracy
    return metrics.balanced_accuracy


def _train_epoch(
    heads: Heads,
    train: tuple[torch.Tensor, torch.Tensor],
    orders_RN: torch.Tensor,
    protocol: protocols.Protocol,
    plan: protocols.Schedule,
    epoch: int,
    scale: Rate = 1.0,
) -> int:
    """Step through one epoch, or to the last step of the protocol; return the steps done so far."""
    x_NK, y_N = train
    step = epoch * plan.steps_per_epoch
    for picked_RB in torch.split(orders_RN, plan.batch_size, dim=1)[: plan.steps - step]:
        x_RBK = x_NK.index_select(0, picked_RB.reshape(-1)).view(*picked_RB.shape, -1)
        lr = plan.lr_at(step) * scale
        step += 1
        if protocol.optimiser == "adamw":
            heads.step_adamw(x_RBK, y_N[picked_RB], lr, protocol.weight_decay, step)
        else:
            heads.step(x_RBK, y_N[picked_RB], lr, protocol.momentum, protocol.nesterov)
    return step


@contextlib.contextmanager
def _threads(floats: int) -> Iterator[None]:
    """Let small steps run on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if floats < ONE_THREAD_FLOATS else threads)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class _Watch:
    """Early stopping, run by run."""

    def __init__(self, runs: int, patience: int) -> None:
        self.patience = patience
        self.best = [-1.0] * runs
        self.best_step = [0] * runs
        self.last_step = [0] * runs
        self.waited = [0] * runs
        self.curve: list[Point] = []

    def update(
        self, runs: list[int], step: int, values: metrics.Values
    ) -> tuple[list[int], list[int]]:
        """Take in one validation; return the positions that improved and those that go on."""
        improved, going = [], []
        seen: list[float | None] = [None] * len(self.best)
        for position, (run, value) in enumerate(zip(runs, values.tolist(), strict=True)):
            self.last_step[run], seen[run] = step, value
            self.waited[run] += 1
            if value > self.best[run]:
                self.best[run], self.best_step[run], self.waited[run] = value, step, 0
                improved.append(position)
            if self.waited[run] < self.patience:
                going.append(position)
        self.curve.append((step, seen))
        return improved, going

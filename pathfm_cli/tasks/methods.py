"""Classifiers on frozen embeddings beside the linear probe: what each does, on which rows.

Legend: R = runs, N = rows, K = width, C = classes. Each returns the probabilities of tested rows,
(R, N, C) float64. But for the rows that `--shots` draws, runs of one method would be the same.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
import torch
from sklearn import exceptions, linear_model
from torch.nn import functional

from pathfm_cli.tasks import metrics

Part = tuple[torch.Tensor, torch.Tensor]
"""(N, K) float32 features and (N,) int64 classes."""
Probabilities = npt.NDArray[np.float64]
Tested = Mapping[str, Probabilities]

STRENGTHS = tuple(10.0**power for power in range(-4, 5))
"""C of sklearn's logistic regression that are tried; without a split that chooses, 1 is taken."""
MAX_ITERATIONS = 1000
TEMPERATURE = 0.07
"""Of the votes of neighbours: Caron et al. 2021 (DINO), Wu et al. 2018."""
BLOCK = 4096
"""Rows whose neighbours are looked for at once."""


def logreg(
    train: Part, select: Part | None, tested: Mapping[str, Part], classes: int
) -> tuple[dict[str, Probabilities], float, int]:
    """Multinomial logistic regression to convergence (L-BFGS), C chosen by balanced accuracy.

    Args:
        train: what it learns from.
        select: what chooses among `STRENGTHS`, the smallest of equals; None takes C = 1.
        tested: what is predicted, by role.
        classes: C; a class that `train` lacks gets probability 0.

    Returns:
        Probabilities (N, C) by role, the C that was taken, and its iterations; `MAX_ITERATIONS`
        means that it had not converged.
    """
    x, y = train[0].cpu().numpy(), train[1].cpu().numpy()
    best_value, best_strength, best_model = -1.0, 1.0, None
    for strength in STRENGTHS if select else (1.0,):
        model = linear_model.LogisticRegression(C=strength, max_iter=MAX_ITERATIONS)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", exceptions.ConvergenceWarning)
            model.fit(x, y)
        value = 0.0
        if select:
            predicted = model.predict(select[0].cpu().numpy())
            table = metrics.confusion(select[1].cpu().numpy(), predicted, classes)
            value = float(metrics.balanced_accuracy(table))
        if value > best_value:
            best_value, best_strength, best_model = value, strength, model
    assert best_model is not None
    found = {}
    for role, (features, _) in tested.items():
        found[role] = np.zeros((len(features), classes))
        found[role][:, best_model.classes_] = best_model.predict_proba(features.cpu().numpy())
    return found, best_strength, int(max(best_model.n_iter_))


def knn(train: Part, tested: Mapping[str, Part], classes: int, neighbours: int) -> Tested:
    """Votes of the nearest training rows by cosine, weighted by exp(cosine / 0.07).

    Args:
        train: the rows that vote.
        tested: what is predicted, by role.
        classes: C.
        neighbours: how many vote; all, where there are fewer.
    """
    bank_NK = functional.normalize(train[0])
    count = min(neighbours, len(bank_NK))
    votes_NC = functional.one_hot(train[1], classes).double()

    def shares(x_NK: torch.Tensor) -> torch.Tensor:
        cosine, at = (functional.normalize(x_NK) @ bank_NK.T).topk(count)
        weight = (cosine.double() / TEMPERATURE).softmax(1)
        return (votes_NC[at] * weight[..., None]).sum(1)

    return _in_blocks(shares, tested)


def simpleshot(train: Part, tested: Mapping[str, Part], classes: int) -> Tested:
    """Nearest class mean after centring and scaling to unit norm (Wang et al. 2019, CL2N).

    Args:
        train: gives the centre and the class means.
        tested: what is predicted, by role; the softmax of the negative squared distances.
        classes: C; a class that `train` lacks is never predicted.
    """
    centre_K = train[0].mean(0)
    unit_NK = functional.normalize(train[0] - centre_K)
    sums_CK = torch.zeros((classes, unit_NK.shape[1]), device=unit_NK.device)
    sums_CK.index_add_(0, train[1], unit_NK)
    counts_C = torch.bincount(train[1], minlength=classes)
    means_CK = sums_CK / counts_C.clamp_min(1)[:, None]

    def shares(x_NK: torch.Tensor) -> torch.Tensor:
        distance_NC = torch.cdist(functional.normalize(x_NK - centre_K), means_CK).double()
        return (-distance_NC.square()).masked_fill(counts_C == 0, -torch.inf).softmax(1)

    return _in_blocks(shares, tested)


def draw_shots(
    labels: npt.NDArray[np.int64], shots: int, rng: np.random.Generator
) -> npt.NDArray[np.int64]:
    """Positions of `shots` rows of each class that there is, drawn without replacement, sorted."""
    chosen = [
        rng.permutation(np.flatnonzero(labels == number))[:shots] for number in np.unique(labels)
    ]
    return np.sort(np.concatenate(chosen))


def _in_blocks(
    shares: Callable[[torch.Tensor], torch.Tensor], tested: Mapping[str, Part]
) -> Tested:
    return {
        role: torch.cat([shares(block) for block in torch.split(x_NK, BLOCK)]).cpu().numpy()
        for role, (x_NK, _) in tested.items()
    }

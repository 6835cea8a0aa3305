"""Losses over ranks: two gloo processes give what one gives with the rows of both."""

import multiprocessing

import pytest
import torch
from torch import distributed

from pathfm_cli.pretrain.losses import kde, koleo, sinkhorn

SPLIT = {"even": 3, "all on one": 6}


def features():
    return torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0))


def logits():
    return torch.randn(6, 5, generator=torch.Generator().manual_seed(1)) / 4


def spread(x_GBD):
    """Both regularisers, gathered, and the gradient of their sum."""
    x = x_GBD.clone().requires_grad_()
    values = koleo.koleo(x, gathered=True), kde.kde(x, 5.0, gathered=True)
    sum(values).backward()
    return torch.stack(values).detach(), x.grad


def rank(number, store, results):
    """One of two processes: its half of the images, and its part of the samples."""
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=number, world_size=2)
    mine = slice(3 * number, 3 * number + 3)
    values, gradient = spread(features()[:, mine])
    local = koleo.koleo(features()[:, mine], gathered=False)
    targets = {}
    for name, first in SPLIT.items():
        part = logits()[slice(0, first) if number == 0 else slice(first, 6)]
        targets[name] = sinkhorn.balance(part, 0.05, 3).rows(slice(None)).numpy()
    results.put((number, values.numpy(), gradient.numpy(), local.item(), targets))
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What both processes found, in order."""
    spawn = multiprocessing.get_context("spawn")
    results = spawn.Queue()
    store = tmp_path_factory.mktemp("ranks") / "store"
    processes = [spawn.Process(target=rank, args=(n, str(store), results)) for n in range(2)]
    for process in processes:
        process.start()
    found = sorted((results.get(timeout=120) for _ in processes), key=lambda one: one[0])
    for process in processes:
        process.join()
    return [[torch.as_tensor(v) for v in one[1:4]] + [one[4]] for one in found]


def test_gathered_losses_average_to_those_of_one_process(ranks):
    values, gradient = spread(features())
    torch.testing.assert_close((ranks[0][0] + ranks[1][0]) / 2, values)
    halves = torch.cat([ranks[0][1], ranks[1][1]], dim=1) / 2
    torch.testing.assert_close(halves, gradient)


def test_a_local_koleo_sees_its_own_rank_only(ranks):
    for number in range(2):
        own = features()[:, 3 * number : 3 * number + 3]
        assert ranks[number][2].item() == pytest.approx(koleo.koleo(own, gathered=False).item())
    together = (ranks[0][2] + ranks[1][2]).item() / 2
    assert together < koleo.koleo(features(), gathered=False).item()


@pytest.mark.parametrize("split", SPLIT)
def test_sinkhorn_balances_over_ranks_also_over_one_without_samples(ranks, split):
    targets = torch.cat([torch.as_tensor(one[3][split]) for one in ranks])
    whole = sinkhorn.balance(logits(), 0.05, 3).rows(slice(None))
    torch.testing.assert_close(targets, whole, atol=1e-6, rtol=1e-5)
    apart = [sinkhorn.balance(part, 0.05, 3).rows(slice(None)) for part in logits().split(3)]
    assert (torch.cat(apart) - whole).abs().max() > 0.05

"""Losses over ranks: two gloo processes give what one gives with the rows of both."""

import datetime
import multiprocessing

import pytest
import torch
from torch import distributed

from pathfm_cli.pretrain import place
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


def measure(number, store):
    """What one of two processes finds for its half of the images and its part of the samples."""
    limit = datetime.timedelta(seconds=120)
    distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=number, world_size=2, timeout=limit
    )
    try:
        mine = slice(3 * number, 3 * number + 3)
        values, gradient = spread(features()[:, mine])
        local = koleo.koleo(features()[:, mine], gathered=False)
        parts = {name: logits().tensor_split([first])[number] for name, first in SPLIT.items()}
        targets = {
            name: sinkhorn.balance(part, 0.05, 3).rows(slice(None)) for name, part in parts.items()
        }
        here = place.Place(number, 2, torch.device("cpu"))
        agree = torch.tensor([here.agree(0xFFFFFFFFFFFF), here.agree(number), here.agree(-number)])
        found = {"values": values, "gradient": gradient, "local": local, "agree": agree}
        return found | targets
    finally:
        distributed.destroy_process_group()


def second(store, results):
    results.put({name: tensor.numpy() for name, tensor in measure(1, store).items()})


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What both processes found: this one, and another that is started for it."""
    spawn = multiprocessing.get_context("spawn")
    results = spawn.Queue()
    store = str(tmp_path_factory.mktemp("ranks") / "store")
    process = spawn.Process(target=second, args=(store, results))
    process.start()
    try:
        first = measure(0, store)
        found = results.get(timeout=120)
    finally:
        process.join(timeout=120)
    return first, {name: torch.from_numpy(array) for name, array in found.items()}


def test_gathered_losses_average_to_those_of_one_process(ranks):
    values, gradient = spread(features())
    torch.testing.assert_close((ranks[0]["values"] + ranks[1]["values"]) / 2, values)
    halves = torch.cat([one["gradient"] for one in ranks], dim=1) / 2
    torch.testing.assert_close(halves, gradient)


def test_a_local_koleo_sees_its_own_rank_only(ranks):
    for number in range(2):
        own = features()[:, 3 * number : 3 * number + 3]
        assert ranks[number]["local"].item() == pytest.approx(
            koleo.koleo(own, gathered=False).item()
        )
    together = (ranks[0]["local"] + ranks[1]["local"]).item() / 2
    assert together < koleo.koleo(features(), gathered=False).item()


def test_ranks_know_whether_they_agree(ranks):
    assert [one["agree"].tolist() for one in ranks] == [[True, False, False]] * 2


@pytest.mark.parametrize("split", SPLIT)
def test_sinkhorn_balances_over_ranks_also_over_one_without_samples(ranks, split):
    targets = torch.cat([one[split] for one in ranks])
    whole = sinkhorn.balance(logits(), 0.05, 3).rows(slice(None))
    torch.testing.assert_close(targets, whole, atol=1e-6, rtol=1e-5)
    apart = [sinkhorn.balance(part, 0.05, 3).rows(slice(None)) for part in logits().split(3)]
    assert (torch.cat(apart) - whole).abs().max() > 0.05

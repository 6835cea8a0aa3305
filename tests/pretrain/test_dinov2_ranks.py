"""DINOv2 on two gloo ranks: as one process with the whole batch, and as FSDP2 as DDP does it."""

import dataclasses
import datetime
import multiprocessing

import pytest
import torch
from safetensors import torch as safetensors_torch
from torch import distributed
from torch.distributed.fsdp import FSDPModule

from pathfm_cli.pretrain import checkpoint, dinov2, place

pytestmark = pytest.mark.slow

STEPS = 3
BOTH = {"ddp": 10**9, "fsdp": 0}


def crops(step):
    generator = torch.Generator().manual_seed(step)
    return [torch.randn(8, 3, s, s, generator=generator) for s in (32, 16)]


def of_rank(crops_, rank):
    """Its half of every view; crops lie view by view."""
    return [
        images.unflatten(0, (2, 4))[:, 2 * rank : 2 * rank + 2].flatten(0, 1) for images in crops_
    ]


def told(method, steps, rank=None):
    rows = []
    for step in range(steps.start, steps.stop):
        views = crops(step) if rank is None else of_rank(crops(step), rank)
        outcome = method.step(step, views)
        rows.append([outcome.loss, *outcome.terms.values(), outcome.grad_norm])
    return torch.tensor(rows)


def with_(settings, **changes):
    """The recipe with other settings of `train` and `loss`."""
    parts = {}
    for name in ("train", "loss"):
        part = getattr(settings, name)
        own = {k: v for k, v in changes.items() if hasattr(part, k)}
        parts[name] = dataclasses.replace(part, **own)
    return dataclasses.replace(settings, **parts)


def measure(rank, home, settings):
    """What one of two ranks is told by each way of sharing, and the files they write."""
    limit = datetime.timedelta(seconds=300)
    distributed.init_process_group(
        "gloo", init_method=f"file://{home}/store", rank=rank, world_size=2, timeout=limit
    )
    try:
        found = {}
        here = place.Place(rank, 2, torch.device("cpu"))
        for name, above in BOTH.items():
            shared = with_(settings, shard_above=above)
            method = dinov2.Dinov2(shared, here)
            assert isinstance(method.student, FSDPModule) == (name == "fsdp")
            found[name] = told(method, range(STEPS), rank)
            checkpoint.save(home / name, STEPS, method, "run")
            here.wait()
            again = dinov2.Dinov2(shared, here)
            assert checkpoint.restore(home / name, again, "run") == STEPS
            found[f"{name} again"] = told(again, range(STEPS, STEPS + 2), rank)
            found[f"{name} on"] = told(method, range(STEPS, STEPS + 2), rank)
        local = with_(settings, spread_over="rank")
        found["local"] = told(dinov2.Dinov2(local, here), range(1), rank)
        return found
    finally:
        distributed.destroy_process_group()


def second(home, settings, results):
    results.put({name: tensor.numpy() for name, tensor in measure(1, home, settings).items()})


@pytest.fixture(scope="module")
def settings(micro2):
    return micro2("loss.freeze_last_layer_epochs=0")


@pytest.fixture(scope="module")
def ranks(settings, tmp_path_factory):
    """The folder, and what both ranks were told."""
    spawn = multiprocessing.get_context("spawn")
    results = spawn.Queue()
    home = tmp_path_factory.mktemp("ranks")
    process = spawn.Process(target=second, args=(home, settings, results))
    process.start()
    try:
        first = measure(0, home, settings)
        other = {name: torch.from_numpy(a) for name, a in results.get(timeout=300).items()}
    finally:
        process.join(timeout=300)
    return home, {name: (first[name], other[name]) for name in first}


def mean(pair):
    """Losses as a run writes them: the mean over ranks; the gradient's norm is the same on both."""
    return (pair[0] + pair[1]) / 2


def alone(settings):
    return dinov2.Dinov2(settings, place.Place(0, 1, torch.device("cpu")))


@pytest.mark.parametrize("name", BOTH)
def test_two_ranks_train_as_one_process_with_the_whole_batch(settings, ranks, name):
    """Masks, Sinkhorn, KoLeo over ranks, stochastic depth: losses within 1e-4."""
    expected = told(alone(settings), range(STEPS))
    torch.testing.assert_close(mean(ranks[1][name]), expected, atol=1e-4, rtol=1e-4)


def test_losses_of_fsdp_are_those_of_ddp(ranks):
    for rank in range(2):
        torch.testing.assert_close(
            ranks[1]["fsdp"][rank], ranks[1]["ddp"][rank], atol=1e-4, rtol=1e-4
        )


@pytest.mark.parametrize("name", BOTH)
def test_two_ranks_go_on_from_their_checkpoint_bitwise(ranks, name):
    for rank in range(2):
        assert ranks[1][f"{name} again"][rank].equal(ranks[1][f"{name} on"][rank])


@pytest.mark.parametrize("name", BOTH)
def test_a_checkpoint_of_two_loads_on_one(settings, ranks, name):
    home, found = ranks
    method = alone(settings)
    assert checkpoint.restore(home / name, method, "run") == STEPS
    file = home / name / "step-000003" / "student.safetensors"
    for key, tensor in safetensors_torch.load_file(file).items():
        assert method.student.state_dict()[key].equal(tensor)
    expected = mean(found[f"{name} on"])
    torch.testing.assert_close(
        told(method, range(STEPS, STEPS + 2)), expected, atol=1e-4, rtol=1e-4
    )


def test_what_is_local_is_koleo_where_it_is_said_to_be(settings, ranks):
    """Its images have fewer neighbours to be near to; DINO's and iBOT's losses are the same."""
    expected = told(alone(settings), range(1))
    names = ["dino", "koleo", "ibot"]
    local = dict(zip(names, mean(ranks[1]["local"])[0].tolist(), strict=False))
    whole = dict(zip(names, expected[0].tolist(), strict=False))
    assert local["koleo"] < whole["koleo"] - 0.01
    for name in ("dino", "ibot"):
        assert local[name] == pytest.approx(whole[name], rel=1e-5)

"""Steps that are not finite: what is skipped stays as it was, on one rank and on many."""

import math

import pytest
import torch
from torch import distributed, multiprocessing, nn

from pathfm_cli.pretrain import guard, optim
from pathfm_cli.pretrain.losses import dino


def number(value):
    return torch.tensor(float(value))


def test_skipped_steps_are_counted_and_named_once():
    steps = guard.Guard()
    inputs = [(1, 1), (math.nan, 1), (2, math.inf), (3, 1), (-math.inf, math.nan), (4, 1)]
    skips = [
        steps.judge(7 + position, number(loss), number(norm)).item()
        for position, (loss, norm) in enumerate(inputs)
    ]
    assert skips == [0, 1, 1, 0, 1, 0]
    assert (int(steps.skipped), int(steps.in_a_row), int(steps.longest)) == (3, 0, 2)
    assert [(one.step, str(one.loss)) for one in steps.told()] == [
        *((8, "nan"), (9, "2.0"), (11, "-inf"))
    ]
    assert steps.told() == []
    again = guard.Guard()
    again.load_state_dict(steps.state_dict())
    assert int(again.skipped) == 3


def test_a_skipped_step_changes_no_parameter_and_no_moment():
    module = nn.Linear(3, 2)
    optimiser = optim.adamw(module)
    optim.schedule(optimiser, 0.1, 0.5)

    def step(gradient, skip):
        for parameter in module.parameters():
            parameter.grad = torch.full_like(parameter, gradient)
        optim.step(optimiser, number(skip))
        moments = [v.clone() for s in optimiser.state.values() for v in s.values()]
        return [p.detach().clone() for p in module.parameters()] + moments

    before = step(1.0, 0)
    assert all(a.equal(b) for a, b in zip(before, step(math.nan, 1), strict=True))
    after = step(1.0, 0)
    assert not any(a.equal(b) for a, b in zip(before, after, strict=True))


def test_a_skipped_step_leaves_the_centre():
    centre = dino.Centre(3, 0.5)
    centre.update(torch.tensor([[[2.0, 4.0, 6.0]]]), number(0))
    centre.update(torch.full((1, 1, 3), math.nan), number(1))
    assert centre.centre_K.tolist() == [1, 2, 3]
    centre.update(torch.tensor([[[3.0, 2.0, 1.0]]]))
    assert centre.centre_K.tolist() == [2, 2, 2]


def judge_one_of_two(rank, file):
    distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    steps = guard.Guard()
    skips = [
        steps.judge(0, number(math.nan if rank else 1), number(1)).item(),
        steps.judge(1, number(1), number(1)).item(),
    ]
    mean = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]][rank])[None]
    marginal = dino.marginal_entropy(mean).item()
    distributed.destroy_process_group()
    assert skips == [1, 0] and int(steps.skipped) == 1
    assert abs(marginal - math.log(2)) < 1e-6


@pytest.mark.slow
def test_all_ranks_skip_what_one_must(tmp_path):
    multiprocessing.spawn(judge_one_of_two, (str(tmp_path / "store"),), nprocs=2)

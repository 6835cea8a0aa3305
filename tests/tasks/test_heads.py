from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from sklearn import linear_model
from sklearn import metrics as sklearn_metrics

from pathfm_cli.tasks import heads, protocols

PAPER = protocols.find("paper")


def runs(*seeds):
    return [heads.Run(seed) for seed in seeds]


def blobs(rows, classes=3, width=16, distance=2.0, seed=0):
    """Points around one random centre a class, float32, with their classes."""
    centres = (
        np.random.default_rng(1).standard_normal((classes, width)) * distance / math.sqrt(width)
    )
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, rows)
    points = centres[labels] + rng.standard_normal((rows, width)) * 0.5
    return torch.from_numpy(points.astype(np.float32)), torch.from_numpy(labels)


def reference(x, y, classes, plan, seed, steps):
    """One run in numpy float64: Nesterov SGD on the mean cross-entropy, cosine learning rate."""
    x, y = x.numpy().astype(np.float64), y.numpy()
    start = heads.Heads.fresh([seed], x.shape[1], classes)
    weight = start.weight_RKC[0].numpy().astype(np.float64)
    bias = start.bias_R1C[0, 0].numpy().astype(np.float64)
    weight_buffer, bias_buffer = np.zeros_like(weight), np.zeros_like(bias)
    for step in range(steps):
        epoch, number = divmod(step, plan.steps_per_epoch)
        order = heads.order(seed, epoch, len(x)).numpy()
        picked = order[number * plan.batch_size : (number + 1) * plan.batch_size]
        logits = x[picked] @ weight + bias
        logits -= logits.max(axis=1, keepdims=True)
        p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        p[np.arange(len(picked)), y[picked]] -= 1
        weight_grad, bias_grad = x[picked].T @ p / len(picked), p.mean(axis=0)
        lr = plan.lr * 0.5 * (1 + math.cos(math.pi * step / plan.steps))
        weight_buffer = 0.9 * weight_buffer + weight_grad
        bias_buffer = 0.9 * bias_buffer + bias_grad
        weight -= lr * (weight_grad + 0.9 * weight_buffer)
        bias -= lr * (bias_grad + 0.9 * bias_buffer)
    return weight, bias


def test_twenty_steps_equal_float64_numpy():
    x, y = blobs(600)
    protocol = dataclasses.replace(PAPER, steps=20, lr=0.8)
    plan = protocols.schedule(protocol, len(x))
    assert (plan.steps_per_epoch, plan.lr) == (3, 0.05)
    seeds = [3, 4, 5]
    state = heads.Heads.fresh(seeds, x.shape[1], 3)
    for epoch in range(plan.max_epochs):
        orders = torch.stack([heads.order(seed, epoch, len(x)) for seed in seeds])
        heads._train_epoch(state, (x, y), orders, protocol, plan, epoch)
    for run, seed in enumerate(seeds):
        weight, bias = reference(x, y, 3, plan, seed, 20)
        np.testing.assert_allclose(state.weight_RKC[run], weight, atol=1e-5)
        np.testing.assert_allclose(state.bias_R1C[run, 0], bias, atol=1e-5)
        assert np.abs(weight).max() > 0.2


@pytest.mark.parametrize("nesterov", [True, False])
def test_a_step_equals_torch_sgd(nesterov):
    x, y = blobs(64)
    state = heads.Heads.fresh([7], x.shape[1], 3)
    layer = torch.nn.Linear(x.shape[1], 3)
    layer.load_state_dict({"weight": state.weight_RKC[0].T, "bias": state.bias_R1C[0, 0]})
    optimiser = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9, nesterov=nesterov)
    for _ in range(5):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(layer(x), y).backward()
        optimiser.step()
        state.step(x[None], y[None], 0.1, 0.9, nesterov)
    torch.testing.assert_close(state.weight_RKC[0].T, layer.weight.data, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(state.bias_R1C[0, 0], layer.bias.data, atol=1e-6, rtol=1e-5)


def test_fresh_heads_are_spread_like_torch_linear_and_differ():
    state = heads.Heads.fresh([0, 1], 400, 50)
    assert state.weight_RKC.shape == (2, 400, 50)
    assert state.weight_RKC.abs().max() <= 1 / 20
    assert state.weight_RKC.std().item() == pytest.approx(1 / 20 / math.sqrt(3), rel=0.02)
    assert not torch.equal(state.weight_RKC[0], state.weight_RKC[1])


def test_an_order_is_a_permutation_of_its_own():
    first = heads.order(0, 0, 100)
    assert sorted(first.tolist()) == list(range(100))
    assert torch.equal(first, heads.order(0, 0, 100))
    assert not torch.equal(first, heads.order(0, 1, 100))
    assert not torch.equal(first, heads.order(1, 0, 100))


def test_a_run_does_not_depend_on_the_others():
    train, val = blobs(700, distance=1.0), blobs(300, distance=1.0, seed=1)
    protocol = dataclasses.replace(PAPER, steps=300)
    five = heads.fit(train, val, 3, protocol, runs(10, 11, 12, 13, 14))
    alone = heads.fit(train, val, 3, protocol, runs(13))
    assert five.best_step[3] == alone.best_step[0]
    assert five.stopped_step[3] == alone.stopped_step[0]
    torch.testing.assert_close(five.heads.weight_RKC[3], alone.heads.weight_RKC[0])
    assert len({tuple(weight.ravel().tolist()) for weight in five.heads.weight_RKC}) == 5


def test_a_converged_probe_equals_logistic_regression():
    train, val = blobs(3000, distance=1.2), blobs(2000, distance=1.2, seed=1)
    protocol = dataclasses.replace(PAPER, steps=4000, lr=2.0)
    fit = heads.fit(train, train, 3, dataclasses.replace(protocol, patience=1.0), runs(0, 1))
    peer = linear_model.LogisticRegression(C=np.inf, max_iter=1000).fit(train[0], train[1])
    expected = sklearn_metrics.balanced_accuracy_score(val[1], peer.predict(val[0].numpy()))
    assert 0.7 < expected < 0.98
    for predicted in fit.heads.predict(val[0]):
        found = sklearn_metrics.balanced_accuracy_score(val[1], predicted)
        assert found == pytest.approx(expected, abs=0.005)


def test_the_state_kept_is_the_best_one():
    train, val = blobs(500, distance=0.6), blobs(200, distance=0.6, seed=1)
    protocol = dataclasses.replace(PAPER, steps=200, lr=1.0)
    fit = heads.fit(train, val, 3, protocol, runs(0, 1))
    # Follow the same run step by step with sklearn as the judge.
    plan = protocols.schedule(protocol, 500)
    state, best, waited, stopped = heads.Heads.fresh([1], 16, 3), (-1.0, 0), 0, 0
    for epoch in range(plan.max_epochs):
        order = heads.order(1, epoch, 500)[None]
        step = heads._train_epoch(state, train, order, protocol, plan, epoch)
        score = sklearn_metrics.balanced_accuracy_score(val[1], state.predict(val[0])[0])
        waited += 1
        if score > best[0]:
            best, waited, kept = (score, step), 0, state.weight_RKC.clone()
        stopped = step
        if waited == plan.patience_epochs:
            break
    assert (fit.best_step[1], fit.stopped_step[1]) == (best[1], stopped)
    assert stopped < 200, "the case does not stop early"
    torch.testing.assert_close(fit.heads.weight_RKC[1], kept[0])


def test_a_tie_is_no_improvement_and_runs_stop_alone():
    watch = heads._Watch(runs=2, patience=2)
    steps = [([0, 1], (0.5, 0.5)), ([0, 1], (0.5, 0.6)), ([0, 1], (0.4, 0.7)), ([1], (0.7,))]
    found = [watch.update(runs, i, np.array(values)) for i, (runs, values) in enumerate(steps)]
    assert found == [([0, 1], [0, 1]), ([1], [0, 1]), ([1], [1]), ([], [0])]
    assert (watch.best_step, watch.last_step) == ([0, 2], [2, 3])


def test_the_last_epoch_is_cut_at_the_last_step():
    train = blobs(600)
    fit = heads.fit(train, train, 3, dataclasses.replace(PAPER, steps=4, patience=1.0), runs(0))
    assert fit.stopped_step == [4]


def test_confusion_of_every_head():
    x, y = blobs(50)
    state = heads.Heads.fresh([0, 1], 16, 3)
    tables = state.confusion(x, y)
    for run in range(2):
        logits = x @ state.weight_RKC[run] + state.bias_R1C[run, 0]
        expected = sklearn_metrics.confusion_matrix(y, logits.argmax(1), labels=[0, 1, 2])
        assert tables[run].tolist() == expected.tolist()


def test_adamw_equals_torch():
    x, y = blobs(64)
    state = heads.Heads.fresh([7], x.shape[1], 3)
    layer = torch.nn.Linear(x.shape[1], 3)
    layer.load_state_dict({"weight": state.weight_RKC[0].T, "bias": state.bias_R1C[0, 0]})
    optimiser = torch.optim.AdamW(layer.parameters(), lr=0.05, weight_decay=0.3)
    for number in range(1, 9):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(layer(x), y).backward()
        optimiser.step()
        state.step_adamw(x[None], y[None], 0.05, 0.3, number)
    torch.testing.assert_close(state.weight_RKC[0].T, layer.weight.data, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(state.bias_R1C[0, 0], layer.bias.data, atol=1e-6, rtol=1e-5)


def test_one_output_equals_torch_binary_cross_entropy():
    x, y = blobs(64, classes=2)
    state = heads.Heads.fresh([7], x.shape[1], 1)
    layer = torch.nn.Linear(x.shape[1], 1)
    layer.load_state_dict({"weight": state.weight_RKC[0].T, "bias": state.bias_R1C[0, 0]})
    optimiser = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
    for _ in range(5):
        optimiser.zero_grad()
        loss = torch.nn.functional.binary_cross_entropy_with_logits(layer(x)[:, 0], y.float())
        loss.backward()
        optimiser.step()
        state.step(x[None], y[None], 0.1, 0.9, nesterov=False)
    torch.testing.assert_close(state.weight_RKC[0].T, layer.weight.data, atol=1e-6, rtol=1e-5)
    expected = (torch.sigmoid(layer(x)[:, 0]) > 0.5).long()
    assert torch.equal(state.predict(x)[0], expected) and 0 < expected.sum() < 64
    table = sklearn_metrics.confusion_matrix(y, expected)
    assert state.confusion(x, y)[0].tolist() == table.tolist()


def test_two_classes_have_one_output_only_where_the_protocol_says_so():
    train = blobs(100, classes=2)
    for name, outputs in (("paper", 2), ("eva-0.0.2", 1), ("eva-0.4", 1)):
        protocol = dataclasses.replace(protocols.find(name), steps=3)
        assert heads.fit(train, train, 2, protocol, runs(0)).heads.weight_RKC.shape[2] == outputs
        assert heads.fit(blobs(100), None, 3, protocol, runs(0)).heads.weight_RKC.shape[2] == 3


def test_a_shared_start_leaves_the_order_as_the_only_difference():
    train = blobs(600)
    protocol = dataclasses.replace(protocols.find("eva-0.0.2"), steps=1, lr=0.0)
    fit = heads.fit(train, None, 3, protocol, runs(4, 5))
    assert torch.equal(fit.heads.weight_RKC[0], fit.heads.weight_RKC[1])
    moved = heads.fit(train, None, 3, dataclasses.replace(protocol, lr=1.0), runs(4, 5))
    assert not torch.equal(moved.heads.weight_RKC[0], moved.heads.weight_RKC[1])
    own = heads.fit(train, None, 3, dataclasses.replace(protocol, shared_start=False), runs(4, 5))
    assert not torch.equal(own.heads.weight_RKC[0], own.heads.weight_RKC[1])


def test_the_last_state_takes_all_steps():
    train = blobs(300, distance=0.6)
    protocol = dataclasses.replace(PAPER, steps=60, lr=1.0)
    fit = heads.fit(train, None, 3, protocol, runs(0, 1))
    assert (fit.best_step, fit.stopped_step) == ([60, 60], [60, 60])
    plan = protocols.schedule(protocol, 300)
    weight, bias = reference(*train, 3, plan, 1, 60)
    np.testing.assert_allclose(fit.heads.weight_RKC[1], weight, atol=1e-4)
    np.testing.assert_allclose(fit.heads.bias_R1C[1, 0], bias, atol=1e-4)


def test_two_classes_are_watched_by_plain_accuracy_in_eva_002():
    table = np.array([[[90, 0], [9, 1]]])
    assert heads._monitor(protocols.find("eva-0.0.2"), 2)(table) == pytest.approx([0.91])
    assert heads._monitor(protocols.find("eva-0.4"), 2)(table) == pytest.approx([0.55])
    three = np.array([[[4, 0, 0], [1, 1, 0], [0, 0, 2]]])
    assert heads._monitor(protocols.find("eva-0.0.2"), 3)(three) == pytest.approx([2.5 / 3])

"""View parameters: pure in (seed, index), and of the distributions torchvision draws from."""

import dataclasses

import numpy as np
import pytest

from pathfm_cli.pretrain import recipe, views


def drawn(indices, *changes):
    return views.parameters(recipe.load("dino-vits16", changes), indices, 256)


def test_a_patch_has_the_same_views_in_any_company():
    alone, company = drawn([7]), drawn([3, 9, 7])
    for field in ("left_px", "height_px", "flip_x", "brightness", "order", "sigma_px"):
        np.testing.assert_array_equal(getattr(alone, field)[0], getattr(company, field)[2])


def test_seeds_and_indices_differ():
    assert (drawn([7]).left_px != drawn([8]).left_px).any()
    assert (drawn([7]).left_px != drawn([7], "train.seed=1").left_px).any()


def test_boxes_lie_in_the_patch_and_cover_the_share_asked_for():
    many = drawn(range(2000))
    assert many.left_px.shape == (2000, 10)
    assert (many.left_px >= 0).all() and (many.left_px + many.width_px <= 256).all()
    assert (many.top_px >= 0).all() and (many.top_px + many.height_px <= 256).all()
    share = many.width_px * many.height_px / 256**2
    assert share[:, :2].min() > 0.39 and share[:, :2].max() <= 1
    assert share[:, 2:].min() > 0.047 and share[:, 2:].max() < 0.405
    ratio = many.width_px / many.height_px
    assert ratio[:, 2:].min() > 0.72 and ratio[:, 2:].max() < 1.39
    assert (many.left_px == np.floor(many.left_px)).all()


def test_box_distribution_equals_torchvisions():
    import torch

    from pathfm_cli.model import shim

    shim.apply()
    from torchvision.transforms import RandomResizedCrop

    torch.manual_seed(0)
    image = torch.empty(3, 256, 256)
    theirs = np.array(
        [RandomResizedCrop.get_params(image, [0.4, 1.0], [3 / 4, 4 / 3]) for _ in range(4000)]
    )
    many = drawn(range(4000))
    ours = np.stack([v[:, 0] for v in (many.top_px, many.left_px, many.height_px, many.width_px)])
    for number in range(4):
        quantiles = np.linspace(0.1, 0.9, 9)
        np.testing.assert_allclose(
            np.quantile(ours[number], quantiles),
            np.quantile(theirs[:, number], quantiles),
            atol=6,
        )


def test_chances_are_those_of_the_recipe():
    many = drawn(range(4000))
    expected = {"flip_x": 0.5, "flip_y": 0.0, "jitter": 0.8, "grey": 0.2}
    for name, chance in expected.items():
        assert getattr(many, name).mean() == pytest.approx(chance, abs=0.01)
    blurred = (many.sigma_px > 0).mean(axis=0)
    np.testing.assert_allclose(blurred, [1.0, 0.1, *[0.5] * 8], atol=0.03)
    strengths = many.sigma_px[:, 2:][many.sigma_px[:, 2:] > 0]
    assert (strengths.mean(), strengths.std()) == pytest.approx((1.05, 1.9 / 12**0.5), abs=0.02)
    solarised = many.solarise.mean(axis=0)
    np.testing.assert_allclose(solarised, [0, 0.2, *[0] * 8], atol=0.03)
    assert many.sigma_px[:, 0].min() >= 0.1 and many.sigma_px.max() <= 2.0
    assert np.abs(many.hue).max() <= 0.1 and many.hue.std() == pytest.approx(0.0577, abs=0.001)
    assert many.contrast.min() >= 0.6 and many.contrast.max() <= 1.4
    assert many.saturation.min() >= 0.8 and many.saturation.max() <= 1.2


def test_orders_are_all_24_permutations_alike():
    orders = drawn(range(3000)).order.reshape(-1, 4)
    assert (np.sort(orders, axis=1) == [0, 1, 2, 3]).all()
    counts = np.unique(orders, axis=0, return_counts=True)[1]
    assert len(counts) == 24 and counts.min() > 1100 and counts.max() < 1400


def test_choices_are_independent_of_each_other():
    many = drawn(range(4000))
    table = np.stack(
        [many.flip_x[:, 0], many.jitter[:, 0], many.grey[:, 0], many.left_px[:, 0], many.hue[:, 0]]
    ).astype(float)
    correlation = np.corrcoef(table) - np.eye(5)
    assert np.abs(correlation).max() < 0.06


EXTRAS = ("augment.rot90=0.75", "augment.hed=0.5")


def test_extras_move_no_other_number():
    plain, more = drawn(range(50)), drawn(range(50), *EXTRAS)
    for field in dataclasses.fields(views.Views):
        if field.name not in ("turns", "hed", "hed_factor", "hed_shift"):
            np.testing.assert_array_equal(getattr(plain, field.name), getattr(more, field.name))
    assert not plain.turns.any() and not plain.hed.any()


def test_extras_are_of_a_patch_alone_and_have_their_chances():
    many = drawn(range(3000), *EXTRAS)
    alone = drawn([77], *EXTRAS)
    for name in ("turns", "hed", "hed_factor", "hed_shift"):
        np.testing.assert_array_equal(getattr(alone, name)[0], getattr(many, name)[77])
    turns = np.bincount(many.turns.ravel(), minlength=4) / many.turns.size
    np.testing.assert_allclose(turns, [0.25] * 4, atol=0.01)
    assert many.hed.mean() == pytest.approx(0.5, abs=0.01)
    for values, low, high in ((many.hed_factor, 0.95, 1.05), (many.hed_shift, -0.05, 0.05)):
        assert values.shape == (3000, 10, 3)
        assert low <= values.min() < low + 0.001 and high - 0.001 < values.max() <= high
        assert np.abs(np.corrcoef(values.reshape(-1, 3).T) - np.eye(3)).max() < 0.02


def test_the_other_reading_of_a_blurs_chance():
    many = drawn(range(4000), "augment.blur_chance=of-none")
    blurred = (many.sigma_px > 0).mean(axis=0)
    np.testing.assert_allclose(blurred, [0.0, 0.9, *[0.5] * 8], atol=0.03)


def test_context_crops_keep_shape_and_scale():
    many = drawn(range(2000), "crops.context_scale=[0.9, 1.1]")
    np.testing.assert_array_equal(many.width_px, many.height_px)
    assert many.width_px[:, 0].min() == round(0.9 * 224) and many.width_px[:, 0].max() == 246
    assert many.width_px[:, 2:].min() == round(0.9 * 96) and many.width_px[:, 2:].max() == 106
    right = many.left_px + many.width_px
    assert many.left_px.min() == 0 and right.max() == 256, "they reach the edges"

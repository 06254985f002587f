from __future__ import annotations

import numpy as np
import pytest
import scipy.ndimage

from nnrepair.domains.images.corruptions import CORRUPTIONS, blur, impulse_noise, low_contrast, rotation
from nnrepair.errors import InvalidInput

IMAGES = np.random.default_rng(5).random((6, 11, 14))


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_corruptions_keep_shape_range_and_what_they_were_given(name: str) -> None:
    corrupt, before = CORRUPTIONS[name], IMAGES.copy()
    made = corrupt(IMAGES, 3)
    assert made.shape == IMAGES.shape and made.min() >= 0 and made.max() <= 1
    assert np.array_equal(IMAGES, before) and not np.array_equal(made, before)
    assert np.array_equal(made, corrupt(IMAGES, np.random.default_rng(3)))
    assert corrupt(IMAGES[:0], 0).shape == (0, 11, 14)
    with pytest.raises(InvalidInput, match=r"Divide by 255"):
        corrupt(IMAGES * 255, 0)
    with pytest.raises(InvalidInput, match=r"given shape \(11, 14\)"):
        corrupt(IMAGES[0], 0)


@pytest.mark.parametrize("degrees", [0.0, 17.0, 45.0, 90.0, 200.0])
def test_rotation_is_scipys_to_one_side_or_the_other(degrees: float) -> None:
    images = np.random.default_rng(1).random((12, 15, 15))
    turned = rotation(images, 0, degrees)
    sides = [
        scipy.ndimage.rotate(images, side * degrees, axes=(1, 2), reshape=False, order=1, mode="grid-constant")
        for side in (1, -1)
    ]
    near = [np.abs(turned - side).max(axis=(1, 2)) < 1e-9 for side in sides]
    assert (near[0] | near[1]).all()
    if degrees not in (0.0,):
        assert near[0].any() and near[1].any()


def test_impulse_noise_is_black_or_white_where_it_is() -> None:
    images = np.full((4, 200, 200), 0.5)
    noisy = impulse_noise(images, 2, share=0.2)
    assert set(np.unique(noisy)) == {0.0, 0.5, 1.0}
    assert np.mean(noisy == 0) == pytest.approx(0.1, abs=0.005)
    assert np.mean(noisy == 1) == pytest.approx(0.1, abs=0.005)
    assert np.array_equal(impulse_noise(images, 2, share=0.0), images)


def test_low_contrast_keeps_each_mean() -> None:
    less = low_contrast(IMAGES, 0, left=0.25)
    np.testing.assert_allclose(less.mean(axis=(1, 2)), IMAGES.mean(axis=(1, 2)))
    np.testing.assert_allclose(less.std(axis=(1, 2)), 0.25 * IMAGES.std(axis=(1, 2)))


@pytest.mark.parametrize("radius", [0.7, 2.0])
def test_blur_is_scipys_with_black_outside(radius: float) -> None:
    expected = scipy.ndimage.gaussian_filter(IMAGES, (0, radius, radius), mode="constant", truncate=12)
    np.testing.assert_allclose(blur(IMAGES, 0, radius), expected, atol=1e-3)


@pytest.mark.parametrize(
    ("corrupt", "given"), [(impulse_noise, 1.5), (low_contrast, -0.1), (blur, 0.0), (blur, float("inf"))]
)
def test_strengths_are_checked_at_the_door(corrupt: object, given: float) -> None:
    with pytest.raises(InvalidInput, match=f"given {given}"):
        corrupt(IMAGES, 0, given)  # type: ignore[operator]

"""Intervals: bootstrap over clusters, Wilson's score."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import ArrayLike

from agr_lightning.evaluation.results import RESAMPLES, percentiles, resample, wilson


def _interval(values: np.ndarray, clusters: ArrayLike) -> tuple[float, float]:
    weights = resample(clusters)
    bounds = percentiles(values @ weights[:, 1:] / weights[:, 1:].sum(0))
    assert bounds is not None
    return bounds


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    found = (_interval(rng.normal(3, 2, 80), range(80)) for _ in range(100))
    assert 87 <= sum(low <= 3 <= high for low, high in found) <= 100


def test_copies_of_a_photo_count_as_one_observation() -> None:
    values = np.repeat(np.random.default_rng(0).normal(0, 1, 100), 4)
    apart, together = _interval(values, range(400)), _interval(values, np.arange(400) // 4)
    assert (together[1] - together[0]) == pytest.approx(2 * (apart[1] - apart[0]), rel=0.15)


def test_whole_clusters_are_drawn_as_many_as_there_are() -> None:
    weights = resample(np.arange(50) // 2)  # clusters of two
    assert weights.shape == (50, 1 + RESAMPLES) and (weights[:, 0] == 1).all()
    assert (weights[::2] == weights[1::2]).all() and (weights.sum(0) == 50).all()


def test_resamples_without_a_value_are_left_out() -> None:
    assert percentiles(np.full(5, np.nan)) is None
    assert percentiles(np.array([np.nan, 2.0, 2.0])) == (2.0, 2.0)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 500), st.data())
def test_wilson_holds_the_share_and_stays_within_0_and_1(n: int, data: st.DataObject) -> None:
    share = data.draw(st.integers(0, n)) / n
    low, high = wilson(share, n)
    assert 0 <= low <= share + 1e-9 and share - 1e-9 <= high <= 1 and low < high


def test_wilson_is_that_of_the_textbook() -> None:
    # Newcombe, Statistics in Medicine 1998, table I, method 3: 81 of 263, 15 of 148, 0 of 20.
    assert wilson(81 / 263, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson(15 / 148, 148) == pytest.approx((0.0624, 0.1605), abs=1e-4)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)

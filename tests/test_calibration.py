"""What is fitted on validation predictions, and how the network applies it."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pandas import DataFrame

from agr_lightning.evaluation.metric_table import PROBABILITIES
from agr_lightning.labels import MISSING
from agr_lightning.models.calibration import (
    Calibration,
    fit_adult_threshold,
    fit_age_intervals,
    fit_calibration,
    fit_temperature,
    fit_under_18,
)
from agr_lightning.models.config import AgeLossName, NetworkConfig
from agr_lightning.models.network import AGRNetwork


def _softmax(logits: np.ndarray) -> np.ndarray:
    e = np.exp(logits - logits.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_the_temperature_of_overconfident_logits_is_found(temperature: float) -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (20_000, 5))
    labels = np.array([rng.choice(5, p=p) for p in _softmax(logits)])
    assert fit_temperature(_softmax(logits * temperature), labels) == pytest.approx(temperature, rel=0.05)


def test_a_few_images_that_are_all_right_do_not_make_a_network_sure() -> None:
    labels = np.arange(20) % 2
    probabilities = np.where(labels[:, None] == [0, 1], 0.9, 0.1)
    assert 0.5 < fit_temperature(probabilities, labels) < 1


def test_a_temperature_that_cannot_be_fitted_is_one() -> None:
    p = np.full((4, 2), 0.5)
    assert fit_temperature(p, np.full(4, MISSING)) == 1 and fit_temperature(p, np.zeros(4, np.int64)) == 1
    assert fit_temperature(np.full((4, 2), np.nan), np.array([0, 1, 0, 1])) == 1
    # Certainty that is always right stays finite.
    assert math.isfinite(fit_temperature(np.eye(2)[[0, 1, 0, 1]], np.array([0, 1, 0, 1])))


def _apply(edges: np.ndarray, low: np.ndarray, high: np.ndarray, years: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    calibration = Calibration()
    for name, value in (("age_edges", edges), ("age_low", low), ("age_high", high)):
        getattr(calibration, name).copy_(torch.tensor(value))
    ends = calibration.age_interval(torch.tensor(years, dtype=torch.float32))
    return ends[0].numpy(), ends[1].numpy()


def test_intervals_cover_new_faces_at_every_age() -> None:
    rng = np.random.default_rng(0)

    def draw(n: int) -> tuple[np.ndarray, np.ndarray]:
        predicted = rng.uniform(0, 80, n)
        # The older, the less certain, and too low on average.
        return predicted, np.maximum(predicted + rng.normal(0.05 * predicted, 1 + predicted / 10), 0)

    edges, low, high = fit_age_intervals(*draw(2000))
    predicted, age = draw(20_000)
    ends = _apply(edges, low, high, predicted)
    covered = (ends[0] <= age) & (age <= ends[1])
    assert covered.mean() == pytest.approx(0.81, abs=0.03)
    for start in (0, 20, 40, 60):
        members = (predicted >= start) & (predicted < start + 20)
        assert covered[members].mean() == pytest.approx(0.81, abs=0.06)
    width = ends[1] - ends[0]
    assert width[predicted > 60].mean() > 3 * width[predicted < 10].mean() and (ends[0] >= 0).all()


def test_intervals_cover_at_least_as_often_as_they_say_from_few_images() -> None:
    rng = np.random.default_rng(0)
    covered = []
    for _ in range(2000):
        predicted, age = np.full(21, 30.0), 30 + rng.standard_t(3, 21)
        low, high = _apply(*fit_age_intervals(predicted[1:], age[1:]), predicted[:1])
        covered.append(low[0] <= age[0] <= high[0])
    assert 0.79 <= np.mean(covered) <= 0.92  # 19 of 21: the smallest whole number of ranks is (n + 1) * 0.9


def test_too_few_images_give_no_interval() -> None:
    edges, low, high = fit_age_intervals(np.full(8, 30.0), np.full(8, 31.0))
    assert np.isnan(low).all() and np.isnan(high).all() and np.isinf(edges).all()
    assert np.isnan(fit_age_intervals(np.full(50, np.nan), np.full(50, 31.0))[1]).all()
    # Nine are enough for a tenth in each tail; a bin that equal predictions leave empty borrows.
    assert not np.isnan(fit_age_intervals(np.full(9, 30.0), np.arange(9.0))[1]).any()
    assert not np.isnan(fit_age_intervals(np.full(900, 30.0), np.arange(900.0) / 9)[1]).any()


def test_the_adult_threshold_misses_one_minor_in_a_hundred() -> None:
    predicted = np.arange(200.0) / 10
    threshold = fit_adult_threshold(np.append(predicted, 90.0), np.append(np.full(200, 10.0), 60.0))
    assert (predicted >= threshold).sum() == 2
    assert fit_adult_threshold(predicted[:99], np.full(99, 17.0)) > predicted[98]  # of fewer than 100, none
    assert math.isnan(fit_adult_threshold(predicted, np.full(200, 18.0)))


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logits))


@pytest.mark.parametrize(("slope", "intercept"), [(0.4, 1.5), (1.0, 0.0), (2.0, -1.0)])
def test_the_line_of_the_logits_of_being_under_18_is_found(slope: float, intercept: float) -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(-2, 4, 20_000)
    age = np.where(rng.random(20_000) < _sigmoid(slope * logits + intercept), 17, 18)
    assert fit_under_18(_sigmoid(logits), age) == pytest.approx((slope, intercept), rel=0.1, abs=0.1)


@pytest.mark.parametrize("minors", [0, 9, 191, 200])
def test_too_few_minors_or_adults_leave_the_logits_as_they_are(minors: int) -> None:
    age = np.where(np.arange(200) < minors, 5, 40)
    assert fit_under_18(np.random.default_rng(0).random(200), age) == (1, 0)
    assert fit_under_18(np.full(200, np.nan), np.tile([5, 40], 100)) == (1, 0)


@given(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 116)), max_size=60), st.booleans())
@settings(deadline=None)
def test_any_probabilities_and_ages_give_a_finite_line_that_keeps_the_order(
    faces: list[tuple[float, int]], certain: bool
) -> None:
    probabilities = np.array([round(p) if certain else p for p, _ in faces])
    slope, intercept = fit_under_18(probabilities, np.array([age for _, age in faces]))
    assert 0 <= slope <= 20 and abs(intercept) <= 20


def test_minors_and_adults_told_apart_without_a_mistake_are_not_certain() -> None:
    calibration = Calibration()
    slope, intercept = fit_under_18(np.repeat([0.0, 1.0], 50), np.repeat([40, 5], 50))
    calibration.under_18_slope.fill_(slope)
    calibration.under_18_intercept.fill_(intercept)
    # 51 of 52: what 50 minors of 50 say of the next one.
    assert calibration.prob_under_18(torch.tensor([-100.0, 100.0])).tolist() == pytest.approx(
        [1 / 52, 51 / 52], abs=1e-4
    )


@pytest.mark.parametrize("loss", ["dldl", "coral", "l1"])
def test_the_probability_of_being_under_18_is_that_of_the_age_distribution(loss: AgeLossName) -> None:
    torch.manual_seed(0)
    network = AGRNetwork(NetworkConfig(image_size=64, age_loss=loss)).eval()
    images = torch.randint(0, 256, (6, 3, 64, 64), dtype=torch.uint8)
    with torch.inference_mode():
        output = network(images)["age"]
        found = network.predict(images).prob_under_18
        with torch.autocast("cpu", torch.bfloat16):
            mixed = network.predict(images).prob_under_18
    if loss == "l1":
        assert found is None and mixed is None
        return
    assert found is not None and mixed is not None
    right = output.softmax(1)[:, :18].sum(1) if loss == "dldl" else 1 - output[:, 17].sigmoid()
    assert torch.allclose(found, right, atol=1e-6)
    assert mixed.dtype == torch.float32 and torch.allclose(mixed, found, atol=0.01)
    network.calibration.under_18_slope.fill_(2.0)
    network.calibration.under_18_intercept.fill_(-1.0)
    with torch.inference_mode():
        after = network.predict(images).prob_under_18
    assert after is not None and torch.allclose(after, (2 * right.logit() - 1).sigmoid(), atol=1e-5)


def test_the_network_applies_what_was_fitted() -> None:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    network = AGRNetwork(NetworkConfig(image_size=64)).eval()
    images = torch.randint(0, 256, (6, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        before, outputs = network.predict(images), network(images)
    assert before.age_low is not None and before.age_low.isnan().all()
    n = 300
    labels = {"age": 40 + rng.normal(0, 5, n), "gender": rng.integers(0, 2, n), "race": rng.integers(0, 5, n)}
    table = DataFrame({**labels, "predicted_age": np.full(n, 40.0), "prob_under_18": np.nan})
    for columns in PROBABILITIES.values():
        table[columns] = _softmax(rng.normal(0, 1, (n, len(columns))))
    fitted = fit_calibration(table)
    network.calibration.load_state_dict(fitted)
    with torch.no_grad():
        after = network.predict(images)
    assert after.age is not None and after.age_low is not None and after.age_high is not None
    assert (after.age_low < after.age).all() and (after.age < after.age_high).all()
    assert after.race is not None and before.race is not None
    scaled = (outputs["race"] / network.calibration.race_temperature).softmax(1)
    assert torch.allclose(after.race, scaled) and not torch.allclose(after.race, before.race)
    network.calibration.reset()
    with torch.no_grad():
        again = network.predict(images)
    assert again.race is not None and torch.equal(again.race, before.race)


def test_images_without_a_label_take_no_part() -> None:
    rng = np.random.default_rng(0)
    n = 600
    table = DataFrame({"age": rng.uniform(0, 80, n), "gender": rng.integers(0, 2, n), "race": rng.integers(0, 5, n)})
    table["predicted_age"] = table["age"] + rng.normal(0, 5, n)
    table["prob_under_18"] = _sigmoid(18 - table["predicted_age"].to_numpy())
    for columns in PROBABILITIES.values():
        table[columns] = _softmax(rng.normal(0, 1, (n, len(columns))))
    for task, names in {"age": ("age", "adult", "under"), "gender": ("gender",), "race": ("race",)}.items():
        unknown = rng.random(n) < 0.5
        some, labelled, none = (
            fit_calibration(each)
            for each in (
                table.assign(**{task: table[task].where(~unknown, MISSING)}),
                table[~unknown],
                table.assign(**{task: MISSING}),
            )
        )
        neutral, every = Calibration().state_dict(), fit_calibration(table)
        for name in neutral:
            ours = name.startswith(names)
            assert torch.equal(some[name], labelled[name] if ours else every[name]), name
            assert torch.equal(none[name].nan_to_num(-1), (neutral if ours else every)[name].nan_to_num(-1)), name
    # Eight ages are too few for an interval, and for the line of those under 18.
    few = fit_calibration(table.assign(age=table["age"].where(table.index < 8, MISSING)))
    assert few["age_low"].isnan().all() and few["under_18_slope"] == 1


def test_tasks_that_are_not_there_stay_neutral() -> None:
    rng = np.random.default_rng(0)
    n = 300
    labels = {"age": rng.uniform(0, 80, n), "gender": rng.integers(0, 2, n), "race": np.full(n, MISSING)}
    table = DataFrame({**labels, "predicted_age": np.full(n, np.nan), "prob_under_18": np.nan})
    table[PROBABILITIES["gender"]] = np.nan
    table[PROBABILITIES["race"]] = _softmax(rng.normal(0, 1, (n, 5)))
    fitted, neutral = fit_calibration(table), Calibration().state_dict()
    assert list(fitted) == list(neutral)
    for name, value in fitted.items():
        assert torch.equal(value.nan_to_num(-1), neutral[name].nan_to_num(-1)), name
    assert not fit_calibration(table.assign(predicted_age=table["age"] + 1))["age_low"].isnan().any()

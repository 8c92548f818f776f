"""From predictions to figures: metrics, results.json's content, pictures."""

import json
import math

import numpy as np
import pytest
import torch

from agr_lightning.data.samples import Sample, Samples
from agr_lightning.figures import draw_figures
from agr_lightning.labels import MISSING, Task
from agr_lightning.metrics import MaskedAccuracy, PredictionTable, StageMetrics
from agr_lightning.models.losses import FixedWeights, LossWeights
from agr_lightning.models.network import Predictions
from agr_lightning.results import RunFacts, Table, bootstrap_intervals, interval_margin, make_results
from tests.conftest import columns

FACTS = RunFacts("best.ckpt", 3, {"backbone": "agr_cnn"}, 1000, 6.0)


def _samples(n: int, seed: int = 0) -> Samples:
    rng = np.random.default_rng(seed)
    return columns(
        [
            Sample(f"{i}", f"{i}", int(rng.integers(0, 117)), int(rng.integers(2)), int(rng.integers(5)), i)
            for i in range(n)
        ]
    )


def _table(samples: Samples, tasks: tuple[str, ...] = ("age", "gender", "race"), seed: int = 0) -> Table:
    rng = np.random.default_rng(seed)
    n = len(samples)
    gender, race = rng.dirichlet([1, 1], n), rng.dirichlet([1] * 5, n)
    return Table(
        np.arange(n),
        np.array([s.age for s in samples], dtype=np.float64),
        np.array([s.gender for s in samples]),
        np.array([s.race for s in samples]),
        np.array([s.age for s in samples]) + rng.normal(0, 6, n) if "age" in tasks else np.full(n, np.nan),
        gender if "gender" in tasks else np.full((n, 2), np.nan),
        race if "race" in tasks else np.full((n, 5), np.nan),
    )


def test_results_are_what_can_be_counted_by_hand() -> None:
    samples = _samples(400)
    table = _table(samples)
    results = make_results(table, samples, FACTS)
    error = np.abs(table.predicted_age - table.age)
    metrics = results["metrics"]
    assert isinstance(metrics, dict) and results["n"] == 400
    assert metrics["age_mae"] == pytest.approx(error.mean()) and metrics["age_cs5"] == pytest.approx(
        (error <= 5).mean()
    )
    assert metrics["gender_acc"] == pytest.approx((table.gender_probabilities.argmax(1) == table.gender).mean())
    for name in ("age_mae", "age_cs5", "gender_acc", "race_acc"):
        low, high = metrics["intervals"][name]  # type: ignore[index]
        assert low < metrics[name] < high
    interval = results["age_interval"]
    assert isinstance(interval, dict) and interval["coverage"] == pytest.approx((error <= 6).mean())
    groups = results["groups"]
    assert isinstance(groups, list)
    for attribute in ("gender", "race", "age_band"):
        assert sum(g["n"] for g in groups if g["attribute"] == attribute) == 400  # type: ignore[index, call-overload]
    black = next(g for g in groups if g["attribute"] == "race" and g["value"] == "black")  # type: ignore[index, call-overload]
    assert black["age_mae"] == pytest.approx(error[table.race == 1].mean())  # type: ignore[index, call-overload]


def test_what_cannot_be_computed_is_null() -> None:
    samples = columns([Sample(str(i), str(i), 30, 0, MISSING, i) for i in range(3)])
    results = make_results(
        _table(samples, ("gender", "race")), samples, RunFacts("", None, {"backbone": "agr_cnn"}, 1, None)
    )
    metrics = results["metrics"]
    assert isinstance(metrics, dict)
    assert metrics["age_mae"] is None and metrics["race_acc"] is None and metrics["gender_acc"] is not None
    assert metrics["intervals"]["race_acc"] is None and results["age_interval"] is None  # type: ignore[index, call-overload]
    assert "NaN" not in json.dumps(results, allow_nan=False)


def test_results_do_not_depend_on_chance_or_on_the_test_set_s_name() -> None:
    samples = _samples(50)
    assert make_results(_table(samples), samples, FACTS) == make_results(_table(samples), samples, FACTS)
    other = make_results(_table(samples[:49]), samples[:49], FACTS)
    assert other["test_set"] != make_results(_table(samples), samples, FACTS)["test_set"]


def test_bootstrap_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(100):
        low, high = bootstrap_intervals({"x": rng.normal(3, 2, 80)}, range(80))["x"]  # type: ignore[misc]
        covered += low <= 3 <= high
    assert 87 <= covered <= 100


def test_copies_of_a_photo_count_as_one_observation() -> None:
    values = np.random.default_rng(0).normal(0, 1, 100)
    apart = bootstrap_intervals({"x": np.repeat(values, 4)}, range(400))["x"]
    together = bootstrap_intervals({"x": np.repeat(values, 4)}, [i // 4 for i in range(400)])["x"]
    assert apart and together
    assert (together[1] - together[0]) == pytest.approx(2 * (apart[1] - apart[0]), rel=0.15)


def test_a_perfect_score_has_an_interval_too() -> None:
    interval = bootstrap_intervals({"x": np.ones(150)}, range(150))["x"]
    assert interval and interval[1] == 1 and interval[0] == pytest.approx(0.975, abs=0.001)


def test_one_photo_has_no_interval() -> None:
    assert bootstrap_intervals({"x": np.array([7.5])}, [0]) == {"x": None}


def test_the_margin_covers_new_errors() -> None:
    rng = np.random.default_rng(0)
    shares = []
    for _ in range(300):
        errors = np.abs(rng.standard_t(3, 60))
        shares.append(float(errors[1:].size and errors[0] <= interval_margin(errors[1:])))
    assert 0.74 <= np.mean(shares) <= 0.88
    assert math.isnan(interval_margin(np.array([1.0, 2.0])))
    assert interval_margin(np.array([1.0, 2.0, 3.0, 4.0])) == 4.0


# ---------------------------------------------------------------------- torchmetrics


def test_masked_accuracy() -> None:
    accuracy = MaskedAccuracy(5)
    accuracy.update(torch.eye(5)[[0, 1, 2]], torch.tensor([0, 2, MISSING]))
    assert accuracy.compute().item() == 0.5
    accuracy.reset()
    accuracy.update(torch.eye(5)[:2], torch.tensor([MISSING, MISSING]))
    assert math.isnan(accuracy.compute().item())


def test_stage_metrics_weigh_samples_and_not_batches() -> None:
    metrics = StageMetrics(("age", "race"), FixedWeights(LossWeights(age=0.5, race=2.0), ("age", "race")))
    for ages, races, loss in (([1.0, 2.0, 3.0], [0, MISSING, MISSING], 5.0), ([9.0], [0], 1.0)):
        n = len(ages)
        predictions = Predictions(torch.zeros(n), None, torch.eye(5)[[1] * n])
        labels: dict[Task, torch.Tensor] = {
            "age": torch.tensor(ages),
            "gender": torch.zeros(n),
            "race": torch.tensor(races),
        }
        losses: dict[Task, torch.Tensor] = {"age": torch.tensor(loss), "race": torch.tensor(loss)}
        metrics.update(predictions, labels, losses)
    found = {name: metric.compute().item() for name, metric in metrics.named()}
    assert found == pytest.approx(
        {"loss": 0.5 * 4 + 2 * 3, "loss_age": 4.0, "loss_race": 3.0, "age_mae": 3.75, "race_acc": 0.0}
    )


def test_the_table_sorts_and_counts_each_sample_once() -> None:
    table = PredictionTable()
    for places in ([2, 0], [1, 2]):
        n = len(places)
        labels: dict[Task, torch.Tensor] = {
            "age": torch.tensor([float(p) for p in places]),
            "gender": torch.zeros(n, dtype=torch.long),
            "race": torch.full((n,), MISSING),
        }
        table.update(torch.tensor(places), labels, Predictions(torch.tensor([p + 0.5 for p in places]), None, None))
    found = Table.from_rows(table.compute().numpy())
    assert found.place.tolist() == [0, 1, 2] and found.predicted_age.tolist() == [0.5, 1.5, 2.5]
    assert found.race.tolist() == [MISSING] * 3 and np.isnan(found.gender_probabilities).all()


# ---------------------------------------------------------------------- figures


@pytest.mark.parametrize("n", [1, 10, 500])
def test_every_figure_is_drawn_for_any_number_of_samples(n: int) -> None:
    samples = _samples(n)
    faces = np.zeros((min(n, 32), 16, 16, 3), np.uint8)
    figures = draw_figures(_table(samples), faces)
    names = {"sample_faces", "age_predicted_vs_actual", "age_error_by_age", "confusion_gender", "confusion_race"}
    assert set(figures) == names
    for figure in figures.values():
        figure.canvas.draw()


def test_figures_say_the_figure() -> None:
    samples = _samples(300)
    table = _table(samples)
    figures = draw_figures(table, np.zeros((32, 16, 16, 3), np.uint8))
    error = np.abs(table.predicted_age - table.age).mean()
    assert f"{error:.2f} years (n = 300)" in figures["age_predicted_vs_actual"].axes[0].get_title()
    cells = [text.get_text() for text in figures["confusion_gender"].axes[0].texts]
    assert sum(int(cell.split("\n")[1]) for cell in cells) == 300


def test_figures_of_absent_tasks_are_left_out() -> None:
    samples = columns([Sample(str(i), str(i), 30, 0, MISSING, i) for i in range(5)])
    figures = draw_figures(_table(samples, ("gender",)), np.zeros((5, 16, 16, 3), np.uint8))
    assert set(figures) == {"sample_faces", "confusion_gender"}

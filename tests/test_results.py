"""From predictions to figures: metrics, results.json's content, pictures."""

import io
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.figure import Figure
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torchmetrics.functional.classification import (
    multiclass_calibration_error,
    multiclass_confusion_matrix,
    multiclass_f1_score,
    multiclass_precision,
    multiclass_recall,
)

from agr_lightning.callbacks.figures import save_figures
from agr_lightning.data.samples import Sample, Samples
from agr_lightning.evaluation.face_grids import draw_faces, sample_rows, worst_rows
from agr_lightning.evaluation.figures import draw_figures, render
from agr_lightning.evaluation.results import RunFacts, make_results
from agr_lightning.evaluation.table import Table
from agr_lightning.labels import MISSING, Task
from agr_lightning.metrics import MaskedAccuracy, PredictionTable, StageMetrics
from agr_lightning.models.losses import FixedWeights, LossWeights
from agr_lightning.models.network import Predictions
from tests.conftest import columns

FACTS = RunFacts("best.ckpt", 3, {"backbone": "agr_cnn"}, 1000, {"gender": 1.2, "race": 0.9}, 20.0)


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
    age = np.array([s.age for s in samples], dtype=np.float64)
    predicted = age + rng.normal(0, 6, n) if "age" in tasks else np.full(n, np.nan)
    return Table(
        *(np.arange(n), age, np.array([s.gender for s in samples]), np.array([s.race for s in samples])),
        *(predicted, predicted - 6, predicted + 6),
        gender if "gender" in tasks else np.full((n, 2), np.nan),
        race if "race" in tasks else np.full((n, 5), np.nan),
    )


def _make(table: Table, samples: Samples) -> Any:
    return make_results(table, samples, FACTS)


def test_metrics_are_what_can_be_counted_by_hand() -> None:
    samples = _samples(400)
    table = _table(samples)
    results = _make(table, samples)
    error = table.predicted_age - table.age
    metrics = results["metrics"]
    assert results["n"] == 400 and results["reasons"] == {}
    assert metrics["age_mae"] == pytest.approx(np.abs(error).mean())
    assert metrics["age_rmse"] == pytest.approx(np.sqrt((error**2).mean()))
    assert metrics["age_bias"] == pytest.approx(error.mean())
    assert metrics["age_cs5"] == pytest.approx((np.abs(error) <= 5).mean())
    assert metrics["gender_acc"] == pytest.approx((table.gender_probabilities.argmax(1) == table.gender).mean())
    for name in set(metrics) - {"intervals", "gender_ece", "race_ece"}:
        low, high = metrics["intervals"][name]
        assert low < metrics[name] < high, name
    assert results["age_interval"]["coverage"] == pytest.approx((np.abs(error) <= 6).mean())
    assert results["age_interval"]["width"] == pytest.approx(12)


def test_classes_agree_with_torchmetrics() -> None:
    samples = _samples(400)
    table = _table(samples)
    results = _make(table, samples)
    probabilities, labels = torch.from_numpy(table.race_probabilities), torch.from_numpy(table.race)
    assert results["classes"]["race"]["confusion"] == multiclass_confusion_matrix(probabilities, labels, 5).tolist()
    for name, function in (
        ("precision", multiclass_precision),
        ("recall", multiclass_recall),
        ("f1", multiclass_f1_score),
    ):
        expected = function(probabilities, labels, 5, average="none").tolist()
        assert [each[name] for each in results["classes"]["race"]["classes"]] == pytest.approx(expected), name
    metrics = results["metrics"]
    assert metrics["race_balanced_acc"] == pytest.approx(
        multiclass_recall(probabilities, labels, 5, average="macro").item()
    )
    ece = multiclass_calibration_error(probabilities, labels, 5, n_bins=15)
    assert metrics["race_ece"] == pytest.approx(ece.item(), abs=1e-6)
    bins = results["calibration"]["race"]["bins"]
    assert sum(each["n"] for each in bins) == 400 and results["calibration"]["race"]["temperature"] == 0.9


def test_every_group_is_counted_and_pairs_where_there_are_enough() -> None:
    samples = _samples(400)
    table = _table(samples)
    results = _make(table, samples)
    error = table.predicted_age - table.age
    groups = {(g["attribute"], g["value"]): g for g in results["groups"]}
    for attribute in ("gender", "race", "age_band"):
        assert sum(g["n"] for (name, _), g in groups.items() if name == attribute) == 400
    black = groups["race", "black"]
    assert black["age_mae"] == pytest.approx(np.abs(error[table.race == 1]).mean())
    assert black["age_bias"] == pytest.approx(error[table.race == 1].mean())
    low, high = black["intervals"]["age_mae"]
    assert low < black["age_mae"] < high
    both = (table.gender == 1) & (table.race == 1)
    pair = groups["gender x race", "female x black"]
    assert pair["n"] == both.sum() and pair["race_acc"] == pytest.approx(table.hits("race")[both].mean())
    pairs = [g["n"] for (name, _), g in groups.items() if " x " in name]
    assert pairs and min(pairs) >= results["smallest_group"] == 30
    assert len([1 for name, _ in groups if name == "race x age_band"]) < 45


def test_the_worst_group_and_the_gap_are_found() -> None:
    samples = _samples(2000)
    table = _table(samples)
    error = np.where(table.race == 3, 20.0, 1.0)
    table = table._replace(predicted_age=table.age + error * np.where(np.arange(2000) % 2, 1, -1))
    results = _make(table, samples)
    assert results["worst_groups"]["age_mae"]["age_mae"] == pytest.approx(20)
    assert "indian" in results["worst_groups"]["age_mae"]["value"]
    gap = next(g for g in results["gaps"] if g["metric"] == "age_mae" and g["attribute"] == "race")
    assert gap["worst"] == "indian" and gap["gap"] == pytest.approx(19)
    assert gap["interval"] == pytest.approx([19, 19])
    noise = next(g for g in results["gaps"] if g["metric"] == "gender_acc" and g["attribute"] == "gender")
    assert noise["interval"][0] < noise["gap"] < noise["interval"][1]


def test_minors_are_told_from_adults_at_two_thresholds() -> None:
    age = np.array([10.0, 16, 17, 30, 19, 40])
    samples = columns([Sample(str(i), str(i), int(a), 0, 0, i) for i, a in enumerate(age)])
    table = _table(samples)._replace(predicted_age=np.array([9.0, 19, 16, 17, 20, 41]))
    minors = _make(table, samples)["minors"]  # the careful threshold of these facts is 20 years
    assert (minors["minors"], minors["adults"]) == (3, 3)
    assert minors["default"]["recall"] == pytest.approx(2 / 3)
    assert minors["default"]["false_positive_rate"] == pytest.approx(1 / 3)
    careful = minors["careful"]
    assert (careful["threshold"], careful["recall"]) == (20.0, 1.0)
    assert careful["false_positive_rate"] == pytest.approx(1 / 3) and careful["recall_interval"][1] == 1


@pytest.mark.parametrize("tasks", [("age", "gender", "race"), ("race",), ("age",)])
@pytest.mark.parametrize(
    "kind", ["no race labels", "one class", "ten samples", "one sample", "one age", "uncalibrated"]
)
def test_what_cannot_be_computed_is_null_with_a_reason(kind: str, tasks: tuple[str, ...]) -> None:
    n = {"ten samples": 10, "one sample": 1}.get(kind, 60)
    samples = _samples(n)
    table = _table(samples, tasks)
    if kind == "no race labels":
        table = table._replace(race=np.full(n, MISSING))
    elif kind == "one class":
        table = table._replace(race=np.full(n, 2), gender=np.ones(n, np.int64))
    elif kind == "one age":
        table = table._replace(age=np.full(n, 30.0))
    elif kind == "uncalibrated":
        table = table._replace(age_low=np.full(n, np.nan), age_high=np.full(n, np.nan))
    facts = RunFacts("", None, {"backbone": "agr_cnn"}, 1, {"gender": 1.0, "race": 1.0})
    results: Any = make_results(table, samples, facts)
    json.dumps(results, allow_nan=False)
    metrics = results["metrics"]
    nulls = {name for name, value in metrics.items() if value is None}
    assert nulls == set(results["reasons"])
    if "race" not in tasks:
        assert results["reasons"]["race_acc"] == "the network does not predict race"
    elif kind == "no race labels":
        assert results["reasons"]["race_acc"] == "no test image has a race label" and results["classes"]["race"] is None
    if kind == "uncalibrated" and "age" in tasks:
        assert "too few validation images" in results["reasons"]["age_coverage"] and results["age_interval"] is None
    if kind == "one sample":
        assert all(bounds is None for bounds in metrics["intervals"].values())


def test_results_do_not_depend_on_chance_or_on_the_test_set_s_name() -> None:
    samples = _samples(50)
    assert make_results(_table(samples), samples, FACTS) == make_results(_table(samples), samples, FACTS)
    other = make_results(_table(samples[:49]), samples[:49], FACTS)
    assert other["test_set"] != make_results(_table(samples), samples, FACTS)["test_set"]


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
        predictions = Predictions(torch.zeros(n), None, None, None, torch.eye(5)[[1] * n])
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
        table.update(torch.tensor(places), labels, Predictions(torch.tensor([p + 0.5 for p in places]), *[None] * 4))
    found = Table.from_rows(table.compute().numpy())
    assert found.place.tolist() == [0, 1, 2] and found.predicted_age.tolist() == [0.5, 1.5, 2.5]
    assert found.race.tolist() == [MISSING] * 3 and np.isnan(found.gender_probabilities).all()


# ---------------------------------------------------------------------- figures


def _draw(table: Table, samples: Samples) -> dict[str, Figure]:
    return draw_figures(table, _make(table, samples))


@pytest.mark.parametrize("n", [1, 10, 500])
def test_every_figure_is_drawn_for_any_number_of_samples(n: int) -> None:
    samples = _samples(n)
    figures = _draw(_table(samples), samples)
    names = {"age_predicted_vs_actual", "age_error_by_age", "confusion_gender", "confusion_race"}
    assert set(figures) == names | {"reliability", "error_by_group"}
    for figure in figures.values():
        assert np.asarray(render(figure)).std() > 0


def test_figures_say_the_figure() -> None:
    samples = _samples(300)
    table = _table(samples)
    figures = _draw(table, samples)
    error = np.abs(table.predicted_age - table.age).mean()
    assert f"{error:.2f} years (n = 300)" in figures["age_predicted_vs_actual"].axes[0].get_title()
    cells = [text.get_text() for text in figures["confusion_gender"].axes[0].texts]
    assert sum(int(cell.split("\n")[1]) for cell in cells) == 300
    labels = [label.get_text() for label in figures["error_by_group"].axes[0].get_yticklabels()]
    assert f"female  (n={(table.gender == 1).sum()})" in labels and len(labels) == 2 + 5 + 9


def test_figures_of_absent_tasks_are_left_out() -> None:
    samples = columns([Sample(str(i), str(i), 30, 0, MISSING, i) for i in range(5)])
    table = _table(samples, ("gender",))._replace(race=np.full(5, MISSING))
    assert set(_draw(table, samples)) == {"confusion_gender", "reliability", "error_by_group"}


@pytest.mark.parametrize("n", [1, 10, 500])
def test_grids_hold_every_face_in_the_order_of_its_row(n: int) -> None:
    table = _table(_samples(n))
    faces, worst = sample_rows(table), worst_rows(table)
    # Each face is a shade of its own.
    shades = np.arange(32, dtype=np.uint8)[:, None, None, None] * 7 + np.zeros((1, 16, 16, 3), np.uint8)
    grids = draw_faces(table, shades[: len(faces)], shades[: len(worst)])
    assert set(grids) == {"sample_faces"} | ({"worst_mistakes"} if len(worst) else set())
    for rows, name in ((faces, "sample_faces"), (worst, "worst_mistakes")):
        if len(rows):
            pixels = np.asarray(grids[name])[..., 0]
            found = [pixels[:, column] for column in range(80, pixels.shape[1], 152)]
            lines = [[shade for shade in range(0, 224, 7) if (column == shade).sum() > 100] for column in found]
            assert lines == [[7 * place for place in range(column, len(rows), 8)] for column in range(8)]


def test_pictures_are_kept_as_png_and_shown_in_tensorboard(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (600, 600, 3), np.uint8)
    pictures = {"small": Image.new("RGB", (50, 40), "red"), "large": Image.fromarray(noise)}
    trainer = SimpleNamespace(loggers=[TensorBoardLogger(tmp_path)], global_step=3)
    save_figures(cast(Trainer, trainer), tmp_path, pictures, "test")
    trainer.loggers[0].experiment.close()
    events = EventAccumulator(trainer.loggers[0].log_dir).Reload()
    for name, picture in pictures.items():
        assert np.array_equal(np.asarray(Image.open(tmp_path / "figures" / f"{name}.png")), np.asarray(picture))
        (shown,) = events.Images(f"test/{name}")
        assert (shown.step, shown.width, shown.height) == (3, *picture.size)
        found = Image.open(io.BytesIO(shown.encoded_image_string))
        assert found.size == picture.size and found.format == ("JPEG" if name == "large" else "PNG")


def test_a_picture_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "figures" / "plot.png").mkdir(parents=True)
    trainer = cast(Trainer, SimpleNamespace(loggers=[], global_step=0))
    with pytest.raises(OSError, match=r"plot\.png"):
        save_figures(trainer, tmp_path, {"plot": Image.new("RGB", (5, 5))}, "test")


def test_a_sample_is_spread_over_the_test_set() -> None:
    assert sample_rows(_table(_samples(100))).tolist() == [i * 100 // 32 for i in range(32)]
    assert sample_rows(_table(_samples(5))).tolist() == [0, 1, 2, 3, 4]


def test_the_worst_mistakes_come_first() -> None:
    samples = _samples(60)
    table = _table(samples)
    right = np.eye(5)[table.race] * 0.9 + 0.02
    right[7] = np.roll(right[7], 1)
    right[8] = np.where(np.eye(5)[(table.race[8] + 1) % 5] > 0, 0.6, 0.1)
    error = np.where(np.arange(60) == 5, 40.0, 0.5)
    sure = np.eye(2)[table.gender]
    table = table._replace(predicted_age=table.age + error, race_probabilities=right, gender_probabilities=sure)
    rows = worst_rows(table).tolist()
    assert rows[:3] == [5, 7, 0] and rows.index(7) < rows.index(8) and len(rows) == len(set(rows)) == 32

"""From predictions to figures: metrics, results.json's content, pictures."""

import io
import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from pandas import DataFrame
from PIL import Image
from torchmetrics.functional.classification import (
    multiclass_calibration_error,
    multiclass_confusion_matrix,
    multiclass_f1_score,
    multiclass_precision,
    multiclass_recall,
)

from agr_lightning.evaluation.figures import ACCENT, FACE_FIGURES, draw_figures, sample_rows, worst_rows
from agr_lightning.evaluation.metric_table import (
    BY_GROUP,
    METRICS,
    PROBABILITIES,
    RANKED,
    TABLE_COLUMNS,
    Metric,
    hits,
)
from agr_lightning.evaluation.results import make_results, summary, wilson
from agr_lightning.labels import MISSING, TASKS, Task
from agr_lightning.metrics import MaskedAccuracy, MaskedError, PredictionTable, StageMetrics
from agr_lightning.models.network import Predictions
from tests.finished_run import FACTS, random_samples, random_table, shades

FINGERPRINT = "3d1e0826d9ed1ea8"


def _make(table: DataFrame, samples: DataFrame) -> Any:
    return make_results(table, samples, FACTS)


def test_metrics_are_what_can_be_counted_by_hand() -> None:
    samples = random_samples(400)
    table = random_table(samples)
    results = _make(table, samples)
    error = (table.predicted_age - table.age).to_numpy()
    metrics = results["metrics"]
    assert results["n"] == 400 and results["reasons"] == {}
    assert metrics["age_mae"] == pytest.approx(np.abs(error).mean())
    assert metrics["age_rmse"] == pytest.approx(np.sqrt((error**2).mean()))
    assert metrics["age_bias"] == pytest.approx(error.mean())
    assert metrics["age_cs5"] == pytest.approx((np.abs(error) <= 5).mean())
    assert metrics["gender_acc"] == pytest.approx(
        (table[PROBABILITIES["gender"]].to_numpy().argmax(1) == table.gender).mean()
    )
    for name in set(metrics) - {"intervals", "gender_ece", "race_ece"}:
        low, high = metrics["intervals"][name]
        assert low < metrics[name] < high, name
    assert results["age_interval"]["coverage"] == pytest.approx((np.abs(error) <= 6).mean())
    assert results["age_interval"]["width"] == pytest.approx(12)


def test_classes_agree_with_torchmetrics() -> None:
    samples = random_samples(400)
    table = random_table(samples)
    results = _make(table, samples)
    probabilities, labels = (
        torch.tensor(table[PROBABILITIES["race"]].to_numpy()),
        torch.tensor(table.race),
    )
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


def test_calibration_errors_of_both_signs_do_not_cancel() -> None:
    samples = random_samples(400).assign(gender=0)
    table = random_table(samples)
    # Half of the images: 60 % sure and always right; the others: 90 % sure and always wrong.
    chosen = np.where(np.arange(400) % 2, 0.6, 0.1)
    table[PROBABILITIES["gender"]] = np.stack([chosen, 1 - chosen], axis=1)
    assert _make(table, samples)["metrics"]["gender_ece"] == pytest.approx((0.4 + 0.9) / 2)


def test_balanced_accuracy_is_over_the_classes_that_there_are() -> None:
    samples = random_samples(60).assign(race=2)
    metrics = _make(random_table(samples), samples)["metrics"]
    assert metrics["race_balanced_acc"] == pytest.approx(metrics["race_acc"])
    assert metrics["intervals"]["race_balanced_acc"] == pytest.approx(metrics["intervals"]["race_acc"])


def test_every_group_is_counted_and_pairs_where_there_are_enough() -> None:
    samples = random_samples(400)
    table = random_table(samples)
    results = _make(table, samples)
    error = (table.predicted_age - table.age).to_numpy()
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
    assert pair["n"] == both.sum() and pair["race_acc"] == pytest.approx(hits(table, "race")[both].mean())
    pairs = [g["n"] for (name, _), g in groups.items() if " x " in name]
    assert pairs and min(pairs) >= results["smallest_group"] == 30
    assert len([1 for name, _ in groups if name == "race x age_band"]) < 45


def test_the_worst_group_and_the_gap_are_found() -> None:
    samples = random_samples(2000)
    table = random_table(samples)
    error = np.where(table.race == 3, 20.0, 1.0)
    table = table.assign(predicted_age=table.age + error * np.where(np.arange(2000) % 2, 1, -1))
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
    samples = random_samples(6).assign(age=age)
    table = random_table(samples).assign(predicted_age=np.array([9.0, 19, 16, 17, 20, 41]))
    minors = _make(table, samples)["minors"]  # the careful threshold of these facts is 20 years
    assert (minors["minors"], minors["adults"]) == (3, 3)
    assert minors["default"]["recall"] == pytest.approx(2 / 3)
    assert minors["default"]["false_positive_rate"] == pytest.approx(1 / 3)
    careful = minors["careful"]
    assert (careful["threshold"], careful["recall"]) == (20.0, 1.0)
    assert careful["false_positive_rate"] == pytest.approx(1 / 3) and careful["recall_interval"][1] == 1


@pytest.mark.parametrize("tasks", [("age", "gender", "race"), ("race",), ("age",)])
@pytest.mark.parametrize(
    "kind",
    [
        *("no age labels", "no gender labels", "no race labels", "no labels"),
        *("one class", "ten samples", "one sample", "one age", "uncalibrated", "a number"),
    ],
)
def test_what_cannot_be_computed_is_null_with_a_reason(kind: str, tasks: tuple[str, ...]) -> None:
    n = {"ten samples": 10, "one sample": 1}.get(kind, 60)
    samples = random_samples(n)
    table = random_table(samples, tasks)
    unlabelled = [task for task in TASKS if kind in ("no labels", f"no {task} labels")]
    table = table.assign(**dict.fromkeys(unlabelled, MISSING))
    if kind == "one class":
        table = table.assign(race=2, gender=1)
    elif kind == "one age":
        table = table.assign(age=30.0)
    elif kind == "uncalibrated":
        table = table.assign(age_low=np.nan, age_high=np.nan)
    elif kind == "a number":
        table = table.assign(prob_under_18=np.nan)
    facts = FACTS | {"network": {"backbone": "agr_cnn", "tasks": list(tasks)}, "epoch": None, "adult_threshold": None}
    results = make_results(table, samples, facts)
    json.dumps(results, allow_nan=False)
    metrics = results["metrics"]
    nulls = {name for name, value in metrics.items() if value is None}
    assert nulls == set(results["reasons"])
    if "race" not in tasks:
        assert results["reasons"]["race_acc"] == "the network does not predict race"
    for task in set(tasks) & set(unlabelled):
        ours = {name: reason for name, reason in results["reasons"].items() if name.startswith(task)}
        assert set(ours.values()) == {f"no test image has a label for {task}"}
        assert set(ours) == {name for name in METRICS if name.startswith(task)}
        if task == "age":
            assert results["age_interval"] is results["minors"] is results["calibration"]["under_18"] is None
        else:
            assert results["classes"][task] is results["calibration"][task] is None
    if kind == "no labels":
        assert results["groups"] == results["gaps"] == [] and set(results["worst_groups"].values()) == {None}
        assert summary(results) == "Test on 60 images, 95 % intervals: none has a label"
    if kind == "uncalibrated" and "age" in tasks:
        assert "too few validation images" in results["reasons"]["age_coverage"] and results["age_interval"] is None
    if kind == "a number" and "age" in tasks:
        assert results["reasons"]["age_under_18_ece"] == "the network gives no distribution of ages"
        assert results["calibration"]["under_18"] is None and results["minors"] is not None
    if kind == "one sample":
        assert all(bounds is None for bounds in metrics["intervals"].values())


def test_images_without_age_count_for_other_tasks_alone() -> None:
    samples = random_samples(400)
    table = random_table(samples)
    rng = np.random.default_rng(1)
    unknown = rng.random(400) < 0.4
    table, known = table.assign(age=table.age.where(~unknown, MISSING)), table[~unknown].reset_index(drop=True)
    found, every, labelled = (_make(each, samples) for each in (table, random_table(samples), known))
    for name in METRICS:
        same = labelled if name.startswith("age") else every
        assert found["metrics"][name] == pytest.approx(same["metrics"][name]), name
    assert found["minors"] == labelled["minors"]
    assert found["age_interval"]["coverage"] == labelled["age_interval"]["coverage"]
    assert found["calibration"]["under_18"] == labelled["calibration"]["under_18"]
    assert found["classes"] == every["classes"]
    values = {(each["attribute"], each["value"]): each for each in found["groups"]}
    assert not any("unknown" in value for _, value in values)
    for each in labelled["groups"]:
        if each["attribute"] == "age_band":
            assert values["age_band", each["value"]]["n"] == each["n"]
    assert values["gender", "female"]["n"] == (table.gender == 1).sum()
    assert values["gender", "female"]["age_mae"] == pytest.approx(
        np.abs(known.predicted_age - known.age)[known.gender == 1].mean()
    )


def test_a_group_with_few_labels_is_neither_the_worst_nor_in_a_gap() -> None:
    samples = random_samples(300).assign(gender=[1] * 100 + [0] * 200)
    table = random_table(samples)
    table["predicted_age"] = table.age + np.where(table.gender == 1, 50.0, 1.0)
    assert _make(table, samples)["worst_groups"]["age_mae"]["value"].startswith("female")
    table.loc[29:99, "age"] = MISSING
    results = _make(table, samples)
    assert "female" not in results["worst_groups"]["age_mae"]["value"]
    assert [gap["metric"] for gap in results["gaps"] if gap["attribute"] == "gender"] == ["gender_acc", "race_acc"]


def test_decimal_ages_are_in_their_band() -> None:
    samples = random_samples(5).assign(age=[2.9, 29.5, 30.0, 17.99, 69.5])
    results = _make(random_table(samples), samples)
    bands = [group["value"] for group in results["groups"] if group["attribute"] == "age_band"]
    assert bands == ["0-2", "10-19", "20-29", "30-39", "60-69"] and results["minors"]["minors"] == 2


def test_the_test_set_is_known_by_its_labels_whatever_their_type() -> None:
    samples = random_samples(5).assign(age=[1, 20, 30, 40, 116], gender=0, race=[0, 1, 2, 3, MISSING])
    results = _make(random_table(samples), samples)
    # Written down once: figures of earlier runs are compared by it.
    assert results["test_set"] == FINGERPRINT
    assert results == _make(random_table(samples), samples.assign(age=samples.age.astype(float)))
    assert _make(random_table(samples), samples.assign(age=samples.age + 0.5))["test_set"] != FINGERPRINT


def test_the_reliability_of_being_under_18_is_measured_in_bins() -> None:
    samples = random_samples(200).assign(age=[10] * 30 + [17] * 20 + [18] * 50 + [60] * 100)
    table = random_table(samples).assign(prob_under_18=[0.9] * 50 + [0.4] * 50 + [0.0] * 100)
    results = _make(table, samples)
    found = results["calibration"]["under_18"]
    assert (found["slope"], found["intercept"]) == (0.8, 0.1)
    bins = [(round(each["probability"], 4), each["minors"], each["n"]) for each in found["bins"]]
    assert bins == [(0.0, 0.0, 100), (0.4, 0.0, 50), (0.9, 1.0, 50)]
    assert results["metrics"]["age_under_18_ece"] == pytest.approx((50 * 0.4 + 50 * 0.1) / 200)
    titles = [axes.get_title() for axes in _draw(table, samples)["reliability"].axes]
    assert len(titles) == 3 and titles[2] == "Under 18: calibration error 12.5%"
    alone = random_table(samples, ("age",))
    assert [axes.get_xlabel() for axes in _draw(alone, samples)["reliability"].axes] == [
        "probability of being under 18"
    ]


def test_results_do_not_depend_on_chance_or_on_the_test_set_s_name() -> None:
    samples = random_samples(50)
    assert make_results(random_table(samples), samples, FACTS) == make_results(random_table(samples), samples, FACTS)
    other = make_results(random_table(samples[:49]), samples[:49], FACTS)
    assert other["test_set"] != make_results(random_table(samples), samples, FACTS)["test_set"]


def test_a_group_that_is_small_is_neither_the_worst_nor_in_a_gap() -> None:
    samples = random_samples(300).assign(gender=[1] * 29 + [0] * 271)
    table = random_table(samples)
    table["predicted_age"] = table.age + np.where(table.gender == 1, 50.0, 1.0)
    results = _make(table, samples)
    small = next(group for group in results["groups"] if group["value"] == "female")
    assert small["n"] == 29 and small["age_mae"] == pytest.approx(50)
    assert "female" not in results["worst_groups"]["age_mae"]["value"]
    assert not any(gap["attribute"] == "gender" for gap in results["gaps"])


def test_a_share_of_none_or_all_has_the_interval_of_its_photos() -> None:
    samples = random_samples(40)
    samples["group"] = samples.index // 2  # copies of 20 photos
    table = random_table(samples)
    table["predicted_age"] = table.age
    results = _make(table, samples)
    assert results["metrics"]["age_cs5"] == 1
    assert results["metrics"]["intervals"]["age_cs5"] == pytest.approx(wilson(1.0, 20))
    assert results["metrics"]["intervals"]["age_mae"] is None


def test_a_metric_is_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    worst = Metric(
        *("age_p90", "age 90th percentile", "the error that a tenth exceeds", "years", METRICS["age_rmse"].values),
        *(METRICS["age_rmse"].formula, "highest"),
    )
    monkeypatch.setitem(METRICS, worst.name, worst)
    for marked in (BY_GROUP, RANKED):
        monkeypatch.setattr(
            f"agr_lightning.evaluation.results.{'BY_GROUP' if marked is BY_GROUP else 'RANKED'}", [*marked, worst]
        )
    samples = random_samples(300)
    results = _make(random_table(samples), samples)
    metrics = results["metrics"]
    assert metrics["age_p90"] == metrics["age_rmse"]
    assert metrics["intervals"]["age_p90"] == metrics["intervals"]["age_rmse"]
    low, high = results["groups"][0]["intervals"]["age_p90"]
    assert low < results["groups"][0]["age_p90"] < high
    assert results["worst_groups"]["age_p90"]["n"] >= 30
    assert {gap["attribute"] for gap in results["gaps"] if gap["metric"] == "age_p90"} >= {"gender", "race"}


def test_the_line_for_the_terminal() -> None:
    samples = random_samples(1200)
    table = random_table(samples, ("gender",)).assign(gender=0)
    table[PROBABILITIES["gender"]] = [0.9, 0.1]
    facts = FACTS | {"network": {"backbone": "agr_cnn", "tasks": ["gender"]}}
    line = summary(make_results(table, samples, facts))
    assert line == "Test on 1,200 images, 95 % intervals: gender accuracy 100.0 % (99.7 to 100.0)"


# ---------------------------------------------------------------------- torchmetrics


def test_masked_accuracy() -> None:
    accuracy = MaskedAccuracy(5)
    accuracy.update(torch.eye(5)[[0, 1, 2]], torch.tensor([0, 2, MISSING]))
    assert accuracy.compute().item() == 0.5
    accuracy.reset()
    accuracy.update(torch.eye(5)[:2], torch.tensor([MISSING, MISSING]))
    assert math.isnan(accuracy.compute().item())


def test_masked_error() -> None:
    ages = torch.tensor([30.0, MISSING, 29.5, MISSING, 0.0])
    whole, *parts = (MaskedError() for _ in range(3))
    whole.update(torch.full((5,), 20.0), ages)
    for part, rows in zip(parts, (slice(0, 2), slice(2, 5)), strict=True):
        part.update(torch.full_like(ages[rows], 20.0), ages[rows])
    parts[0].merge_state(parts[1])  # as those of two processes are
    assert whole.compute().item() == parts[0].compute().item() == pytest.approx((10 + 9.5 + 20) / 3)
    whole.reset()
    whole.update(torch.zeros(2), torch.tensor([MISSING, MISSING]))
    assert math.isnan(whole.compute().item())


def test_stage_metrics_weigh_samples_and_not_batches() -> None:
    metrics = StageMetrics(("age", "race"))
    for ages, races, loss in (([1.0, 2.0, 3.0], [0, MISSING, MISSING], 5.0), ([9.0, MISSING], [0, MISSING], 1.0)):
        n = len(ages)
        predictions = Predictions(torch.zeros(n), None, None, None, torch.eye(5)[[1] * n], None)
        labels: dict[Task, torch.Tensor] = {
            "age": torch.tensor(ages),
            "gender": torch.zeros(n),
            "race": torch.tensor(races),
        }
        losses: dict[Task, torch.Tensor] = {"age": torch.tensor(loss), "race": torch.tensor(loss)}
        metrics.update(predictions, labels, losses)
    found = metrics.compute(lambda losses: 0.5 * losses["age"] + 2 * losses["race"])
    assert {name: value.item() for name, value in found.items()} == pytest.approx(
        {"loss": 0.5 * 4 + 2 * 3, "loss_age": 4.0, "loss_race": 3.0, "age_mae": 3.75, "race_acc": 0.0}
    )


def test_the_table_sorts_and_counts_each_sample_once() -> None:
    table = PredictionTable(("age",))
    for places in ([2, 0], [1, 2]):
        n = len(places)
        labels: dict[Task, torch.Tensor] = {
            "age": torch.tensor([float(p) for p in places]),
            "gender": torch.zeros(n, dtype=torch.long),
            "race": torch.full((n,), MISSING),
        }
        table.update(torch.tensor(places), labels, Predictions(torch.tensor([p + 0.5 for p in places]), *[None] * 5))
    found = table.compute()
    assert found["index"].tolist() == [0, 1, 2] and found.predicted_age.tolist() == [0.5, 1.5, 2.5]
    assert found.race.tolist() == [MISSING] * 3 and found[PROBABILITIES["gender"]].isna().all(axis=None)
    assert tuple(found.columns) == TABLE_COLUMNS


# ---------------------------------------------------------------------- figures


def _draw(table: DataFrame, samples: DataFrame) -> dict[str, Figure]:
    return draw_figures(table, _make(table, samples), shades)


def _pixels(figure: Figure) -> np.ndarray:
    file = io.BytesIO()
    figure.savefig(file)
    return np.asarray(Image.open(file).convert("RGB"))


@pytest.mark.parametrize("n", [1, 10, 500])
def test_every_figure_is_drawn_for_any_number_of_samples(n: int) -> None:
    samples = random_samples(n)
    figures = _draw(random_table(samples), samples)
    names = {"age_predicted_vs_actual", "age_error_by_age", "confusion_gender", "confusion_race"}
    assert set(figures) == names | {"reliability", "error_by_group", *FACE_FIGURES}
    for figure in figures.values():
        assert _pixels(figure).std() > 0


def test_figures_say_the_figure() -> None:
    samples = random_samples(300)
    table = random_table(samples)
    figures = _draw(table, samples)
    error = np.abs(table.predicted_age - table.age).mean()
    assert f"{error:.2f} years (n = 300)" in figures["age_predicted_vs_actual"].axes[0].get_title()
    cells = [text.get_text() for text in figures["confusion_gender"].axes[0].texts]
    assert sum(int(cell.split("\n")[1]) for cell in cells) == 300
    labels = [label.get_text() for label in figures["error_by_group"].axes[0].get_yticklabels()]
    assert f"female  (n={(table.gender == 1).sum()})" in labels and len(labels) == 2 + 5 + 9


def test_figures_are_of_the_labelled_images() -> None:
    samples = random_samples(200)
    table = random_table(samples)
    table.loc[:49, "age"], table.loc[100:149, "gender"] = MISSING, MISSING
    figures = _draw(table, samples)
    assert figures["age_predicted_vs_actual"].axes[0].get_title().endswith("(n = 150)")
    counts = [label.get_text().split("n=")[1] for label in figures["age_error_by_age"].axes[0].get_xticklabels()]
    assert sum(map(int, counts)) == 150
    assert figures["confusion_gender"].axes[0].get_title().endswith("(n = 150)")
    captions = [axes.get_title() for axes in figures["sample_faces"].axes]
    assert captions[0].split("\n")[0].endswith(" (?)") and not captions[8].split("\n")[0].endswith(" (?)")
    assert captions[16].split("\n")[1].endswith(" (?)") and not any("-1" in caption for caption in captions)


@pytest.mark.parametrize("task", TASKS)
def test_figures_of_a_task_without_labels_are_left_out(task: Task) -> None:
    samples = random_samples(60)
    table = random_table(samples)
    every, found = set(_draw(table, samples)), set(_draw(table.assign(**{task: MISSING}), samples))
    ages = {"age_predicted_vs_actual", "age_error_by_age"}
    assert every - found == (ages if task == "age" else {f"confusion_{task}"})


def test_figures_of_absent_tasks_are_left_out() -> None:
    samples = random_samples(5).assign(age=30, gender=0, race=MISSING)
    table = random_table(samples, ("gender",))
    figures = _draw(table, samples)
    assert set(figures) - {"worst_mistakes"} == {"confusion_gender", "reliability", "error_by_group", "sample_faces"}
    assert {axes.get_title() for axes in figures["sample_faces"].axes[:5]} <= {"male", "female (male)"}


@pytest.mark.parametrize("n", [1, 10, 500])
def test_grids_hold_every_face_in_the_order_of_its_row(n: int) -> None:
    samples = random_samples(n)
    table = random_table(samples)
    asked: list[list[int]] = []

    def faces(indices: Sequence[int]) -> np.ndarray:
        asked.append(list(indices))
        return shades(indices)

    # The table's order is not that of the images.
    table["index"] = table["index"].to_numpy()[::-1]
    grids = draw_figures(table, _make(table, samples), faces)
    rows = [sample_rows(table), worst_rows(table)]
    assert asked == [table["index"].iloc[chosen].tolist() for chosen in rows]
    for chosen, name in zip(rows, FACE_FIGURES, strict=True):
        panels = grids[name].axes
        assert [axes.images[0].get_array()[0, 0, 0] for axes in panels[: len(chosen)]] == [
            7 * place for place in range(len(chosen))
        ]
        assert not any(axes.images for axes in panels[len(chosen) :])


def test_captions_of_mistakes_are_red() -> None:
    samples = random_samples(8).assign(age=[30.0] * 8, gender=1, race=[2] * 7 + [MISSING])
    table = random_table(samples).assign(predicted_age=[30.0] * 6 + [41.0, 30.0])
    table[PROBABILITIES["gender"]], table[PROBABILITIES["race"]] = np.eye(2)[1], np.eye(5)[2]
    table.loc[1, PROBABILITIES["race"]] = np.eye(5)[0]
    grid = _draw(table, samples)["sample_faces"]
    wrong = {place: axes.get_title() for place, axes in enumerate(grid.axes) if axes.title.get_color() == ACCENT}
    assert wrong == {1: "30 (30)\nfemale\nwhite (asian)", 6: "41 (30)\nfemale\nasian"}
    assert grid.axes[7].get_title() == "30 (30)\nfemale\nasian (?)" and "more than 10 years" in grid.get_suptitle()


def test_a_sample_is_spread_over_the_test_set() -> None:
    assert sample_rows(random_table(random_samples(100))).tolist() == [i * 100 // 32 for i in range(32)]
    assert sample_rows(random_table(random_samples(5))).tolist() == [0, 1, 2, 3, 4]


def test_the_worst_mistakes_come_first() -> None:
    samples = random_samples(60)
    table = random_table(samples)
    right = np.eye(5)[table.race] * 0.9 + 0.02
    right[7] = np.roll(right[7], 1)
    right[8] = np.where(np.eye(5)[(table.race[8] + 1) % 5] > 0, 0.6, 0.1)
    error = np.where(np.arange(60) == 5, 40.0, 0.5)
    table["predicted_age"] = table.age + error
    table[PROBABILITIES["gender"]], table[PROBABILITIES["race"]] = np.eye(2)[table.gender], right
    rows = worst_rows(table).tolist()
    assert rows[:3] == [5, 7, 0] and rows.index(7) < rows.index(8) and len(rows) == len(set(rows)) == 32

"""Comparing tested runs."""

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from agr_lightning.evaluation.compare import compare
from agr_lightning.evaluation.costs import measure_costs
from agr_lightning.models.backbones import BACKBONES
from agr_lightning.models.network import AGRNetwork

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agr_lightning.evaluation.costs._SECONDS_A_ROUND", 0.0)


def _variant(trained: Path, folder: Path, **changes: Any) -> str:
    """A run like the trained one, with other results."""
    folder.mkdir(parents=True)
    results = json.loads((trained / "results.json").read_text())
    metrics = changes.pop("metrics", {})
    results["metrics"] |= metrics
    for name in metrics:
        results["metrics"]["intervals"][name] = None
    results["model"] |= changes.pop("model", {})
    (folder / "results.json").write_text(json.dumps(results | changes))
    return str(folder)


def _cells(table: str) -> list[list[str]]:
    """The body of a Markdown table."""
    lines = [line for line in table.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_the_table_says_what_the_results_say(trained: Path, tmp_path: Path, run: Run) -> None:
    small = _variant(trained, tmp_path / "small", model={"backbone": "mobilenet_v3_small"}, metrics={"age_mae": 1.25})
    code, out, err = run("compare", str(trained), small, "--output", str(tmp_path / "out"))
    assert code == 0, err
    assert out == (tmp_path / "out" / "comparison.md").read_text()
    best, other = _cells(out)
    assert best[:4] == [small, "mobilenet_v3_small", "48", "1.25"] and other[:2] == [str(trained), "agr_cnn"]
    results = json.loads((trained / "results.json").read_text())
    assert other[4].startswith(f"{100 * results['metrics']['gender_acc']:.1f} % (")
    assert float(other[7]) == pytest.approx(results["parameters"] / 1e6, abs=0.005)
    with (tmp_path / "out" / "comparison.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["run"] for row in rows] == [small, str(trained)]
    assert float(rows[1]["race_acc"]) == results["metrics"]["race_acc"]
    assert float(rows[1]["race_acc_low"]) == results["metrics"]["intervals"]["race_acc"][0]
    assert (tmp_path / "out" / "comparison.png").read_bytes().startswith(b"\x89PNG")


def test_the_worst_group_is_large_enough_to_be_named(trained: Path, tmp_path: Path) -> None:
    groups = [
        {"attribute": "age_band", "value": "70+", "n": 29, "age_mae": 40.0, "gender_acc": 0.1, "race_acc": None},
        {"attribute": "age_band", "value": "0-2", "n": 30, "age_mae": 3.0, "gender_acc": 0.5, "race_acc": None},
        {"attribute": "gender", "value": "male", "n": 900, "age_mae": 6.5, "gender_acc": 0.9, "race_acc": None},
    ]
    table = compare([_variant(trained, tmp_path / "run", groups=groups)])
    assert _cells(table)[0][6] == "age male: 6.50, gender 0-2: 50.0 %"


def test_other_test_sets_are_never_ranked_together(trained: Path, tmp_path: Path) -> None:
    better = _variant(trained, tmp_path / "better", test_set="other", n=7, metrics={"age_mae": 0.1})
    tables = compare([str(trained), better]).split("\n\nTest set ")
    assert len(tables) == 2 and "`other`, 7 images" in tables[1]
    assert [len(_cells(table)) for table in tables] == [1, 1]


def test_runs_with_fewer_tasks_have_empty_cells(trained: Path, tmp_path: Path) -> None:
    nothing = {"age_mae": None, "race_acc": None}
    one = _variant(trained, tmp_path / "one", model={"tasks": ["gender"]}, metrics=nothing)
    table = compare([one, str(trained)])
    assert _cells(table)[1][1:4] == ["agr_cnn (gender)", "48", ""] and _cells(table)[1][5] == ""


def test_equal_networks_are_told_apart_by_their_run(trained: Path, tmp_path: Path) -> None:
    runs = [_variant(trained, tmp_path / name / "lightning_logs" / "version_0") for name in ("first", "second")]
    assert {row[1] for row in _cells(compare(runs))} == {"agr_cnn, first/version_0", "agr_cnn, second/version_0"}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gone", None, "gone does not exist; name run folders"),
        (".", None, ". has no results.json: test its checkpoint with `test --ckpt_path .`"),
        ("empty", "", "is not a results.json of this version"),
        ("list", "[1, 2]", "is not a results.json of this version"),
        ("old", '{"metrics": {"intervals": {}}, "groups": [], "test_set": "a"}', "test the run's checkpoint again"),
    ],
)
def test_runs_without_results(run: Run, here: Path, name: str, content: str | None, message: str) -> None:
    if content is not None:
        (here / name).mkdir()
        (here / name / "results.json").write_text(content)
    code, out, err = run("compare", name, "--output", "out")
    assert code == 1 and message in err and err.count("\n") == 1 and not out
    assert not (here / "out").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"model": {"colour": "red"}},
        {"model": {"image_size": "large"}},
        {"model": {"backbone": "resnet81"}},
        {"groups": [{"n": 50}]},
        {"n": None},
        {"metrics": []},
    ],
)
def test_results_that_are_not_ours_are_refused(
    run: Run, trained: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    results = json.loads((trained / "results.json").read_text())
    results["model"] |= changes.pop("model", {})
    (tmp_path / "results.json").write_text(json.dumps(results | changes))
    code, _, err = run("compare", str(tmp_path))
    assert code == 1 and "is not a results.json of this version" in err and err.count("\n") == 1


def test_a_run_without_any_figure_has_a_row_and_no_plot(trained: Path, tmp_path: Path) -> None:
    nothing = {"age_mae": None, "gender_acc": None, "race_acc": None}
    groups = json.loads((trained / "results.json").read_text())["groups"]
    empty = _variant(trained, tmp_path / "a", metrics=nothing, groups=[group | nothing for group in groups])
    assert len(_cells(compare([empty], str(tmp_path / "out")))) == 1
    assert not (tmp_path / "out" / "comparison.png").exists()


def test_an_output_that_is_a_file(run: Run, here: Path, trained: Path) -> None:
    (here / "out").touch()
    code, _, err = run("compare", str(trained), "--output", "out")
    assert code == 1 and err == "error: --output out is a file; name a folder.\n"


def test_no_run_is_one_line(run: Run) -> None:
    code, _, err = run("compare")
    assert code == 2 and re.fullmatch(r"error: the following arguments are required: RUN .*\n", err)


def test_costs_are_those_of_the_network() -> None:
    small, large = AGRNetwork("mobilenet_v3_small"), AGRNetwork("resnet50")
    threads = torch.get_num_threads()
    first, second = measure_costs([(small, 64), (large, 64)], rounds=1)
    assert torch.get_num_threads() == threads
    assert first.parameters == sum(p.numel() for p in small.parameters())
    # 32 bits each, and a few statistics.
    assert first.megabytes == pytest.approx(4e-6 * first.parameters, rel=0.02)
    # torchvision's page says 4.09 thousand million at 224 pixels, with its last layer of 2 million.
    assert 1e-6 * second.multiply_adds == pytest.approx((4090 - 2) * (64 / 224) ** 2, rel=0.01)
    assert second.latency > first.latency > 0 and first.throughput > second.throughput > 0


def test_every_backbone_can_be_compared(trained: Path, tmp_path: Path) -> None:
    runs = [_variant(trained, tmp_path / name, model={"backbone": name, "image_size": 32}) for name in BACKBONES]
    assert {row[1] for row in _cells(compare(runs))} == set(BACKBONES)

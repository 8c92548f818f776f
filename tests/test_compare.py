"""Comparing tested runs."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from agr_lightning.evaluation.compare import compare, measure_costs
from agr_lightning.labels import MISSING
from agr_lightning.messages import UserError
from agr_lightning.models.config import NetworkConfig
from agr_lightning.models.network import AGRNetwork
from tests.finished_run import random_samples, write_results

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agr_lightning.evaluation.compare._SECONDS_A_TURN", 0.0)
    monkeypatch.setattr("agr_lightning.evaluation.compare._TURNS", 1)


@pytest.fixture(scope="module")
def tested(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tested run. Not to be changed."""
    folder = tmp_path_factory.mktemp("tested") / "run"
    write_results(folder, random_samples(300))
    return folder


def _variant(tested: Path, folder: Path, **changes: Any) -> str:
    """A run like the tested one, with other results."""
    folder.mkdir(parents=True)
    results = json.loads((tested / "results.json").read_text())
    metrics = changes.pop("metrics", {})
    results["metrics"] |= metrics
    for name in metrics:
        results["metrics"]["intervals"][name] = None
    results["network"] |= changes.pop("network", {})
    (folder / "results.json").write_text(json.dumps(results | changes))
    return str(folder)


def _cells(table: str) -> list[list[str]]:
    """The body of a Markdown table."""
    lines = [line for line in table.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_the_table_says_what_the_results_say(tested: Path, tmp_path: Path) -> None:
    small = _variant(tested, tmp_path / "small", network={"backbone": "mobilenet_v3_small"}, metrics={"age_mae": 1.25})
    out = compare([str(tested), small], str(tmp_path / "out"))
    assert out == (tmp_path / "out" / "comparison.md").read_text()
    best, other = _cells(out)
    assert best[:4] == [small, "mobilenet_v3_small", "48", "1.25"] and other[:2] == [str(tested), "agr_cnn"]
    results = json.loads((tested / "results.json").read_text())
    assert other[4].startswith(f"{100 * results['metrics']['gender_acc']:.1f} % (")
    assert float(other[7]) == pytest.approx(results["parameters"] / 1e6, abs=0.005)
    with (tmp_path / "out" / "comparison.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["run"] for row in rows] == [small, str(tested)]
    assert float(rows[1]["race_acc"]) == results["metrics"]["race_acc"]
    assert float(rows[1]["race_acc_low"]) == results["metrics"]["intervals"]["race_acc"][0]
    assert (tmp_path / "out" / "comparison.png").read_bytes().startswith(b"\x89PNG")


def test_the_worst_groups_are_those_of_the_results(tested: Path, tmp_path: Path) -> None:
    worst = {
        "age_mae": {"value": "male", "age_mae": 6.5},
        "gender_acc": {"value": "0-2", "gender_acc": 0.5},
        "race_acc": None,
    }
    table = compare([_variant(tested, tmp_path / "run", worst_groups=worst)])
    assert _cells(table)[0][6] == "age male: 6.50, gender 0-2: 50.0 %"


def test_other_test_sets_are_never_ranked_together(tested: Path, tmp_path: Path) -> None:
    better = _variant(tested, tmp_path / "better", test_set="other", metrics={"age_mae": 0.1})
    tables = compare([str(tested), better]).split("\n\nTest set ")
    assert len(tables) == 2 and "`other`, 300 images" in tables[1]
    assert [len(_cells(table)) for table in tables] == [1, 1]


def test_runs_with_fewer_tasks_have_empty_cells(tested: Path, tmp_path: Path) -> None:
    nothing = {"age_mae": None, "race_acc": None}
    one = _variant(tested, tmp_path / "one", network={"tasks": ["gender"]}, metrics=nothing)
    table = compare([one, str(tested)])
    assert _cells(table)[1][1:4] == ["agr_cnn (gender)", "48", ""] and _cells(table)[1][5] == ""


def test_a_test_set_without_ages_has_empty_cells(tmp_path: Path) -> None:
    write_results(tmp_path / "run", random_samples(60).assign(age=MISSING))
    (row,) = _cells(compare([str(tmp_path / "run")], str(tmp_path / "out")))
    assert row[3] == "" and "%" in row[4] and "%" in row[5] and (tmp_path / "out" / "comparison.png").is_file()


def test_equal_networks_are_told_apart_by_their_run(tested: Path, tmp_path: Path) -> None:
    runs = [_variant(tested, tmp_path / name / "lightning_logs" / "version_0") for name in ("first", "second")]
    assert {row[1] for row in _cells(compare(runs))} == {"agr_cnn, first/version_0", "agr_cnn, second/version_0"}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gone", None, "gone does not exist; name run folders"),
        (".", None, ". has no results.json: name the run folder that `test --ckpt_path .`"),
        ("empty", "", "is not a results.json of this version"),
        ("list", "[1, 2]", "is not a results.json of this version"),
        ("old", '{"metrics": {"intervals": {}}, "groups": [], "test_set": "a"}', "test the run's checkpoint again"),
    ],
)
def test_runs_without_results(here: Path, name: str, content: str | None, message: str) -> None:
    if content is not None:
        (here / name).mkdir()
        (here / name / "results.json").write_text(content)
    with pytest.raises(UserError) as caught:
        compare([name], "out")
    assert message in str(caught.value) and not (here / "out").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"network": {"colour": "red"}},
        {"network": {"image_size": "large"}},
        {"worst_groups": {"age_mae": {"n": 50}}},
        {"n": None},
        {"metrics": []},
    ],
)
def test_results_that_are_not_ours_are_refused(tested: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    results = json.loads((tested / "results.json").read_text())
    results["network"] |= changes.pop("network", {})
    (tmp_path / "results.json").write_text(json.dumps(results | changes))
    with pytest.raises(UserError, match=r"is not a results\.json of this version"):
        compare([str(tmp_path)])


def test_results_of_an_older_version_are_refused(tested: Path, tmp_path: Path) -> None:
    results = json.loads((tested / "results.json").read_text())
    results["model"] = results.pop("network")
    (tmp_path / "results.json").write_text(json.dumps(results))
    with pytest.raises(UserError, match="test the run's checkpoint again"):
        compare([str(tmp_path)])


def test_a_run_without_any_figure_has_a_row_and_no_plot(tested: Path, tmp_path: Path) -> None:
    nothing = {"age_mae": None, "gender_acc": None, "race_acc": None}
    empty = [_variant(tested, tmp_path / name, metrics=nothing, worst_groups=nothing) for name in "ab"]
    assert [row[3:7] for row in _cells(compare(empty, str(tmp_path / "out")))] == [[""] * 4] * 2
    assert not (tmp_path / "out" / "comparison.png").exists()


def test_an_output_that_is_a_file(tested: Path, here: Path) -> None:
    (here / "out").touch()
    with pytest.raises(FileExistsError, match="out"):
        compare([str(tested)], "out")


def test_the_command_compares_real_runs(trained: Path, run: Run) -> None:
    code, out, err = run("compare", str(trained))
    assert code == 0, err
    assert _cells(out)[0][:3] == [str(trained), "agr_cnn", "48"]


def test_costs_are_those_of_the_network() -> None:
    small, large = (AGRNetwork(NetworkConfig(name, image_size=64)) for name in ("mobilenet_v3_small", "resnet50"))
    threads = torch.get_num_threads()
    first, second = measure_costs([small, large]).itertuples()
    assert torch.get_num_threads() == threads
    assert first.parameters == sum(p.numel() for p in small.parameters())
    # 32 bits each, and a few statistics.
    assert first.weights_mb == pytest.approx(4e-6 * first.parameters, rel=0.02)
    # torchvision's page says 4.09 thousand million at 224 pixels, with its last layer of 2 million.
    assert 1e-6 * second.multiply_adds == pytest.approx((4090 - 2) * (64 / 224) ** 2, rel=0.01)
    assert second.latency_ms > first.latency_ms > 0 and first.images_per_second > second.images_per_second > 0


@pytest.mark.parametrize("backbone", ["agr_cnn_small", "two_branch_cnn", "vgg16_bn"])
def test_backbones_of_every_kind_can_be_compared(tested: Path, tmp_path: Path, backbone: str) -> None:
    run = _variant(tested, tmp_path / backbone, network={"backbone": backbone, "image_size": 32})
    assert _cells(compare([run]))[0][1] == backbone

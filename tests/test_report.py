"""The page and the card of a finished run."""

import base64
import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch.utils.tensorboard import SummaryWriter

from agr_lightning.evaluation.figures import draw_curves, read_curves
from agr_lightning.evaluation.metric_table import METRICS
from agr_lightning.evaluation.report import report
from agr_lightning.labels import AGE_BANDS, GENDERS, MISSING, RACES, TASKS
from agr_lightning.messages import UserError
from tests.conftest import copy_run
from tests.finished_run import CONFIG, random_samples, write_results, write_training

Run = Callable[..., tuple[int, str, str]]

VOID = {"meta", "link", "img", "br", "input"}


class Page(HTMLParser):
    """A page as its reader gets it: rows of tables, pictures, addresses that it would ask for; tags must match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.pictures: list[bytes] = []
        self.asks: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self._open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        for name, value in attrs:
            if name in ("src", "href", "srcset", "action") and value and not value.startswith("#"):
                head, _, content = value.partition("base64,")
                if head == "data:image/png;":
                    self.pictures.append(base64.b64decode(content))
                elif value != "data:,":
                    self.asks.append(value)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] in ("td", "th", "small") and {"td", "th"} & set(self._open):
            self.rows[-1][-1] += data


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that trained and tested. Not to be changed."""
    folder = tmp_path_factory.mktemp("finished") / "version_0"
    write_results(folder, random_samples(400))
    write_training(folder)
    return folder


@pytest.fixture
def tested(finished: Path, tmp_path: Path) -> Path:
    return copy_run(finished, tmp_path)


def _report(folder: Path, no_faces: bool = False) -> tuple[Page, str]:
    page, card = folder / "report.html", folder / "MODEL_CARD.md"
    assert report(str(folder), no_faces) == f"{page}\n{card}"
    return Page(page.read_text()), card.read_text()


def _results(folder: Path, **changes: Any) -> Any:
    path = folder / "results.json"
    results = json.loads(path.read_text())
    if changes:
        path.write_text(json.dumps(results | changes))
    return results


def test_page_and_card_say_what_the_results_say(tested: Path) -> None:
    page, card = _report(tested)
    results = _results(tested)
    values, intervals = results["metrics"], results["metrics"]["intervals"]
    rows = {row[0]: row for row in reversed(page.rows)}  # the first table comes first
    for name, metric in METRICS.items():
        text = metric.text(values[name], intervals[name])
        assert rows[metric.label][2] == text.replace("(", "").replace(")", "")
        assert f"| {metric.label} | {text} |" in card
    shown = {(row[0].replace(" ", "_"), row[1]): row for row in page.rows if len(row) == 8}
    for group in results["groups"]:
        row = shown[group["attribute"].replace(" ", "_"), group["value"]]
        assert row[2] == f"{group['n']:,}" and row[3].startswith(METRICS["age_mae"].text(group["age_mae"]))
    for name in (*GENDERS, *RACES, *(band for band in AGE_BANDS if ("age_band", band) in shown)):
        assert f"| {name} | " in card
    minors = results["minors"]["careful"]
    assert f"| careful | {minors['threshold']:.1f} | {100 * minors['recall']:.1f} %" in card


def test_the_page_needs_nothing_from_elsewhere(tested: Path) -> None:
    page, _ = _report(tested)
    text = (tested / "report.html").read_text()
    assert not page.asks and "@import" not in text and "url(" not in text
    figures = sorted(figure.read_bytes() for figure in (tested / "figures").iterdir())
    assert sorted(page.pictures) == figures and len(figures) == 9


def test_data_and_protocol_are_those_of_the_run(tested: Path) -> None:
    page, card = _report(tested)
    rows = {row[0]: row[1] for row in page.rows if len(row) == 2}
    assert (
        rows["network"] == "agr_cnn, 3.48 million parameters, RGB images of 48 x 48 pixels; predicts age, gender, race"
    )
    assert rows["trained on"] == "960 to train, 120 to validate, 120 to test (images of 1,200 drawn test cards)"
    assert rows["weights"] == "of epoch 5, with the lowest validation loss, after 1.5 minutes of training"
    assert rows["data"] == "synthetic 1200; split random; seed 0; batch_size 32"
    assert rows["model"] == (
        "backbone agr_cnn; weights first.safetensors; tasks age, gender, race; loss_weights age 0.1, gender 1.0, "
        "race 1.0; learning_rate 0.002; optimizer class_path torch.optim.SGD, init_args momentum 0.9"
    )
    assert rows["trainer"] == "max_epochs 8; seed 42"
    for name, text in rows.items():
        assert f"| {name} | {text} |" in card.replace("\\", "")
    for text in ((tested / "report.html").read_text(), card):
        assert "Trained on drawn test cards" in text and str(tested) not in text and "/home" not in text


def test_photos_can_be_left_out(tested: Path) -> None:
    page, _ = _report(tested, no_faces=True)
    assert len(page.pictures) == 7 and 'id="look"' not in (tested / "report.html").read_text()


def test_a_run_that_only_tested_knows_how_its_checkpoint_was_trained(tested: Path) -> None:
    other = tested.parent / "version_1"
    write_results(other, random_samples(50), checkpoint="../version_0/checkpoints/best.ckpt")
    tested.parent.rename(tested.parents[1] / "moved")
    other = tested.parents[1] / "moved" / "version_1"
    page, _ = _report(other)
    assert {"trained on", "model", "trainer"} <= {row[0] for row in page.rows} and len(page.pictures) == 9
    shutil.rmtree(other.parent / "version_0")
    page, card = _report(other)
    assert "trained on" not in {row[0] for row in page.rows}
    assert "not known here: the checkpoint is not in the run folder" in card


@pytest.mark.parametrize("checkpoint", ["agr", "small", "../exported.safetensors"])
def test_exported_weights_do_not_say_how_they_were_trained(tested: Path, checkpoint: str) -> None:
    _results(tested, checkpoint=checkpoint)
    page, card = _report(tested)
    rows = {row[0]: row[1] for row in page.rows if len(row) == 2}
    assert "not known here: exported weights do not say" in card and "trained on" not in rows
    assert "in neither training nor validation" in rows["tested on"]


def test_only_known_training_images_are_said_to_be_others(tested: Path) -> None:
    _results(tested, checkpoint="../elsewhere/best.ckpt")
    _, card = _report(tested)
    assert "in neither training nor validation" not in card


def test_tested_on_another_folder(tested: Path) -> None:
    config = CONFIG | {"data": CONFIG["data"] | {"root": "/home/somebody/UTKFace", "synthetic": 0}}
    (tested / "config.yaml").write_text(yaml.safe_dump(config))
    page, _ = _report(tested)
    rows = {row[0]: row[1] for row in page.rows if len(row) == 2}
    assert rows["tested on"].startswith("400 images of UTKFace, in neither training nor validation; ")
    config["data"]["test_root"] = "C:\\Users\\somebody\\faces"
    (tested / "config.yaml").write_text(yaml.safe_dump(config))
    page, card = _report(tested)
    rows = {row[0]: row[1] for row in page.rows if len(row) == 2}
    assert rows["tested on"].startswith("400 images, all of faces, ") and "drawn" not in card


def test_what_is_not_known_is_said(tmp_path: Path) -> None:
    write_results(tmp_path, random_samples(60), ["gender"], training_seconds=None)
    write_training(tmp_path)
    page, card = _report(tmp_path)
    rows = {row[0]: row for row in reversed(page.rows)}
    assert rows["age MAE"][2] == "not known: the network does not predict age"
    assert "| race accuracy | not known: the network does not predict race |" in card
    assert "Minors" not in card and "None" not in card and "nan" not in card.lower()


def test_names_are_text_and_not_markup(tested: Path) -> None:
    name = "<script>alert('1')|`&[a](b)_i_"
    folder = tested.rename(tested.parent / name)
    results = _results(folder)
    group, worst = results["groups"][0], results["worst_groups"]["age_mae"]
    group["value"] = worst["value"] = "<i>x</i>|*y*\n\n# z"
    network = results["network"] | {"backbone": "<b>net</b>_1_"}
    _results(
        folder,
        groups=results["groups"],
        worst_groups=results["worst_groups"],
        network=network,
        backbone="<b>net</b>_1_",
    )
    config = CONFIG | {"data": CONFIG["data"] | {"synthetic": 0, "root": "<u>|data"}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    _, card = _report(folder)
    text = (folder / "report.html").read_text()
    assert not re.search("<script>alert|<i>|<b>net|<u>", text) and "&lt;i&gt;x&lt;/i&gt;" in text
    assert not re.search(r"(?<!\\)(<|`&|\[a|\*y|_i_)", card.replace("`results.json`", "").replace("`report.html`", ""))
    assert "\n# z" not in card and r"\<i\>x\</i\>\|\*y\* # z" in card and r"\<b\>net\</b\>\_1\_" in card
    # The rows have as many cells as their heads.
    for table in card.split("\n\n"):
        if table.startswith("|"):
            assert len({len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines()}) == 1, table


@pytest.mark.parametrize(
    "changes",
    [
        {"metrics": {}},
        {"groups": [{}]},
        {"classes": None},
        {"minors": {"default": {}}},
        {"network": "small"},
        {"network": None, "model": {"backbone": "agr_cnn"}},
        {"checkpoint": None, "test_set": None, "worst_groups": {"age_mae": {"value": "x"}}},
    ],
)
def test_results_that_are_not_ours_are_refused(tested: Path, changes: dict[str, Any]) -> None:
    _results(tested, **changes)
    with pytest.raises(UserError, match=r"is not a results\.json of this version"):
        report(str(tested))
    assert not (tested / "report.html").exists() and not (tested / "MODEL_CARD.md").exists()


@pytest.mark.parametrize("text", ["a: [1,", "[]", "model: 1", "data: {}"])
def test_a_damaged_config_only_leaves_its_facts_out(tested: Path, text: str) -> None:
    (tested / "config.yaml").write_text(text)
    page, _ = _report(tested)
    assert {"network", "tested on"} <= {row[0] for row in page.rows}


def test_a_resumed_run_has_one_curve(tmp_path: Path) -> None:
    for first, points in ((0, [5.0, 4.0, 3.5]), (2, [3.0, 2.0])):
        with SummaryWriter(tmp_path) as writer:
            for step, value in enumerate(points, first):
                writer.add_scalar("val/loss", value, step)
    curve = read_curves(tmp_path)["val/loss"]
    assert curve.index.tolist() == [0, 1, 2, 3] and curve.tolist() == [5.0, 4.0, 3.0, 2.0]


def test_curves_show_what_was_logged(tested: Path) -> None:
    curves = read_curves(tested)
    figure = draw_curves(curves)
    assert figure is not None
    panel = next(axes for axes in figure.axes if axes.get_title().startswith("gender"))
    lines = {line.get_label(): line for line in panel.lines}
    assert lines["validation"].get_ydata().tolist() == (100 * curves["val/gender_acc"]).tolist()
    assert lines["validation"].get_xdata().tolist() == [0, 10, 20, 30]
    assert lines["lowest validation loss"].get_xdata()[0] == 20


def test_nothing_logged_is_no_figure(tmp_path: Path) -> None:
    assert draw_curves(read_curves(tmp_path)) is None


def test_every_metric_of_the_results_is_in_the_table(tested: Path) -> None:
    values = _results(tested)["metrics"]
    assert set(values) == set(METRICS) | {"intervals"}
    assert re.fullmatch(r"[+-]\d+\.\d\d years", METRICS["age_bias"].text(values["age_bias"]))


@pytest.mark.parametrize("kind", ["no age", "no gender", "no race", "one class", "one age", "one image"])
def test_poor_test_sets_have_a_report(tmp_path: Path, kind: str) -> None:
    samples = random_samples(1 if kind == "one image" else 10)
    unlabelled = [task for task in TASKS if kind == f"no {task}"]
    samples[unlabelled] = MISSING
    if kind == "one class":
        samples["gender"] = 0
    elif kind == "one age":
        samples["age"] = 30
    results = write_results(tmp_path, samples)
    page, card = _report(tmp_path)
    rows = {row[0]: row for row in reversed(page.rows)}
    for task in unlabelled:
        reason = f"not known: no test image has a label for {task}"
        assert {rows[metric.label][2] for metric in METRICS.values() if metric.task == task} == {reason}
        assert card.count(reason) == sum(metric.task == task for metric in METRICS.values())
        assert f"confusion_{task}" not in results["classes"] and ("Minors" in card) == (task != "age")
    assert rows["tested on"][1].startswith(f"{results['n']} image")
    assert "nan" not in card.lower() and "None" not in card and "Groups of fewer than 30" in card


def test_the_command_reports_a_real_run(trained: Path, here: Path, run: Run) -> None:
    folder = copy_run(trained, here)
    code, out, err = run("report", str(folder))
    assert code == 0, err
    assert out.split() == [str(folder / "report.html"), str(folder / "MODEL_CARD.md")]
    page = Page((folder / "report.html").read_text())
    rows = {row[0]: row[1] for row in page.rows if len(row) == 2}
    assert {"network", "tested on", "trained on", "weights", "data", "model", "trainer"} == set(rows)
    assert len(page.pictures) == 9 and "max_epochs 5" in rows["trainer"] and str(here) not in str(page.rows)

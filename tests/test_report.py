"""The page and the card of a finished run."""

import base64
import io
import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from agr_lightning.evaluation.curves import CURVES_FIGURE, draw_curves, read_curves
from agr_lightning.evaluation.wording import WORDING, with_interval, written
from agr_lightning.labels import AGE_BANDS, GENDERS, RACES
from tests.conftest import FAST, copy_run

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
                if head in ("data:image/png;", "data:image/jpeg;"):
                    self.pictures.append(base64.b64decode(content))
                elif value != "data:,":
                    self.asks.append(value)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] in ("td", "th", "small") and {"td", "th"} & set(self._open):
            self.rows[-1][-1] += data


@pytest.fixture
def tested(trained: Path, here: Path) -> Path:
    return copy_run(trained, here)


def _report(run: Run, folder: Path, *options: str) -> tuple[Page, str]:
    code, out, err = run("report", str(folder), *options)
    assert code == 0, err
    assert out.split() == [str(folder / "report.html"), str(folder / "MODEL_CARD.md")]
    return Page((folder / "report.html").read_text()), (folder / "MODEL_CARD.md").read_text()


def _results(folder: Path, **changes: Any) -> Any:
    path = folder / "results.json"
    results = json.loads(path.read_text())
    if changes:
        path.write_text(json.dumps(results | changes))
    return results


def test_page_and_card_say_what_the_results_say(tested: Path, run: Run) -> None:
    page, card = _report(run, tested)
    results = _results(tested)
    metrics, intervals = results["metrics"], results["metrics"]["intervals"]
    rows = {row[0]: row for row in reversed(page.rows)}  # the first table comes first
    for name, wording in WORDING.items():
        value = with_interval(name, metrics[name], intervals[name])
        assert rows[wording.label][2] == value.replace("(", "").replace(")", "")
        assert f"| {wording.label} | {value} |" in card
    shown = {(row[0].replace(" ", "_"), row[1]): row for row in page.rows if len(row) == 8}
    for group in results["groups"]:
        row = shown[group["attribute"].replace(" ", "_"), group["value"]]
        assert row[2] == f"{group['n']:,}" and row[3].startswith(written("age_mae", group["age_mae"]))
    for name in (*GENDERS, *RACES, *(band for band in AGE_BANDS if ("age_band", band) in shown)):
        assert f"| {name} | " in card
    minors = results["minors"]["careful"]
    assert f"| careful | {minors['threshold']:.1f} | {100 * minors['recall']:.1f} %" in card


def test_the_page_needs_nothing_from_elsewhere(tested: Path, run: Run) -> None:
    page, _ = _report(run, tested)
    text = (tested / "report.html").read_text()
    assert not page.asks and "@import" not in text and "url(" not in text
    names = {figure.stem for figure in (tested / "figures").iterdir()}
    assert CURVES_FIGURE in names
    assert {Image.open(io.BytesIO(picture)).size for picture in page.pictures} == {
        Image.open(figure).size for figure in (tested / "figures").iterdir()
    }
    assert len(page.pictures) == len(names) == 9


def test_data_and_protocol_are_those_of_the_run(tested: Path, run: Run) -> None:
    page, card = _report(run, tested)
    rows = {row[0]: row[1] for row in page.rows if len(row) == 2}
    counts = {side: len((tested / "splits" / f"{side}.txt").read_text().split()) for side in ("train", "val", "test")}
    assert rows["trained on"].startswith(
        f"{counts['train']} to train, {counts['val']} to validate, {counts['test']} to test (images of 1,200 drawn test"
    )
    assert "random split with seed 0" in rows["trained on"] and "8 epochs, batches of 32" in rows["training"]
    assert "48 x 48 pixels" in rows["network"] and "learning rate up to 0.002" in rows["optimizer"]
    for name, text in rows.items():
        assert f"| {name} | {text} |" in card
    for text in ((tested / "report.html").read_text(), card):
        assert "Trained on drawn test cards" in text and str(tested) not in text


def test_photos_can_be_left_out(tested: Path, run: Run) -> None:
    page, _ = _report(run, tested, "--no_faces")
    assert len(page.pictures) == 7 and 'id="look"' not in (tested / "report.html").read_text()


def test_a_run_that_only_tested_knows_how_its_checkpoint_was_trained(tested: Path, here: Path, run: Run) -> None:
    code, _, err = run("test", "--ckpt_path", "best", "--trainer.enable_progress_bar", "false")
    assert code == 0, err
    (here / "lightning_logs").rename(here / "moved")
    page, _ = _report(run, here / "moved" / "version_1")
    assert {"trained on", "training", "loss"} <= {row[0] for row in page.rows}
    assert len(page.pictures) == 9
    shutil.rmtree(here / "moved" / "version_0")
    page, card = _report(run, here / "moved" / "version_1")
    assert "trained on" not in {row[0] for row in page.rows} and "not known here" in card


def test_a_test_of_a_split_of_its_own_does_not_claim_to_be_clean(tested: Path, here: Path, run: Run) -> None:
    page, _ = _report(run, tested)
    claim = "in neither training nor validation"
    assert claim in (tested / "report.html").read_text()
    code, _, err = run(
        *("test", "--ckpt_path", "best", "--data.split", "random", "--data.seed", "7"),
        *("--trainer.enable_progress_bar", "false"),
    )
    assert code == 0, err
    page, card = _report(run, here / "lightning_logs" / "version_1")
    assert claim not in card and not any(claim in cell for row in page.rows for cell in row)


@pytest.mark.parametrize("content", [b"", b"no picture"])
def test_a_damaged_figure_is_named(tested: Path, run: Run, content: bytes) -> None:
    (tested / "figures" / "reliability.png").write_bytes(content)
    code, _, err = run("report", str(tested))
    assert code == 1 and "reliability.png is no picture" in err and err.count("\n") == 1
    assert not (tested / "report.html").exists()


def test_what_is_not_known_is_said(here: Path, run: Run) -> None:
    code, _, err = run(
        *("fit", "--data.synthetic", "60", *FAST, "--model.tasks", "[gender]", "--trainer.max_epochs", "1")
    )
    assert code == 0, err
    page, card = _report(run, here / "lightning_logs" / "version_0")
    rows = {row[0]: row for row in reversed(page.rows)}
    assert rows["age MAE"][2] == "not known: the network does not predict age"
    assert "| race accuracy | not known: the network does not predict race |" in card
    assert "| up to 1 epoch, " in card
    assert "Minors" not in card and "None" not in card and "nan" not in card.lower()


def test_names_are_text_and_not_markup(tested: Path, here: Path, run: Run) -> None:
    name = '<script>alert("1")|`&'
    tested.rename(here / name)
    results = _results(here / name)
    results["groups"][0]["value"] = "<i>x</i>"
    _results(here / name, groups=results["groups"])
    code, _, err = run("report", name)
    assert code == 0, err
    text = (here / name / "report.html").read_text()
    Page(text)
    assert "<script>alert" not in text and "<i>x</i>" not in text and "&lt;i&gt;x&lt;/i&gt;" in text


@pytest.mark.parametrize(
    "changes", [{"metrics": {}}, {"groups": [{}]}, {"classes": None}, {"minors": {"default": {}}}, {"model": "small"}]
)
def test_results_that_are_not_ours_are_refused(tested: Path, run: Run, changes: dict[str, Any]) -> None:
    _results(tested, **changes)
    code, out, err = run("report", str(tested))
    assert code == 1 and "is not a results.json of this version" in err and err.count("\n") == 1 and not out
    assert not (tested / "report.html").exists() and not (tested / "MODEL_CARD.md").exists()


def test_a_damaged_config_only_leaves_its_facts_out(tested: Path, run: Run) -> None:
    (tested / "config.yaml").write_text("a: [1,")
    page, _ = _report(run, tested)
    assert {"network", "tested on"} <= {row[0] for row in page.rows}


def test_a_run_that_was_gone_on_with_has_one_curve(tmp_path: Path) -> None:
    for first, points in ((0, [5.0, 4.0, 3.5]), (2, [3.0, 2.0])):
        with SummaryWriter(tmp_path) as writer:
            for step, value in enumerate(points, first):
                writer.add_scalar("val/loss", value, step)
    curve = read_curves(tmp_path)["val/loss"]
    assert curve.steps.tolist() == [0, 1, 2, 3] and curve.values.tolist() == [5.0, 4.0, 3.0, 2.0]


def test_curves_show_what_was_logged(trained: Path) -> None:
    curves = read_curves(trained)
    figure = draw_curves(curves)
    assert figure is not None
    panel = next(axes for axes in figure.axes if axes.get_title().startswith("gender"))
    lines = {line.get_label(): line for line in panel.lines}
    assert lines["validation"].get_ydata().tolist() == (100 * curves["val/gender_acc"].values).tolist()
    best = curves["val/loss"].steps[np.argmin(curves["val/loss"].values)]
    assert lines["lowest validation loss"].get_xdata()[0] == best


def test_nothing_logged_is_no_figure(tmp_path: Path) -> None:
    assert draw_curves(read_curves(tmp_path)) is None


def test_every_metric_of_the_results_has_its_words(trained: Path) -> None:
    assert set(_results(trained)["metrics"]) == set(WORDING) | {"intervals"}
    assert re.fullmatch(r"[+-]\d+\.\d\d years", written("age_bias", _results(trained)["metrics"]["age_bias"]))


@pytest.mark.parametrize("kind", ["no race", "one class", "one age", "one image"])
def test_poor_test_sets_have_a_report(tested: Path, here: Path, cards: Path, run: Run, kind: str) -> None:
    (here / "faces").mkdir()
    for number, card in enumerate(sorted(cards.glob("*.jpg"))[: 1 if kind == "one image" else 10]):
        age, gender, race, _ = card.name.split("_", 3)
        age, gender = "30" if kind == "one age" else age, "0" if kind == "one class" else gender
        labels = f"{age}_{gender}" if kind == "no race" else f"{age}_{gender}_{race}"
        shutil.copy(card, here / "faces" / f"{labels}_2017010{number}000000000.jpg")
    code, _, err = run(
        *("test", "--ckpt_path", "best", "--data.test_root", "faces", "--trainer.enable_progress_bar", "false")
    )
    assert code == 0, err
    page, card_text = _report(run, here / "lightning_logs" / "version_1")
    results = _results(here / "lightning_logs" / "version_1")
    assert results["n"] == (1 if kind == "one image" else 10)
    rows = {row[0]: row for row in reversed(page.rows)}
    if kind == "no race":
        assert rows["race accuracy"][2] == "not known: no test image has a race label"
    assert rows["tested on"][1].startswith(f"{results['n']} images, all of faces; ")
    assert "nan" not in card_text.lower() and "None" not in card_text and "Groups of fewer than 30" in card_text

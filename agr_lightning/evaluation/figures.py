"""A table of predictions -> figures. Pure matplotlib; no model, no trainer."""

import io
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from agr_lightning.evaluation.bootstrap import wilson
from agr_lightning.evaluation.table import Table
from agr_lightning.labels import AGE_BANDS, AGE_MAX, CLASSES, age_band

# A map that reads the same in print and to colour-blind eyes.
_SEQUENTIAL = "cividis"
INK, ACCENT, QUIET = "#1b2a41", "#c0503a", "#9aa5b1"

# The panels of the figure by group.
_BY_GROUP = {"age_mae": "age MAE (years)", "gender_acc": "gender errors (%)", "race_acc": "race errors (%)"}

_DPI = 130

# Bytes.
_LARGE = 400_000

# A title without a place of its own makes matplotlib measure all labels twice.
_STYLE: Any = {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.titley": 1.0}


def draw_figures(table: Table, results: dict[str, Any]) -> dict[str, Figure]:
    """Every plot that the table allows, by file name without its ending.

    Args:
        table: labels and predictions of a test set.
        results: what ``make_results`` made of it.

    Returns:
        Figures for the tasks that have predictions and labels.
    """
    with matplotlib.rc_context(_STYLE):
        figures = {}
        if not np.isnan(table.predicted_age).all():
            figures["age_predicted_vs_actual"] = _age_scatter(table)
            figures["age_error_by_age"] = _age_error(table)
        classified = {task: table.classifier(task) for task in CLASSES}
        for name, (probabilities, labels, known) in classified.items():
            if known.any():
                figures[f"confusion_{name}"] = _confusion(name, probabilities[known], labels[known], CLASSES[name])
        if any(known.any() for _, _, known in classified.values()):
            figures["reliability"] = _reliability(results)
        if any(results["metrics"][metric] is not None for metric in _BY_GROUP):
            figures["error_by_group"] = _error_by_group(results)
    return figures


def render(figure: Figure) -> Image.Image:
    """The picture of a figure, RGB."""
    figure.set_dpi(_DPI)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")  # type: ignore[no-untyped-call]


def encode(picture: Image.Image) -> bytes:
    """The PNG file of a picture."""
    file = io.BytesIO()
    # The default level takes three times as long and saves a tenth of the size.
    picture.save(file, "PNG", compress_level=1)
    return file.getvalue()


def compact(png: bytes) -> tuple[bytes, str]:
    """The same picture in a file that is not large, and its kind: a JPEG where the PNG is large, as of faces."""
    if len(png) <= _LARGE:
        return png, "png"
    file = io.BytesIO()
    Image.open(io.BytesIO(png)).convert("RGB").save(file, "JPEG", quality=90)
    return file.getvalue(), "jpeg"


def _panels(width: float, height: float, margins: tuple[float, float, float, float], count: int = 1) -> list[Axes]:
    """Panels beside each other on a new figure, each with the same room around it.

    matplotlib can find the room by itself, and takes most of the time that a figure needs.

    Args:
        width: of a panel without its margins, inches.
        height: likewise.
        margins: left, right, bottom and top of each panel, inches.
        count: of the panels.
    """
    left, right, bottom, top = margins
    step, tall = left + width + right, bottom + height + top
    figure = Figure(figsize=(step * count, tall))
    return [
        figure.add_axes(((step * n + left) / (step * count), bottom / tall, width / (step * count), height / tall))
        for n in range(count)
    ]


def _figure(axes: Axes) -> Figure:
    figure = axes.get_figure(root=True)
    assert isinstance(figure, Figure)
    return figure


def _confusion(
    name: str, probabilities: NDArray[np.float64], labels: NDArray[np.int64], classes: tuple[str, ...]
) -> Figure:
    n = len(classes)
    counts = np.bincount(labels * n + probabilities.argmax(1), minlength=n * n).reshape(n, n)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    (axes,) = _panels(0.95 * n, 0.9 * n, (0.95, 0.25 if n > 2 else 0.7, 0.55, 0.4))
    axes.imshow(shares, cmap=_SEQUENTIAL, vmin=0, vmax=1, aspect="auto")
    for row in range(n):
        for column in range(n):
            dark = shares[row, column] < 0.55
            text = f"{shares[row, column]:.0%}\n{counts[row, column]:,}"
            axes.text(column, row, text, ha="center", va="center", color="white" if dark else "black", fontsize=9)
    axes.set_xticks(range(n), classes)
    axes.set_yticks(range(n), classes)
    axes.spines[:].set_visible(False)
    axes.set_xlabel(f"predicted {name}")
    axes.set_ylabel(f"labelled {name}")
    accuracy = np.trace(counts) / counts.sum()
    axes.set_title(f"{name.capitalize()}: accuracy {accuracy:.1%} (n = {counts.sum():,})", fontsize=11)
    return _figure(axes)


def _age_scatter(table: Table) -> Figure:
    error = np.abs(table.error())
    top = max(AGE_MAX, float(np.nanmax(table.predicted_age)))
    (axes,) = _panels(4.2, 4.2, (0.65, 0.95, 0.55, 0.4))
    cells = axes.hexbin(
        table.age, table.predicted_age, gridsize=40, extent=(0, top, 0, top), bins="log", mincnt=1, cmap=_SEQUENTIAL
    )
    axes.plot([0, top], [0, top], color=ACCENT, linewidth=1.2, label="predicted = labelled")
    beside = axes.inset_axes((1.03, 0.1, 0.045, 0.8))
    scale = _figure(axes).colorbar(cells, cax=beside, label="images", format="%d")
    scale.ax.minorticks_off()
    scale.set_ticks([2**k for k in range(16) if 2**k <= cells.norm.vmax])
    axes.set_xlim(0, top)
    axes.set_ylim(0, top)
    axes.set_xlabel("labelled age (years)")
    axes.set_ylabel("predicted age (years)")
    axes.legend(loc="upper left", frameon=False)
    axes.set_title(f"Age: mean absolute error {np.nanmean(error):.2f} years (n = {len(error):,})", fontsize=11)
    return _figure(axes)


def _age_error(table: Table) -> Figure:
    error = table.error()
    bands = np.array([age_band(age) for age in table.age])
    shown = [band for band in range(len(AGE_BANDS)) if (bands == band).any()]
    (axes,) = _panels(5.5, 3.2, (0.7, 0.15, 0.7, 0.4))
    axes.axhline(0, color=QUIET, linewidth=1)
    axes.boxplot(
        [error[bands == band] for band in shown],
        whis=(5, 95),
        showfliers=False,
        widths=0.6,
        patch_artist=True,
        boxprops={"facecolor": "#cfd8e3", "edgecolor": INK},
        medianprops={"color": ACCENT, "linewidth": 2},
        whiskerprops={"color": INK},
        capprops={"color": INK},
    )
    labels = [f"{AGE_BANDS[band]}\nn={(bands == band).sum():,}" for band in shown]
    axes.set_xticks(range(1, len(shown) + 1), labels, fontsize=9)
    axes.set_xlabel("labelled age (years)")
    axes.set_ylabel("predicted minus labelled (years)")
    axes.set_title("Age error by age: median, quartiles, 5 to 95 %", fontsize=11)
    return _figure(axes)


def _reliability(results: dict[str, Any]) -> Figure:
    tasks = [task for task in CLASSES if results["calibration"][task] is not None]
    panels = _panels(3.6, 3.2, (0.65, 0.2, 0.55, 0.4), len(tasks))
    for task, axes in zip(tasks, panels, strict=True):
        found = results["calibration"][task]
        axes.plot([0, 1], [0, 1], color=QUIET, linewidth=1, label="as sure as right")
        points = [(each["confidence"], each["accuracy"], each["n"]) for each in found["bins"]]
        x, y, n = (np.array(column) for column in zip(*points, strict=True))
        axes.vlines(x, *zip(*map(wilson, y, n), strict=True), color=INK, linewidth=1)
        axes.scatter(x, y, s=12 + 180 * n / n.sum(), color=ACCENT, zorder=3, label="images (area: how many)")
        least = 1 / len(CLASSES[task])
        axes.set_xlim(least - 0.02, 1.02)
        axes.set_ylim(-0.02, 1.02)
        axes.set_xlabel("probability of the predicted class")
        axes.set_ylabel("share that is right")
        axes.legend(loc="upper left", frameon=False, fontsize=8, markerscale=0.5)
        error = results["metrics"][f"{task}_ece"]
        axes.set_title(f"{task.capitalize()}: calibration error {error:.1%}", fontsize=11)
    return _figure(panels[0])


def _error_by_group(results: dict[str, Any]) -> Figure:
    metrics = [metric for metric in _BY_GROUP if results["metrics"][metric] is not None]
    groups = [group for group in results["groups"] if " x " not in group["attribute"]][::-1]
    labels = [f"{group['value']}  (n={group['n']:,})" for group in groups]
    # The first panel's labels stand in the margin of all: as wide as the longest needs.
    margin = 0.25 + 0.075 * max(len(label) for label in labels)
    figure = Figure(figsize=(margin + 3.0 * len(metrics), 1.0 + 0.26 * len(groups)))
    panels = np.atleast_1d(figure.subplots(1, len(metrics), sharey=True))
    wide, tall = figure.get_size_inches()
    figure.subplots_adjust(margin / wide, 0.55 / tall, 1 - 0.15 / wide, 1 - 0.4 / tall, wspace=0.08)
    for metric, axes in zip(metrics, panels, strict=True):
        share = metric != "age_mae"
        axes.axvline(_as_error(results["metrics"][metric], share), color=QUIET, linewidth=1, linestyle="--")
        known = [(place, group) for place, group in enumerate(groups) if group[metric] is not None]
        sure = [(place, group["intervals"][metric]) for place, group in known if group["intervals"][metric]]
        ends = [sorted(_as_error(end, share) for end in interval) for _, interval in sure]
        if sure:
            axes.hlines([place for place, _ in sure], *zip(*ends, strict=True), color=INK, linewidth=1.4)
        values = [_as_error(group[metric], share) for _, group in known]
        axes.plot(values, [place for place, _ in known], "o", color=ACCENT, markersize=5)
        axes.set_xlabel(_BY_GROUP[metric])
        axes.set_xlim(left=0)
        axes.grid(axis="x", color="#e6e9ee", linewidth=0.8)
        axes.set_axisbelow(True)
    panels[0].set_yticks(range(len(groups)), labels, fontsize=9)
    previous = None
    for place, group in enumerate(groups):
        if previous not in (None, group["attribute"]):
            for axes in panels:
                axes.axhline(place - 0.5, color=QUIET, linewidth=0.6)
        previous = group["attribute"]
    figure.suptitle("Error by group, 95 % intervals; dashed: all images", fontsize=11, y=1 - 0.12 / tall, va="top")
    return figure


def _as_error(value: float, share: bool) -> float:
    return 100 * (1 - value) if share else value

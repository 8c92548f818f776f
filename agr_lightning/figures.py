"""A table of predictions -> figures. Pure matplotlib; no model, no trainer."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator
from numpy.typing import NDArray

from agr_lightning.labels import AGE_BANDS, AGE_MAX, GENDERS, MISSING, RACES, TASKS, Task, age_band
from agr_lightning.results import Table

if TYPE_CHECKING:
    from agr_lightning.compare import Row

# A map that reads the same in print and to colour-blind eyes.
_SEQUENTIAL = "cividis"
_INK, _ACCENT, _QUIET = "#1b2a41", "#c0503a", "#9aa5b1"

_GRID = (4, 8)
FACES_SHOWN = _GRID[0] * _GRID[1]


def draw_figures(table: Table, faces: NDArray[np.uint8]) -> dict[str, Figure]:
    """Every figure that the table allows, by file name without its ending.

    Args:
        table: labels and predictions of a test set.
        faces: images of the first ``FACES_SHOWN`` rows, RGB, uint8 ``(faces, height, width, 3)``.

    Returns:
        Figures for the tasks that have predictions and labels.
    """
    with matplotlib.rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        figures = {"sample_faces": _sample_faces(table, faces)}
        if not np.isnan(table.predicted_age).all():
            figures["age_predicted_vs_actual"] = _age_scatter(table)
            figures["age_error_by_age"] = _age_error(table)
        for name, probabilities, labels, classes in (
            ("gender", table.gender_probabilities, table.gender, GENDERS),
            ("race", table.race_probabilities, table.race, RACES),
        ):
            known = (labels != MISSING) & ~np.isnan(probabilities).any(1)
            if known.any():
                figures[f"confusion_{name}"] = _confusion(name, probabilities[known], labels[known], classes)
    return figures


def _confusion(
    name: str, probabilities: NDArray[np.float64], labels: NDArray[np.int64], classes: tuple[str, ...]
) -> Figure:
    n = len(classes)
    counts = np.bincount(labels * n + probabilities.argmax(1), minlength=n * n).reshape(n, n)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    figure = Figure(figsize=(1.0 * n + 2.0, 0.9 * n + 1.6), layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares, cmap=_SEQUENTIAL, vmin=0, vmax=1)
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
    figure.suptitle(f"{name.capitalize()}: accuracy {accuracy:.1%} (n = {counts.sum():,})", fontsize=11)
    return figure


def _age_scatter(table: Table) -> Figure:
    error = np.abs(table.predicted_age - table.age)
    top = max(AGE_MAX, float(np.nanmax(table.predicted_age)))
    figure = Figure(figsize=(5.6, 5.2), layout="constrained")
    axes = figure.subplots()
    cells = axes.hexbin(
        table.age, table.predicted_age, gridsize=40, extent=(0, top, 0, top), bins="log", mincnt=1, cmap=_SEQUENTIAL
    )
    axes.plot([0, top], [0, top], color=_ACCENT, linewidth=1.2, label="predicted = labelled")
    scale = figure.colorbar(cells, ax=axes, label="images", shrink=0.8, format="%d")
    scale.ax.minorticks_off()
    scale.set_ticks([2**k for k in range(16) if 2**k <= cells.norm.vmax])
    axes.set_xlim(0, top)
    axes.set_ylim(0, top)
    axes.set_aspect("equal")
    axes.set_xlabel("labelled age (years)")
    axes.set_ylabel("predicted age (years)")
    axes.legend(loc="upper left", frameon=False)
    axes.set_title(f"Age: mean absolute error {np.nanmean(error):.2f} years (n = {len(error):,})", fontsize=11)
    return figure


def _age_error(table: Table) -> Figure:
    error = table.predicted_age - table.age
    bands = np.array([age_band(age) for age in table.age])
    shown = [band for band in range(len(AGE_BANDS)) if (bands == band).any()]
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.axhline(0, color=_QUIET, linewidth=1)
    axes.boxplot(
        [error[bands == band] for band in shown],
        whis=(5, 95),
        showfliers=False,
        widths=0.6,
        patch_artist=True,
        boxprops={"facecolor": "#cfd8e3", "edgecolor": _INK},
        medianprops={"color": _ACCENT, "linewidth": 2},
        whiskerprops={"color": _INK},
        capprops={"color": _INK},
    )
    labels = [f"{AGE_BANDS[band]}\nn={(bands == band).sum():,}" for band in shown]
    axes.set_xticks(range(1, len(shown) + 1), labels, fontsize=9)
    axes.set_xlabel("labelled age (years)")
    axes.set_ylabel("predicted minus labelled (years)")
    axes.set_title("Age error by age: median, quartiles, 5 to 95 %", fontsize=11)
    return figure


def _sample_faces(table: Table, faces: NDArray[np.uint8]) -> Figure:
    rows, columns = _GRID
    figure = Figure(figsize=(1.35 * columns, 1.85 * rows), layout="constrained")
    for place, axes in enumerate(figure.subplots(rows, columns).flat):
        axes.set_axis_off()
        if place < len(faces):
            axes.imshow(faces[place])
            title, right = _caption(table, place)
            axes.set_title(title, fontsize=7.5, color=_INK if right else _ACCENT, linespacing=1.25)
    figure.suptitle("Predicted (labelled); red: gender or race differs, or age by more than 10 years", fontsize=10)
    return figure


def _caption(table: Table, row: int) -> tuple[str, bool]:
    """What to write above a face, and whether the prediction is right."""
    lines, right = [], True
    age = table.predicted_age[row]
    if not np.isnan(age):
        lines.append(f"{age:.0f} ({table.age[row]:.0f})")
        right &= bool(abs(age - table.age[row]) <= 10)
    for probabilities, labels, classes in (
        (table.gender_probabilities, table.gender, GENDERS),
        (table.race_probabilities, table.race, RACES),
    ):
        if np.isnan(probabilities[row]).any():
            continue
        guess, label = int(probabilities[row].argmax()), int(labels[row])
        lines.append(f"{classes[guess]} ({classes[label] if label != MISSING else '?'})")
        right &= label in (guess, MISSING)
    return "\n".join(lines), right


def draw_comparison(test_sets: "Sequence[Sequence[Row]]") -> Figure:
    """Error against latency: a row of panels for each test set, a panel for each task."""
    tasks = [task for task in TASKS if any(row.value(task) is not None for rows in test_sets for row in rows)]
    heights = [2.6 + 0.17 * len(rows) for rows in test_sets]
    figure = Figure(figsize=(5.6 * len(tasks), sum(heights)), layout="constrained")
    panels = figure.subplots(len(test_sets), len(tasks), squeeze=False, height_ratios=heights)
    for rows, line in zip(test_sets, panels, strict=True):
        for task, axes in zip(tasks, line, strict=True):
            _error_against_latency(axes, [row for row in rows if row.value(task) is not None], task)
        title = f"Test set {rows[0].results['test_set']}, {rows[0].results['n']:,} images"
        line[0].set_title(title, loc="left", fontsize=10)
    return figure


def _error_against_latency(axes: Axes, rows: "Sequence[Row]", task: Task) -> None:
    unit = "age MAE (years)" if task == "age" else f"{task} errors (%)"
    axes.set_ylabel(unit)
    axes.set_xlabel("milliseconds an image, one core")
    if not rows:
        axes.set_axis_off()
        return
    found = sorted(((_error(row.value(task), task), row) for row in rows), key=lambda pair: pair[0])
    errors = np.array([error for error, _ in found])
    for error, row in found:
        bounds = row.interval(task)
        if bounds is not None:
            low, high = sorted(_error(bound, task) for bound in bounds)
            axes.plot([row.cost.latency] * 2, [low, high], color=_QUIET, linewidth=1.2, zorder=1)
        axes.plot(row.cost.latency, error, "o", color=_ACCENT, markersize=5, zorder=2)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.08, y=0.08)
    # Names in a column on the right, in the order of the errors and far enough apart to be read.
    low, high = axes.get_ylim()
    places = (errors - low) / (high - low)
    gap = min(0.9 / len(found), 0.075)
    places = _apart(places, gap)
    for (error, row), place in zip(found, places, strict=True):
        axes.annotate(
            row.name,
            xy=(row.cost.latency, error),
            xytext=(1.03, place),
            textcoords="axes fraction",
            va="center",
            fontsize=8,
            color=_INK,
            arrowprops={"arrowstyle": "-", "color": _QUIET, "linewidth": 0.5, "shrinkA": 0, "shrinkB": 3},
            annotation_clip=False,
        )


def _error(value: float | None, task: Task) -> float:
    assert value is not None
    return value if task == "age" else 100 * (1 - value)


def _apart(places: NDArray[np.float64], gap: float) -> NDArray[np.float64]:
    """Ascending places within 0 to 1, moved as little as it takes to be ``gap`` apart."""
    moved = places.copy()
    for _ in range(200):
        for i in range(len(moved) - 1):
            lack = gap - (moved[i + 1] - moved[i])
            if lack > 0:
                moved[i] -= lack / 2
                moved[i + 1] += lack / 2
        moved = np.clip(moved, 0, 1)
    return moved

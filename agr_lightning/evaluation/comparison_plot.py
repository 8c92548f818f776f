"""Rows of a comparison -> one plot. Pure matplotlib."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator
from numpy.typing import NDArray

from agr_lightning.evaluation.figures import ACCENT, INK, QUIET
from agr_lightning.labels import TASKS, Task

if TYPE_CHECKING:
    from agr_lightning.evaluation.compare import Row


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
            axes.plot([row.cost.latency] * 2, [low, high], color=QUIET, linewidth=1.2, zorder=1)
        axes.plot(row.cost.latency, error, "o", color=ACCENT, markersize=5, zorder=2)
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
            color=INK,
            arrowprops={"arrowstyle": "-", "color": QUIET, "linewidth": 0.5, "shrinkA": 0, "shrinkB": 3},
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

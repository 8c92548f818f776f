"""Figures of a test and of a training run. Pure matplotlib; no model, no trainer."""

from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from pandas import DataFrame, Series

from agr_lightning.evaluation.metric_table import RANKED, Metric, Values, confidence, error, hits, predicted
from agr_lightning.evaluation.results import wilson
from agr_lightning.labels import AGE_BANDS, AGE_MAX, CLASSES, MISSING, ClassTask, age_band

# The names of the figure of the training curves and of those that show photos.
CURVES_FIGURE = "training_curves"
FACE_FIGURES = ("sample_faces", "worst_mistakes")

INK, ACCENT, QUIET, GRID = "#1b2a41", "#c0503a", "#9aa5b1", "#e6e9ee"

# With a colour map that reads the same in print and to colour-blind eyes.
_STYLE: Any = {"font.size": 10, "image.cmap": "cividis", "axes.spines.top": False, "axes.spines.right": False}
_STYLE |= {f"boxplot.{part}props.color": INK for part in ("box", "whisker", "cap")}
_STYLE |= {"axes.titlesize": 11, "boxplot.medianprops.color": ACCENT, "boxplot.medianprops.linewidth": 2}

_LINES, _COLUMNS = 4, 8  # of the grids of faces
_FAR_OFF = 10  # years of error, from which a caption is red


def draw_figures(
    table: DataFrame, results: Mapping[str, Any], faces: Callable[[Sequence[int]], NDArray[np.uint8]]
) -> dict[str, Figure]:
    """Every figure that the table allows, by file name without its ending.

    Args:
        table: predictions; see ``metric_table.prediction_table``.
        results: what ``make_results`` made of it.
        faces: gives the images with these ``table["index"]``, RGB, uint8 ``(n, height, width, 3)``.
    """
    figures = {}
    with matplotlib.rc_context(_STYLE):
        aged = table[~np.isnan(error(table))]
        if len(aged):
            figures["age_predicted_vs_actual"] = _age_scatter(aged)
            figures["age_error_by_age"] = _age_error(aged)
        classified = [task for task in CLASSES if results["classes"][task] is not None]
        figures |= {f"confusion_{task}": _confusion(task, results["classes"][task]["confusion"]) for task in classified}
        if any(results["calibration"].values()):
            figures["reliability"] = _reliability(results)
        if metrics := [metric for metric in RANKED if results["metrics"][metric.name] is not None]:
            figures["error_by_group"] = _error_by_group(results, metrics)
        text = "predicted (labelled, where it differs)"
        red = f"red: gender or race differs, or age by more than {_FAR_OFF} years"
        titles = (f"A sample: {text}; {red}", f"The worst mistakes: {text}")
        for name, title, rows in zip(FACE_FIGURES, titles, (sample_rows(table), worst_rows(table)), strict=True):
            if len(rows):
                chosen = table.iloc[rows]
                figures[name] = _face_grid(chosen, faces(chosen["index"].tolist()), title)
    return figures


def as_errors(metric: Metric, values: Sequence[Sequence[Any]]) -> tuple[Values, Values, str]:
    """A metric so that less is better: errors ``(n,)``, ``errorbar``'s bars ``(2, n)``, and a label for the axis.

    Args:
        metric: what was measured; errors are in years, or % of wrong answers.
        values: its values and the ends of their intervals, ``(n, 3)``; None where unknown.
    """
    ends, label = np.array(values, np.float64), f"{metric.label} (years)"
    if metric.unit == "%":
        ends, label = 100 * (1 - ends), f"{metric.task} errors (%)"
    return ends[:, 0], abs(np.sort(ends[:, 1:], axis=1) - ends[:, :1]).T, label


def draw_panels(
    width: float, height: float, columns: int = 1, rows: int = 1, **shared: Any
) -> tuple[Figure, list[Axes]]:
    """A figure and its panels, ``width`` and ``height`` inches each."""
    figure = Figure(figsize=(width * columns, height * rows), dpi=130, layout="constrained")
    return figure, list(figure.subplots(rows, columns, squeeze=False, **shared).ravel())


def _age_scatter(table: DataFrame) -> Figure:
    figure, (axes,) = draw_panels(5.8, 5.1)
    x, y = table["age"].to_numpy(), table["predicted_age"].to_numpy()
    top = max(AGE_MAX, y.max())
    cells = axes.hexbin(x, y, gridsize=40, extent=(0, top, 0, top), bins="log", mincnt=1)
    axes.plot([0, top], [0, top], color=ACCENT, linewidth=1.2, label="predicted = labelled")
    scale = figure.colorbar(cells, label="images", format="%d", shrink=0.8, aspect=18)
    scale.ax.minorticks_off()
    scale.set_ticks([2**k for k in range(16) if 2**k <= cells.norm.vmax])
    axes.set(xlim=(0, top), ylim=(0, top), xlabel="labelled age (years)", ylabel="predicted age (years)")
    axes.legend(loc="upper left", frameon=False)
    axes.set_title(f"Age: mean absolute error {abs(y - x).mean():.2f} years (n = {len(table):,})")
    return figure


def _age_error(table: DataFrame) -> Figure:
    bands = (table["predicted_age"] - table["age"]).groupby(table["age"].map(age_band))
    figure, (axes,) = draw_panels(6.4, 4.3)
    axes.axhline(0, color=QUIET, linewidth=1)
    labels = [f"{AGE_BANDS[band]}\nn={len(errors):,}" for band, errors in bands]
    axes.boxplot([errors for _, errors in bands], tick_labels=labels, whis=(5, 95), showfliers=False, widths=0.6)
    axes.tick_params(axis="x", labelsize=9)
    axes.set(xlabel="labelled age (years)", ylabel="predicted minus labelled (years)")
    axes.set_title("Age error by age: median, quartiles, 5 to 95 %")
    return figure


def _confusion(task: ClassTask, confusion: list[list[int]]) -> Figure:
    names, counts = CLASSES[task], np.array(confusion)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    figure, (axes,) = draw_panels(2.4 + 0.75 * len(names), 0.95 + 0.9 * len(names))
    axes.imshow(shares, vmin=0, vmax=1, aspect="auto")
    for (row, column), share in np.ndenumerate(shares):
        text, colour = f"{share:.0%}\n{counts[row, column]:,}", "white" if share < 0.55 else "black"
        axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=9)
    axes.set_xticks(range(len(names)), names)
    axes.set_yticks(range(len(names)), names)
    axes.spines[:].set_visible(False)
    axes.set(xlabel=f"predicted {task}", ylabel=f"labelled {task}")
    axes.set_title(f"{task.capitalize()}: accuracy {np.trace(counts) / counts.sum():.1%} (n = {counts.sum():,})")
    return figure


def _reliability(results: Mapping[str, Any]) -> Figure:
    measured = {name: found for name, found in results["calibration"].items() if found}
    figure, panels = draw_panels(4.4, 4.1, len(measured))
    for (name, found), axes in zip(measured.items(), panels, strict=True):
        x, y, n = DataFrame(found["bins"]).to_numpy().T
        what, of = ("of the predicted class", "right") if name in CLASSES else ("of being under 18", "under 18")
        distance = next(value for metric, value in results["metrics"].items() if metric.endswith(f"{name}_ece"))
        axes.plot([0, 1], [0, 1], color=QUIET, linewidth=1, label="as sure as right")
        axes.vlines(x, *zip(*map(wilson, y, n), strict=True), color=INK, linewidth=1)
        axes.scatter(x, y, s=12 + 180 * n / n.sum(), color=ACCENT, zorder=3, label="images (area: how many)")
        least = 1 / len(CLASSES[name]) if name in CLASSES else 0
        axes.set(xlim=(least - 0.02, 1.02), ylim=(-0.02, 1.02))
        axes.set(xlabel=f"probability {what}", ylabel=f"share that is {of}")
        axes.legend(loc="upper left", frameon=False, fontsize=8, markerscale=0.5)
        axes.set_title(f"{name.replace('_', ' ').capitalize()}: calibration error {distance:.1%}")
    return figure


def _error_by_group(results: Mapping[str, Any], metrics: Sequence[Metric]) -> Figure:
    groups = [group for group in results["groups"] if " x " not in group["attribute"]][::-1]
    borders = [row - 0.5 for row in range(1, len(groups)) if groups[row - 1]["attribute"] != groups[row]["attribute"]]
    figure, panels = draw_panels(3.0 + 1.6 / len(metrics), 1.0 + 0.26 * len(groups), len(metrics), sharey=True)
    for metric, axes in zip(metrics, panels, strict=True):
        found = [(group[metric.name], *(group["intervals"][metric.name] or (None, None))) for group in groups]
        errors, bars, label = as_errors(metric, [*found, (results["metrics"][metric.name], None, None)])
        axes.axvline(errors[-1], color=QUIET, linewidth=1, linestyle="--")
        axes.hlines(borders, 0, 1, QUIET, linewidth=0.6, transform=axes.get_yaxis_transform())
        axes.errorbar(
            errors[:-1], range(len(groups)), xerr=bars[:, :-1], fmt="o", color=ACCENT, ecolor=INK, markersize=5
        )
        axes.set(xlabel=label, xlim=(0, None))
        axes.grid(axis="x", color=GRID, linewidth=0.8)
    panels[0].set_yticks(range(len(groups)), [f"{group['value']}  (n={group['n']:,})" for group in groups], fontsize=9)
    figure.suptitle("Error by group, 95 % intervals; dashed: all images", fontsize=11)
    return figure


def sample_rows(table: DataFrame) -> NDArray[np.int64]:
    """Rows spread evenly over the table: neighbours in name order look alike."""
    shown = min(_LINES * _COLUMNS, len(table))
    return np.arange(shown) * len(table) // max(shown, 1)


def worst_rows(table: DataFrame) -> NDArray[np.int64]:
    """Rows of the worst mistakes: the largest age errors and the surest wrong classes, in turns."""
    scores = [abs(error(table)), *(np.where(hits(table, task) == 0, confidence(table, task), 0) for task in CLASSES)]
    ranked = [np.argsort(-score, kind="stable")[: (score > 0).sum()] for score in map(np.nan_to_num, scores)]
    turns = [row for rows in zip_longest(*ranked) for row in rows if row is not None]
    return np.array(list(dict.fromkeys(turns))[: _LINES * _COLUMNS], dtype=np.int64)


def _face_grid(table: DataFrame, faces: NDArray[np.uint8], title: str) -> Figure:
    """The faces of a table's rows with captions, which are red where something is wrong."""
    wrong, lines = abs(error(table)) > _FAR_OFF, []
    if not table["predicted_age"].isna().all():
        ages = zip(table["predicted_age"], table["age"], strict=True)
        lines.append([f"{age:.0f} ({'?' if label == MISSING else f'{label:.0f}'})" for age, label in ages])
    for task, names in CLASSES.items():
        if not np.isnan(confidence(table, task)).all():
            wrong |= hits(table, task) == 0
            pairs = zip(predicted(table, task), table[task], strict=True)
            known = [*names, "?"]  # MISSING is the last
            lines.append([names[code] if code == label else f"{names[code]} ({known[label]})" for code, label in pairs])
    figure, panels = draw_panels(1.17, 1.65, _COLUMNS, -(-len(table) // _COLUMNS))
    for axes in panels:
        axes.set_axis_off()
    for axes, face, red, caption in zip(panels, faces, wrong, zip(*lines, strict=True), strict=False):
        axes.imshow(face)
        axes.set_title("\n".join(caption), color=ACCENT if red else INK, fontsize=7.7, linespacing=1.1, pad=3)
    figure.suptitle(title, color=INK, fontsize=10)
    return figure


def read_curves(run: Path) -> dict[str, Series]:
    """What a run logged for TensorBoard: by name, the values over the training steps; none without event files."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    # All scalars; of images, which are large, no more than must be.
    events = EventAccumulator(str(run), size_guidance={"scalars": 0, "images": 1}).Reload()
    # A run that was resumed from an earlier step has logged some steps twice: the later ones count.
    return {
        name: Series({event.step: event.value for event in events.Scalars(name)}, dtype=float).sort_index()
        for name in events.Tags()["scalars"]
    }


def draw_curves(curves: Mapping[str, Series]) -> Figure | None:
    """Loss and metrics of training and validation over the steps; None when nothing was logged."""
    titles = {"loss": "loss"} | {metric.name: f"{metric.label} ({metric.unit})" for metric in RANKED}
    known = {name: curve.dropna() for name, curve in curves.items() if np.isfinite(curve).any()}
    shown = [name for name in titles if f"train/{name}" in known or f"val/{name}" in known]
    if not shown:
        return None
    columns = len(shown) if len(shown) % 2 else 2
    with matplotlib.rc_context(_STYLE | {"axes.titlesize": 10, "axes.labelsize": 9}):
        figure, panels = draw_panels(4.6, 3.1, columns, len(shown) // columns)
        for name, axes in zip(shown, panels, strict=True):
            if "val/loss" in known:
                label = "lowest validation loss"
                axes.axvline(known["val/loss"].idxmin(), color=QUIET, linewidth=1, linestyle="--", label=label)
            for stage, label, colour in (("train", "training", INK), ("val", "validation", ACCENT)):
                if (curve := known.get(f"{stage}/{name}")) is not None:
                    values, marker = 100 * curve if "%" in titles[name] else curve, "o" if len(curve) < 30 else None
                    axes.plot(curve.index, values, color=colour, marker=marker, markersize=3, label=label)
            axes.set(title=titles[name], xlabel="training steps")
            axes.xaxis.set_major_formatter("{x:,.0f}")
            axes.locator_params(axis="x", nbins=6, integer=True)
            axes.grid(axis="y", color=GRID, linewidth=0.8)
        panels[0].legend(frameon=False, fontsize=8)
    return figure

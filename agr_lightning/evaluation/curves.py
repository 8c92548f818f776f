"""TensorBoard's event files of a training run -> the figure of its curves."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from agr_lightning.evaluation.figures import ACCENT, INK, QUIET
from agr_lightning.evaluation.wording import WORDING

# The figure's name among those of a run.
CURVES_FIGURE = "training_curves"

_PANELS = {"loss": "loss"} | {
    metric: f"{WORDING[metric].label} ({'%' if WORDING[metric].share else 'years'})"
    for metric in ("age_mae", "gender_acc", "race_acc")
}


class Curve(NamedTuple):
    """One logged scalar: training steps, int64 ``(n,)``, rising; and values, float64 ``(n,)``."""

    steps: NDArray[np.int64]
    values: NDArray[np.float64]


def read_curves(run: Path) -> dict[str, Curve]:
    """The scalars that a run logged, by name; none without event files."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    # All scalars; of images, which are large, no more than must be.
    events = EventAccumulator(str(run), size_guidance={"scalars": 0, "images": 1})
    events.Reload()
    curves = {}
    for tag in events.Tags()["scalars"]:
        # A run that was gone on with from an earlier step has logged some steps twice: the later ones count.
        points = {event.step: event.value for event in events.Scalars(tag)}
        steps = np.array(sorted(points), dtype=np.int64)
        curves[tag] = Curve(steps, np.array([points[step] for step in steps.tolist()]))
    return curves


def draw_curves(curves: dict[str, Curve]) -> Figure | None:
    """Loss and metrics of training and validation over the steps; None when nothing was logged.

    Args:
        curves: by the names of the logged scalars.
    """
    shown = [name for name in _PANELS if any(_finite(curves, stage, name) for stage in ("train", "val"))]
    if not shown:
        return None
    columns = min(len(shown), 2)
    rows = -(-len(shown) // columns)
    width, height = 4.6 * columns, 3.1 * rows
    figure = Figure(figsize=(width, height))
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    figure.subplots_adjust(0.62 / width, 0.55 / height, 1 - 0.15 / width, 1 - 0.35 / height, 0.2, 0.32)
    for panel in panels[len(shown) :]:
        panel.set_axis_off()
    best = curves.get("val/loss")
    for name, axes in zip(shown, panels, strict=False):
        scale = 100 if name in WORDING and WORDING[name].share else 1
        if best is not None and np.isfinite(best.values).any():
            lowest = best.steps[np.nanargmin(best.values)]
            axes.axvline(lowest, color=QUIET, linewidth=1, linestyle="--", label="lowest validation loss")
        for stage, label, colour in (("train", "training", INK), ("val", "validation", ACCENT)):
            if _finite(curves, stage, name):
                curve = curves[f"{stage}/{name}"]
                dots = "o" if len(curve.steps) < 30 else None
                axes.plot(curve.steps, curve.values * scale, color=colour, marker=dots, markersize=3, label=label)
        axes.set_title(_PANELS[name], fontsize=10)
        axes.set_xlabel("training steps", fontsize=9)
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.xaxis.get_major_locator().set_params(nbins=6, integer=True)
        axes.grid(axis="y", color="#e6e9ee", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].legend(frameon=False, fontsize=8)
    return figure


def _finite(curves: dict[str, Curve], stage: str, name: str) -> bool:
    curve = curves.get(f"{stage}/{name}")
    return curve is not None and bool(np.isfinite(curve.values).any())

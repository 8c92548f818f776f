"""results.json files -> one table and one plot. Reads what tests wrote, and measures what their networks cost."""

from collections.abc import Sequence
from itertools import cycle
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator
from pandas import DataFrame, concat, notna
from torch.utils.benchmark import Timer
from torch.utils.flop_counter import FlopCounterMode

from agr_lightning.evaluation.figures import DPI, error_label, errors_with_bars
from agr_lightning.evaluation.metric_table import RANKED, Metric
from agr_lightning.evaluation.results import SMALLEST_GROUP
from agr_lightning.files import atomic_text, atomic_write, user_path
from agr_lightning.labels import TASKS
from agr_lightning.messages import UserError
from agr_lightning.models.config import NetworkConfig
from agr_lightning.models.network import AGRNetwork
from agr_lightning.runs import RESULTS_FILE, not_ours, read_results, run_name

_THROUGHPUT_BATCH = 32

# Networks are timed in turns, so that what slows the machine down slows all of them.
_TURNS, _SECONDS_A_TURN = 7, 0.15


def compare(runs: list[str], output: str | None = None) -> str:
    """One Markdown table of tested runs for each test set, the runs with the smallest error first.

    Args:
        runs: run folders, or results.json files.
        output: folder for comparison.md, comparison.csv and comparison.png; null writes none.

    Raises:
        UserError: when a run has no results that can be read.
    """
    table = DataFrame([_read(run) for run in runs])
    folder = None if output is None else user_path(output)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    alike, folders = table["name"].duplicated(keep=False), table.pop("folder")
    table.loc[alike, "name"] += ", " + folders[alike].map(run_name)
    # Equal networks are measured once.
    configs = list(dict.fromkeys(table["config"]))
    costs = measure_costs([AGRNetwork(config) for config in configs]).assign(config=configs)
    table = table.merge(costs, on="config").drop(columns="config")
    by, ascending = [metric.name for metric in RANKED], [metric.worst == "highest" for metric in RANKED]
    test_sets = [rows.sort_values(by, ascending=ascending) for _, rows in table.groupby("test_set", sort=False)]
    text = "\n\n".join(map(_markdown, test_sets)) + "\n"
    if folder is not None:
        rows = concat(test_sets).round({"weights_mb": 3, "latency_ms": 3, "images_per_second": 1})
        atomic_text(folder / "comparison.md", text)
        atomic_text(folder / "comparison.csv", rows.to_csv(index=False))
        if rows[by].notna().any(axis=None):
            with atomic_write(folder / "comparison.png") as file:
                draw_comparison(test_sets).savefig(file)
    return text


def _read(run: str) -> dict[str, Any]:
    """A run's row in the table, without the costs of its network."""
    folder, results = read_results(run)
    try:
        config = NetworkConfig.from_dict(results["network"])
        few = f" ({', '.join(config.tasks)})" if len(config.tasks) < len(TASKS) else ""
        row = {"run": run, "name": config.backbone + few, "test_set": str(results["test_set"]), "n": int(results["n"])}
        row |= {"backbone": config.backbone, "tasks": " ".join(config.tasks), "image_size": config.image_size}
        for metric in RANKED:
            name, values = metric.name, results["metrics"]
            found = (values[name], *(values["intervals"][name] or (None, None)))
            worst = results["worst_groups"][name] or {"value": None, name: None}
            row |= dict(zip(_with_ends(metric), found, strict=True)) | {
                f"{name}_worst_group": worst["value"],
                f"{name}_worst": worst[name],
            }
    except (ValueError, KeyError, TypeError, AttributeError, UserError):
        raise not_ours(folder / RESULTS_FILE) from None
    return row | {"folder": folder, "config": config}


def _markdown(rows: DataFrame) -> str:
    heads = [f"{metric.label}, years" if metric.unit == "years" else metric.task for metric in RANKED]
    costs = "parameters, M | multiply-adds, M | weights, MB | ms an image | images/s"
    lines = [
        f"Test set `{rows['test_set'].iloc[0]}`, {rows['n'].iloc[0]:,} images; 95 % intervals; worst groups of at "
        f"least {SMALLEST_GROUP} images; time on one core, of one image and in batches of {_THROUGHPUT_BATCH}.\n",
        f"| run | network | px | {' | '.join(heads)} | worst groups | {costs} |",
        "|---" * (9 + len(heads)) + "|",
    ]
    for row in rows.to_dict("records"):
        cells, worst = [row["run"], row["name"], str(row["image_size"])], []
        for metric in RANKED:
            name = metric.name
            cells.append(_text(metric, *(row[column] for column in _with_ends(metric))))
            if notna(row[f"{name}_worst"]):
                worst.append(f"{metric.task} {row[f'{name}_worst_group']}: {_text(metric, row[f'{name}_worst'])}")
        cells += [", ".join(worst), f"{row['parameters'] / 1e6:.2f}", f"{row['multiply_adds'] / 1e6:,.0f}"]
        cells += [f"{row['weights_mb']:.1f}", f"{row['latency_ms']:.1f}", f"{row['images_per_second']:,.0f}"]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def _text(metric: Metric, value: float, *interval: float) -> str:
    """Without the years, which the column's head has."""
    text = metric.text(value if notna(value) else None, [end for end in interval if notna(end)])
    return text.replace(" years", "")


def measure_costs(networks: Sequence[AGRNetwork]) -> DataFrame:
    """What networks cost to run on one core of a CPU.

    Returns:
        A row a network: ``parameters``; ``multiply_adds`` of convolutions and matrix products, for one image;
        ``weights_mb``, as 32-bit floats, 10^6 bytes; ``latency_ms`` of a batch of one; ``images_per_second`` in
        batches of 32. Times are medians, over turns of their medians.
    """
    rows, seconds = [], np.empty((_TURNS, len(networks), 2))
    with torch.inference_mode():
        for turn in seconds:
            for network, times in zip(networks, turn, strict=True):
                times[:] = [_seconds(network.eval(), batch) for batch in (1, _THROUGHPUT_BATCH)]
        for network, (single, batch) in zip(networks, np.median(seconds, 0), strict=True):
            with FlopCounterMode(display=False) as counter:
                network(_images(network, 1))
            parameters = sum(value.numel() for value in network.parameters())
            size = sum(value.nbytes for value in network.state_dict().values())
            costs = (counter.get_total_flops() // 2, size / 1e6, 1000 * single, _THROUGHPUT_BATCH / batch)
            rows.append((parameters, *costs))
    return DataFrame(rows, columns=["parameters", "multiply_adds", "weights_mb", "latency_ms", "images_per_second"])


def _seconds(network: AGRNetwork, batch: int) -> float:
    timer = Timer("network.predict(images)", globals={"network": network, "images": _images(network, batch)})
    return timer.blocked_autorange(min_run_time=_SECONDS_A_TURN).median


def _images(network: AGRNetwork, batch: int) -> torch.Tensor:
    shape = (batch, 3, network.config.image_size, network.config.image_size)
    return torch.randint(0, 256, shape, dtype=torch.uint8).contiguous(memory_format=torch.channels_last)


def draw_comparison(test_sets: Sequence[DataFrame]) -> Figure:
    """Error against latency: a row of panels for each test set, a panel for each task."""
    metrics = [metric for metric in RANKED if any(rows[metric.name].notna().any() for rows in test_sets)]
    heights = [2.6 + 0.17 * len(rows) for rows in test_sets]
    figure = Figure(figsize=(4.2 * len(metrics) + 1.6, sum(heights)), dpi=DPI, layout="constrained")
    panels = figure.subplots(len(test_sets), len(metrics), squeeze=False, height_ratios=heights)
    for rows, line in zip(test_sets, panels, strict=True):
        for metric, axes in zip(metrics, line, strict=True):
            errors, bars = errors_with_bars(metric, rows[_with_ends(metric)].to_numpy())
            points = zip(rows["name"], rows["latency_ms"], errors, bars.T, cycle("osD^vPX"), strict=False)
            for name, milliseconds, error, bar, marker in points:
                axes.errorbar(milliseconds, error, bar[:, None], fmt=marker, label=name, markersize=6, elinewidth=1)
            if np.isnan(errors).all():
                axes.set_axis_off()
            axes.set(xscale="log", xlabel="milliseconds an image, one core", ylabel=error_label(metric))
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_locator(NullLocator())
            axes.spines[["top", "right"]].set_visible(False)
        title = f"Test set {rows['test_set'].iloc[0]}, {rows['n'].iloc[0]:,} images"
        line[0].set_title(title, loc="left", fontsize=10)
        line[-1].legend(loc="upper left", bbox_to_anchor=(1.02, 1), frameon=False, fontsize=9)
    return figure


def _with_ends(metric: Metric) -> list[str]:
    """A metric's columns: its value and the ends of its interval."""
    return [f"{metric.name}{end}" for end in ("", "_low", "_high")]

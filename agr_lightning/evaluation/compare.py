"""results.json files -> one table and one plot. Reads what tests wrote, and measures what their networks cost."""

from collections.abc import Sequence
from itertools import cycle, product
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator
from pandas import DataFrame, concat
from torch.utils.benchmark import Timer
from torch.utils.flop_counter import FlopCounterMode

from agr_lightning.evaluation.figures import as_errors, draw_panels
from agr_lightning.evaluation.metric_table import RANKED, Metric
from agr_lightning.evaluation.report import fill
from agr_lightning.evaluation.results import SMALLEST_GROUP
from agr_lightning.files import RESULTS_FILE, atomic_text, atomic_write, not_ours, read_results, run_name, user_path
from agr_lightning.labels import TASKS
from agr_lightning.messages import UserError
from agr_lightning.models.config import NetworkConfig
from agr_lightning.models.network import AGRNetwork

_BATCH = 32  # in which throughput is measured

# Networks are timed in turns, so that what slows the machine down slows all of them.
_TURNS, _SECONDS_A_TURN = 7, 0.15


def compare(runs: list[str], output: str | None = None) -> str:
    """One Markdown table of tested runs for each test set, the runs with the smallest error first.

    Args:
        runs: run folders, or results.json files.
        output: folder for comparison.md, comparison.csv and comparison.png; null writes none.
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
    content = {"metrics": RANKED, "smallest_group": SMALLEST_GROUP, "batch": _BATCH}
    known = [rows.astype(object).where(rows.notna(), None).to_dict("records") for rows in test_sets]
    text = fill("comparison.md", content | {"test_sets": known})
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
            worst = results["worst_groups"][name] or {"value": None, name: None}
            found = (values[name], *(values["intervals"][name] or (None, None)), worst["value"], worst[name])
            row.update(zip(_columns(metric), found, strict=True))
    except (ValueError, KeyError, TypeError, AttributeError, UserError):
        raise not_ours(folder / RESULTS_FILE) from None
    return row | {"folder": folder, "config": config}


def _columns(metric: Metric) -> list[str]:
    """The columns of a metric's value, the ends of its interval, its worst group, and its value there."""
    return [f"{metric.name}{end}" for end in ("", "_low", "_high", "_worst_group", "_worst")]


def measure_costs(networks: Sequence[AGRNetwork]) -> DataFrame:
    """What networks cost to run on one core of a CPU.

    Returns:
        A row a network: ``parameters``; ``multiply_adds`` of convolutions and matrix products, for one image;
        ``weights_mb``, as 32-bit floats, 10^6 bytes; ``latency_ms`` of a batch of one; ``images_per_second`` in
        batches of 32. Times are medians, over turns of their medians.
    """
    rows = []
    with torch.inference_mode():
        turns = [[[_seconds(network, n) for n in (1, _BATCH)] for network in networks] for _ in range(_TURNS)]
        for network, (single, batch) in zip(networks, np.median(turns, axis=0), strict=True):
            with FlopCounterMode(display=False) as counter:
                network(_images(network, 1))
            parameters = sum(value.numel() for value in network.parameters())
            size = sum(value.nbytes for value in network.state_dict().values())
            rows.append((parameters, counter.get_total_flops() // 2, size / 1e6, 1000 * single, _BATCH / batch))
    return DataFrame(rows, columns=["parameters", "multiply_adds", "weights_mb", "latency_ms", "images_per_second"])


def _seconds(network: AGRNetwork, batch: int) -> float:
    names = {"network": network.eval(), "images": _images(network, batch)}
    return Timer("network.predict(images)", globals=names).blocked_autorange(min_run_time=_SECONDS_A_TURN).median


def _images(network: AGRNetwork, batch: int) -> torch.Tensor:
    shape = (batch, 3, network.config.image_size, network.config.image_size)
    return torch.randint(0, 256, shape, dtype=torch.uint8).contiguous(memory_format=torch.channels_last)


def draw_comparison(test_sets: Sequence[DataFrame]) -> Figure:
    """Error against latency: a row of panels for each test set, a panel for each task."""
    metrics = [metric for metric in RANKED if any(rows[metric.name].notna().any() for rows in test_sets)]
    height = 3 + 0.12 * max(map(len, test_sets))
    figure, panels = draw_panels(4.2 + 1.6 / len(metrics), height, len(metrics), len(test_sets))
    for (rows, metric), axes in zip(product(test_sets, metrics), panels, strict=True):
        errors, bars, label = as_errors(metric, rows[_columns(metric)[:3]].to_numpy())
        points = zip(rows["name"], rows["latency_ms"], errors, bars.T, cycle("osD^vPX"), strict=False)
        for name, milliseconds, error, bar, marker in points:
            axes.errorbar(milliseconds, error, bar[:, None], fmt=marker, label=name, markersize=6, elinewidth=1)
        if np.isnan(errors).all():
            axes.set_axis_off()
        axes.set(xscale="log", xlabel="milliseconds an image, one core", ylabel=label)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_locator(NullLocator())
        axes.spines[["top", "right"]].set_visible(False)
        if metric is metrics[0]:
            axes.set_title("Test set {test_set}, {n:,} images".format(**rows.iloc[0]), loc="left", fontsize=10)
        if metric is metrics[-1]:
            axes.legend(loc="upper left", bbox_to_anchor=(1.02, 1), frameon=False, fontsize=9)
    return figure

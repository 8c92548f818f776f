"""results.json files -> one table and one plot. Reads what tests wrote, and measures what their networks cost."""

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agr_lightning.evaluation.costs import THROUGHPUT_BATCH, Cost, measure_costs
from agr_lightning.evaluation.groups import SMALLEST_GROUP
from agr_lightning.evaluation.wording import bounds, written
from agr_lightning.files import atomic_text, atomic_write, user_path
from agr_lightning.labels import TASKS, Task
from agr_lightning.messages import UserError
from agr_lightning.models.network import AGRNetwork
from agr_lightning.runs import RESULTS_FILE, not_ours, read_results, run_name

_METRICS: dict[Task, str] = {"age": "age_mae", "gender": "gender_acc", "race": "race_acc"}


@dataclass(frozen=True)
class Row:
    """One run.

    Attributes:
        run: its folder, as it was named.
        name: short, and unlike those of the other runs.
        results: the content of its results.json.
        cost: of its network.
    """

    run: str
    name: str
    results: dict[str, Any]
    cost: Cost

    def value(self, task: Task) -> float | None:
        """Years of error for age, share of right answers for the others; None for a task it does not have."""
        found = self.results["metrics"][_METRICS[task]]
        return None if found is None else float(found)

    def interval(self, task: Task) -> tuple[float, float] | None:
        """The 95 % interval of ``value``."""
        bounds = self.results["metrics"]["intervals"][_METRICS[task]]
        return None if bounds is None else (float(bounds[0]), float(bounds[1]))

    def worst(self, task: Task) -> tuple[str, float] | None:
        """The group with the largest error, among those of at least ``SMALLEST_GROUP`` samples."""
        metric = _METRICS[task]
        groups = [g for g in self.results["groups"] if g["n"] >= SMALLEST_GROUP and g[metric] is not None]
        if not groups:
            return None
        group = (max if task == "age" else min)(groups, key=lambda group: group[metric])
        return group["value"], float(group[metric])


def compare(runs: Sequence[str], output: str | None = None) -> str:
    """Compares tested runs.

    Args:
        runs: run folders, or results.json files.
        output: folder for comparison.md, comparison.csv and comparison.png; None writes none.

    Returns:
        A Markdown table for each test set.

    Raises:
        UserError: when a run has no results that can be read.
    """
    networks: dict[str, AGRNetwork] = {}
    found = [_read(run, networks) for run in runs]
    folder = None if output is None else user_path(output)
    if folder is not None and folder.exists() and not folder.is_dir():
        raise UserError(f"--output {output} is a file; name a folder.")
    names = _names(runs, found)
    rows = [
        Row(run, name, results, cost)
        for run, name, results, cost in zip(runs, names, found, _costs(found, networks), strict=True)
    ]
    tables = _by_test_set(rows)
    text = "\n\n".join(_markdown(members) for members in tables) + "\n"
    if folder is not None:
        from agr_lightning.evaluation.comparison_plot import draw_comparison
        from agr_lightning.evaluation.figures import render

        folder.mkdir(parents=True, exist_ok=True)
        atomic_text(folder / "comparison.md", text)
        atomic_text(folder / "comparison.csv", _csv([row for members in tables for row in members]))
        if any(row.value(task) is not None for row in rows for task in TASKS):
            with atomic_write(folder / "comparison.png") as file:
                render(draw_comparison(tables)).save(file, "PNG")
    return text


def _read(run: str, networks: dict[str, AGRNetwork]) -> dict[str, Any]:
    """A run's results, whose network joins the others unless there is one like it."""
    folder, results = read_results(run)
    try:
        row = Row(run, run, results, Cost(0, 0, 0.0, 0.0, 0.0))
        for task in TASKS:
            row.value(task), row.interval(task), row.worst(task)
        str(results["test_set"]), int(results["n"]), int(results["model"]["image_size"])
        if _kind(results) not in networks:
            networks[_kind(results)] = AGRNetwork(**results["model"])
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, UserError):
        raise not_ours(folder / RESULTS_FILE) from None
    return results


def _names(runs: Sequence[str], found: Sequence[dict[str, Any]]) -> list[str]:
    """The backbones, with tasks where some are left out, and with the run where that is not enough."""
    names = []
    for results in found:
        model = results["model"]
        few = len(model["tasks"]) < len(TASKS)
        names.append(model["backbone"] + (f" ({', '.join(model['tasks'])})" if few else ""))
    often = Counter(names)
    return [name if often[name] == 1 else f"{name}, {_run_name(run)}" for name, run in zip(names, runs, strict=True)]


def _run_name(run: str) -> str:
    path = Path(run).resolve()
    return run_name(path.parent if path.name == RESULTS_FILE else path)


def _kind(results: dict[str, Any]) -> str:
    """The same for equal networks."""
    return json.dumps(results["model"], sort_keys=True)


def _costs(found: Sequence[dict[str, Any]], networks: dict[str, AGRNetwork]) -> list[Cost]:
    """Of each run's network; equal ones are measured once."""
    sizes = {_kind(results): int(results["model"]["image_size"]) for results in found}
    costs = dict(zip(sizes, measure_costs([(networks[kind], size) for kind, size in sizes.items()]), strict=True))
    return [costs[_kind(results)] for results in found]


def _by_test_set(rows: Sequence[Row]) -> list[list[Row]]:
    """The runs of each test set, the best first."""
    sets: dict[str, list[Row]] = {}
    for row in rows:
        sets.setdefault(row.results["test_set"], []).append(row)
    return [sorted(members, key=_rank) for members in sets.values()]


def _rank(row: Row) -> tuple[float, ...]:
    age, gender, race = (row.value(task) for task in TASKS)
    return (math.inf if age is None else age, -(race or 0), -(gender or 0))


def _markdown(rows: Sequence[Row]) -> str:
    results = rows[0].results
    lines = [
        f"Test set `{results['test_set']}`, {results['n']:,} images; 95 % intervals; worst groups of at least "
        f"{SMALLEST_GROUP} images; time on one core, of one image and in batches of {THROUGHPUT_BATCH}.",
        "",
        "| run | network | px | age MAE, years | gender | race | worst groups | parameters, M | multiply-adds, M | "
        "weights, MB | ms an image | images/s |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cost = row.cost
        size = str(row.results["model"]["image_size"])
        cells = [row.run, row.name, size, *(_figure(row, task) for task in TASKS), _worst(row)]
        cells += [f"{cost.parameters / 1e6:.2f}", f"{cost.multiply_adds / 1e6:,.0f}", f"{cost.megabytes:.1f}"]
        cells += [f"{cost.latency:.1f}", f"{cost.throughput:,.0f}"]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def _figure(row: Row, task: Task) -> str:
    interval = bounds(_METRICS[task], row.interval(task))
    return _written(row.value(task), task) + (f" ({interval})" if interval else "")


def _worst(row: Row) -> str:
    worst = {task: row.worst(task) for task in TASKS}
    return ", ".join(f"{task} {found[0]}: {_written(found[1], task)}" for task, found in worst.items() if found)


def _written(value: float | None, task: Task) -> str:
    """Without the years, which the column's title has."""
    return written(_METRICS[task], value).removesuffix(" years")


def _csv(rows: Sequence[Row]) -> str:
    text = io.StringIO()
    records = []
    for row in rows:
        record: dict[str, object] = {"run": row.run, "name": row.name, "test_set": row.results["test_set"]}
        record |= {"n": row.results["n"], "backbone": row.results["model"]["backbone"]}
        record |= {"tasks": " ".join(row.results["model"]["tasks"]), "image_size": row.results["model"]["image_size"]}
        for task, metric in _METRICS.items():
            low, high = row.interval(task) or (None, None)
            group, worst = row.worst(task) or (None, None)
            record |= {metric: row.value(task), f"{metric}_low": low, f"{metric}_high": high}
            record |= {f"{metric}_worst_group": group, f"{metric}_worst": worst}
        cost = row.cost
        record |= {"parameters": cost.parameters, "multiply_adds": cost.multiply_adds}
        record |= {"weights_mb": round(cost.megabytes, 3), "latency_ms": round(cost.latency, 3)}
        record |= {"images_per_second": round(cost.throughput, 1)}
        records.append(record)
    writer = csv.DictWriter(text, list(records[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()

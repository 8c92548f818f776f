"""What lies in a run folder, by name; how run folders are numbered, and how their results are read."""

import contextlib
import json
from pathlib import Path
from typing import Any

from agr_lightning.files import user_path
from agr_lightning.messages import UserError

RUNS_FOLDER = "lightning_logs"

CONFIG_FILE = "config.yaml"
CHECKPOINTS_FOLDER = "checkpoints"
SPLITS_FOLDER = "splits"
RESULTS_FILE = "results.json"
FIGURES_FOLDER = "figures"
PREDICTIONS_FILES = {"csv": "predictions.csv", "jsonl": "predictions.jsonl"}
REPORT_FILE = "report.html"
CARD_FILE = "MODEL_CARD.md"

# Exported networks: how their files end.
SAFETENSORS_SUFFIX, ONNX_SUFFIX = ".safetensors", ".onnx"

# The checkpoints of a run: that of the lowest validation loss, and that of the last epoch.
BEST, LAST = "best", "last"


def run_name(run: Path) -> str:
    """The folder's, with the folder above its logs where many are called version_0."""
    path = run.resolve()
    return path.name if path.name != "version_0" else f"{path.parent.parent.name}/{path.name}"


def number_of(run: Path) -> int | None:
    """N of a folder ``version_N``; None for another name."""
    number = run.name.removeprefix("version_")
    return int(number) if number.isdecimal() else None


def reserve_run(root: Path) -> int:
    """Makes the folder of the next run under ``root``, which no other process then takes, and returns its number."""
    runs = root / RUNS_FOLDER
    runs.mkdir(parents=True, exist_ok=True)
    number = max((n + 1 for run in runs.glob("version_*") if (n := number_of(run)) is not None), default=0)
    while True:
        with contextlib.suppress(FileExistsError):
            (runs / f"version_{number}").mkdir()
            return number
        number += 1


def read_results(run: str) -> tuple[Path, dict[str, Any]]:
    """A tested run's folder and results.

    Args:
        run: its folder, or its results.json.

    Raises:
        UserError: when there is none, or it is no JSON object.
    """
    named = user_path(run)
    path = named / RESULTS_FILE if named.is_dir() else named
    if not named.exists():
        raise UserError(f"{run} does not exist; name run folders like {RUNS_FOLDER}/version_0.")
    if not path.is_file():
        raise UserError(
            f"{run} has no {RESULTS_FILE}: test its checkpoint with `test --ckpt_path {run}`, and name the run folder "
            "that this makes."
        )
    try:
        results = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError):
        raise not_ours(path) from None
    if not isinstance(results, dict):
        raise not_ours(path)
    return path.parent, results


def not_ours(path: Path) -> UserError:
    """The error for results that cannot be understood."""
    return UserError(f"{path} is not a {RESULTS_FILE} of this version of the project: test the run's checkpoint again.")

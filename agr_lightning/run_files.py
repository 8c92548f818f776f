"""What lies in a run folder, by name, and how its results are read."""

import json
from pathlib import Path
from typing import Any

from agr_lightning.errors import UserError
from agr_lightning.files import user_path

RUNS_FOLDER = "lightning_logs"

CONFIG_FILE = "config.yaml"
CHECKPOINTS_FOLDER = "checkpoints"
SPLITS_FOLDER = "splits"
RESULTS_FILE = "results.json"
FIGURES_FOLDER = "figures"
PREDICTIONS_FILE = "predictions.csv"
REPORT_FILE = "report.html"
CARD_FILE = "MODEL_CARD.md"

# Exported networks: how their files end, and what stands for the one that comes with this project.
PACKED_SUFFIX = ".safetensors"
IN_THE_BOX = "the network that comes with this project"


def run_name(run: Path) -> str:
    """The folder's, with the folder above its logs where many are called version_0."""
    path = run.resolve()
    return path.name if path.name != "version_0" else f"{path.parent.parent.name}/{path.name}"


def run_of(checkpoint: Path) -> Path:
    """The run folder that a checkpoint lies in, if it is where it was written."""
    # Named from inside its folder, a file has no parents in its name.
    return (checkpoint if len(checkpoint.parts) > 2 else checkpoint.resolve()).parent.parent


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
        results = json.loads(path.read_text())
    except (ValueError, RecursionError):
        raise not_ours(path) from None
    if not isinstance(results, dict):
        raise not_ours(path)
    return path.parent, results


def not_ours(path: Path) -> UserError:
    """What to say of results that cannot be understood."""
    return UserError(f"{path} is not a {RESULTS_FILE} of this version of the project: test the run's checkpoint again.")

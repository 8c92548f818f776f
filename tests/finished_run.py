"""Run folders as training and tests leave them, made without either."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from pandas import DataFrame
from torch.utils.tensorboard import SummaryWriter

from agr_lightning.evaluation.figures import CURVES_FIGURE, draw_curves, draw_figures, read_curves
from agr_lightning.evaluation.metric_table import prediction_table
from agr_lightning.evaluation.results import make_results
from agr_lightning.labels import TASKS
from agr_lightning.models.config import NetworkConfig

CONFIG: dict[str, Any] = {
    "seed_everything": 42,
    "trainer": {"accelerator": "cpu", "max_epochs": 8, "max_steps": -1, "precision": None, "callbacks": None},
    "model": {
        "backbone": "agr_cnn",
        "weights": "/home/somebody/first.safetensors",
        "teachers": [],
        "tasks": ["age", "gender", "race"],
        "loss_weights": {"age": 0.1, "gender": 1.0, "race": 1.0},
        "learning_rate": 0.002,
        "tta_flip": False,
        "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"momentum": 0.9}},
    },
    "data": {"root": None, "synthetic": 1200, "test_root": None, "split": "random", "seed": 0, "batch_size": 32},
}

FACTS: dict[str, Any] = {
    "checkpoint": "checkpoints/best.ckpt",
    "epoch": 4,
    "network": NetworkConfig(image_size=48).to_dict(),
    "parameters": 3477450,
    "training_seconds": 90.0,
    "temperatures": {"gender": 1.2, "race": 0.9},
    "adult_threshold": 20.0,
    "under_18": {"slope": 0.8, "intercept": 0.1},
}


def random_samples(n: int, seed: int = 0) -> DataFrame:
    """A test set that no files stand behind."""
    rng = np.random.default_rng(seed)
    labels = [(int(rng.integers(0, 117)), int(rng.integers(2)), int(rng.integers(5))) for _ in range(n)]
    samples = DataFrame(labels, columns=["age", "gender", "race"])
    return samples.assign(name=samples.index.astype(str), group=samples.index)


def random_table(samples: DataFrame, tasks: Sequence[str] = TASKS, seed: int = 0) -> DataFrame:
    """Predictions for all of them."""
    rng = np.random.default_rng(seed)
    n = len(samples)
    gender, race = rng.dirichlet([1, 1], n), rng.dirichlet([1] * 5, n)
    age = samples["age"] + rng.normal(0, 6, n) if "age" in tasks else np.full(n, np.nan)
    gender = gender if "gender" in tasks else np.full((n, 2), np.nan)
    race = race if "race" in tasks else np.full((n, 5), np.nan)
    under_18 = 1 / (1 + np.exp(age - 18))
    labels = samples[["age", "gender", "race"]].to_numpy()
    return prediction_table(np.column_stack([np.arange(n), labels, age, age - 6, age + 6, gender, race, under_18]))


def shades(indices: Sequence[int]) -> Any:
    """Images of one shade each, in the order in which they were asked for."""
    return np.arange(len(indices), dtype=np.uint8)[:, None, None, None] * 7 + np.zeros((1, 16, 16, 3), np.uint8)


def write_results(folder: Path, samples: DataFrame, tasks: Sequence[str] = TASKS, **facts: Any) -> dict[str, Any]:
    """What a test leaves in a run folder: results.json and figures."""
    table = random_table(samples, tasks)
    network = FACTS["network"] | {"tasks": list(tasks)}
    results = make_results(table, samples, FACTS | {"network": network} | facts)
    (folder / "figures").mkdir(parents=True)
    for name, figure in draw_figures(table, results, shades).items():
        figure.savefig(folder / "figures" / f"{name}.png", dpi=40)
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG, sort_keys=False))
    return results


def write_training(folder: Path) -> None:
    """What training leaves in a run folder: lists of images, what was logged, and its curves."""
    (folder / "splits").mkdir(parents=True)
    for split, n in (("train", 960), ("val", 120), ("test", 120)):
        (folder / "splits" / f"{split}.txt").write_text("".join(f"{split}{i}.jpg\n" for i in range(n)))
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG, sort_keys=False))
    with SummaryWriter(folder) as writer:
        for step, value in enumerate((0.5, 0.4, 0.2, 0.3)):
            for name in ("loss", "age_mae", "gender_acc", "race_acc"):
                writer.add_scalar(f"val/{name}", value, 10 * step)
                writer.add_scalar(f"train/{name}", value / 2, 10 * step)
    figure = draw_curves(read_curves(folder))
    assert figure is not None
    (folder / "figures").mkdir(exist_ok=True)
    figure.savefig(folder / "figures" / f"{CURVES_FIGURE}.png", dpi=40)

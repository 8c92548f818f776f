"""Every shipped configuration fits, tests and predicts, on cards, for a few steps."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import FAST, save_noise

CONFIGS = sorted((Path(__file__).parents[1] / "configs").rglob("*.yaml"))


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_config_works(run: Callable[..., tuple[int, str, str]], here: Path, config: Path) -> None:
    code, _, err = run(
        *("fit", "--config", str(config), *FAST, "--data.synthetic", "120", "--trainer.max_epochs", "1"),
        *("--trainer.limit_train_batches", "2", "--trainer.limit_val_batches", "2"),
    )
    assert code == 0, err
    assert json.loads((here / "lightning_logs/version_0/results.json").read_text())["n"] > 0
    code, _, err = run("predict", *FAST, "--ckpt_path", "best", "--data.predict_path", str(save_noise(here / "a.jpg")))
    assert code == 0, err


def test_there_are_configs() -> None:
    assert {"quickstart", "utkface"} <= {config.stem for config in CONFIGS}

"""Every shipped configuration fits and predicts, on cards, for a few steps; the quickstart tests as well."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import FAST, save_noise

CONFIGS = Path(__file__).parents[1] / "configs"


@pytest.mark.parametrize("config", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: path.stem)
def test_config_works(run: Callable[..., tuple[int, str, str]], here: Path, config: Path) -> None:
    code, _, err = run(
        *("fit", "--config", str(config), *FAST, "--data.synthetic", "120", "--trainer.max_epochs", "1"),
        *("--trainer.limit_train_batches", "2", "--trainer.limit_val_batches", "2"),
        # Those of data sets are for a test on all images.
        *("--data.val_fraction", "0.1", "--data.test_fraction", "0.1"),
        *("--test_after_fit", "true" if config.stem == "quickstart" else "false"),
    )
    assert code == 0, err
    assert (here / "lightning_logs/version_0/results.json").exists() == (config.stem == "quickstart")
    code, _, err = run("predict", *FAST, "--ckpt_path", "best", "--data.predict_path", str(save_noise(here / "a.jpg")))
    assert code == 0, err


def test_there_is_one_config_for_each_system() -> None:
    assert [config.stem for config in sorted((CONFIGS / "systems").iterdir())] == ["a", "b", "c", "d", "e"]


def test_fit_on_cards_uses_the_quickstart_when_nothing_else_is_named(
    run: Callable[..., tuple[int, str, str]], here: Path
) -> None:
    options = ("--data.synthetic", "120", "--print_config")
    _, alone, _ = run("fit", *options)
    _, with_quickstart, _ = run("fit", "--config", str(CONFIGS / "quickstart.yaml"), *options)
    assert alone == with_quickstart and "image_size: 64" in alone

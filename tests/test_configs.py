"""Every shipped configuration fits, tests and predicts, on cards, for a few steps."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torchvision
import yaml
from torch import Tensor

from agr_lightning.models.backbones import BACKBONES, IMAGENET_WEIGHTS
from tests.conftest import FAST, save_noise

CONFIGS = sorted((Path(__file__).parents[1] / "configs").rglob("*.yaml"))


@pytest.fixture
def imagenet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random weights where ImageNet's would be downloaded from."""

    class Weights:
        url = "http://localhost:9/net.pth"

        def __init__(self, name: str) -> None:
            self.name = name

        def get_state_dict(self, **options: bool) -> dict[str, Tensor]:
            return dict(torchvision.models.get_model(self.name).state_dict())

    for name in IMAGENET_WEIGHTS:
        monkeypatch.setitem(IMAGENET_WEIGHTS, name, Weights(name))


@pytest.mark.usefixtures("imagenet")
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


def test_there_is_a_config_for_each_system_and_each_task() -> None:
    names = {f"{config.parent.name}/{config.stem}" for config in CONFIGS}
    assert {name.split("/")[1][0] for name in names if name.startswith("systems/")} == set("abcde")
    assert {f"study/{name}" for name in ("multi_task", "age_only", "gender_only", "race_only", "backbones")} <= names


def test_the_study_of_tasks_differs_in_tasks_alone() -> None:
    folder = Path(__file__).parents[1] / "configs" / "study"
    whole = yaml.safe_load((folder / "multi_task.yaml").read_text())
    for task in ("age", "gender", "race"):
        alone = yaml.safe_load((folder / f"{task}_only.yaml").read_text())
        assert alone.pop("model") == {"tasks": [task]} and alone == whole


def test_configs_name_backbones_that_exist() -> None:
    named = {yaml.safe_load(config.read_text()).get("model", {}).get("backbone", "agr_cnn") for config in CONFIGS}
    assert named <= set(BACKBONES) and len(named) >= 9

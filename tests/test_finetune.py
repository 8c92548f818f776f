"""Training that starts from trained weights: the network's form, its calibration, and what it is worth."""

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import lightning
import numpy as np
import pytest
import torch
import yaml

from agr_lightning import AGRModule, UTKFaceDataModule
from agr_lightning.checkpoints import TrainedNetwork, load_trained, write_safetensors
from agr_lightning.data.cards import draw_cards
from agr_lightning.messages import UserError
from agr_lightning.models.config import NetworkConfig
from agr_lightning.models.network import AGRNetwork
from tests.conftest import FAST

Run = Callable[..., tuple[int, str, str]]

FINETUNE = str(Path(__file__).parents[1] / "configs" / "finetune.yaml")
FORM = {
    "backbone": "agr_cnn_small",
    "age_loss": "dldl",
    "age_readout": "median",
    "image_size": 48,
    "dropout": 0.1,
    "grayscale": True,
    "tta_flip": True,
}


@pytest.fixture
def weights(here: Path) -> Path:
    """An exported network of another form than the default, for age and race."""
    config = NetworkConfig(tasks=("age", "race"), **FORM)  # type: ignore[arg-type]
    seen = {"training_images": np.eye(2, 32, dtype=np.uint8), "validation_images": np.full((1, 32), 3, np.uint8)}
    path = here / "weights.safetensors"
    write_safetensors(path, TrainedNetwork(config, AGRNetwork(config).state_dict(), seen, {}, None))
    return path


def _form(run: Run, *options: str) -> dict[str, object]:
    """The form that `fit` would have, with these options."""
    code, out, err = run("fit", *options, "--print_config")
    assert code == 0, err
    config = yaml.safe_load(out)
    return {name: config["data" if name == "image_size" else "model"][name] for name in NetworkConfig().to_dict()}


def test_the_form_is_that_of_the_weights(weights: Path, run: Run) -> None:
    everything = {"tasks": ["age", "gender", "race"]}
    assert _form(run, "--model.weights", str(weights)) == FORM | everything
    module = AGRModule(weights=str(weights))
    assert module.network.config.to_dict() == FORM | everything
    assert {name: module.hparams[name] for name in FORM} == FORM
    kept = load_trained(str(weights)).state
    found = module.network.state_dict()
    assert all(torch.equal(found[f"heads.{task}.weight"], kept[f"heads.{task}.weight"]) for task in ("age", "race"))


def test_what_is_asked_for_wins_over_the_weights(weights: Path, run: Run) -> None:
    (weights.parent / "mine.yaml").write_text("{model: {dropout: 0.5, grayscale: false}, data: {image_size: 64}}")
    options = ("--config", "mine.yaml", "--model.weights", str(weights), "--model.age_loss", "l1")
    asked = {"dropout": 0.5, "grayscale": False, "image_size": 64, "age_loss": "l1"}
    # The other head cannot be read as a median.
    expected = FORM | asked | {"age_readout": None, "tasks": ["age"]}
    assert _form(run, *options, "--model.tasks", "[age]") == expected
    module = AGRModule(weights=str(weights), tasks=["age"], **asked)  # type: ignore[arg-type]
    assert module.network.config.to_dict() == expected


def test_weights_that_do_not_say_of_what_they_are_change_nothing(weights: Path, run: Run) -> None:
    torch.save(AGRNetwork().state_dict(), "state.pth")
    assert _form(run, "--model.weights", "state.pth") == NetworkConfig().to_dict()
    assert AGRModule(weights="state.pth").network.config == NetworkConfig()


def test_a_run_is_resumed_with_its_form(weights: Path, run: Run) -> None:
    options = ("--data.synthetic", "120", *FAST[2:], "--test_after_fit", "false", "--trainer.max_epochs", "1")
    code, _, err = run("fit", "--config", FINETUNE, "--model.weights", str(weights), *options)
    assert code == 0, err
    weights.unlink()
    code, _, err = run("fit", "--config", "lightning_logs/version_0/config.yaml", "--ckpt_path", "last")
    assert code == 0, err
    assert load_trained("lightning_logs/version_0").config == NetworkConfig(**FORM)  # type: ignore[arg-type]


def test_images_of_another_size_than_the_network_s_are_refused(weights: Path) -> None:
    data = UTKFaceDataModule(synthetic=120, num_workers=0)
    with pytest.raises(UserError, match=r"the images are 128 px .* the network is for 48"):
        _trainer().fit(AGRModule(weights=str(weights)), data)


def _trainer(**options: object) -> lightning.Trainer:
    quiet = {"enable_progress_bar": False, "enable_checkpointing": False, "enable_model_summary": False}
    return lightning.Trainer(accelerator="cpu", logger=False, max_epochs=1, **quiet | options)  # type: ignore[arg-type]


def test_a_calibration_is_replaced(trained: Path, here: Path) -> None:
    def fit(**limits: int) -> dict[str, torch.Tensor]:
        module = AGRModule(weights=str(trained), learning_rate=1e-9)
        data = UTKFaceDataModule(synthetic=300, image_size=48, num_workers=0, seed=5)
        _trainer(limit_train_batches=1, **limits).fit(module, data)
        return module.network.calibration.state_dict()

    old = load_trained(str(trained)).network().calibration.state_dict()
    assert all(value.isfinite().all() for name, value in old.items() if name in ("age_low", "age_high"))
    found, without = fit(), fit(limit_val_batches=0)
    assert found["age_low"].isfinite().all() and not torch.equal(found["age_low"], old["age_low"])
    # Nothing is known of weights that nothing was validated with.
    assert without["age_low"].isnan().all() and without["gender_temperature"] == 1 != old["gender_temperature"]


def test_a_few_images_of_another_kind_make_the_network_better(trained: Path, here: Path, run: Run) -> None:
    (here / "mine").mkdir()
    for path in draw_cards(300, seed=7).iterdir():
        card = cv2.imread(str(path))
        assert card is not None
        cv2.imwrite(str(here / "mine" / path.name), 255 - card // 2)
    quiet = ("--data.root", "mine", *FAST[4:])
    code, _, err = run("fit", "--config", FINETUNE, "--model.weights", str(trained), *quiet)
    assert code == 0, err
    tuned = Path("lightning_logs/version_0")
    code, _, err = run("test", "--ckpt_path", str(trained), "--data.split", str(tuned / "splits"), *quiet)
    assert code == 0, err
    after, before = (json.loads((tuned.with_name(f"version_{n}") / "results.json").read_text()) for n in (0, 1))
    assert min(after["n"], before["n"]) >= 5  # since cards look alike, some are taken for those that were learned
    assert after["metrics"]["age_mae"] < 0.7 * before["metrics"]["age_mae"]
    # The images of both trainings are known, and the old intervals are gone.
    first, seen = load_trained(str(trained)).seen, load_trained(str(tuned)).seen
    assert first is not None and seen is not None
    assert set(map(bytes, first["training_images"])) < set(map(bytes, seen["training_images"]))
    assert after["age_interval"]["coverage"] > before["age_interval"]["coverage"]

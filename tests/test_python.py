"""What a command does, a plain Trainer does too: each test does both and compares."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import lightning
import numpy as np
import pytest
import torch
import yaml
from torch.utils.data import DataLoader, TensorDataset

from agr_lightning import AGRModule, Predictor, UTKFaceDataModule
from agr_lightning.callbacks import ConfigWriter, PredictionWriter, ResultsWriter, training_callbacks
from agr_lightning.checkpoints import load_trained
from agr_lightning.data.duplicates import are_known, of_samples
from agr_lightning.images import read_rgb
from agr_lightning.messages import UserError
from tests.conftest import FAST

Run = Callable[..., tuple[int, str, str]]

DATA = {"synthetic": 120, "image_size": 32, "batch_size": 16, "num_workers": 0}
CARDS = (*FAST, "--data.synthetic", "120")
VERSION = Path("lightning_logs/version_0")


def _trainer(**options: object) -> lightning.Trainer:
    quiet = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False}
    return lightning.Trainer(**{"logger": False, "enable_checkpointing": False} | quiet | options)  # type: ignore[arg-type]


def _weights(state: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([state[name].flatten().double() for name in sorted(state) if name.startswith("network.")])


def _last() -> torch.Tensor:
    return _weights(torch.load(VERSION / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]).nan_to_num()


def _fit_in_python(**options: object) -> AGRModule:
    lightning.seed_everything(42, workers=True)
    data = UTKFaceDataModule(**DATA)  # type: ignore[arg-type]
    module = AGRModule(image_size=32, **options)  # type: ignore[arg-type]
    _trainer(max_epochs=1, log_every_n_steps=10, use_distributed_sampler=False).fit(module, data)
    return module


@pytest.mark.parametrize(
    ("command", "options"),
    [
        (("--model.teachers", "[{trained}]"), {"teachers": ["{trained}"]}),
        (("--model.weights", "{best}"), {"weights": "{best}"}),
    ],
    ids=["teachers", "weights"],
)
def test_a_trainer_trains_what_the_command_trains(
    run: Run, here: Path, trained: Path, command: tuple[str, ...], options: dict[str, object]
) -> None:
    def filled(text: object) -> object:
        if isinstance(text, list):
            return [filled(each) for each in text]
        return text.format(trained=trained, best=trained / "checkpoints/best.ckpt") if isinstance(text, str) else text

    words = [str(filled(word)) for word in command]
    code, _, err = run("fit", *CARDS, "--trainer.max_epochs", "1", "--test_after_fit", "false", *words)
    assert code == 0, err
    module = _fit_in_python(**{name: filled(value) for name, value in options.items()})
    assert torch.equal(_last(), _weights(module.state_dict()).nan_to_num())
    plain = _fit_in_python()
    assert not torch.equal(_last(), _weights(plain.state_dict()).nan_to_num())


def test_what_initial_weights_and_teachers_have_seen_is_left_out_of_tests(here: Path, trained: Path) -> None:
    seen = load_trained(str(trained))
    for options in ({"weights": str(trained)}, {"teachers": [str(trained)]}):
        data = UTKFaceDataModule(**DATA | {"synthetic": 1200, "seed": 1})  # type: ignore[arg-type]
        trainer = _trainer(max_steps=1)
        trainer.fit(AGRModule(image_size=32, **options), data)  # type: ignore[arg-type]
        tested = of_samples(data.samples("test"))
        assert seen.seen is not None and len(tested) and not are_known(tested, seen.seen["training_images"], 0).any()


def test_a_trainer_tests_on_what_the_weights_have_not_seen(run: Run, here: Path, trained: Path) -> None:
    data = {"synthetic": 1200, "seed": 3, "image_size": 48, "batch_size": 32, "num_workers": 0}
    code, _out, err = run(
        *(
            "test",
            "--ckpt_path",
            str(trained),
            "--data.synthetic",
            "1200",
            "--data.seed",
            "3",
            "--data.split",
            "random",
        ),
        *("--data.num_workers", "0", "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"),
    )
    assert code == 0, err
    module = AGRModule.load_from_checkpoint(trained / "checkpoints" / "best.ckpt")
    folder = here / "python"
    trainer = _trainer(logger=lightning.pytorch.loggers.CSVLogger(folder), callbacks=[ResultsWriter()])
    trainer.test(module, UTKFaceDataModule(**data), verbose=False)  # type: ignore[arg-type]
    ours = json.loads((VERSION / "results.json").read_text())
    theirs = json.loads((folder / VERSION / "results.json").read_text())
    for name in ("n", "metrics", "groups", "test_set", "network"):
        assert ours[name] == theirs[name], name


def test_a_trainer_loads_weights_and_knows_what_they_have_seen(here: Path, trained: Path) -> None:
    data = UTKFaceDataModule(synthetic=1200, image_size=48, batch_size=32, num_workers=0)
    _trainer().test(AGRModule(image_size=48), data, ckpt_path=trained / "checkpoints" / "best.ckpt", verbose=False)
    names = (trained / "splits" / "test.txt").read_text().split()
    assert sorted(data.samples("test")["name"]) == sorted(names)


def test_weights_of_which_nobody_knows_what_they_have_seen_are_tested_with_a_warning(
    here: Path, caplog: pytest.LogCaptureFixture
) -> None:
    module = AGRModule(image_size=32)
    images = torch.zeros(8, 3, 32, 32, dtype=torch.uint8)
    zeros = torch.zeros(8, dtype=torch.int64)
    from agr_lightning.data.loading import Batch

    batches = [Batch(images, zeros.float(), zeros, zeros, torch.arange(8))]
    loader = DataLoader(batches, batch_size=None)  # type: ignore[arg-type]
    trainer = _trainer(max_epochs=1, enable_checkpointing=False)
    trainer.fit(module, loader, loader)
    with caplog.at_level("INFO", "agr_lightning"):
        _trainer().test(module, UTKFaceDataModule(**DATA), verbose=False)  # type: ignore[arg-type]
    assert "It is not known whether these weights have seen images of test" in caplog.text


def test_a_trainer_predicts_photos(run: Run, here: Path, trained: Path, cards: Path) -> None:
    (here / "photos").mkdir()
    for card in sorted(cards.iterdir())[:10]:
        shutil.copy(card, here / "photos" / card.name)
    (here / "photos" / "text.jpg").write_text("text")
    code, _, err = run("predict", "--ckpt_path", str(trained), "--data.predict_path", "photos", "--faces", "none")
    assert code == 0, err
    expected = (VERSION / "predictions.csv").read_text()
    module = AGRModule.load_from_checkpoint(trained / "checkpoints" / "best.ckpt")
    data = UTKFaceDataModule(predict_path="photos", synthetic=1200, image_size=48, batch_size=4)
    logger = lightning.pytorch.loggers.CSVLogger(here / "python")
    predictions = _trainer(logger=logger, callbacks=[PredictionWriter()]).predict(module, data)
    assert predictions is not None and sum(len(each.age) for each in predictions) == 10
    found = (here / "python" / VERSION / "predictions.csv").read_text()
    for ours, theirs in zip(csv.DictReader(expected.splitlines()), csv.DictReader(found.splitlines()), strict=True):
        assert ours["path"] == theirs["path"] and ours["status"] == theirs["status"]
        assert float(ours["age"] or 0) == pytest.approx(float(theirs["age"] or 0), abs=0.01)


def test_a_trainer_predicts_tensors_and_a_module_is_called(here: Path, trained: Path, cards: Path) -> None:
    module = AGRModule.load_from_checkpoint(trained / "checkpoints" / "best.ckpt")
    files = sorted(cards.iterdir())[:6]
    images = torch.stack([torch.from_numpy(read_rgb(file)).permute(2, 0, 1) for file in files])
    called = module(images)
    assert called.age.shape == (6,) and called.gender.shape == (6, 2) and called.race.shape == (6, 5)
    small = torch.nn.functional.interpolate(images.float(), (48, 48), mode="bilinear", antialias=True)
    assert torch.allclose(called.age, module.network.eval().predict(small).age, atol=0.1)
    for loader in (DataLoader(images, batch_size=4), DataLoader(TensorDataset(images), batch_size=4)):  # type: ignore[arg-type]
        (first, second) = _trainer().predict(module, dataloaders=loader)  # type: ignore[misc]
        assert torch.allclose(torch.cat([first.age, second.age]), called.age, atol=1e-3)
    answers = Predictor.load(trained)(images.permute(0, 2, 3, 1).numpy())
    assert [answer.age for answer in answers] == pytest.approx(called.age.tolist(), abs=5)


def test_a_module_predicts_as_in_evaluation_and_stays_in_training(trained: Path) -> None:
    module = AGRModule.load_from_checkpoint(trained / "checkpoints" / "best.ckpt").train()
    images = torch.randint(0, 256, (4, 3, 48, 48), dtype=torch.uint8)
    assert torch.equal(module(images).age, module(images).age) and module.network.training


def test_the_files_of_a_run_come_from_callbacks(run: Run, here: Path) -> None:
    lightning.seed_everything(42, workers=True)
    data, module = UTKFaceDataModule(**DATA), AGRModule(image_size=32)  # type: ignore[arg-type]
    logger = lightning.pytorch.loggers.TensorBoardLogger(here, "lightning_logs", default_hp_metric=False)
    callbacks = [ConfigWriter(), *training_callbacks()]
    trainer = _trainer(
        max_epochs=1, logger=logger, callbacks=callbacks, enable_checkpointing=True, use_distributed_sampler=False
    )
    trainer.fit(module, data)
    trainer.test(module, data, ckpt_path=callbacks[1].best_model_path, verbose=False)  # type: ignore[attr-defined]
    found = {str(path.relative_to(here / VERSION)) for path in (here / VERSION).rglob("*") if path.is_file()}
    code, _, err = run("fit", *CARDS, "--trainer.max_epochs", "1")
    assert code == 0, err
    command = here / "lightning_logs" / "version_1"
    expected = {str(path.relative_to(command)) for path in command.rglob("*") if path.is_file()}
    ours, theirs = ({name for name in names if "events" not in name} for names in (expected, found))
    assert ours - theirs <= {"hparams.yaml"} and theirs - ours <= {"hparams.yaml"}
    results = [json.loads((folder / "results.json").read_text()) for folder in (here / VERSION, command)]
    assert results[0]["metrics"] == results[1]["metrics"] and results[0]["checkpoint"] == "checkpoints/best.ckpt"
    # From what it knows of itself a run is repeated by the command.
    config = yaml.safe_load((here / VERSION / "config.yaml").read_text())
    assert config["model"]["image_size"] == config["data"]["image_size"] == 32
    code, _, err = run("fit", "--config", str(VERSION / "config.yaml"), "--trainer.accelerator", "cpu")
    assert code == 0, err
    again = json.loads((here / "lightning_logs" / "version_2" / "results.json").read_text())
    assert again["metrics"] == results[0]["metrics"]


def test_shipped_weights_predict_in_python(cards: Path) -> None:
    module = AGRModule(weights="small")
    image = read_rgb(sorted(cards.iterdir())[0])
    expected = Predictor.load("small")([image])[0]
    found = module(torch.from_numpy(image).permute(2, 0, 1)[None])
    assert expected.age == pytest.approx(found.age.item(), abs=5)
    assert np.isfinite(found.race.numpy()).all()


def test_a_module_of_another_form_does_not_take_weights() -> None:
    with pytest.raises(UserError, match=r"age_loss dldl, not l1"):
        AGRModule(image_size=96).take(load_trained("small"))

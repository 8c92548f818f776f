"""Trained networks in files: found by name, written, read back, and refused when they are something else."""

import csv
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from agr_lightning.checkpoints import (
    KEY,
    SHIPPED,
    TrainedNetwork,
    describe,
    find_checkpoint,
    load_trained,
    read_weights,
    write_safetensors,
)
from agr_lightning.data.cards import draw_cards
from agr_lightning.data.duplicates import of_samples
from agr_lightning.data.index import build_index
from agr_lightning.inference.predictor import SHIPPED as SHIPPED_ONNX
from agr_lightning.labels import TASKS
from agr_lightning.messages import UserError
from agr_lightning.models.config import NetworkConfig
from agr_lightning.models.network import AGRNetwork
from tests.conftest import copy_run

Run = Callable[..., tuple[int, str, str]]

QUIET = ("--trainer.enable_progress_bar", "false")
DATA = {"age_min": 0, "age_max": 116, "synthetic": 1200}
IMAGES = torch.randint(0, 256, (4, 3, 48, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def _trained(**options: Any) -> TrainedNetwork:
    torch.manual_seed(0)
    config = NetworkConfig(**{"image_size": 48, "backbone": "agr_cnn_small", **options})
    seen = {"training_images": np.eye(3, 32, dtype=np.uint8), "validation_images": np.full((1, 32), 5, np.uint8)}
    return TrainedNetwork(config, AGRNetwork(config).state_dict(), seen, DATA, 4)


def _save_checkpoint(path: Path, trained: TrainedNetwork, **facts: Any) -> Path:
    """As a Trainer writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    about = describe(trained.config, trained.data, trained.epoch)
    about |= {name: torch.from_numpy(images) for name, images in (trained.seen or {}).items()}
    state = {f"network.{name}": value for name, value in trained.state.items()}
    options = {"hyper_parameters": {"dropout": 0.3}, "datamodule_hyper_parameters": {"synthetic": 1200}}
    torch.save({"state_dict": {**state, "loss.race_weights": torch.ones(5)}, KEY: about | facts, **options}, path)
    return path


def _same(one: TrainedNetwork, other: TrainedNetwork) -> bool:
    facts = [(t.config, t.data, t.epoch, t.seen) for t in (one, other)]
    return str(facts[0]) == str(facts[1])


# ---------------------------------------------------------------------- written and read


def test_an_exported_network_is_read_back(tmp_path: Path) -> None:
    trained, path = _trained(age_loss="dldl", tta_flip=True, tasks=("age", "race")), tmp_path / "net.safetensors"
    write_safetensors(path, trained)
    found = load_trained(str(path))
    assert _same(found, trained) and found.exported and found.name == str(path)
    for name, value in trained.state.items():
        there = found.state[name]
        exact = value.half().float() if value.ndim > 1 else value
        assert there.dtype == value.dtype and torch.equal(there.nan_to_num(-1), exact.nan_to_num(-1)), name
    with torch.no_grad():
        before, after = (each.network().predict(IMAGES) for each in (trained, found))
    assert before.age is not None and after.age is not None and before.race is not None and after.race is not None
    assert torch.allclose(before.age, after.age, atol=0.1) and torch.allclose(before.race, after.race, atol=0.01)
    options = found.options()
    assert options["model.backbone"] == "agr_cnn_small" and options["data.image_size"] == 48
    assert options["data.age_max"] == 116 and "data.synthetic" not in options and "model.image_size" not in options


def test_a_checkpoint_is_read_with_its_options(tmp_path: Path) -> None:
    trained = _trained()
    found = load_trained(str(_save_checkpoint(tmp_path / "net.ckpt", trained)))
    assert _same(found, trained) and not found.exported
    assert list(found.state) == list(trained.state)
    assert all(torch.equal(value.nan_to_num(-1), trained.state[n].nan_to_num(-1)) for n, value in found.state.items())
    assert found.options() == {"model.dropout": 0.3, "data.synthetic": 1200}
    tensors, again = read_weights(tmp_path / "net.ckpt", "--model.weights")
    assert again is not None and list(tensors) == list(found.state)


def test_a_training_without_our_data_module_does_not_know_its_images(tmp_path: Path) -> None:
    trained = replace(_trained(), seen=None, data={})
    found = load_trained(str(_save_checkpoint(tmp_path / "net.ckpt", trained)))
    assert found.seen is None and found.data == {}
    with pytest.raises(UserError, match=r"net\.ckpt does not say which images it has learned from"):
        write_safetensors(tmp_path / "net.safetensors", found)
    assert not (tmp_path / "net.safetensors").exists()


def test_an_exported_file_holds_nobody_s_folders(tmp_path: Path) -> None:
    trained = replace(_trained(), path=tmp_path / "secret" / "best.ckpt", hyperparameters={"data.root": "/home/me"})
    write_safetensors(tmp_path / "net.safetensors", trained)
    content = (tmp_path / "net.safetensors").read_bytes()
    assert b"secret" not in content and b"/home" not in content and str(tmp_path).encode() not in content


def test_weights_of_another_network_than_described(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    for config, message in (
        (NetworkConfig("agr_cnn", image_size=48), "does not fit the network that it describes: size mismatch"),
        (NetworkConfig("agr_cn", image_size=48), "does not fit the network that it describes: no backbone is called"),
    ):
        write_safetensors(path, replace(_trained(), config=config))
        with pytest.raises(UserError, match=rf"net\.safetensors {message}"):
            load_trained(str(path)).network()


def test_files_that_are_something_else(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "net.safetensors", _trained())
    tensors = load_file(tmp_path / "net.safetensors")
    save_file(tensors, tmp_path / "plain.safetensors")
    save_file(tensors, tmp_path / "newer.safetensors", {KEY: '{"format": "99"}'})
    save_file(tensors, tmp_path / "nested.safetensors", {KEY: "[" * 100_000})
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "net.safetensors").read_bytes()[:5000])
    (tmp_path / "empty.safetensors").touch()
    for name, message in (
        ("plain", "does not say what its weights are of"),
        ("newer", r"is of another version of this project \(format 99, not 4\)"),
        ("nested", "is no checkpoint or safetensors file, or is damaged or cut short"),
        ("cut", "is no checkpoint or safetensors file, or is damaged or cut short"),
        ("empty", "is no checkpoint or safetensors file, or is damaged or cut short"),
        ("gone", "does not exist"),
    ):
        with pytest.raises(UserError, match=rf"^--ckpt_path \S*{name}\.safetensors {message}"):
            load_trained(str(tmp_path / f"{name}.safetensors"))
    tensors, trained = read_weights(tmp_path / "plain.safetensors", "--model.weights")
    assert trained is None and tensors["heads.race.weight"].shape == (5, 224)


class _Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("echo run > evil.txt",)


def test_torch_files_that_are_no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(_trained().state, tmp_path / "whole.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "whole.pth").read_bytes()[:10_000])
    (tmp_path / "text.pth").write_text("hello")
    (tmp_path / "empty.pth").touch()
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"state_dict": _Evil()}, tmp_path / "evil.pth")
    for name, message in (
        ("cut", "damaged or cut short"),
        ("text", "is no checkpoint or safetensors file"),
        ("empty", "is no checkpoint or safetensors file"),
        ("list", "holds a list"),
        ("gone", "cannot be read: No such file"),
        ("evil", "refused: it holds more than weights"),
    ):
        with pytest.raises(UserError, match=message):
            read_weights(tmp_path / f"{name}.pth", "--ckpt_path")
    assert not (tmp_path / "evil.txt").exists()


_WRONG = [
    {"network": None},
    {"network": {"backbone": 3}},
    {"network": {"image_size": 20_000}},
    {"network": {"optimizer": "evil.run"}},
    {"data": [1]},
    {"data": {"root": "faces"}},
    {"data": {"age_min": "young"}},
    {"epoch": "x"},
    {"training_images": [1, 2]},
]


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
@pytest.mark.parametrize("changes", _WRONG)
def test_a_file_can_say_nothing_but_what_it_should(tmp_path: Path, suffix: str, changes: dict[str, Any]) -> None:
    trained, path = _trained(), tmp_path / f"net{suffix}"
    facts = describe(trained.config, trained.data, trained.epoch)
    for name, change in changes.items():
        facts[name] = facts[name] | change if isinstance(change, dict) else change
    if suffix == ".ckpt":
        _save_checkpoint(path, trained, **facts)
    else:
        write_safetensors(path, trained)
        tensors = load_file(path)
        for name in set(changes) & set(tensors):
            del tensors[name]
        save_file(tensors, path, {KEY: json.dumps(facts)})
    with pytest.raises(UserError, match=r"net\.\w+ is damaged, or was not written by this project: .*[^.]\.$"):
        load_trained(str(path))


# ---------------------------------------------------------------------- found


def test_checkpoints_are_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    logs = Path("lightning_logs")
    for run, names in (("version_2", ("best", "last")), ("version_10", ("last",)), ("version_x", ("best", "last"))):
        for name in names:
            _save_checkpoint(logs / run / "checkpoints" / f"{name}.ckpt", _trained())
    for named, file in (
        ("best", logs / "version_2" / "checkpoints" / "best.ckpt"),
        ("last", logs / "version_10" / "checkpoints" / "last.ckpt"),
        (str(logs / "version_2"), logs / "version_2" / "checkpoints" / "best.ckpt"),
        (str(logs / "version_10" / "checkpoints" / "last.ckpt"), logs / "version_10" / "checkpoints" / "last.ckpt"),
        (None, SHIPPED["agr"]),
        ("small", SHIPPED["small"]),
    ):
        assert find_checkpoint(named, Path()) == file
    for named, message in (
        (
            str(logs / "version_10"),
            r"--model\.teachers lightning_logs/version_10/checkpoints/best\.ckpt does not exist",
        ),
        ("nowhere.ckpt", r"--model\.teachers nowhere\.ckpt does not exist; name a checkpoint file, .*'agr', 'small'"),
    ):
        with pytest.raises(UserError, match=message):
            load_trained(named, Path(), "--model.teachers")
    with pytest.raises(UserError, match=r"--ckpt_path best: no run under .* has a best\.ckpt"):
        find_checkpoint("best", tmp_path / "elsewhere")
    (tmp_path / "net.onnx").touch()
    with pytest.raises(UserError, match=r"--ckpt_path net\.onnx: ONNX is for predict"):
        load_trained("net.onnx")


def test_an_installation_without_weights_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SHIPPED, "agr", tmp_path / "agr.safetensors")
    with pytest.raises(UserError, match=r"agr\.safetensors does not exist"):
        load_trained()


@pytest.mark.parametrize("name", SHIPPED)
def test_the_shipped_weights_are_complete_and_small(name: str) -> None:
    folder = SHIPPED[name].parent
    about = {path.with_suffix(suffix) for path in SHIPPED.values() for suffix in (".results.json", ".MODEL_CARD.md")}
    about |= {folder / name for name in ("README.md", "centerface.onnx", "centerface.LICENSE")}
    assert set(folder.iterdir()) == {*SHIPPED.values(), *SHIPPED_ONNX.values(), *about}
    assert sum(path.stat().st_size for path in folder.iterdir()) < 30e6
    assert SHIPPED["small"].stat().st_size < 3.4e6
    trained = load_trained(name)
    assert trained.name == name and trained.exported and trained.config.tasks == TASKS
    assert trained.seen is not None and len(trained.seen["training_images"]) > 10_000
    predictions = trained.network().predict(torch.zeros(1, 3, 96, 96, dtype=torch.uint8)).arrays()
    assert set(predictions) == {"age", "age_low", "age_high", "gender", "race", "prob_under_18"}
    assert all(np.isfinite(values).all() for values in predictions.values())


# ---------------------------------------------------------------------- as users do


@pytest.fixture
def exported(trained: Path, here: Path, run: Run) -> Path:
    copy_run(trained, here)
    code, out, err = run("export", "--ckpt_path", "best", "--output", "faces.safetensors")
    assert code == 0, err
    assert out.startswith("faces.safetensors: 7.") and "agr_cnn" in out
    return here / "faces.safetensors"


def _rows(run: Path) -> list[dict[str, str]]:
    with (run / "predictions.csv").open() as file:
        return list(csv.DictReader(file))


def _results(run: Path) -> Any:
    return json.loads((run / "results.json").read_text())


def test_predictions_are_those_of_the_checkpoint(exported: Path, cards: Path, here: Path, run: Run) -> None:
    for weights in ("best", str(exported)):
        code, _, err = run("predict", "--ckpt_path", weights, "--data.predict_path", str(cards), "--faces=none", *QUIET)
        assert code == 0, err
    before, after = (_rows(here / "lightning_logs" / f"version_{n}") for n in (1, 2))
    assert len(before) == len(after) == 120
    for one, other in zip(before, after, strict=True):
        assert one["path"] == other["path"]
        for name in ("age", "age_low", "age_high"):
            assert float(one[name]) == pytest.approx(float(other[name]), abs=0.1)
        for name in ("prob_male", "prob_white", "prob_others"):
            assert float(one[name]) == pytest.approx(float(other[name]), abs=0.01)


def test_a_test_gives_the_figures_of_the_checkpoint_and_can_be_repeated(
    exported: Path, trained: Path, here: Path, run: Run
) -> None:
    code, _, err = run("test", "--ckpt_path", str(exported), "--data.synthetic", "1200", *QUIET)
    assert code == 0, err
    before, after = _results(trained), _results(here / "lightning_logs" / "version_1")
    assert after["test_set"] == before["test_set"]
    assert (here / "lightning_logs" / "version_1" / after["checkpoint"]).resolve() == exported
    assert after["epoch"] == before["epoch"]
    for name in ("age_mae", "gender_acc", "race_acc", "age_coverage"):
        assert after["metrics"][name] == pytest.approx(before["metrics"][name], abs=0.02)
    code, out, err = run("test", "--config", str(here / "lightning_logs" / "version_1" / "config.yaml"))
    assert code == 0 and "faces.safetensors" in out, err
    assert _results(here / "lightning_logs" / "version_2")["metrics"] == after["metrics"]


def test_nothing_is_tested_on_what_it_was_trained_on(exported: Path, trained: Path, here: Path, run: Run) -> None:
    lists = {split: (trained / "splits" / f"{split}.txt").read_text().split() for split in ("train", "val", "test")}
    folder, cards = draw_cards(1200, 0), ("--data.synthetic", "1200")  # which look alike
    (here / "mixed" / "below").mkdir(parents=True)
    for name in (*lists["train"][:5], *lists["val"][:3], *lists["test"][:10]):
        shutil.copy(folder / name, here / "mixed" / "below" / name)
    code, out, err = run("test", "--ckpt_path", str(exported), "--data.test_root", "mixed", *cards, *QUIET)
    assert code == 0, err
    assert "8 of 18" in out + err
    assert _results(here / "lightning_logs" / "version_1")["n"] == 10
    for name in lists["test"]:
        (here / "mixed" / "below" / name).unlink(missing_ok=True)
    code, _, err = run("test", "--ckpt_path", str(exported), "--data.test_root", "mixed", *cards, *QUIET)
    assert code == 1 and "these weights have seen all images for test: " in err


def test_a_checkpoint_knows_what_its_run_has_seen(exported: Path, trained: Path) -> None:
    cards = build_index(str(draw_cards(1200, 0))).samples.set_index("name")
    for found in (load_trained(str(trained / "checkpoints" / "best.ckpt")), load_trained(str(exported))):
        assert found.config == NetworkConfig(image_size=48) and found.data == DATA
        for split, images in zip(("train", "val"), (found.seen or {}).values(), strict=True):
            own = cards.loc[(trained / "splits" / f"{split}.txt").read_text().split()]
            assert set(map(bytes, images)) == set(map(bytes, of_samples(own)))
    assert exported.stat().st_size < 0.2 * (trained / "checkpoints" / "best.ckpt").stat().st_size
    content = exported.read_bytes()
    assert str(trained).encode() not in content and b"/tmp" not in content


def test_training_can_start_from_it(exported: Path, here: Path, run: Run) -> None:
    options = ("--data.synthetic=60", "--data.image_size=48", "--trainer.max_steps=1", "--data.num_workers=0")
    # These cards are among those that the weights have seen.
    code, out, err = run("fit", "--model.weights", str(exported), *options, *QUIET)
    assert code == 0 and "No images are left for a test" in out, err
    code, out, err = run("fit", "--model.weights", str(exported), *options, "--test_after_fit=false", *QUIET)
    assert code == 0, err
    assert "loaded the backbone and the heads for age, gender, race\n" in out


@pytest.mark.parametrize("name", [None, *SHIPPED])
def test_shipped_weights_are_used_where_no_others_are_named(
    exported: Path, cards: Path, here: Path, run: Run, monkeypatch: pytest.MonkeyPatch, name: str | None
) -> None:
    monkeypatch.setitem(SHIPPED, name or "agr", exported)
    named = () if name is None else ("--ckpt_path", name)
    for number, options in enumerate([(), ("--trainer.accelerator=cpu",)], 1):
        code, out, err = run("predict", "--data.predict_path", str(cards), "--faces=none", *QUIET, *named, *options)
        assert code == 0 and (name or "agr") in out, err
        assert len(_rows(here / "lightning_logs" / f"version_{number}")) == 120


def test_what_was_seen_stays_known_through_further_training(exported: Path, here: Path, run: Run) -> None:
    def seen(path: Path) -> set[bytes]:
        found = load_trained(str(path))
        assert found.seen is not None
        return set(map(bytes, np.concatenate([*found.seen.values()])))

    first = seen(exported)
    options = ("--data.synthetic", "1200", "--data.seed", "3", "--data.image_size", "48", "--data.num_workers", "0")
    limits = ("--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2", "--data.max_samples", "200")
    code, _, err = run("fit", "--model.weights", str(exported), *options, *limits, *QUIET, "--test_after_fit=false")
    assert code == 0, err
    exported.unlink()  # What it had seen stands in the new checkpoint.
    folder = here / "lightning_logs" / "version_1"
    code, _, err = run("export", "--ckpt_path", str(folder), "--output", "next.safetensors")
    assert code == 0, err
    own = [n for split in ("train", "val") for n in (folder / "splits" / f"{split}.txt").read_text().split()]
    cards = build_index(str(draw_cards(1200, 3))).samples.set_index("name").loc[own]
    assert seen(here / "next.safetensors") == first | set(map(bytes, of_samples(cards)))


def test_exports_that_cannot_be(exported: Path, here: Path, run: Run) -> None:
    for options, message in (
        (("--ckpt_path", "best", "--output", "x.bin"), "--output x.bin must end in .onnx or .safetensors"),
        (("--ckpt_path", "best", "--output", "no/x.safetensors"), "no"),
        (("--ckpt_path", str(exported), "--output", "x.safetensors"), "is an exported file already"),
        (("--ckpt_path", "gone.ckpt", "--output", "x.safetensors"), "gone.ckpt does not exist"),
    ):
        code, out, err = run("export", *options)
        assert code == 1 and message in err and err.count("\n") == 1 and not out
    assert not list(here.glob("x.*"))


@pytest.mark.real_data
def test_shipped_weights_are_as_good_as_they_say(utkface: Path, here: Path, run: Run) -> None:
    # One after the other, so that the images are read once.
    for number, (name, file) in enumerate(SHIPPED.items()):
        options = ("--ckpt_path", name, "--data.test_root", str(utkface), "--data.num_workers", "0")
        code, _, err = run("test", *options, *QUIET)
        assert code == 0, err
        published = json.loads(file.with_suffix(".results.json").read_text())
        found = _results(here / "lightning_logs" / f"version_{number}")
        # All that they have not seen, which is the test set that their figures are of, but for 8 copies found since.
        assert published["n"] - found["n"] == 8, name
        for metric, value in published["metrics"].items():
            if metric != "intervals":
                assert found["metrics"][metric] == pytest.approx(value, abs=0.02), (name, metric)

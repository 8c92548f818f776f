"""Trained weights in one file that travels, and those that are used where none are named."""

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
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from agr_lightning.checkpoints import BOX
from agr_lightning.files import name_digests
from agr_lightning.labels import TASKS
from agr_lightning.models.packed import read_packed, write_packed
from tests.conftest import copy_run

Run = Callable[..., tuple[int, str, str]]

QUIET = ("--trainer.enable_progress_bar", "false")


@pytest.fixture
def packed(trained: Path, here: Path, run: Run) -> Path:
    copy_run(trained, here)
    code, out, err = run("export", "--ckpt_path", "best", "--output", "faces.safetensors")
    assert code == 0, err
    assert out == "faces.safetensors: 7.0 MB, agr_cnn, which has seen 1,080 images\n"
    return here / "faces.safetensors"


def _rows(run: Path) -> list[dict[str, str]]:
    with (run / "predictions.csv").open() as file:
        return list(csv.DictReader(file))


def _results(run: Path) -> Any:
    return json.loads((run / "results.json").read_text())


def test_predictions_are_those_of_the_checkpoint(packed: Path, cards: Path, here: Path, run: Run) -> None:
    for weights in ("best", str(packed)):
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


def test_a_test_gives_the_figures_of_the_checkpoint(packed: Path, trained: Path, here: Path, run: Run) -> None:
    code, out, err = run("test", "--ckpt_path", str(packed), "--data.synthetic", "1200", *QUIET)
    assert code == 0, err
    before, after = _results(trained), _results(here / "lightning_logs" / "version_1")
    assert "left out" not in out and after["test_set"] == before["test_set"]
    assert (here / "lightning_logs" / "version_1" / after["checkpoint"]).resolve() == packed
    assert after["epoch"] == before["epoch"]
    for name in ("age_mae", "gender_acc", "race_acc", "age_coverage"):
        assert after["metrics"][name] == pytest.approx(before["metrics"][name], abs=0.02)


def test_nothing_is_tested_on_what_it_was_trained_on(packed: Path, trained: Path, here: Path, run: Run) -> None:
    lists = {side: (trained / "splits" / f"{side}.txt").read_text().split() for side in ("train", "val", "test")}
    folder = next(
        path for path in Path(os.environ["XDG_CACHE_HOME"], "agr_lightning").glob("cards-v1-1200-*") if path.is_dir()
    )
    (here / "mixed" / "below").mkdir(parents=True)
    for name in (*lists["train"][:5], *lists["val"][:3], *lists["test"][:10]):
        shutil.copy(next(folder.rglob(name)), here / "mixed" / "below" / name)
    code, out, err = run("test", "--ckpt_path", str(packed), "--data.test_root", "mixed", *QUIET)
    assert code == 0, err
    assert "8 of 18 test images left out, because these weights have seen them" in out
    assert _results(here / "lightning_logs" / "version_1")["n"] == 10
    for name in lists["test"]:
        (here / "mixed" / "below" / name).unlink(missing_ok=True)
    code, _, err = run("test", "--ckpt_path", str(packed), "--data.test_root", "mixed", *QUIET)
    assert code == 1 and "these weights have seen all images for test: " in err


def test_the_file_holds_weights_and_facts_and_nobody_s_folders(packed: Path, trained: Path) -> None:
    checkpoint = trained / "checkpoints" / "best.ckpt"
    assert packed.stat().st_size < 0.2 * checkpoint.stat().st_size
    content = packed.read_bytes()
    assert str(trained).encode() not in content and b"/tmp" not in content and b"synthetic" not in content
    found = read_packed(packed, "--ckpt_path")
    assert found.model["backbone"] == "agr_cnn" and found.data == {
        "image_size": 48,
        "grayscale": False,
        "age_min": 0,
        "age_max": 116,
    }
    assert set(found.seen) == set(name_digests((trained / "splits" / "train.txt").read_text().split())) | set(
        name_digests((trained / "splits" / "val.txt").read_text().split())
    )
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    for name, value in found.state.items():
        there = state[f"network.{name}"]
        assert torch.equal(value, there) if value.ndim <= 1 and not there.isnan().any() else value.dtype == there.dtype


def test_training_can_start_from_it(packed: Path, here: Path, run: Run) -> None:
    options = ("--data.synthetic=60", "--data.image_size=48", "--trainer.max_steps=1", "--data.num_workers=0")
    # These cards are among those that the weights have seen.
    code, _, err = run("fit", "--model.weights", str(packed), *options, *QUIET)
    assert code == 1 and "these weights have seen all images for test" in err
    assert not (here / "lightning_logs" / "version_1").exists()
    code, out, err = run("fit", "--model.weights", str(packed), *options, "--test_after_fit=false", *QUIET)
    assert code == 0, err
    assert "loaded the backbone and the heads for age, gender, race\n" in out


def test_training_that_starts_from_a_mean_knows_what_each_has_seen(packed: Path, here: Path, run: Run) -> None:
    found = read_packed(packed, "")
    write_packed(here / "other.safetensors", replace(found, seen=np.array([1, 2])))
    options = ("--data.synthetic=120", "--data.seed=3", "--data.image_size=48", "--trainer.max_steps=1")
    mean = ("--model.weights", f"[{packed}, other.safetensors]", "--data.num_workers=0", "--test_after_fit=false")
    code, out, err = run("fit", *mean, *options, *QUIET)
    assert code == 0 and "other.safetensors: loaded the backbone and the heads for age, gender, race\n" in out, err
    newest = str(max((here / "lightning_logs").glob("version_*")))
    assert run("export", "--ckpt_path", newest, "--output", "next.safetensors")[0] == 0
    assert {1, 2, *found.seen.tolist()} < set(read_packed(here / "next.safetensors", "").seen.tolist())
    code, _, err = run("fit", "--config", f"{newest}/config.yaml", *QUIET)
    assert code == 0, err


@pytest.mark.parametrize("role", BOX)
def test_the_weights_in_the_box_are_used_where_no_others_are_named(
    packed: Path, cards: Path, here: Path, run: Run, monkeypatch: pytest.MonkeyPatch, role: str | None
) -> None:
    monkeypatch.setitem(BOX, role, packed)
    named = () if role is None else ("--ckpt_path", role)
    for number, (options, what) in enumerate([((), "Network"), (("--trainer.accelerator=cpu",), "Checkpoint")], 1):
        code, out, err = run("predict", "--data.predict_path", str(cards), "--faces=none", *QUIET, *named, *options)
        assert code == 0, err
        assert f"{what:10}   the {role or ''} network that comes with this project".replace("  n", " n") in out
        assert len(_rows(here / "lightning_logs" / f"version_{number}")) == 120
    monkeypatch.setitem(BOX, role, here / "trimmed.safetensors")
    code, _, err = run("predict", "--data.predict_path", str(cards), *QUIET, *named)
    assert code == 1 and "this installation lacks trained weights" in err and err.count("\n") == 1


def test_files_that_are_something_else(packed: Path, here: Path, run: Run) -> None:
    tensors = load_file(packed)
    save_file(tensors, here / "plain.safetensors")
    save_file(tensors, here / "newer.safetensors", {"agr_lightning": '{"format": "99"}'})
    (here / "cut.safetensors").write_bytes(packed.read_bytes()[:5000])
    (here / "empty.safetensors").touch()
    for name, message in (
        ("plain", "holds weights, but does not say of what"),
        ("newer", "is of another version of this project (its format is 99, this version reads 1)"),
        ("cut", "is no safetensors file, or is damaged or cut short"),
        ("empty", "is no safetensors file, or is damaged or cut short"),
        ("gone", "does not exist"),
    ):
        code, _, err = run("predict", "--ckpt_path", f"{name}.safetensors", "--data.predict_path", str(packed), *QUIET)
        assert code == 1 and message in err and err.count("\n") == 1, err
    code, _, err = run("fit", "--ckpt_path", str(packed), "--data.synthetic", "60", *QUIET)
    assert code == 1 and "holds weights, but no run to go on with" in err


def _tampered(packed: Path, name: str, **changes: Any) -> Path:
    """The file with something else in what it says of itself."""
    with safe_open(packed, "pt") as file:
        facts = json.loads(file.metadata()["agr_lightning"])
    tensors = load_file(packed)
    if changes.pop("unseen", False):
        del tensors["seen"]
    for part in ("model", "data"):
        changes[part] = (
            facts[part] | changes[part] if isinstance(changes.get(part), dict) else changes.get(part, facts[part])
        )
    save_file(tensors, packed.parent / name, {"agr_lightning": json.dumps(facts | changes)})
    return packed.parent / name


@pytest.mark.parametrize(
    "changes",
    [
        {"model": {"optimizer": "evil.run"}},
        {"model": {"lr_scheduler": {"class_path": "evil.Run"}}},
        {"data": {"root": "faces"}},
        {"data": {"cache_dir": "elsewhere"}},
        {"model": {"backbone": 3}},
        {"model": None},
        {"data": [1]},
        {"epoch": "x"},
        {"unseen": True},
    ],
)
def test_a_file_can_set_nothing_but_its_network(packed: Path, here: Path, run: Run, changes: dict[str, Any]) -> None:
    (here / "evil.py").write_text("open('ran', 'w')\ndef run(*arguments): pass\nclass Run: pass\n")
    path = _tampered(packed, "tampered.safetensors", **changes)
    code, _, err = run("predict", "--ckpt_path", str(path), "--data.predict_path", str(path), *QUIET)
    assert code == 1 and "does not say of itself what it should" in err and err.count("\n") == 1
    assert not (here / "ran").exists() and not (here / "elsewhere").exists()


def test_what_was_seen_stays_known_through_further_training(packed: Path, here: Path, run: Run) -> None:
    first = read_packed(packed, "").seen
    options = ("--data.synthetic", "1200", "--data.seed", "3", "--data.image_size", "48", "--data.num_workers", "0")
    limits = ("--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2", "--data.max_samples", "200")
    code, _, err = run("fit", "--model.weights", str(packed), *options, *limits, *QUIET)
    assert code == 0, err
    code, _, err = run(
        "export", "--ckpt_path", str(here / "lightning_logs" / "version_1"), "--output", "next.safetensors"
    )
    assert code == 0, err
    after = read_packed(here / "next.safetensors", "").seen
    own = [
        name
        for side in ("train", "val")
        for name in (here / "lightning_logs" / "version_1" / "splits" / f"{side}.txt").read_text().split()
    ]
    assert set(after) == set(first) | set(name_digests(own))
    packed.unlink()
    code, _, err = run("export", "--ckpt_path", str(here / "lightning_logs" / "version_1"), "--output", "x.safetensors")
    assert code == 1 and "which is gone" in err


def test_a_test_can_be_repeated_from_its_config(packed: Path, here: Path, run: Run) -> None:
    code, _, err = run("test", "--ckpt_path", str(packed), "--data.synthetic", "1200", *QUIET)
    assert code == 0, err
    code, out, err = run("test", "--config", str(here / "lightning_logs" / "version_1" / "config.yaml"))
    assert code == 0 and "Checkpoint   faces.safetensors" in out, err
    first, again = (_results(here / "lightning_logs" / f"version_{n}") for n in (1, 2))
    assert first["metrics"] == again["metrics"]


def test_a_checkpoint_named_in_its_own_folder_keeps_its_run(
    packed: Path, here: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(here / "lightning_logs" / "version_0" / "checkpoints")
    code, _, err = run("export", "--ckpt_path", "best.ckpt", "--output", "x.safetensors")
    assert code == 0, err
    assert (read_packed(Path("x.safetensors"), "").seen == read_packed(packed, "").seen).all()


def test_exports_that_cannot_be(packed: Path, here: Path, run: Run) -> None:
    run_folder = here / "lightning_logs" / "version_0"
    shutil.copy(run_folder / "checkpoints" / "best.ckpt", here / "alone.ckpt")
    for options, message in (
        (("--ckpt_path", "best", "--output", "x.bin"), "--output x.bin must end in .onnx or .safetensors"),
        (("--ckpt_path", "best", "--output", "no/x.safetensors"), "there is no folder no"),
        (("--ckpt_path", "alone.ckpt", "--output", "x.safetensors"), "lies in no run folder with splits/"),
        (("--ckpt_path", str(packed), "--output", "x.safetensors"), "is an exported file already"),
        (("--ckpt_path", "gone.ckpt", "--output", "x.safetensors"), "gone.ckpt does not exist"),
    ):
        code, out, err = run("export", *options)
        assert code == 1 and message in err and err.count("\n") == 1 and not out
    assert not list(here.glob("x.*"))


@pytest.mark.real_data
@pytest.mark.parametrize("role", BOX)
def test_the_weights_in_the_box_are_as_good_as_they_say(utkface: Path, here: Path, run: Run, role: str | None) -> None:
    named = () if role is None else ("--ckpt_path", role)
    code, out, err = run("test", *named, "--data.test_root", str(utkface), "--data.num_workers", "0", *QUIET)
    assert code == 0, err
    said = json.loads(BOX[role].with_suffix(".results.json").read_text())
    found = _results(here / "lightning_logs" / "version_0")
    # All that they have not seen, which is the test set that their figures are of.
    assert "test images left out, because these weights have seen them" in out
    assert found["test_set"] == said["test_set"] and found["n"] == said["n"]
    for name, value in said["metrics"].items():
        if name != "intervals":
            assert found["metrics"][name] == pytest.approx(value, abs=0.02), name


def test_the_box_is_complete_and_small() -> None:
    folder = BOX[None].parent
    about = {path.with_suffix(suffix) for path in BOX.values() for suffix in (".results.json", ".MODEL_CARD.md")}
    assert set(folder.iterdir()) == {folder / "README.md", *BOX.values(), *about}
    assert sum(path.stat().st_size for path in folder.iterdir()) < 12e6
    assert BOX["small"].stat().st_size < 3e6
    for path in BOX.values():
        assert set(read_packed(path, "the box").model["tasks"]) == set(TASKS)

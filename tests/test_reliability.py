"""What breaks a run or a derived file, and what is left of it: signals, damage, divergence."""

import io
import os
import random
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from agr_lightning.data.cards import draw_cards
from agr_lightning.data.index import build_index
from agr_lightning.files import lock
from agr_lightning.images import ImageError, read_rgb
from agr_lightning.messages import UserError
from tests.conftest import FAST, save_noise

Run = Callable[..., tuple[int, str, str]]

FIT = ("fit", *FAST, "--data.synthetic", "240", "--data.batch_size", "16", "--test_after_fit", "false")
VERSION = Path("lightning_logs/version_0")


def _weights(name: str, run: Path = VERSION) -> torch.Tensor:
    state = torch.load(run / "checkpoints" / f"{name}.ckpt", weights_only=True)["state_dict"]
    return torch.cat([value.flatten().double() for value in state.values()]).nan_to_num()


def _start(folder: Path, *words: str) -> subprocess.Popen[str]:
    """A command in a process group of its own, as a terminal starts it."""
    folder.mkdir(exist_ok=True)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "agr_lightning", *words],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    "options", [(), ("--data.num_workers", "2"), ("--trainer.val_check_interval", "0.5")], ids=["", "workers", "twice"]
)
def test_a_signal_keeps_the_step_and_a_resumed_run_ends_with_the_same_bits(
    here: Path, number: signal.Signals, options: tuple[str, ...]
) -> None:
    fit = (*FIT, "--trainer.max_epochs", "3", *options)
    output, _ = _start(here / "whole", *fit).communicate()
    assert "Next" in output
    process = _start(here / "stopped", *fit)
    while not (here / "stopped" / VERSION / "splits" / "test.txt").exists() and process.poll() is None:
        time.sleep(0.02)
    time.sleep(random.uniform(0.1, 1.5))
    os.killpg(process.pid, number)
    output, _ = process.communicate()
    assert process.returncode == 128 + number and "Resume       " in output, output
    resume = output.split("Resume       ")[1].split("\n")[0].partition("agr_lightning ")[2].split()
    resumed = _start(here / "stopped", *resume)
    output, _ = resumed.communicate()
    assert resumed.returncode == 0, output
    for name in ("best", "last"):
        whole, found = (_weights(name, here / folder / VERSION) for folder in ("whole", "stopped"))
        assert torch.equal(whole, found)


def test_two_processes_cannot_resume_one_run(run: Run, here: Path) -> None:
    code, _, err = run(*FIT, "--trainer.max_epochs", "1")
    assert code == 0, err
    descriptor = os.open(VERSION / "checkpoints", os.O_RDONLY)
    lock(descriptor, Path())
    code, _, err = run("fit", "--config", str(VERSION / "config.yaml"), "--ckpt_path", "last")
    assert code == 1 and "checkpoints is being written by another process: wait for it, or stop it" in err
    os.close(descriptor)
    code, _, err = run("fit", "--config", str(VERSION / "config.yaml"), "--ckpt_path", "last")
    assert code == 0, err


@pytest.mark.parametrize(
    "options",
    [("--trainer.limit_val_batches", "0"), (), ("--model.age_loss", "dldl"), ("--trainer.log_every_n_steps", "1")],
    ids=["no validation", "validation", "dldl", "each step"],
)
def test_training_that_diverges_stops_and_keeps_no_checkpoint(run: Run, here: Path, options: tuple[str, ...]) -> None:
    code, _, err = run(*FIT, "--trainer.max_epochs", "2", "--model.learning_rate", "1e6", *options)
    assert code == 1 and "step " in err and "diverged: lower --model.learning_rate" in err
    for checkpoint in here.rglob("*.ckpt"):
        assert _weights(checkpoint.stem).isfinite().all()


@pytest.mark.parametrize(
    "options",
    [
        ("--model.optimizer", "os.system", "--model.optimizer.command", "touch code_ran"),
        ("--model.optimizer", "os.system"),
        ("--model.optimizer={class_path: os.system, init_args: {command: touch code_ran}}",),
        ("--model.optimizer={class_path: subprocess.Popen, init_args: {args: [touch, code_ran]}}",),
        ("--model.lr_scheduler={class_path: os.system, init_args: {command: touch code_ran}}",),
        ("--model.lr_scheduler", "torch.optim.SGD"),
        ("--model.optimizer", "builtins.exec"),
    ],
)
def test_options_run_no_code(run: Run, here: Path, options: tuple[str, ...]) -> None:
    code, _, err = run(*FIT, "--trainer.max_epochs", "1", *options)
    assert code in (1, 2) and len(err.splitlines()) == 1, err
    assert not (here / "code_ran").exists() and not (here / "lightning_logs").exists()


# ---------------------------------------------------------------------- derived files


def _flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[random.randrange(len(content))] ^= 1 << random.randrange(8)
    file.write_bytes(content)


CARD = "1_0_0_x.jpg"
DAMAGE: dict[str, Callable[[Path], object]] = {
    "a bit": lambda folder: _flip(random.choice(sorted(folder.iterdir()))),
    "one less": lambda folder: min(folder.iterdir()).unlink(),
    "one more": lambda folder: (folder / CARD).write_bytes(min(folder.iterdir()).read_bytes()),
    "one empty": lambda folder: os.truncate(min(folder.iterdir()), 0),
    "another name": lambda folder: min(folder.iterdir()).rename(folder / CARD),
    "a file": lambda folder: (folder.rename(folder.with_name("away")), folder.write_text("x")),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_cards_are_drawn_again(tmp_path: Path, damage: str) -> None:
    folder = draw_cards(20, 0, str(tmp_path))
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    DAMAGE[damage](folder)
    assert {file.name: file.read_bytes() for file in draw_cards(20, 0, str(tmp_path)).iterdir()} == before


@pytest.mark.parametrize("damage", ["a bit", "its end", "all", "another"])
def test_a_damaged_scan_is_made_again(tmp_path: Path, damage: str) -> None:
    cards, cache = draw_cards(20, 0, str(tmp_path)), str(tmp_path)
    index = build_index(str(cards), cache)
    size = index.scan.stat().st_size
    for _ in range(10 if damage == "a bit" else 1):
        if damage == "a bit":
            _flip(index.scan)
        elif damage == "another":
            index.scan.write_bytes(b"\0" * size)
        else:
            os.truncate(index.scan, size - 100 if damage == "its end" else 0)
        again = build_index(str(cards), cache)
        assert again.samples.astype(str).equals(index.samples.astype(str)) and not again.rejects


def test_an_image_that_changed_is_read_anew_whatever_its_times_say(tmp_path: Path) -> None:
    folder = tmp_path / "faces"
    folder.mkdir()
    for number in range(4):
        save_noise(folder / f"{number}_0_0_{number}.jpg", number)
    assert len(build_index(str(folder), str(tmp_path / "cache")).samples) == 4
    file = folder / "1_0_0_1.jpg"
    status, content = file.stat(), file.read_bytes()
    file.write_bytes(content[:100] + bytes(len(content) - 100))
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(ImageError):
        read_rgb(file)
    index = build_index(str(folder), str(tmp_path / "cache"))
    assert len(index.samples) == 3 and [*index.rejects] == [file.name]


# ---------------------------------------------------------------------- archives


def _archive(path: Path, name: str = "25_0_0_1.jpg", content: bytes | None = None) -> Path:
    if content is None:
        content = save_noise(path.parent / "face.jpg").read_bytes()
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            file.writestr(name, content)
    else:
        with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as file:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
    return path


@pytest.mark.parametrize("ending", [".zip", ".tar.gz"])
def test_each_flipped_bit_of_an_archive_is_refused_or_harmless(tmp_path: Path, ending: str) -> None:
    archive = _archive(tmp_path / f"faces{ending}")
    content = archive.read_bytes()
    pixels = read_rgb(tmp_path / "face.jpg")
    refused = 0
    for number in range(60):
        archive.write_bytes(content)
        _flip(archive)
        cache = tmp_path / str(number)
        try:
            index = build_index(str(archive), str(cache))
        except UserError:
            refused += 1
            assert not any(file.is_file() for file in cache.rglob("*") if "scan" not in file.name)
        else:
            assert (read_rgb(index.folder / index.samples["file"][0]) == pixels).all()
    assert refused > 40


@pytest.mark.parametrize("ending", [".zip", ".tar.gz"])
def test_a_bomb_is_refused_and_leaves_nothing(tmp_path: Path, ending: str) -> None:
    archive = _archive(tmp_path / f"bomb{ending}", content=bytes(50_000_000))
    with pytest.raises(UserError, match=r"it would take 0\.1 GB or more"):
        build_index(str(archive), str(tmp_path / "cache"))
    assert not list((tmp_path / "cache").iterdir())


@pytest.mark.parametrize("ending", [".zip", ".tar.gz", ".tar"])
@pytest.mark.parametrize("name", ["../25_0_0_1.jpg", "/tmp/25_0_0_1.jpg", "a/../../25_0_0_1.jpg"])
def test_a_member_outside_is_named_or_lands_inside(tmp_path: Path, ending: str, name: str) -> None:
    archive = _archive(tmp_path / f"out{ending}", name)
    try:
        build_index(str(archive), str(tmp_path / "cache"))
    except UserError as error:
        assert name in str(error)
    assert not (tmp_path / "25_0_0_1.jpg").exists() and not Path("/tmp/25_0_0_1.jpg").exists()

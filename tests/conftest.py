"""Shared fixtures: every test works in folders of its own; nothing is downloaded."""

import logging
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image

from agr_lightning.data.cards import draw_cards
from agr_lightning.data.index import Index, build_index

# Small enough that a command takes seconds, on the CPU and without a progress bar.
FAST = [
    *("--data.image_size", "32", "--data.batch_size", "16", "--data.num_workers", "0"),
    *("--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"),
]


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all processes of pytest-xdist have; what is in it is made by ``once``, or by the cache."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


def once(folder: Path, make: Callable[[Path], object]) -> Path:
    """A folder that the first process that needs it fills, while the others wait."""
    done = folder.with_name(f"{folder.name}.done")
    with FileLock(f"{folder}.lock"):
        if not done.exists():
            folder.mkdir()
            make(folder)
            done.touch()
    return folder


@pytest.fixture(scope="session", autouse=True)
def _cache(shared: Path) -> Iterator[None]:
    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(shared / "cache")
    yield
    if before is None:
        del os.environ["XDG_CACHE_HOME"]
    else:
        os.environ["XDG_CACHE_HOME"] = before


# Lightning's log handler keeps the stderr of the test in which it was made, which is closed after it.
logging.raiseExceptions = False


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, where runs go."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def cards(_cache: None) -> Path:
    """A folder of 120 drawn cards. Not to be changed."""
    return draw_cards(120, seed=0)


@pytest.fixture(scope="session")
def index(cards: Path) -> Index:
    return build_index(str(cards))


@pytest.fixture(scope="session")
def trained(shared: Path) -> Path:
    """The run folder of a network that has learnt the cards. Not to be changed."""
    from agr_lightning.cli import main

    def train(folder: Path) -> None:
        options = [
            *("--data.synthetic", "1200", "--data.image_size", "48", "--data.batch_size", "32"),
            *("--data.num_workers", "0", "--data.augmentation", "none", "--trainer.max_epochs", "5"),
            *("--model.learning_rate", "6e-3", "--trainer.log_every_n_steps", "10", "--trainer.accelerator", "cpu"),
            *("--trainer.enable_progress_bar", "false", "--trainer.default_root_dir", str(folder)),
        ]
        assert main(["fit", *options]) == 0

    return once(shared / "trained", train) / "lightning_logs" / "version_0"


@pytest.fixture(scope="session")
def utkface() -> Path:
    """A folder of real UTKFace images; tests that need it are skipped, and say so, where it is absent."""
    folder = os.environ.get("AGR_UTKFACE")
    if not folder or not Path(folder).is_dir():
        pytest.skip("set AGR_UTKFACE to a folder of UTKFace images to run this test")
    return Path(folder)


@pytest.fixture
def run(here: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs a command as a user would: ``run("fit", ...)`` returns exit code, stdout and stderr."""

    from agr_lightning.cli import main

    def call(*args: str) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            code = main(list(args))
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return call


def save_noise(path: Path, seed: int = 0, size: int = 48) -> Path:
    """An image that looks like no other."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC).save(path, format="JPEG")
    return path


def copy_run(run: Path, to: Path) -> Path:
    """A copy of a run folder, where ``best`` and ``last`` find it."""
    target = to / "lightning_logs" / "version_0"
    shutil.copytree(run, target)
    return target

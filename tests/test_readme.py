"""What README and docs show works: commands and Python blocks run, options exist, links lead to files."""

import contextlib
import doctest
import importlib
import io
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from agr_lightning.cli import main
from tests import miniatures
from tests.conftest import FAST, copy_run, save_noise

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]

# Placeholders that documented options may hold, and shell variables of loops.
_VALUES = {"$backbone": "resnet18", "$tasks": "age", "$seed": "1"}

# What makes a documented command small enough for a test; it is put at its end, where it wins.
_EVALUATION = ["--data.num_workers=0", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
_SMALL = {
    "fit": [*FAST, "--trainer.max_epochs=1", "--trainer.limit_train_batches=1", "--trainer.limit_val_batches=1"],
    "validate": _EVALUATION,
    "test": _EVALUATION,
    "predict": ["--faces=none"],
    "app": ["--help"],
}


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.S)


def commands(page: Path) -> list[list[str]]:
    """The commands of this project in the shell blocks of a page, each from its name on, in words."""
    text = "\n".join(blocks(page, "sh")).replace("\\\n", " ")
    text = re.sub(r"'[^']*'", lambda quoted: quoted[0].replace("\n", " "), text)
    for name, value in _VALUES.items():
        text = text.replace(name, value)
    found = re.findall(r"^\s*(?:(?:uv run )?(?:agr|python -m agr_lightning) |(?=fit ))(.*)", text, re.M)
    return [shlex.split(line, comments=True) for line in found]


def ids(value: object) -> str | None:
    if isinstance(value, Path):
        return value.stem
    return " ".join(value)[:40] if isinstance(value, list) else None


@pytest.fixture
def place(here: Path, trained: Path, cards: Path) -> Path:
    """A folder with the files that README and docs name: runs, images and photos, and the configurations."""
    copy_run(trained, here)
    shutil.copytree(trained, here / "lightning_logs" / "version_1")
    (here / "UTKFace").symlink_to(cards)
    (here / "configs").symlink_to(ROOT / "configs")
    save_noise(here / "my_photos" / "photo.jpg")
    save_noise(here / "photo.jpg")
    (here / "faces").symlink_to(cards)
    cells = [(card.name, *card.name.split("_")[:3]) for card in cards.iterdir()]
    pd.DataFrame(cells, columns=["img_name", "age", "gender", "race"]).to_csv("labels.csv", index=False)
    (here / "FairFace").mkdir()
    for seed, file in enumerate(miniatures.fairface(here / "FairFace")):
        save_noise(here / "FairFace" / file, seed)
    miniatures.imdb_wiki(here)
    return here


@pytest.mark.parametrize("command", commands(ROOT / "README.md"), ids=ids)
def test_a_command_of_readme_works(place: Path, run: Callable[..., tuple[int, str, str]], command: list[str]) -> None:
    small = _SMALL.get(command[0], [])
    if command[0] == "fit" and "--data.root" not in command:
        small = [*small, "--data.synthetic=120"]
    code, _, err = run(*command, *small)
    assert code == 0, err


@pytest.mark.parametrize(
    ("page", "number"),
    [(page, number) for page in PAGES for number in range(len(blocks(page, "python")))],
    ids=ids,
)
def test_a_python_block_works(place: Path, page: Path, number: int) -> None:
    from agr_lightning.inference.predictor import Predictor

    block = blocks(page, "python")[number]
    if "faces.onnx" in block:
        assert main(["export", "--ckpt_path", "small", "--output", "faces.onnx"]) == 0
    crop = np.zeros((200, 200, 3), np.uint8)
    images = np.zeros((2, 3, 48, 48), np.uint8)  # of the size that the `trained` network knows
    given = images if "onnxruntime" in block else torch.from_numpy(images)
    exec(block, {"crop": crop, "crops": [crop], "images": given, "predictor": Predictor.load("small")})


@pytest.fixture(scope="module")
def options() -> dict[str, str]:
    """What ``--help`` of each command prints."""
    texts = {}
    for command in ("fit", "validate", "test", "predict", "crop", "audit", "compare", "report", "export", "app"):
        output = io.StringIO()
        with contextlib.redirect_stdout(output), contextlib.suppress(SystemExit):
            main([command, "--help"])
        texts[command] = output.getvalue()
    texts["predict"] += texts["test"]  # options of the Trainer, which only a LightningCLI lists
    return texts


def known(option: str, text: str) -> bool:
    """Whether a help text has an option, or the option that it is an argument of, as in --trainer.callbacks.decay."""
    parts = option.removeprefix("--").rstrip("+.").split(".")
    names = [".".join(parts[:length]) for length in range(len(parts), min(len(parts), 2) - 1, -1)]
    return any(re.search(rf"--{re.escape(name)}[\s,=+\]]", text) for name in names)


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_options_of_documented_commands_exist(options: dict[str, str], page: Path) -> None:
    for command, *words in commands(page):
        for word in words:
            if word.startswith("--"):
                assert known(word.partition("=")[0], options[command]), (command, word)


def test_options_named_in_text_and_configs_exist(options: dict[str, str]) -> None:
    for page in [*PAGES, *(ROOT / "configs").rglob("*.yaml"), ROOT / "agr_lightning/weights/README.md"]:
        for option in re.findall(r"--(?:model|data|trainer)\.[a-z_.]+", page.read_text()):
            assert known(option, options["fit"]), (page.name, option)


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=ids)
def test_links_lead_to_files(page: Path) -> None:
    text = page.read_text()
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'src="([^"]+)"', text)
    for target in targets:
        if "://" not in target:
            assert (page.parent / target.partition("#")[0]).exists(), target


def test_readme_is_short() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.encode()) <= 8000 and len(text.splitlines()) <= 140


def test_the_map_of_the_code_names_every_file() -> None:
    package = ROOT / "agr_lightning"
    drawn = re.findall(r"^\s*(\w+(?:\.py|/))\s", blocks(ROOT / "docs/architecture.md", "")[0], re.M)
    files = {path.name for path in package.rglob("*.py") if not path.name.startswith("__")}
    assert {name for name in drawn if name.endswith(".py")} == files


@pytest.mark.parametrize(
    "file",
    [file for file in sorted((ROOT / "agr_lightning").rglob("*.py")) if ">>> " in file.read_text()],
    ids=ids,
)
def test_examples_in_docstrings_hold(file: Path) -> None:
    name = ".".join(file.relative_to(ROOT).with_suffix("").parts)
    assert doctest.testmod(importlib.import_module(name)).failed == 0

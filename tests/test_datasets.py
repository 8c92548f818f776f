"""The shipped network on miniatures of known data sets, in their formats, by the configs that are shipped."""

import json
import shutil
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from agr_lightning.data.cards import draw_cards
from agr_lightning.data.index import build_index
from agr_lightning.data.splits import SPLITS
from agr_lightning.data.tables import LabelOptions
from tests import miniatures
from tests.conftest import FAST, save_noise

DATASETS = Path(__file__).parents[1] / "configs" / "datasets"


# What makes a miniature, the labels of those of its images that are used, by their names, and what is said.
Labels = list[tuple[float, int, int]]
MINIATURES: dict[str, tuple[Callable[[Path], list[str]], Labels, list[str]]] = {
    "fairface": (
        miniatures.fairface,
        [(6, 0, 2), (54.5, 1, 4), (80, 1, 1), (24.5, 0, 4)],
        ["4 ages are ranges, taken as their middles (3-9, 50-59, more than 70, ...)", "1 not in the table"],
    ),
    "appa_real": (miniatures.appa_real, [(20.5 + n, -1, -1) for n in range(4)], ["4 not in the table"]),
    "agedb": (miniatures.agedb, [(35, 1, -1), (60, 0, -1), (40, 1, -1), (101, 0, -1)], ["4 without a label for race"]),
    "imdb_wiki": (
        miniatures.imdb_wiki,
        [(30.5, 1, -1), (31.5, 0, -1), (33.5, 1, -1), (35.5, -1, -1)],
        ["3 not in the table"],
    ),
    "adience": (
        miniatures.adience,
        [(28.5, 1, -1), (80, 0, -1), (35, 1, -1), (40.5, 0, -1), (1, -1, -1)],
        ["4 ages are ranges", "1 genders are unknown (u)"],
    ),
    "lagenda": (miniatures.lagenda, [(20 + n, n % 2, -1) for n in range(4)], ["1 no face box", "1 no label"]),
}


def test_every_config_has_a_miniature() -> None:
    assert {config.stem for config in DATASETS.iterdir()} == MINIATURES.keys()


@pytest.mark.parametrize("name", MINIATURES)
def test_the_shipped_network_is_measured_on(run: Callable[..., tuple[int, str, str]], here: Path, name: str) -> None:
    make, expected, said = MINIATURES[name]
    for seed, file in enumerate(make(here)):
        save_noise(here / file, seed)
    config = DATASETS / f"{name}.yaml"
    code, out, err = run("test", "--config", str(config), "--data.root", ".", *FAST[2:])
    assert code == 0, err
    for sentence in said:
        assert sentence in out
    results = json.loads((here / "lightning_logs/version_0/results.json").read_text())
    assert results["n"] == len(expected) and results["metrics"]["age_mae"] > 0
    known = {field.name for field in fields(LabelOptions)}
    given = {name: value for name, value in yaml.safe_load(config.read_text())["data"].items() if name in known}
    samples = build_index(".", options=LabelOptions(**given)).samples
    assert list(samples[["age", "gender", "race"]].itertuples(index=False, name=None)) == expected


def test_a_table_is_of_one_folder(run: Callable[..., tuple[int, str, str]], here: Path) -> None:
    """A run on a table is tested on its own images by that table, on others without it, and goes on with it."""
    cards = sorted(draw_cards(80, 7).iterdir())
    rows = ["picture,years,sex,who,split"]
    for number, card in enumerate(cards):
        (here / "own").mkdir(exist_ok=True)
        shutil.copy(card, here / "own" / f"{number}.jpg")
        age, gender, _ = card.name.split("_", 2)
        split = "" if number < 3 else "test" if number > 60 else "train"
        rows.append(f"{number}.jpg,{'' if number % 5 == 0 else age},{'fm'[gender == '0']},p{number // 2},{split}")
    (here / "own" / "labels.csv").write_text("\n".join(rows))
    table = ("--data.labels", "labels.csv", "--data.columns", "{file: picture, age: years, gender: sex}")
    options = ("--data.root", "own", *table, "--data.group", "who", "--model.tasks", "[age, gender]")
    code, out, err = run("fit", *FAST, *options, "--trainer.max_epochs", "1")
    assert code == 0 and "3 images left out, for which the table of labels has no split" in out, err
    lists = {name: (here / "lightning_logs/version_0/splits" / f"{name}.txt").read_text().split() for name in SPLITS}
    persons = {name: {int(file[:-4]) // 2 for file in files} for name, files in lists.items()}
    assert len(lists["test"]) == 19 and not persons["train"] & persons["val"] and lists["val"]
    assert run("test", *FAST, "--ckpt_path", "best")[0] == 0
    results = [json.loads((here / f"lightning_logs/version_{n}/results.json").read_text()) for n in (0, 1)]
    assert results[0]["metrics"] == results[1]["metrics"] and results[0]["n"] > 15  # cards look alike
    code, _, err = run("test", *FAST, "--ckpt_path", "best", "--data.test_root", str(draw_cards(30, 8)))
    assert code == 0, err
    code, _, err = run("fit", "--config", "lightning_logs/version_0/config.yaml", "--trainer.max_epochs", "2")
    assert code == 0, err

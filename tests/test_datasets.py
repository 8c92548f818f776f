"""The shipped network on miniatures of known data sets, in their formats, by the configs that are shipped."""

import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from agr_lightning.data.index import build_index
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

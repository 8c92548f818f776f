"""The shipped network on miniatures of known data sets, in their formats, by the configs that are shipped."""

import json
import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from scipy.io import savemat

from agr_lightning.data.index import build_index
from agr_lightning.data.tables import LabelOptions
from tests.conftest import FAST, save_noise

ROOT = Path(__file__).parents[1]
DATASETS = ROOT / "configs" / "datasets"


def _fairface(folder: Path) -> list[str]:
    rows = [
        "val/1.jpg,3-9,Male,East Asian,False",
        "val/2.jpg,50-59,Female,Latino_Hispanic,True",
        "val/3.jpg,more than 70,Female,Black,False",
        "val/4.jpg,20-29,Male,Middle Eastern,False",
    ]
    (folder / "fairface_label_val.csv").write_text("\n".join(["file,age,gender,race,service_test", *rows]))
    return [*(f"val/{n}.jpg" for n in range(1, 5)), "train/1.jpg"]


def _appa_real(folder: Path) -> list[str]:
    header = "file_name,num_ratings,apparent_age_avg,apparent_age_std,real_age"
    rows = [f"{n:06}.jpg,36,{20.5 + n},4.2,{21 + n}" for n in range(4)]
    (folder / "gt_avg_test.csv").write_text("\n".join([header, *rows]))
    return [f"test/{n:06}.jpg{end}" for n in range(4) for end in ("", "_face.jpg")]


def _agedb(folder: Path) -> list[str]:
    return ["0_MariaCallas_35_f.jpg", "1_MariaCallas_40_f.jpg", "9_AlecGuinness_101_m.jpg", "10_AlecGuinness_60_m.jpg"]


def _imdb_wiki(folder: Path) -> list[str]:
    files = [f"{n:02}/{n}_1950-01-01_{1980 + n}.jpg" for n in range(6)]
    wiki = {
        # Days since the year 0, as MATLAB counts them: the first of January 1950.
        "dob": np.full(6, 712224.0),
        "photo_taken": np.arange(1980, 1986),
        "full_path": np.array(files, object),
        "gender": np.array([0, 1, 1, 0, 1, np.nan]),
        "name": np.array(["A", "A", "B", "B", "C", np.array([])], object),
        "face_score": np.array([3, 2, 4, 2, -np.inf, 3]),
        "second_face_score": np.array([np.nan, np.nan, 2, np.nan, np.nan, np.nan]),
    }
    (folder / "wiki_crop").mkdir()
    savemat(folder / "wiki_crop" / "wiki.mat", {"wiki": wiki})
    # As the documentation shows.
    (code,) = re.findall(r"```python\n(.*?loadmat.*?)```", (ROOT / "docs/data.md").read_text(), re.DOTALL)
    exec(code, {})
    table = pd.read_csv(folder / "wiki_crop" / "labels.csv")
    assert table["age"].tolist() == [30.5, 31.5, 33.5, 35.5]
    assert table["gender"].tolist()[:3] == ["female", "male", "female"] and table["gender"].isna()[3]
    return [f"wiki_crop/{file}" for file in files]


def _adience(folder: Path) -> list[str]:
    header = "user_id original_image face_id age gender x y dx dy tilt_ang fiducial_yaw_angle fiducial_score"
    ages = ["(25, 32)", "(60, 100)", "35", "(38, 43)", "(0, 2)"]
    rows = [["3060@N03", f"10{n}_o.jpg", n, age, "fmfmu"[n], *[7] * 7] for n, age in enumerate(ages)]
    for fold in range(5):
        table = pd.DataFrame([rows[fold]], columns=header.split())
        table.to_csv(folder / f"fold_{fold}_data.txt", sep="\t", index=False)
    (folder / "fold_frontal_0_data.txt").write_text("not to be read")
    return [f"aligned/3060@N03/landmark_aligned_face.{n}.10{n}_o.jpg" for n in range(5)]


def _lagenda(folder: Path) -> list[str]:
    header = "img_name,age,gender,face_x0,face_y0,face_x1,face_y1,person_x0,person_y0,person_x1,person_y1"
    rows = [f"lag/{n}.jpg,{20 + n},{'MF'[n % 2]},5,5,{30 + n},40,0,0,48,48" for n in range(4)]
    rows += ["lag/0.jpg,-1,-1,1,1,9,9,0,0,48,48", "lag/1.jpg,30,F,-1,-1,-1,-1,0,0,48,48"]
    (folder / "lagenda_annotation.csv").write_text("\n".join([header, *rows]))
    return [f"lag/{n}.jpg" for n in range(4)]


# What makes a miniature, the labels of those of its images that are used, by their names, and what is said.
Labels = list[tuple[float, int, int]]
MINIATURES: dict[str, tuple[Callable[[Path], list[str]], Labels, list[str]]] = {
    "fairface": (
        _fairface,
        [(6, 0, 2), (54.5, 1, 4), (80, 1, 1), (24.5, 0, 4)],
        ["4 ages are ranges, taken as their middles (3-9, 50-59, more than 70, ...)", "1 not in the table"],
    ),
    "appa_real": (_appa_real, [(20.5 + n, -1, -1) for n in range(4)], ["4 not in the table"]),
    "agedb": (_agedb, [(35, 1, -1), (60, 0, -1), (40, 1, -1), (101, 0, -1)], ["4 without a label for race"]),
    "imdb_wiki": (_imdb_wiki, [(30.5, 1, -1), (31.5, 0, -1), (33.5, 1, -1), (35.5, -1, -1)], ["3 not in the table"]),
    "adience": (
        _adience,
        [(28.5, 1, -1), (80, 0, -1), (35, 1, -1), (40.5, 0, -1), (1, -1, -1)],
        ["4 ages are ranges", "1 genders are unknown (u)"],
    ),
    "lagenda": (_lagenda, [(20 + n, n % 2, -1) for n in range(4)], ["1 no face box", "1 no label"]),
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

"""Known data sets in miniature: tables in their formats, and the names of their images.

Each function writes the table into a folder, and returns the images that belong below it.
"""

import re
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.io import savemat

ROOT = Path(__file__).parents[1]


def fairface(folder: Path) -> list[str]:
    rows = [
        "val/1.jpg,3-9,Male,East Asian,False",
        "val/2.jpg,50-59,Female,Latino_Hispanic,True",
        "val/3.jpg,more than 70,Female,Black,False",
        "val/4.jpg,20-29,Male,Middle Eastern,False",
    ]
    (folder / "fairface_label_val.csv").write_text("\n".join(["file,age,gender,race,service_test", *rows]))
    return [*(f"val/{n}.jpg" for n in range(1, 5)), "train/1.jpg"]


def appa_real(folder: Path) -> list[str]:
    header = "file_name,num_ratings,apparent_age_avg,apparent_age_std,real_age"
    rows = [f"{n:06}.jpg,36,{20.5 + n},4.2,{21 + n}" for n in range(4)]
    (folder / "gt_avg_test.csv").write_text("\n".join([header, *rows]))
    return [f"test/{n:06}.jpg{end}" for n in range(4) for end in ("", "_face.jpg")]


def agedb(folder: Path) -> list[str]:
    return ["0_MariaCallas_35_f.jpg", "1_MariaCallas_40_f.jpg", "9_AlecGuinness_101_m.jpg", "10_AlecGuinness_60_m.jpg"]


def imdb_wiki(folder: Path) -> list[str]:
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


def adience(folder: Path) -> list[str]:
    header = "user_id original_image face_id age gender x y dx dy tilt_ang fiducial_yaw_angle fiducial_score"
    ages = ["(25, 32)", "(60, 100)", "35", "(38, 43)", "(0, 2)"]
    rows = [["3060@N03", f"10{n}_o.jpg", n, age, "fmfmu"[n], *[7] * 7] for n, age in enumerate(ages)]
    for fold in range(5):
        table = pd.DataFrame([rows[fold]], columns=header.split())
        table.to_csv(folder / f"fold_{fold}_data.txt", sep="\t", index=False)
    (folder / "fold_frontal_0_data.txt").write_text("not to be read")
    return [f"aligned/3060@N03/landmark_aligned_face.{n}.10{n}_o.jpg" for n in range(5)]


def lagenda(folder: Path) -> list[str]:
    header = "img_name,age,gender,face_x0,face_y0,face_x1,face_y1,person_x0,person_y0,person_x1,person_y1"
    rows = [f"lag/{n}.jpg,{20 + n},{'MF'[n % 2]},5,5,{30 + n},40,0,0,48,48" for n in range(4)]
    rows += ["lag/0.jpg,-1,-1,1,1,9,9,0,0,48,48", "lag/1.jpg,30,F,-1,-1,-1,-1,0,0,48,48"]
    (folder / "lagenda_annotation.csv").write_text("\n".join([header, *rows]))
    return [f"lag/{n}.jpg" for n in range(4)]

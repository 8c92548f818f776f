import dataclasses
import hashlib
import json
import os
import shutil
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.sparse.csgraph import connected_components

from agr_lightning.audit import audit
from agr_lightning.data.cache import ImageCache
from agr_lightning.data.duplicates import are_known, find_groups, fingerprints
from agr_lightning.data.index import Index, build_index
from agr_lightning.data.tables import LabelOptions
from agr_lightning.images import read_rgb
from agr_lightning.labels import AGE_BANDS, GENDERS, MISSING, RACES
from agr_lightning.messages import UserError
from tests.conftest import save_noise


def _copies(samples: pd.DataFrame) -> list[pd.DataFrame]:
    """The groups of two or more samples that show the same photo."""
    return [group for _, group in samples[samples.duplicated("group", keep=False)].groupby("group", sort=False)]


def _names(index: Index) -> list[str]:
    return list(index.samples["name"])


def test_every_file_is_a_sample_or_a_reject(tmp_path: Path) -> None:
    save_noise(tmp_path / "20_0_1_1.jpg", 1)
    save_noise(tmp_path / "deep" / "er" / "30_1_20170116174525125.jpg.chip.jpg", 2)
    save_noise(tmp_path / "40_x_9_1.jpg", 3)
    save_noise(tmp_path / "IMG_1_2.jpg", 5)
    (tmp_path / "50_0_0_1.jpg").write_text("text")
    (tmp_path / "60_0_0_1.jpg").touch()
    (tmp_path / "Thumbs.db").write_bytes(b"x")
    (tmp_path / "70_0_0_1.jpg").write_bytes(save_noise(tmp_path / "80_0_0_1.jpg", 4).read_bytes()[:300])
    index = build_index(str(tmp_path))
    assert _names(index) == ["20_0_1_1.jpg", "30_1_20170116174525125.jpg.chip.jpg", "40_x_9_1.jpg", "80_0_0_1.jpg"]
    reasons = index.rejects
    assert set(reasons) == {"IMG_1_2.jpg", "50_0_0_1.jpg", "60_0_0_1.jpg", "70_0_0_1.jpg", "Thumbs.db"}
    assert reasons["50_0_0_1.jpg"] == "not an image" and reasons["60_0_0_1.jpg"] == "empty file"
    assert "truncated" in reasons["70_0_0_1.jpg"] and "name is not" in reasons["IMG_1_2.jpg"]
    assert "4 images (1 without a label for gender, 2 without a label for race), 5 files rejected" in index.summary()


def test_same_name_in_two_folders(tmp_path: Path) -> None:
    save_noise(tmp_path / "a" / "20_0_1_1.jpg", 1)
    shutil.copytree(tmp_path / "a", tmp_path / "copy")
    save_noise(tmp_path / "b" / "30_0_1_1.jpg", 2)
    save_noise(tmp_path / "c" / "30_0_1_1.jpg", 3)
    index = build_index(str(tmp_path))
    assert _names(index) == ["20_0_1_1.jpg", "b/30_0_1_1.jpg", "c/30_0_1_1.jpg"]
    assert index.rejects == {"copy/20_0_1_1.jpg": "copy of a file of the same name"}


def test_links_are_followed_once(tmp_path: Path) -> None:
    save_noise(tmp_path / "real" / "20_0_1_1.jpg", 1)
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "link").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "loop").symlink_to(tmp_path / "root")
    assert _names(build_index(str(tmp_path / "root"))) == ["20_0_1_1.jpg"]


def test_finds_copies_of_a_photo(tmp_path: Path) -> None:
    photo = Image.open(save_noise(tmp_path / "20_0_1_1.jpg", 7, size=200)).convert("RGB")
    shutil.copy(tmp_path / "20_0_1_1.jpg", tmp_path / "25_0_1_2.jpg")
    photo.save(tmp_path / "20_1_1_3.jpg", quality=40)
    shifted = Image.fromarray(np.roll(np.asarray(photo), 2, axis=1))
    shifted.save(tmp_path / "20_0_1_4.jpg", quality=90)
    save_noise(tmp_path / "30_0_1_5.jpg", 1)
    groups = _copies(build_index(str(tmp_path)).samples)
    assert [sorted(group["name"]) for group in groups] == [
        ["20_0_1_1.jpg", "20_0_1_4.jpg", "20_1_1_3.jpg", "25_0_1_2.jpg"]
    ]


def test_cards_that_differ_are_no_copies(index: Index) -> None:
    assert len(_copies(index.samples)) <= 0.02 * len(index.samples)


def test_a_second_look_opens_only_what_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(3):
        save_noise(tmp_path / f"2{seed}_0_1_1.jpg", seed)
    build_index(str(tmp_path))
    opened: list[str] = []
    scan = __import__("agr_lightning.data.index", fromlist=["_look"])._look

    def spy(path: Path, box: np.ndarray) -> object:
        opened.append(path.name)
        return scan(path, box)

    monkeypatch.setattr("agr_lightning.data.index._look", spy)
    save_noise(tmp_path / "21_0_1_1.jpg", 9)
    os.utime(tmp_path / "21_0_1_1.jpg", ns=(1, 1))
    assert len(build_index(str(tmp_path)).samples) == 3
    assert opened == ["21_0_1_1.jpg"]


def test_a_folder_whose_files_lose_their_names_says_so_each_time(tmp_path: Path) -> None:
    save_noise(tmp_path / "20_0_1_1.jpg", 1)
    build_index(str(tmp_path))
    (tmp_path / "20_0_1_1.jpg").rename(tmp_path / "face.jpg")
    for _ in range(2):
        with pytest.raises(UserError, match=r"face\.jpg: name is not AGE_GENDER_RACE_DATETIME"):
            build_index(str(tmp_path))
    (tmp_path / "face.jpg").rename(tmp_path / "30_0_1_1.jpg")
    assert _names(build_index(str(tmp_path))) == ["30_0_1_1.jpg"]


def test_a_damaged_store_is_made_anew(tmp_path: Path) -> None:
    save_noise(tmp_path / "data" / "20_0_1_1.jpg")
    cache = tmp_path / "cache"
    build_index(str(tmp_path / "data"), str(cache))
    (store,) = cache.glob("scan-*.npz")
    store.write_bytes(store.read_bytes()[:50])
    assert len(build_index(str(tmp_path / "data"), str(cache)).samples) == 1


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_an_archive_is_a_root(cards: Path, tmp_path: Path, kind: str) -> None:
    archive = tmp_path / f"faces.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(archive, "w") as file:
            for card in cards.iterdir():
                file.write(card, f"UTKFace/{card.name}")
    else:
        with tarfile.open(archive, "w:gz" if kind == "tar.gz" else "w") as file:
            file.add(cards, "UTKFace")
    index = build_index(str(archive), str(tmp_path / "cache"))
    assert _names(index) == sorted(card.name for card in cards.iterdir())
    assert build_index(str(archive), str(tmp_path / "cache")).samples.equals(index.samples)


def test_a_damaged_archive_leaves_nothing(cards: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole.tar.gz"
    with tarfile.open(whole, "w:gz") as file:
        file.add(cards, "UTKFace")
    for name, size in (("cut.tar.gz", 0.5), ("cut.zip", 0.0)):
        (tmp_path / name).write_bytes(whole.read_bytes()[: int(size * whole.stat().st_size)] or b"PK\x03\x04no")
        with pytest.raises(UserError, match=name):
            build_index(str(tmp_path / name), str(tmp_path / "cache"))
    assert not list((tmp_path / "cache").glob("*cut*"))


def test_an_archive_cannot_write_outside(tmp_path: Path) -> None:
    archive = tmp_path / "evil.tar"
    photo = save_noise(tmp_path / "20_0_1_1.jpg")
    with tarfile.open(archive, "w") as file:
        file.add(photo, "../../20_0_1_evil.jpg")
    with pytest.raises(UserError, match=r"evil\.tar"):
        build_index(str(archive), str(tmp_path / "a" / "b" / "cache"))
    assert not list(tmp_path.rglob("*_evil.jpg"))


def test_roots_that_cannot_work(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        build_index(str(tmp_path / "gone"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no files"):
        build_index(str(tmp_path / "empty"))
    (tmp_path / "empty" / "IMG_1.jpg").touch()
    with pytest.raises(UserError, match=r"none of its 1 files is a usable image.*IMG_1\.jpg"):
        build_index(str(tmp_path / "empty"))
    with pytest.raises(UserError, match=r"IMG_1\.jpg cannot be unpacked into"):
        build_index(str(tmp_path / "empty" / "IMG_1.jpg"))


@pytest.mark.parametrize(
    ("folder", "reason"), [("two\nlines", "line break in the file name"), (b"\xff", "file name is not UTF-8")]
)
def test_names_that_no_list_could_hold_are_rejected(tmp_path: Path, folder: str | bytes, reason: str) -> None:
    save_noise(tmp_path / "20_0_1_1.jpg", 1)
    save_noise(tmp_path / os.fsdecode(folder) / "20_0_1_2.jpg", 2)
    for _ in range(2):
        index = build_index(str(tmp_path))
        assert _names(index) == ["20_0_1_1.jpg"] and list(index.rejects.values()) == [reason]


def test_fingerprints_stay_what_they_are() -> None:
    # Every trained network carries them: whoever changes this makes these forget what they have seen.
    looks = np.random.default_rng(0).integers(0, 256, (1, 32, 32), np.uint8)
    assert hashlib.sha256(fingerprints(looks).tobytes()).hexdigest()[:8] == "374255ea"
    assert fingerprints(looks[:0]).shape == (0, 32)


def test_fingerprints_are_known_within_some_bits() -> None:
    known = np.random.default_rng(0).integers(0, 256, (500, 32), np.uint8)
    asked = np.repeat(known[7:8], 4, 0)
    asked[1, 0] ^= 0b11
    asked[2, [3, 9]] ^= 0b11
    asked[3] = ~asked[3]
    assert are_known(asked, known, 3).tolist() == [True, True, False, False]
    assert not are_known(asked, known[:0]).any() and are_known(asked[:0], known).shape == (0,)


def test_groups_are_named_by_their_first_member() -> None:
    looks = np.random.default_rng(0).integers(0, 256, (6, 32, 32), np.uint8)
    looks[4] = looks[1]
    assert find_groups(looks, ["a", "b", "c", "a", "d", "e"]).tolist() == [0, 1, 2, 0, 1, 5]
    # Copies of copies are one group.
    looks[[3, 4, 5]] = looks[0]
    assert find_groups(looks, ["a", "b", "c", "a", "d", "d"]).tolist() == [0, 1, 2, 0, 0, 0]
    assert find_groups(looks[:0], []).tolist() == []


def test_the_search_for_copies_misses_none() -> None:
    """Of looks that are alike to all degrees, it finds the pairs that a comparison of each with each finds."""
    random = np.random.default_rng(0)
    # They differ in a few patterns, so that no distance is lost on the way to fewer directions.
    patterns = random.normal(0, 9, (8, 8, 8)).repeat(4, 1).repeat(4, 2)
    base = random.normal(0, 1, (150, 8))
    weights = np.concatenate(
        [base, *(base + random.normal(0, 1, base.shape) * random.uniform(0, 0.3) for _ in range(4))]
    )
    looks = (128 + np.tensordot(weights, patterns, 1)).clip(0, 255).astype(np.uint8)
    flat = (looks.reshape(len(looks), -1) - looks.mean((1, 2))[:, None]).astype(np.float64)
    flat /= np.linalg.norm(flat, axis=1, keepdims=True)
    cells = looks.reshape(-1, 8, 4, 8, 4).sum((2, 4), dtype=np.int32)
    hashes = np.concatenate([np.diff(cells, axis=axis).reshape(-1, 56) > 0 for axis in (2, 1)], 1).astype(np.int32)
    bits = hashes.sum(1) + hashes.sum(1)[:, None] - 2 * hashes @ hashes.T
    alike = (flat @ flat.T >= 0.97) & (bits <= 10)
    groups = connected_components(alike)[1]
    found = find_groups(looks, [str(number) for number in range(len(looks))])
    assert 200 < len(set(groups)) < 700
    assert (
        [len(set(found[groups == group])) for group in set(groups)] == [1] * len(set(groups)) == [1] * len(set(found))
    )


def test_audit_tells_all(tmp_path: Path) -> None:
    data = tmp_path / "data"
    save_noise(data / "20_0_1_1.jpg", 1)
    shutil.copy(data / "20_0_1_1.jpg", data / "29_1_1_2.jpg")
    save_noise(data / "75_1_20170116174525125.jpg", 2)
    (data / "notes.txt").write_text("x")
    output = tmp_path / "audit.json"
    report = audit(str(data), str(output))
    found = json.loads(output.read_text())
    assert found["images"] == 3
    assert found["counts"]["race"] == {"white": 0, "black": 2, "asian": 0, "indian": 0, "others": 0, "unknown": 1}
    assert found["counts"]["age_band"]["20-29"] == 2 and found["counts"]["age_band"]["unknown"] == 0
    assert found["counts"]["gender"] == {"male": 1, "female": 2, "unknown": 0}
    assert found["rejected"] == [{"file": "notes.txt", "reason": "name is not AGE_GENDER_RACE_DATETIME"}]
    assert found["duplicate_groups"] == [{"files": ["20_0_1_1.jpg", "29_1_1_2.jpg"], "disagree_on": ["age", "gender"]}]
    heads = ["age", *GENDERS, *RACES, "unknown", "all", "share"]
    assert report.splitlines()[2].split() == heads and "\nunknown" not in report
    assert "age and gender: 20_0_1_1.jpg, 29_1_1_2.jpg" in report and "notes.txt" in report


def test_audit_counts_unknown_labels(index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = index.samples.assign(age=index.samples["age"] + 0.75)
    samples.loc[:9, "age"], samples.loc[5:24, "gender"], samples.loc[8:, "race"] = MISSING, MISSING, MISSING
    monkeypatch.setattr("agr_lightning.audit.build_index", lambda *_: dataclasses.replace(index, samples=samples))
    report = audit("cards", str(tmp_path / "audit.json")).splitlines()
    found = json.loads((tmp_path / "audit.json").read_text())
    assert [found["counts"][name]["unknown"] for name in ("age_band", "gender", "race")] == [10, 20, 112]
    assert all(sum(counts.values()) == 120 for counts in found["counts"].values())
    assert {"age_band": None, "gender": None, "race": None, "n": 2} in found["cells"]
    assert sum(cell["n"] for cell in found["cells"]) == 120
    heads = [*GENDERS, "unknown", *RACES, "unknown", "all", "share"]
    rows = {line.split()[0]: line.split()[1:] for line in report[2:14] if line}
    assert rows["age"] == heads and list(rows)[1:] == [*AGE_BANDS, "unknown", "all"]
    assert rows["all"][2] == "20" and rows["all"][8:] == ["112", "120", "100.0%"]
    assert rows["unknown"][2] == "5" and rows["unknown"][8:10] == ["2", "10"]
    assert rows["20-29"][9] == str(samples["age"].between(20, 29.9).sum())


@pytest.mark.real_data
def test_facts_of_real_utkface(utkface: Path) -> None:
    index = build_index(str(utkface))
    assert len(index.samples) == 18_974 and not index.rejects
    assert (index.samples["race"] < 0).sum() == 3
    groups = _copies(index.samples)
    assert len(groups) == 645 and sum(map(len, groups)) == 1349


def _with_table(root: Path, table: str, **options: str) -> Index:
    (root / "labels.csv").write_text(table)
    return build_index(str(root), str(root.parent / "cache"), options=LabelOptions("labels.csv", **options))


def test_faces_are_cropped_by_the_boxes_of_a_table(tmp_path: Path) -> None:
    faces = [save_noise(tmp_path / f"{seed}.jpg", seed, 40) for seed in (1, 2)]
    photo = Image.new("RGB", (200, 100), "grey")
    for face, left in zip(faces, (10, 120), strict=True):
        photo.paste(Image.open(face), (left, 30))
    (tmp_path / "root").mkdir()
    photo.save(tmp_path / "root" / "two.png")
    photo.save(tmp_path / "root" / "cut.png")
    rows = ["two.png,20,10,30,40,40", "two.png,30,120,30,40,40", "cut.png,40,170,30,40,40", "cut.png,50,300,30,40,40"]
    index = _with_table(tmp_path / "root", "\n".join(["file,age,x,y,width,height", *rows]))
    assert list(index.samples["name"]) == ["cut.png", "two.png#1", "two.png#2"]
    assert list(index.samples["age"]) == [40, 20, 30]
    assert index.rejects["cut.png"] == "face box outside the image of 200x100 pixels"
    images = ImageCache(index, 40)
    images.fill(np.arange(3))
    found = images.read(np.arange(3)).astype(int)
    for row, face in zip((1, 2), faces, strict=True):
        assert abs(found[row] - read_rgb(face)).mean() < 1
    assert (found[0][:, 30:] == found[0][:, 29:30]).all()  # what lies beyond the edge
    # The same table again, without a look at the images; and with a margin.
    assert build_index(str(tmp_path / "root"), str(tmp_path / "cache"), options=LabelOptions("labels.csv")).rejects
    wider = _with_table(tmp_path / "root", "\n".join(["file,age,x,y,width,height", *rows]), box_margin=0.25)
    assert wider.samples["box"].iloc[1].tolist() == [0, 20, 60, 60]


def test_nobody_is_in_two_groups(tmp_path: Path) -> None:
    persons = ["a", "b", "", "a", "", "b"]
    for seed, _ in enumerate(persons):
        save_noise(tmp_path / "root" / f"{seed}.jpg", min(seed, 4))  # 5 is a copy of 4
    rows = [f"{seed}.jpg,30,{person}" for seed, person in enumerate(persons)]
    samples = _with_table(tmp_path / "root", "\n".join(["file,age,who", *rows]), group="who").samples
    groups = samples.groupby("group")["name"].agg(list).tolist()
    assert groups == [["0.jpg", "3.jpg"], ["1.jpg", "4.jpg", "5.jpg"], ["2.jpg"]]
    assert samples["photo"].nunique() == 5


def test_what_was_derived_of_a_folder_is_measured_and_removed(tmp_path: Path) -> None:
    for seed in range(4):
        save_noise(tmp_path / "root" / f"2{seed}_0_1_1.jpg", seed)
    cache = tmp_path / "cache"
    with tarfile.open(tmp_path / "faces.tar", "w") as archive:
        archive.add(tmp_path / "root", "faces")
    for root in ("root", "faces.tar"):
        index = build_index(str(tmp_path / root), str(cache))
        ImageCache(index, 512).fill(np.arange(4))
        assert f"Derived files: 3 MB in {cache} (" in audit(str(tmp_path / root), cache_dir=str(cache))
    (cache / "of-others.bin").touch()
    for root in ("root", "faces.tar"):
        assert "removed 3 MB" in audit(str(tmp_path / root), cache_dir=str(cache), clear_cache=True)
        assert "removed 0 MB" in audit(str(tmp_path / root), cache_dir=str(cache), clear_cache=True)
    assert [path.name for path in cache.iterdir()] == ["of-others.bin"]

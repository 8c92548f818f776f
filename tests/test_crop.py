"""Crops of photos to train on, and data sets whose images are none."""

import csv
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from agr_lightning.audit import audit
from agr_lightning.data.index import build_index
from agr_lightning.images import read_rgb, resize
from agr_lightning.inference import crop as crop_module
from agr_lightning.inference.centerface import find_faces
from agr_lightning.inference.crop import COLUMNS, crop, not_crops
from agr_lightning.messages import UserError
from tests.conftest import FAST, save_noise
from tests.drawn_face import GROUND, draw_face, draw_photo

Run = Callable[..., tuple[int, str, str]]
Picture = NDArray[np.uint8]
Change = Callable[[Picture], Picture]


def _save(name: str, *faces: tuple[int, int, int], kind: str = "JPEG", **size: int) -> None:
    path = Path("photos", name)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(draw_photo(*faces, **size)).save(path, kind, quality=95)


def _rows(out: str = "crops") -> list[dict[str, str]]:
    with Path(out, "crops.csv").open(newline="", errors="surrogateescape") as file:
        return list(csv.DictReader(file))


def _files(out: str = "crops") -> dict[str, bytes]:
    """The content of all that is in a folder, hidden files too."""
    found = [path for path in Path(out).rglob("*") if path.is_file()]
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in found}


@pytest.fixture
def photos(here: Path) -> Path:
    """Photos with two faces, one and none, one below a folder, and a file that is no photo."""
    _save("30_0_1_two.jpg", (40, 100, 220), (330, 40, 380))
    _save("31_1_2_one.png", (200, 60, 320), kind="PNG")
    _save("deep/31_1_2_one.png", (200, 60, 320), kind="WEBP")  # by its content
    _save("none.webp", kind="WEBP")
    Path("photos/torn.jpg").write_bytes(Path("photos/30_0_1_two.jpg").read_bytes()[:3000])
    return here


def test_crops_have_the_names_of_their_photos(photos: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        crop("photos", "new/crops")
    assert caplog.messages == [
        "Faces        found by centerface",
        "5 inputs: 3 ok, 1 no_face, 1 unreadable",
        "Crops        new/crops/crops.csv",
        "Left out     all but 1 of the faces in 1 inputs (column faces)",
        "Next         python -m agr_lightning fit --data.root new/crops",
    ]
    rows = _rows("new/crops")
    assert tuple(rows[0]) == COLUMNS
    names = ["30_0_1_two.jpg", "31_1_2_one.png", "deep/31_1_2_one.png", "none.webp", "torn.jpg"]
    assert [row["file"] for row in rows] == names
    assert [row["crop"] for row in rows] == [*names[:3], "", ""]
    assert [(row["status"], row["faces"], row["reason"]) for row in rows] == [
        *(("ok", "2", ""), ("ok", "1", ""), ("ok", "1", "")),
        *(("no_face", "0", ""), ("unreadable", "", "truncated")),
    ]
    assert sorted(_files("new/crops")) == sorted([*names[:3], "crops.csv"])
    x, y, width, height = (int(rows[0][name]) for name in ("x", "y", "width", "height"))
    assert 330 < x < x + width < 710 and 40 < y < y + height < 420 and float(rows[0]["face_probability"]) > 0.4
    for name, kind in zip(names[:3], ("JPEG", "PNG", "PNG"), strict=True):
        with Image.open(Path("new/crops", name)) as image:
            assert image.format == kind and image.size == (200, 200) and image.mode == "RGB"
    # Without loss, what the finder crops.
    photo = read_rgb("photos/31_1_2_one.png")
    (face,) = find_faces(photo, None, confidence=0.4)
    assert (read_rgb("new/crops/31_1_2_one.png") == face.crop(photo, 200)).all()


def test_crops_can_be_trained_on(photos: Path, run: Run) -> None:
    for number in range(12):
        _save(f"{20 + number}_{number % 2}_{number % 5}_x.jpg", (200 - 5 * number, 60, 300 + 5 * number))
    options = ("--trainer.max_epochs", "1", "--data.val_fraction", "0.3", *FAST)
    code, out, err = run("fit", "--data.root", "photos", *options)
    assert code == 0 and "crop them first: python -m agr_lightning crop photos OUT" in out, err
    assert out.count("crop them first") == 1  # though it is tested too
    code, out, err = run("crop", "photos", "crops")
    assert code == 0 and "17 inputs: 15 ok, 1 no_face, 1 unreadable" in out, err
    code, out, err = run("fit", "--data.root", "crops", *options)
    assert code == 0 and "crop them first" not in out and "crops: 15 images" in out, err


@pytest.mark.parametrize(
    ("faces", "expected"),
    [
        ([(20, 60, 340), (400, 150, 190)], 0),  # one alone is large
        ([(20, 60, 300), (290, 100, 240)], 1),  # nearly as large, and in the middle
        ([(20, 60, 300), (340, 200, 90)], 0),  # in the middle, but far smaller
    ],
)
def test_the_face_that_a_photo_is_of(here: Path, faces: list[tuple[int, int, int]], expected: int) -> None:
    _save("a.jpg", *faces)
    crop("photos", "crops")
    (row,) = _rows()
    left, _, size = faces[expected]
    assert int(row["x"]) + int(row["width"]) / 2 == pytest.approx(left + size / 2, abs=0.1 * size)
    assert row["faces"] == "2" and row["crop"] == "a.jpg"


def test_a_face_of_which_the_finder_is_less_sure_is_not_what_a_photo_is_of(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from agr_lightning.inference import photos as photos_module
    from agr_lightning.inference.faces import Face, square

    found = [Face(square(380, 240, 300).corners, 0.41), Face(square(100, 100, 80).corners, 0.8)]
    monkeypatch.setattr(photos_module, "find_faces", lambda *_: found)
    _save("a.jpg")
    crop("photos", "crops")
    assert [(row["width"], row["face_probability"], row["faces"]) for row in _rows()] == [("80", "0.8", "2")]


def test_several_faces_have_names_of_their_own(photos: Path, caplog: pytest.LogCaptureFixture) -> None:
    _save("é" * 120 + ".jpg", (40, 100, 220), (330, 40, 380))
    with caplog.at_level("INFO"):
        crop("photos", "crops", largest=None, size=64)
    rows = _rows()
    assert [row["crop"] for row in rows[:4]] == [
        *("30_0_1_two.jpg.face0.jpg", "30_0_1_two.jpg.face1.jpg"),
        *("31_1_2_one.png", "deep/31_1_2_one.png"),
    ]
    assert int(rows[0]["width"]) > int(rows[1]["width"])
    assert len({row["crop"] for row in rows if row["crop"]}) == 6 == len(_files()) - 1
    assert read_rgb(Path("crops", rows[1]["crop"])).shape == (64, 64, 3)
    assert "Left out" not in caplog.text


def test_small_faces_are_enlarged_to_twice_their_size(here: Path) -> None:
    _save("a.png", (100, 100, 100), kind="PNG")
    crop("photos", "crops")
    (row,) = _rows()
    assert 40 < int(row["width"]) < 75 and read_rgb("crops/a.png").shape[:2] == (2 * int(row["width"]),) * 2


def test_names_and_kinds_of_all_sorts(here: Path) -> None:
    names = ["-a.jpg", "=b.JPG", "c d.jpeg", "é.tif", "f.bmp", os.fsdecode(b"\xff.jpg"), "g\nh.jpg", "i.heic", "j.gif"]
    names += [f"{'k' * 251}.jpg", "l.jpg/m.jpg", "no ending"]
    for name in names:
        _save(name, (200, 60, 320))
    Path("list.txt").write_text("photos\nphotos/no ending\nphotos/gone.jpg\n")
    crop("list.txt", "crops")
    files = _files()
    assert sorted(files) == sorted([*names, "crops.csv"])
    assert all(read_rgb(Path("crops", name)).shape == (200, 200, 3) for name in names)
    assert [row["status"] for row in _rows()] == ["ok"] * 12 + ["unreadable"]
    assert files["f.bmp"][:2] == b"BM" and files["i.heic"][:2] == b"\xff\xd8"


def test_frames_of_videos_have_their_seconds(here: Path) -> None:
    Path("photos").mkdir()
    video = cv2.VideoWriter("photos/a.mp4", cv2.VideoWriter.fourcc(*"mp4v"), 10, (760, 480))
    for number in range(30):
        video.write(draw_photo(*[(200, 60, 320)][: number < 20])[:, :, ::-1])
    video.release()
    crop("photos", "crops")
    assert [(row["file"], row["crop"], row["seconds"]) for row in _rows()] == [
        *(("a.mp4", f"a.mp4.0000{second}.000s.jpg", f"{second}.0") for second in (0, 1)),
        ("a.mp4", "", "2.0"),
    ]


# ---------------------------------------------------------------------- stopped and resumed


def test_a_job_that_was_killed_is_resumed(photos: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(4):
        _save(f"more {number}.jpg", (200 - number, 60, 320))
    monkeypatch.setattr(crop_module, "_BATCH", 2)
    crop("photos", "whole")

    class Killed(BaseException):
        pass

    save, saved = Image.Image.save, list[str]()

    def stopping(image: Image.Image, file: Any, *options: Any, **more: Any) -> None:
        saved.append(file.name)
        if len(saved) == 6:
            file.write(b"half")
            raise Killed
        save(image, file, *options, **more)

    monkeypatch.setattr(Image.Image, "save", stopping)
    monkeypatch.setattr(crop_module.Output, "stop", lambda output: output._part.close())  # as SIGKILL does
    with pytest.raises(Killed):
        crop("photos", "crops")
    crops = {name: content for name, content in _files().items() if not name.startswith((".", "crops."))}
    assert len(crops) == 5 and crops.items() <= _files("whole").items()  # half a crop has no name
    code, _, err = run("crop", "photos", "crops")
    assert code == 1 and "crops.part0 has rows of a job that was stopped: go on with --resume" in err
    for options, differs in ((("--size", "99"), "size"), (("--largest", "null"), "largest")):
        code, _, err = run("crop", "photos", "crops", "--resume", *options)
        assert code == 1 and f"is of a job with other {differs}" in err
    code, out, err = run("crop", "photos", "crops", "--resume")
    assert code == 0 and "inputs were done" in out and "Resumed      0" not in out, err
    assert _files() == _files("whole")
    code, _, err = run("crop", "photos", "crops", "--resume")
    assert code == 1 and err == "error: OUT crops is not empty: name a new folder.\n"


def test_a_script_may_always_say_resume(photos: Path) -> None:
    crop("photos", "crops", resume=True)
    crop("photos", "again")
    assert _files() == _files("again")


@pytest.mark.parametrize(
    ("photos_path", "out", "options", "message"),
    [
        ("nowhere", "crops", {}, "PHOTOS nowhere is no photo or folder of photos"),
        ("photos", "photos", {}, "OUT photos lies in PHOTOS photos, where crops would be photos"),
        ("photos", "photos/../photos/crops", {}, "lies in PHOTOS photos"),
        ("link", "photos/crops", {}, "OUT photos/crops lies in PHOTOS link"),
        ("photos/deep", ".", {}, "OUT . is not empty: name a new folder."),
        ("photos", "crops", {"size": 0}, "--size 0 must be 1 or more."),
        ("photos", "crops", {"largest": 0}, "--largest 0 must be 1 or more."),
        ("photos", "crops", {"faces": "mtcnn"}, "--faces mtcnn must be one of"),
    ],
)
def test_what_the_user_can_cure(photos: Path, photos_path: str, out: str, options: Any, message: str) -> None:
    Path("link").symlink_to("photos")
    before = _files("photos")
    with pytest.raises(UserError) as error:
        crop(photos_path, out, **options)
    assert message in str(error.value) and _files("photos") == before and not Path("crops").exists()


def test_photos_that_cannot_be_read_are_an_error(here: Path, run: Run) -> None:
    Path("photos").mkdir()
    Path("photos/a.jpg").write_text("no")
    Path("file").touch()
    code, _, err = run("crop", "photos", "crops")
    assert code == 1 and "no input could be read: the column reason of crops/crops.csv says why" in err
    code, _, err = run("crop", "photos", "file")
    assert code == 1 and err == "error: file: File exists.\n"


# ---------------------------------------------------------------------- images that are no crops


# A drawn head as UTKFace would crop it.
TIGHT = draw_face(320)[88:272, 68:252]


def _images(change: Change, count: int = 40) -> str:
    """A folder of labelled images of a drawn head, changed."""
    shutil.rmtree("images", ignore_errors=True)
    Path("images").mkdir()
    for number in range(count):
        image = change(TIGHT.copy())
        image[0, 0] = number
        Image.fromarray(image).save(f"images/{20 + number}_0_0_x.png")
    return "images"


def _loose(head: Picture, size: int = 200) -> Picture:
    """With 40 % of its side around it."""
    height, width = head.shape[:2]
    image = np.full((height * 9 // 5, width * 9 // 5, 3), GROUND, np.uint8)
    image[height * 2 // 5 :, width * 2 // 5 :][:height, :width] = head
    return resize(image, size)


def _misfits(change: Change) -> str | None:
    return not_crops(build_index(_images(change)))


@pytest.mark.parametrize("size", [48, 200, 600])
def test_crops_are_not_accused(here: Path, size: int) -> None:
    def dull(head: Picture) -> Picture:
        gray = cv2.cvtColor(cv2.GaussianBlur(head, (0, 0), 2), cv2.COLOR_RGB2GRAY)
        return resize(np.stack([gray // 2] * 3, 2), size)

    assert _misfits(lambda head: resize(head, size)) is None and _misfits(dull) is None


@pytest.mark.parametrize("size", [96, 200, 600])
def test_loose_crops_are_told(here: Path, size: int) -> None:
    assert _misfits(lambda head: _loose(head, size)) == (
        "images: 32 of 32 images are no face crops like UTKFace's (of other shapes: 0, without a face that fills "
        "them: 32); crop them first: python -m agr_lightning crop images OUT"
    )


def test_photos_are_told_by_their_shape_or_by_their_faces(here: Path, run: Run) -> None:
    photo = draw_photo((20, 30, 300), width=640, height=640)
    assert "of other shapes: 32, without" in str(_misfits(lambda _: photo[:480].copy()))
    assert "of other shapes: 32, without" in str(_misfits(lambda _: photo[:, :480].copy()))
    # Large images would show a face, if they had one; small ones may be too small or too hard.
    for size, told in ((600, True), (200, False)):
        assert (_misfits(lambda _, size=size: np.full((size, size, 3), GROUND, np.uint8)) is not None) == told
    line = _misfits(lambda _: photo)
    assert "of other shapes: 0, without a face that fills them: 32)" in str(line)
    assert audit("images").splitlines()[1] == line
    code, out, err = run("test", "--data.test_root", "images", *FAST)
    assert code == 0 and out.count(f"warning: {line}") == 1, err


def test_a_quarter_of_misfits_is_worth_a_line(here: Path) -> None:
    _images(lambda head: head)
    for count, told in ((7, False), (10, True)):
        for number in range(count):
            Image.new("RGB", (90, 60), (number, 0, 0)).save(f"images/{20 + 4 * number}_0_0_x.png")
        assert (not_crops(build_index("images")) is not None) == told


def test_drawn_cards_and_noise_are_not_accused(here: Path, cards: Path, run: Run) -> None:
    for number in range(40):
        save_noise(Path(f"noise/{number}_0_0_x.jpg"), number)
    assert not_crops(build_index(str(cards))) is not_crops(build_index("noise")) is None
    code, out, err = run("fit", "--data.synthetic", "60", "--trainer.max_epochs", "1", *FAST)
    assert code == 0 and "crop them first" not in out, err


@pytest.mark.real_data
def test_utkface_is_not_accused_and_its_loose_crops_are(utkface: Path, here: Path) -> None:
    files, random = np.array(sorted(utkface.rglob("*.jpg"))), np.random.default_rng(0)
    for _ in range(20):
        heads = [read_rgb(file) for file in random.choice(files, 32, replace=False)]
        assert not_crops(build_index(_images(lambda _: heads.pop(), 32))) is None  # noqa: B023
        heads = [_loose(read_rgb(file)) for file in random.choice(files, 32, replace=False)]
        assert not_crops(build_index(_images(lambda _: heads.pop(), 32))) is not None  # noqa: B023

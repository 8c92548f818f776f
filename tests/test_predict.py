"""From photos to predictions, with faces that have to be found, and from any kind of file."""

import csv
import io
import json
import math
import os
import re
import sys
import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from agr_lightning.checkpoints import SHIPPED
from agr_lightning.inference import photos as photos_module
from agr_lightning.inference.inputs import find_photos
from agr_lightning.inference.parts import Row
from agr_lightning.inference.photos import PhotoOptions, PhotoReader, photo_batches
from agr_lightning.inference.predict import COLUMNS, Inputs, TableWriter, predict
from agr_lightning.inference.predictor import Predictor
from agr_lightning.messages import UserError
from tests.conftest import copy_run, save_noise
from tests.drawn_face import draw_photo

# What is in the folder of photos.
ALL = ("a two.png", "b one.jpg", "c none.webp", "d broken.jpg")

Run = Callable[..., tuple[int, str, str]]

TRAINER = ("--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false", "--data.num_workers", "0")


def _rows(here: Path, number: int = 0) -> list[dict[str, str]]:
    with (here / "lightning_logs" / f"version_{number}" / "predictions.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def photos(here: Path) -> Path:
    """Two faces, one, none, and a file that is no photo."""
    folder = here / "photos"
    folder.mkdir()
    Image.fromarray(draw_photo((40, 100, 220), (330, 40, 380))).save(folder / "a two.png")
    Image.fromarray(draw_photo((200, 60, 320))).save(folder / "b one.jpg", quality=95)
    Image.fromarray(draw_photo()).save(folder / "c none.webp")
    (folder / "d broken.jpg").write_bytes((folder / "b one.jpg").read_bytes()[:3000])
    return folder


def _predict(path: str, **options: Any) -> list[dict[str, str]]:
    """The rows of a table that `predict` writes without a Trainer."""
    before = len(list(Path("lightning_logs").glob("*")))
    predict(Inputs(path), **options)
    return _rows(Path(), before)


def _check_rows(rows: list[dict[str, str]]) -> None:
    assert [(Path(row["path"]).name, row["face"], row["status"]) for row in rows] == [
        ("a two.png", "0", "ok"),
        ("a two.png", "1", "ok"),
        ("b one.jpg", "0", "ok"),
        ("c none.webp", "", "no_face"),
        ("d broken.jpg", "", "unreadable"),
    ]
    assert tuple(rows[0]) == COLUMNS
    assert float(rows[0]["width"]) > 1.4 * float(rows[1]["width"]) and float(rows[0]["x"]) > float(rows[1]["x"])
    assert float(rows[0]["age_low"]) < float(rows[0]["age"]) < float(rows[0]["age_high"])
    assert COLUMNS[-1] == "prob_under_18" and 0 <= float(rows[0]["prob_under_18"]) <= 1
    assert rows[4]["reason"] == "truncated" and rows[3]["reason"] == rows[3]["age"] == ""


def test_every_face_and_every_input_has_a_row(photos: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        _check_rows(_predict("photos"))
    assert caplog.messages == [
        "Network      agr",
        "Faces        found by centerface; for face crops, --faces none is quicker",
        "4 inputs: 3 ok, 1 no_face, 1 unreadable",
        "Predictions  lightning_logs/version_0/predictions.csv",
    ]


@pytest.mark.parametrize("options", [(), TRAINER], ids=["alone", "with a Trainer"])
def test_so_it_has_on_the_command_line(photos: Path, here: Path, run: Run, options: tuple[str, ...]) -> None:
    code, out, err = run("predict", "--data.predict_path", "photos", *options)
    assert code == 0 and "4 inputs: 3 ok, 1 no_face, 1 unreadable" in out, err
    _check_rows(_rows(here))


def test_both_ways_say_the_same(photos: Path, here: Path, run: Run) -> None:
    for number, options in enumerate([(), TRAINER]):
        run("predict", "--data.predict_path", "photos", *options)
        rows = _rows(here, number)
        if number == 0:
            first = rows
    for one, other in zip(first, rows, strict=True):
        for name in COLUMNS:
            if name.startswith(("age", "prob", "gender_p", "race_p")) and one[name]:
                assert float(one[name]) == pytest.approx(float(other[name]), abs=0.011)
            else:
                assert one[name] == other[name]


def test_the_largest_the_smallest_and_json(photos: Path, here: Path) -> None:
    predict(Inputs("photos"), format="jsonl", largest=1, min_size=150)
    text = (here / "lightning_logs" / "version_0" / "predictions.jsonl").read_text()
    rows = [json.loads(line) for line in text.splitlines()]
    assert [row["status"] for row in rows] == ["ok", "ok", "no_face", "unreadable"]
    assert isinstance(rows[0]["age"], float) and rows[0]["face"] == 0 and "age" not in rows[2]
    assert all("index" not in row for row in rows)


def _check_copies(folder: Path) -> None:
    """Copies are where the originals are, and each face has a box around it."""
    made = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.jpg"))
    assert made == ["a two.png.jpg", "b one.jpg", "c none.webp.jpg", "deep/b one.jpg"]
    before, after = (np.asarray(Image.open(place / "b one.jpg"), int) for place in (Path("photos"), folder))
    row = next(row for row in _rows(Path()) if row["path"].endswith("b one.jpg"))
    left, top, width = (int(row[name]) for name in ("x", "y", "width"))
    changed = np.abs(before - after).max(2) > 60
    assert changed[top + width // 2, left : left + 4].any() and changed[top + width // 2, left + width - 4 :].any()
    assert not changed[top + 40 : top + width - 10, left + 10 : left + width - 10].any()


@pytest.fixture
def deep(photos: Path) -> Path:
    (photos / "deep").mkdir()
    Image.fromarray(draw_photo((200, 60, 320))).save(photos / "deep" / "b one.jpg")
    return photos


def test_copies_show_boxes_and_labels(deep: Path) -> None:
    rows = _predict("photos", annotate="copies")
    _check_copies(Path("copies"))
    with pytest.raises(UserError, match="--annotate photos would overwrite"):
        _predict("photos", annotate="photos")
    # Copies among the photos are no photos.
    for _ in range(2):
        assert _predict("photos", annotate="photos/copies") == rows
    assert _predict("photos") == rows and _predict("photos/**/*.*") == rows
    assert len(_predict("copies/b one.jpg")) == 1
    with pytest.raises(UserError, match=r"--data.predict_path photos/copies has no photo, but 4 annotated copies\."):
        find_photos("photos/copies")


def test_copies_of_a_trainer_do_too(deep: Path, run: Run) -> None:
    options = ("--data.predict_path", "photos", "--annotate", "copies", *TRAINER)
    code, _, err = run("predict", *options)
    assert code == 0, err
    _check_copies(Path("copies"))


def test_a_list_of_paths(photos: Path) -> None:
    Path("list.txt").write_text("photos/c none.webp\n\nphotos/nowhere.jpg\nphotos/b one.jpg\nphotos/b one.jpg\n")
    rows = _predict("list.txt")
    assert [row["status"] for row in rows] == ["no_face", "unreadable", "ok", "ok"]
    assert rows[1]["reason"] == "cannot be read (No such file or directory)"
    names = ["photos", "photos/[ab]*", "gone [1].jpg", "empty", "# no comment", "x" * 5000, "a\0b/*", "list.txt"]
    Path("mixed.txt").write_text("\n".join(names))
    Path("empty").mkdir()
    found = [str(path) for path in find_photos("mixed.txt")]
    assert found == [*(f"photos/{name}" for name in ALL), *(f"photos/{name}" for name in ALL[:2]), *names[2:]]
    assert [row["status"] for row in _predict("mixed.txt", faces="none")][6:] == ["unreadable"] * 6
    Path("empty.txt").write_text("\n")
    with pytest.raises(UserError, match=r"empty\.txt names no photo"):
        find_photos("empty.txt")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig"])
def test_lists_as_other_editors_write_them(here: Path, encoding: str) -> None:
    Path("list.txt").write_text("photos/c none.webp\r\n~backup.jpg\r\n", encoding)
    assert find_photos("list.txt") == [Path("photos/c none.webp"), Path("~backup.jpg")]


@given(st.text(st.sampled_from("ab[]*?!-#~ \0\r\n\x0c\u2028é")), st.sampled_from(["utf-8", "utf-16"]))
def test_any_list_is_read(tmp_path_factory: pytest.TempPathFactory, text: str, encoding: str) -> None:
    file = tmp_path_factory.getbasetemp() / "any list.txt"
    file.write_text(text, encoding)
    lines = [line.strip() for line in re.split("[\r\n]+", text) if line.strip()]
    if lines:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("HOME", str(empty := tmp_path_factory.mktemp("empty")))
            patch.chdir(empty)
            assert len(find_photos(str(file))) == len(lines)
    else:
        with pytest.raises(UserError, match="names no photo"):
            find_photos(str(file))


@pytest.mark.parametrize("name", ["#1", "null", "2024", "[a]", "a list.txt"])
def test_a_folder_of_any_name(here: Path, name: str) -> None:
    Path(name).mkdir()
    Image.new("RGB", (9, 9)).save(f"{name}/a.jpg")
    assert find_photos(name) == [Path(name, "a.jpg")]


def test_what_other_systems_leave_beside_photos_is_left_out(here: Path, caplog: pytest.LogCaptureFixture) -> None:
    left_out = ["._a.jpg", "__MACOSX/a.jpg", ".Trashes/a.jpg", "@eaDir/a.jpg/THUMB.jpg", "#recycle/a.jpg", ".b/a.jpg"]
    for name in ("a.jpg", "b/a.JFIF", "c.jpe", "d.avif", "b/Thumbs.db", "notes", *left_out):
        Path("x", name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9)).save(Path("x", name), "AVIF" if name == "d.avif" else "JPEG")
    photos = [Path("x", name) for name in ("a.jpg", "b/a.JFIF", "c.jpe", "d.avif")]
    with caplog.at_level("INFO"):
        assert find_photos("x") == photos
    expected = "x: 8 files that are no photos left out: 6 hidden or of a system, 1 .db, 1 without an ending"
    assert caplog.messages == [expected]
    assert find_photos("x/**/*.j*") == photos[:1] + photos[2:3] and find_photos("x/**/*.J*") == photos[1:2]
    assert find_photos("x/*") == [*photos[:1], *photos[2:], Path("x/notes")] and find_photos("x/b/*.db")
    for named in ("x/._a.jpg", "x/.b/*.jpg", "x/@eaDir", "x/.Trashes"):
        assert len(find_photos(named)) == 1
    assert [row["status"] for row in _predict("x", faces="none")] == ["ok"] * 4


def test_brackets_in_names_are_no_patterns(here: Path) -> None:
    for name in ("photos [2020]/a1.jpg", "photos [2020]/a2.jpg", "photos 2/a1.jpg", "a[1].jpg"):
        save_noise(Path(name))
    for pattern, found in (
        ("photos [2020]/*.jpg", ["photos [2020]/a1.jpg", "photos [2020]/a2.jpg"]),
        (f"{here}/photos [2020]/a[2-9].jpg", [f"{here}/photos [2020]/a2.jpg"]),
        ("photos [0-9]/*.jpg", ["photos 2/a1.jpg"]),
        ("*[2020]/a2.*", ["photos [2020]/a2.jpg"]),
        ("a[[]*", ["a[1].jpg"]),
        ("a[1].jpg", ["a[1].jpg"]),
    ):
        assert [str(path) for path in find_photos(pattern)] == found


@pytest.mark.parametrize("path", ["x", "x/**/*.jpg"])
def test_an_unreadable_folder_is_said(here: Path, caplog: pytest.LogCaptureFixture, path: str) -> None:
    save_noise(Path("x/a.jpg"))
    with pytest.MonkeyPatch.context() as patch:
        scan = os.scandir

        def forbidden(folder: str) -> Any:
            if str(folder).endswith("locked"):
                raise PermissionError(13, "Permission denied", folder)
            return scan(folder)

        Path("x/locked").mkdir()
        patch.setattr(os, "scandir", forbidden)
        assert find_photos(path) == [Path("x/a.jpg")]
    assert caplog.messages == ["x/locked cannot be read, and is left out: Permission denied."]


def test_one_input_that_breaks_the_detector_does_not_stop_the_others(
    photos: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    find = photos_module.find_faces

    def fragile(photo: Any, *options: Any) -> Any:
        if photo.mean() < 180:
            raise ValueError("torch.cat(): expected a non-empty list of Tensors")
        return find(photo, *options)

    monkeypatch.setattr(photos_module, "find_faces", fragile)
    rows = _predict("photos")
    assert [row["status"] for row in rows] == ["unreadable", "unreadable", "no_face", "unreadable"]
    assert rows[0]["reason"] == "failed (torch.cat(): expected a non-empty list of Tensors)"
    assert "torch.cat()" in caplog.text


def test_best_is_that_of_the_root(photos: Path, here: Path, run: Run, trained: Path) -> None:
    copy_run(trained, here / "there")
    options = ("--data.predict_path", "photos", "--trainer.default_root_dir", "there")
    code, out, err = run("predict", "--ckpt_path", "best", *options)
    assert code == 0 and "there/lightning_logs/version_0/checkpoints/best.ckpt" in out, err


def test_no_faces_are_looked_for_in_drawn_cards(photos: Path) -> None:
    for options, of_cards, found in (
        (PhotoOptions(), True, "each photo is taken as one"),
        (PhotoOptions("centerface"), True, "found by centerface"),
        (PhotoOptions(), False, "found by centerface"),
    ):
        assert PhotoReader(options, 64, of_cards=of_cards).description.startswith(found)


# ---------------------------------------------------------------------- the table


def _row(index: int, **values: Any) -> Row:
    return {"index": index, "path": f"{index}.jpg", "status": "ok", **values}


def test_names_that_spreadsheets_would_run_or_tear_apart() -> None:
    names = ["=1+1.jpg", "+a", "-a", "@a", "\ta", "\ra", 'a="b",c', "a\rb", "a\nb", "'=a"]
    buffer = io.BytesIO()
    TableWriter(buffer, "csv").write(_row(number, path=name, age=-1.5) for number, name in enumerate(names))
    text = buffer.getvalue().decode()
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    expected = [f"./{name}" if number < 6 else name for number, name in enumerate(names)]
    assert [row["path"] for row in rows] == expected
    assert rows[0]["age"] == "-1.5"
    # Each break of a line that is not the end of a row is quoted.
    assert len(re.sub(r'"[^"]*"', "", text).splitlines()) == 11 and "\r\n" not in text  # a row each


def test_names_are_as_they_are_in_json() -> None:
    names = ["=a\rb", os.fsdecode(b"\xff"), "é" * 125]
    table = TableWriter(buffer := io.BytesIO(), "jsonl")
    table.write([_row(number, path=name) for number, name in enumerate(names)])
    assert [json.loads(line)["path"] for line in buffer.getvalue().splitlines()] == names
    assert table.counts == {"ok": 3}
    TableWriter(buffer := io.BytesIO(), "csv").write([_row(0, path=name) for name in names[1:]])
    written = [line.split(b",")[0] for line in buffer.getvalue().splitlines()[1:]]
    assert written == [b"\xff", names[2].encode()]


# ---------------------------------------------------------------------- files


def test_files_that_start_other_programs_are_not_opened(here: Path) -> None:
    Path("a.jpg").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    (read,) = PhotoReader(PhotoOptions("none"), 64).read(Path("a.jpg"))
    assert read.problem == "not an image"


def test_names_that_no_decoder_takes(here: Path) -> None:
    reader = PhotoReader(PhotoOptions("none"), 64)
    video = here / os.fsdecode(b"a\xff.mp4")
    video.write_bytes(b"RIFF")
    os.mkfifo("pipe.jpg")
    for path, problem in (
        (video, "a video's name must be UTF-8"),
        (Path("gone.mp4"), "cannot be read (No such file or directory)"),
        (Path("a\0.jpg"), "damaged (embedded null byte)"),
        (Path("pipe.jpg"), "cannot be read (not a file)"),
    ):
        (read,) = reader.read(path)
        assert read.problem == problem


@pytest.mark.parametrize("options", [None, TRAINER], ids=["alone", "with a Trainer"])
def test_frames_of_a_video(here: Path, run: Run, options: tuple[str, ...] | None) -> None:
    frame, empty = draw_photo((200, 60, 320))[:, :, ::-1], draw_photo()[:, :, ::-1]
    video = cv2.VideoWriter("clip.mp4", cv2.VideoWriter.fourcc(*"mp4v"), 10, (760, 480))
    for number in range(35):
        video.write(frame if number < 20 else empty)
    video.release()
    Path("broken.avi").write_bytes(b"RIFF nothing")
    if options is None:
        rows = _predict("*.[am]*", every=1, annotate="c")
    else:
        path = ("--data.predict_path", "*.[am]*", "--every", "1", "--annotate=c")
        code, _, err = run("predict", *path, *options)
        assert code == 0, err
        rows = _rows(here)
    assert [(row["path"], row["seconds"], row["status"]) for row in rows] == [
        ("broken.avi", "", "unreadable"),
        *(("clip.mp4", seconds, "ok") for seconds in ("0.0", "1.0")),
        *(("clip.mp4", seconds, "no_face") for seconds in ("2.0", "3.0")),
    ]
    assert sorted(path.name for path in Path("c").iterdir())[1] == "clip.mp4.00001.000s.jpg"


def _noisy_video(path: str, code: str = "MJPG") -> bytes:
    """The content of a video of 40 frames in 4 seconds."""
    video, random = cv2.VideoWriter(path, cv2.VideoWriter.fourcc(*code), 10, (64, 48)), np.random.default_rng(0)
    for _ in range(40):
        video.write(random.integers(0, 256, (48, 64, 3), np.uint8))
    video.release()
    return Path(path).read_bytes()


@pytest.mark.parametrize(("ending", "code"), [("wmv", "WMV2"), ("FLV", "FLV1"), ("3gp", "mp4v"), ("m2ts", "mp4v")])
def test_videos_of_other_endings(here: Path, ending: str, code: str) -> None:
    _noisy_video(f"a.{ending}", code)
    assert find_photos(".") == [Path(f"a.{ending}")]
    frames = list(PhotoReader(PhotoOptions("none"), 32).read(Path(f"a.{ending}")))
    assert [frame.seconds for frame in frames] == [0, 1, 2, 3]
    assert [frame.place for frame in frames] == [f"a.{ending}: {seconds} of 4 s" for seconds in range(4)]


def test_a_video_that_was_cut_short_says_so(here: Path) -> None:
    content = _noisy_video("a.avi")
    rows = _predict("a.avi", faces="none")
    assert [row["status"] for row in rows] == ["ok"] * 4
    Path("a.avi").write_bytes(content[: len(content) * 6 // 10])
    *rows, last = _predict("a.avi", faces="none")
    assert [row["seconds"] for row in rows] == ["0.0", "1.0", "2.0"] and last["status"] == "unreadable"
    assert re.fullmatch(r"cut short: no frame after 2\.\d of 4\.0 seconds can be decoded", last["reason"])


def test_damage_in_the_middle_of_a_video_costs_its_frames_alone(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    content = bytearray(_noisy_video("a.mp4", "mp4v"))
    middle = range(len(content) * 4 // 10, len(content) * 6 // 10)
    content[middle.start : middle.stop] = np.random.default_rng(0).bytes(len(middle))
    Path("a.mp4").write_bytes(content)
    rows = _predict("a.mp4", faces="none")
    assert {row["status"] for row in rows} == {"ok"} and rows[0]["seconds"] == "0.0" and float(rows[-1]["seconds"]) >= 3
    assert capfd.readouterr().err == ""


def test_as_many_pixels_as_one_photo_has_are_decoded_at_once(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the number of processors: a photo that is larger than that is decoded alone."""
    held, peaks, lock = [0], [], threading.Lock()

    def slow(content: bytes) -> Any:
        size = int.from_bytes(content[16:20]) if content.startswith(b"\x89PNG") else 90
        with lock:
            held.append(held[-1] + size * size)
            peaks.append(held[-1])
        time.sleep(0.01)
        with lock:
            held.append(held[-1] - size * size)
        return np.zeros((size, size, 3), np.uint8), 1

    for number in range(48):
        size = (10, 20, 10, 70)[number % 4] + number // 47 * 100
        Image.new("L", (size, size)).save(f"{number}-{size}.png")
    Path("48-90.heic").write_bytes(b"nothing that is known")
    monkeypatch.setattr(photos_module, "decode_photo", slow)
    monkeypatch.setattr(photos_module, "MAX_PIXELS", 8100)
    monkeypatch.setattr(photos_module, "usable_cpus", lambda: 24)
    inputs = list(enumerate(sorted(here.iterdir(), key=lambda path: int(path.stem.split("-")[0]))))
    batches = list(photo_batches(inputs, PhotoReader(PhotoOptions("none"), 32), 64))
    assert sum(map(len, batches)) == 49 and all(photo.problem is None for batch in batches for photo in batch)
    assert max(peak for peak in peaks if peak != 170 * 170) <= 8100 and max(peaks) == 170 * 170
    assert len([peak for peak in peaks if peak > 4900]) > 5  # several at once


def test_however_much_there_is_little_is_held(here: Path) -> None:
    video = cv2.VideoWriter("clip.mp4", cv2.VideoWriter.fourcc(*"mp4v"), 10, (64, 48))
    for number in range(50):
        video.write(np.full((48, 64, 3), 5 * number, np.uint8))
    video.release()
    Image.new("RGB", (40, 40)).save("photo.png")
    inputs = [(7, Path("photo.png")), (9, Path("clip.mp4")), (11, Path("nowhere.jpg"))]
    batches = list(photo_batches(inputs, PhotoReader(PhotoOptions("none", every=0.1), 32), 16))
    assert [len(batch) for batch in batches] == [16, 16, 16, 4]
    assert [photo.index for batch in batches for photo in batch] == [7, *[9] * 50, 11]


@pytest.mark.parametrize("keep_picture", [False, True])
def test_more_photos_than_are_read_ahead_come_in_their_order(here: Path, keep_picture: bool) -> None:
    for number in range(45):
        Image.new("RGB", (20, 20), (5 * number, 0, 0)).save(f"{number}.png")
    inputs = [(3 * number, Path(f"{number}.png")) for number in range(45)]
    reader = PhotoReader(PhotoOptions("none"), 20, keep_picture)
    photos = [photo for batch in photo_batches(inputs, reader, 4) for photo in batch]
    assert [photo.index for photo in photos] == [index for index, _ in inputs]
    assert [int(photo.crops[0, 0, 0, 0]) for photo in photos] == [5 * number for number in range(45)]
    assert all((photo.picture is not None) == keep_picture for photo in photos)
    # Whoever stops asking leaves no thread behind.
    assert len(next(photo_batches(inputs, reader, 4))) >= 4


def test_photos_are_upright_and_of_any_kind(here: Path) -> None:
    reader = PhotoReader(PhotoOptions("centerface"), 64)
    photo = Image.fromarray(draw_photo((200, 60, 320)))
    turned = photo.rotate(90, expand=True)
    exif = turned.getexif()
    exif[0x0112] = 6  # as telephones store an upright photo
    turned.save("turned.jpg", exif=exif, quality=95)
    photo.save("plain.jpg", quality=95)
    photo.convert("CMYK").save("cmyk.jpg", quality=95)
    photo.save("photo.tiff")
    photo.save("photo.bmp")
    photo.convert("L").save("gray.png")
    from pillow_heif import register_heif_opener

    register_heif_opener()
    photo.save("photo.heic", quality=95)
    boxes = {path.name: [read.boxes for read in reader.read(path)] for path in sorted(here.iterdir())}
    assert len(boxes) == 7
    for name, found in boxes.items():
        assert len(found) == 1 and len(found[0]) == 1, name
        assert found[0][0] == pytest.approx(boxes["plain.jpg"][0][0], abs=6), name


def test_heic_without_its_library_says_so(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    Path("a.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(50))
    (read,) = PhotoReader(PhotoOptions("none"), 64).read(Path("a.heic"))
    assert read.problem == "HEIC needs pillow-heif: uv sync --all-extras, or pip install 'agr-lightning[heic]'"


def test_hostile_inputs_are_rows(here: Path) -> None:
    folder = here / "x"
    folder.mkdir()
    Image.new("RGB", (1, 1)).save(folder / "tiny.png")
    Image.new("L", (30000, 20)).save(folder / "wide.png")
    Image.new("1", (20000, 20000)).save(folder / "bomb.png")
    Image.fromarray(np.full((50, 50), 40000, np.uint16)).save(folder / "deep.png")
    frames = [Image.new("P", (40, 40), number) for number in range(3)]
    frames[0].save(folder / "moves.gif", save_all=True, append_images=frames[1:])
    Image.new("RGB", (40, 40)).save(folder / "n\new\tñ .jpg")
    (folder / "loop").symlink_to(folder)
    (folder / "dangling.jpg").symlink_to(folder / "nowhere.jpg")
    os.mkfifo(folder / "pipe.fifo")
    rows = {Path(row["path"]).name: row for row in _predict("x", faces="auto")}
    assert set(rows) == {"tiny.png", "wide.png", "bomb.png", "deep.png", "moves.gif", "n\new\tñ .jpg", "dangling.jpg"}
    assert rows["bomb.png"]["status"] == "unreadable" and "100 million" in rows["bomb.png"]["reason"]
    assert rows["dangling.jpg"]["status"] == "unreadable"
    assert {row["status"] for name, row in rows.items() if name not in ("bomb.png", "dangling.jpg")} == {"no_face"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"largest": 0}, "--largest 0 must be 1 or more."),
        ({"min_size": 0.5}, "--min_size 0.5 must be 1 or more."),
        ({"min_confidence": 1.01}, "--min_confidence 1.01 must be from 0 to 1."),
        ({"min_confidence": math.nan}, "--min_confidence nan must be from 0 to 1."),
        ({"faces": "mtcnn"}, "--faces mtcnn must be one of auto, centerface, none."),
        ({"every": 0}, "--every 0 must be above 0 seconds."),
        ({"batch_size": 0}, "--data.batch_size 0 must be 1 or more."),
        ({"ckpt_path": "nowhere.onnx"}, "--ckpt_path nowhere.onnx cannot be read: No such file or directory."),
        ({"ckpt_path": "a.onnx"}, "--ckpt_path a.onnx cannot be used: "),
        ({"predict_path": ""}, "no photos are named: give --data.predict_path PHOTO, FOLDER or 'GLOB'."),
        (
            {"predict_path": "nowhere"},
            "--data.predict_path nowhere is no photo or folder of photos, and none matches it",
        ),
        ({"predict_path": "a.csv"}, "--data.predict_path a.csv is a table: write the photos into a .txt list"),
        ({"predict_path": "a.ZIP"}, "--data.predict_path a.ZIP is an archive: unpack it, and name the folder."),
        ({"predict_path": "docs"}, "--data.predict_path docs has no photo, but 2 .doc, 1 without an ending."),
        ({"predict_path": "*.png"}, "--data.predict_path *.png is no photo or folder of photos, and none matches it"),
    ],
)
def test_what_the_user_can_cure(photos: Path, here: Path, options: dict[str, Any], message: str) -> None:
    Path("docs").mkdir()
    for name in ("a.onnx", "a.csv", "a.ZIP", "docs/a.doc", "docs/b.DOC", "docs/c"):
        Path(name).write_text("no")
    with pytest.raises(UserError) as error:
        data = Inputs(options.pop("predict_path", "photos"), options.pop("batch_size", 64))
        predict(data, **options)
    assert str(error.value).startswith(message) and not Path("lightning_logs").exists()


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--faces", "yolo"), 2, "yolo"),
        (("--largest", "0"), 1, "--largest 0 must be 1 or more."),
        (("--ckpt_path", "a.onnx", "--trainer.devices", "1"), 1, "ONNX is for predict"),
        (("--annotate", "a.onnx/x"), 1, "Not a directory"),
        (("--largets", "1"), 2, "no option is called '--largets' (did you mean '--largest'?)"),
    ],
)
def test_mistakes_end_in_a_line(photos: Path, run: Run, options: tuple[str, ...], code: int, message: str) -> None:
    Path("a.onnx").write_text("no")
    found, _, err = run("predict", "--data.predict_path", "photos", *options)
    assert found == code and message in err and err.count("\n") == 1


# ---------------------------------------------------------------------- the Python API


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor.load()


def test_images_of_any_size_in_any_batches(predictor: Predictor) -> None:
    random = np.random.default_rng(0)
    images = [random.integers(0, 256, (*shape, 3), np.uint8) for shape in ((40, 40), (96, 96), (300, 100))]
    together = predictor(images)
    for image, answer in zip(images, together, strict=True):
        (alone,) = predictor([image], batch_size=1)
        assert alone.age == pytest.approx(answer.age, abs=1e-3) and alone.gender == answer.gender
        assert answer.age_low is not None and answer.age is not None and answer.age_low < answer.age
        assert answer.genders is not None and sum(answer.genders.values()) == pytest.approx(1, abs=1e-5)
        assert answer.ranked["race"][0] == (answer.race, max((answer.races or {}).values()))
    three = predictor(np.stack([images[1]] * 3), batch_size=2)
    assert len(three) == 3 and three[2].age == pytest.approx(together[1].age, abs=1e-3)
    assert predictor([]) == []


def test_other_arrays_are_refused(predictor: Predictor) -> None:
    for image in (np.zeros((5, 5), np.uint8), np.zeros((5, 5, 3)), np.zeros((0, 5, 3), np.uint8)):
        with pytest.raises(UserError, match="expected uint8"):
            predictor([image])  # type: ignore[list-item]


def test_threads_do_not_disturb_each_other(predictor: Predictor) -> None:
    random = np.random.default_rng(1)
    batches = [random.integers(0, 256, (4, 50, 50, 3), np.uint8) for _ in range(12)]
    expected = [[answer.age for answer in predictor(batch)] for batch in batches]
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(predictor, batches))
    for ages, answers in zip(expected, found, strict=True):
        assert [answer.age for answer in answers] == pytest.approx(ages, abs=1e-3)


# ---------------------------------------------------------------------- real data


@pytest.mark.real_data
def test_found_faces_are_as_good_as_the_crops(utkface: Path) -> None:
    """UTKFace's crops, turned and put into larger pictures: what is found there is answered as well as the crops."""
    from agr_lightning.checkpoints import load_trained
    from agr_lightning.data.duplicates import are_known, of_samples
    from agr_lightning.data.index import build_index
    from agr_lightning.images import read_rgb

    shipped = load_trained()
    seen = np.concatenate([*shipped.seen.values()])
    samples = build_index(str(utkface)).samples
    files = [utkface / file for file in samples["file"][~are_known(of_samples(samples), seen)]]
    random = np.random.default_rng(0)
    crops, pictures, ages = [], [], []
    for place in random.choice(len(files), 80, replace=False):
        crops.append(read_rgb(files[place]))
        ages.append(int(files[place].name.split("_")[0]))
        turn = cv2.getRotationMatrix2D((100, 100), random.uniform(-20, 20), 0.8)
        turn[:, 2] += (220 + random.uniform(-50, 50), 140 + random.uniform(-30, 30))
        pictures.append(cv2.warpAffine(crops[-1], turn, (640, 480), borderMode=cv2.BORDER_REPLICATE))
    reader, predictor = PhotoReader(PhotoOptions("centerface", largest=1), 96), Predictor.load()
    found = [reader.look(np.asarray(picture, np.uint8)).crops for picture in pictures]
    assert sum(len(crop) for crop in found) >= 78
    kept = np.array([len(crop) == 1 for crop in found])
    errors = [
        np.abs([answer.age or 0 for answer in predictor(images)] - np.array(ages)[kept])
        for images in ([crop for crop, keep in zip(crops, kept, strict=True) if keep], np.concatenate(found))
    ]
    assert errors[1].mean() < errors[0].mean() + 1.0


@pytest.mark.parametrize("kind", ["driver is too old", "no kernel image"])
def test_a_gpu_that_torch_cannot_use_is_a_line_and_the_cpu(
    kind: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    move = torch.nn.Module.to

    def available() -> bool:
        if kind == "no kernel image":
            return True
        warnings.warn(f"The NVIDIA {kind}\nPlease update it", UserWarning, stacklevel=2)
        return False

    def to(module: torch.nn.Module, *where: Any, **options: Any) -> torch.nn.Module:
        if where == ("cuda",):
            raise RuntimeError(f"CUDA error: {kind}\nCUDA kernel errors might be reported later")
        return move(module, *where, **options)

    monkeypatch.setattr(torch.cuda, "is_available", available)
    monkeypatch.setattr(torch.nn.Module, "to", to)
    predictor = Predictor.load(SHIPPED["small"])
    (message,) = caplog.messages
    assert re.match(rf"the GPU cannot be used, so the CPU is: .*{kind} \w+", message) and "\n" not in message
    (answer,) = predictor([np.zeros((96, 96, 3), np.uint8)])
    assert answer.age is not None

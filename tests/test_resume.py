"""Rows that outlive the process that made them; where they go; how a job that was stopped is resumed."""

import csv
import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agr_lightning.inference import predict as predict_module
from agr_lightning.inference.inputs import find_photos
from agr_lightning.inference.parts import Row, open_part, read_part
from agr_lightning.inference.photos import PhotoReader
from agr_lightning.inference.predict import Inputs, Output, TableWriter, join_parts, predict
from agr_lightning.messages import UserError
from tests.conftest import save_noise

Run = Callable[..., tuple[int, str, str]]

TRAINER = ("--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false")
PHOTOS = ("--data.predict_path", "photos", "--faces", "none", "--data.batch_size", "8", "--every", "0.1")

# Runs `predict`, and stops for ever in the middle of its sixth batch.
STUCK = """
import json, sys, time
from agr_lightning.inference.predict import Inputs, Output, predict
write, batches = Output.write, []
def slow(self, *batch):
    batches.append(batch)
    if len(batches) == 6:
        print("stuck", flush=True)
        time.sleep(600)
    write(self, *batch)
Output.write = slow
predict(Inputs("photos", 8), faces="none", every=0.1, **json.loads(sys.argv[1]))
"""


def _video(path: str, frames: int = 20) -> None:
    video = cv2.VideoWriter(path, cv2.VideoWriter.fourcc(*"mp4v"), 10, (64, 48))
    for number in range(frames):
        video.write(np.full((48, 64, 3), 5 * number, np.uint8))
    video.release()


@pytest.fixture
def photos(here: Path) -> Path:
    """60 photos, a video of 20 frames between them, and a file that is no photo."""
    for number in range(60):
        save_noise(here / "photos" / f"{number:02}.jpg", number)
    _video("photos/30 clip.mp4")
    Path("photos/05 no.jpg").write_text("no photo")
    return here / "photos"


def _predict(**options: Any) -> None:
    predict(Inputs("photos", 8), **({"faces": "none", "every": 0.1} | options))


class Full(RuntimeError):
    """The network fails."""


def _fail_after(batches: int, monkeypatch: pytest.MonkeyPatch) -> None:
    write, done = Output.write, []

    def some(self: Output, *batch: Any) -> None:
        done.append(batch)
        if len(done) > batches:
            raise Full
        write(self, *batch)

    monkeypatch.setattr(Output, "write", some)


@pytest.mark.parametrize("output", ["some.csv", None, "some.jsonl"])
def test_a_killed_job_is_resumed_and_its_table_is_that_of_one_that_was_not(photos: Path, output: str | None) -> None:
    options = {"output": output, "annotate": "copies"}
    if output == "some.csv":
        process = subprocess.Popen([sys.executable, "-c", STUCK, json.dumps(options)], stdout=subprocess.PIPE)
        assert process.stdout is not None and process.stdout.readline() == b"stuck\n"
        process.send_signal(signal.SIGKILL)
        process.wait()
        with Path("some.part0").open("ab") as file:
            file.write(b'[{"index": 40, "pa')
    else:
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Full):
            _fail_after(6, patch)
            _predict(**options)
    made = Path(output) if output else Path("lightning_logs/version_0/predictions.csv")
    part = made.with_suffix(".part0")
    assert len(part.read_bytes().splitlines()) == 7 and not made.exists()  # what was asked, and six batches
    before = {copy: copy.stat().st_mtime_ns for copy in Path("copies").iterdir()}
    _predict(**options, resume=True)
    whole = f"whole{made.suffix}"
    _predict(output=whole, annotate="others")
    assert made.read_bytes() == Path(whole).read_bytes() and not part.exists()
    assert made.read_bytes().count(b"30 clip.mp4") == 20
    copies = {copy.name: copy.stat().st_mtime_ns for copy in Path("copies").iterdir()}
    assert sorted(copies) == sorted(copy.name for copy in Path("others").iterdir()) and len(copies) == 80
    assert sum(copies[copy.name] == stamp for copy, stamp in before.items()) > 20  # not made again


def test_it_is_so_with_a_trainer(photos: Path, run: Run) -> None:
    with pytest.MonkeyPatch.context() as patch:
        _fail_after(6, patch)
        code, out, err = run("predict", *PHOTOS, *TRAINER)
    assert code == 1 and "Full" in err and "--resume goes on with them" in out
    config = Path("lightning_logs/version_0/config.yaml").read_text()
    code, out, err = run("predict", *PHOTOS, *TRAINER, "--resume", "--model.tta_flip", "false")
    assert code == 1 and "is of a job with other tta_flip: repeat its options" in err
    assert Path("lightning_logs/version_0/config.yaml").read_text() == config
    code, out, err = run("predict", *PHOTOS, *TRAINER, "--resume")
    assert code == 0 and "Resumed      25 inputs were done" in out, err
    assert [path.name for path in Path("lightning_logs").iterdir()] == ["version_0"]
    code, out, err = run("predict", *PHOTOS, *TRAINER, "--output", "whole.csv", "--resume")
    assert code == 0 and "Resumed      0 inputs were done" in out, err
    assert Path("lightning_logs/version_0/predictions.csv").read_bytes() == Path("whole.csv").read_bytes()
    with Path("whole.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 81


@pytest.mark.parametrize(
    ("options", "other"),
    [({"every": 0.2}, "every"), ({"ckpt_path": "small"}, "network"), ({"annotate": "x"}, "annotate"), ({}, "photos")],
)
def test_other_jobs_are_not_resumed(photos: Path, options: dict[str, Any], other: str) -> None:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Full):
        _fail_after(6, patch)
        _predict(output="a.csv")
    rows = Path("a.part0").read_bytes()
    if not options:
        os.utime("photos/50.jpg", (1, 1))
    with pytest.raises(UserError, match=f"--resume: a.part0 is of a job with other {other}: repeat its options"):
        _predict(output="a.csv", resume=True, **options)
    with pytest.raises(UserError, match=r"a\.part0 has rows of a job that was stopped: go on with --resume, or remove"):
        _predict(output="a.csv")
    with Path("a.part0").open("ab") as file, pytest.raises(UserError, match=r"a\.part0 is being written by another"):
        fcntl.flock(file, fcntl.LOCK_EX)
        _predict(output="a.csv", resume=True)
    assert Path("a.part0").read_bytes() == rows


def test_files_of_other_kinds_are_not_touched(photos: Path) -> None:
    for text in ("mine", "mine\nsecond\n", '["mine"]\n'):
        Path("a.part0").write_text(text)
        for resume in (True, False):
            with pytest.raises(UserError, match=r"a\.part0 is no part of a table: move it away"):
                _predict(output="a.csv", resume=resume)
        assert Path("a.part0").read_text() == text


def test_a_finished_table_is_there_until_the_next_one_is(photos: Path) -> None:
    Path("a.csv").write_text("before")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Full):
        _fail_after(3, patch)
        _predict(output="a.csv")
    assert Path("a.csv").read_text() == "before"
    _predict(output="a.csv", resume=True)
    assert Path("a.csv").read_text().count("\n") == 82


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output": "photos"}, "--output photos must end in .csv or .jsonl, or be - for stdout."),
        ({"output": "folder.csv"}, "--output folder.csv is a folder: name a file in it."),
        ({"output": "no/a.csv"}, "--output no/a.csv lies in no folder that exists: make it first."),
        ({"output": "./b.csv"}, "--output ./b.csv is one of the inputs: name another file."),
        ({"output": "/proc/a.csv"}, "/proc/a.csv cannot be written: "),
        ({"output": "-", "resume": True}, "--output - cannot be resumed: name a file."),
    ],
)
def test_outputs_that_cannot_be_written_are_refused_before_a_photo_is_read(
    photos: Path, options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("folder.csv").mkdir()
    Path("b.csv").write_text("photos")
    Path("list.txt").write_text("photos/00.jpg\nb.csv\n")
    monkeypatch.setattr(predict_module, "photo_batches", None)
    with pytest.raises(UserError) as error:
        predict(Inputs("list.txt"), faces="none", **options)
    assert str(error.value).startswith(message) and Path("b.csv").read_text() == "photos"


@pytest.mark.parametrize("options", [(), TRAINER], ids=["alone", "with a Trainer"])
def test_stdout_has_rows_and_nothing_else(
    photos: Path, capfdbinary: pytest.CaptureFixture[bytes], options: tuple[str, ...]
) -> None:
    from agr_lightning.cli import main

    assert main(["predict", *PHOTOS, "--output", "-", *options]) == 0
    out, err = capfdbinary.readouterr()
    _predict(output="a.csv")
    tables = [[line.split(b",") for line in text.splitlines()] for text in (out, Path("a.csv").read_bytes())]
    cells = [pair for lines in zip(*tables, strict=True) for pair in zip(*lines, strict=True)]
    # Weights of 16 bits and of 32, on noise.
    assert [pair for pair in cells if pair[0] != pair[1] and abs(float(pair[0]) - float(pair[1])) >= 0.2] == []
    assert b"62 inputs: 80 ok, 1 unreadable" in err


def test_rows_come_to_stdout_as_they_are_made(photos: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Full):
        _fail_after(3, patch)
        _predict(output="-", format="jsonl")
    out, _ = capfdbinary.readouterr()
    assert len([json.loads(line) for line in out.splitlines()]) == 25
    assert [path.name for path in Path().iterdir()] == ["photos"]


@pytest.mark.parametrize("options", [(), TRAINER], ids=["alone", "with a Trainer"])
def test_no_readable_input_is_a_failure(here: Path, run: Run, options: tuple[str, ...]) -> None:
    Path("a.jpg").write_text("no")
    code, out, err = run("predict", "--data.predict_path", "a.jpg", "--output=a.csv", *options)
    assert code == 1 and "1 inputs: 1 unreadable" in out and "Stopped" not in out
    assert err == "error: no input could be read: the column reason of a.csv says why.\n"
    assert "not an image" in Path("a.csv").read_text()


@pytest.mark.parametrize("options", [(), TRAINER], ids=["alone", "with a Trainer"])
def test_a_job_that_never_began_leaves_nothing(
    photos: Path, run: Run, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    monkeypatch.setattr(PhotoReader, "__init__", lambda *_: find_photos(""))
    code, out, err = run("predict", *PHOTOS, "--output=a.csv", *options)
    assert code == 1 and "Stopped" not in out and err.startswith("error: no photos are named")
    assert sorted(path.name for path in Path().iterdir() if path.is_file()) == []


@pytest.mark.parametrize("format", ["csv", "jsonl"])
def test_parts_of_several_processes_are_joined_in_input_order(here: Path, format: Any) -> None:
    places = (0, 1, 1, 1, 2, 3, 5, 5)
    rows: list[Row] = [
        {"index": index, "path": os.fsdecode(b"\xff") + str(index), "status": "ok", "age": index / 3}
        for index in places
    ]
    with Path("whole").open("wb") as file:
        (table := TableWriter(file, format)).write(rows)
    parts = [Path("part-0"), Path("part-1"), Path("part-2")]
    for rank, part in enumerate(parts):
        batches = [[row] for row in rows if int(row["index"]) % 2 == rank]
        part.write_text("".join(f"{json.dumps(line)}\n" for line in ({}, *batches)))
    assert join_parts(parts, Path(f"joined.{format}")) == table.counts == {"ok": 8}
    assert Path(f"joined.{format}").read_bytes() == Path("whole").read_bytes()
    assert sorted(path.name for path in here.iterdir()) == [f"joined.{format}", "whole"]


@given(
    counts=st.lists(st.integers(1, 5), min_size=1, max_size=12),
    size=st.integers(1, 7),
    share=st.floats(0, 1),
    rank=st.booleans(),
)
def test_a_part_may_be_cut_anywhere(
    tmp_path_factory: pytest.TempPathFactory, counts: list[int], size: int, share: float, rank: bool
) -> None:
    """Inputs with these numbers of rows, in batches of one size: what is kept are the batches before a whole input."""
    part = tmp_path_factory.getbasetemp() / "any.part0"
    rows = [{"index": 2 * number + rank} for number, count in enumerate(counts) for _ in range(count)]
    batches = [rows[start : start + size] for start in range(0, len(rows), size)]
    part.unlink(missing_ok=True)
    file, first = open_part(part, {"every": 1}, resume=True)
    with file:
        assert first == 0
        whole = file.tell()
        file.write("".join(f"{json.dumps(batch)}\n" for batch in batches).encode())
    with part.open("r+b") as cut:
        cut.truncate(whole + int(share * (part.stat().st_size - whole)))
    file, first = open_part(part, {"every": 1}, resume=True)
    with file:
        file.seek(0)
        kept = list(read_part(file))
        assert kept == [row for row in rows if row["index"] < first]
        assert len(kept) % size == 0 and (len(kept) < len(rows))
        file.write(json.dumps(rows[len(kept) :]).encode() + b"\n")
    with part.open("rb") as again:
        assert list(read_part(again)) == rows

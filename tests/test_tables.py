"""Labels in tables and in patterns of file names."""

import gzip
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agr_lightning.data.index import build_index
from agr_lightning.data.tables import LabelOptions, Labels, read_labels
from agr_lightning.messages import UserError
from tests.conftest import FAST, save_noise

FILES = ["1.jpg", "2.jpg", "3.jpg"]
CSV = "file,age,gender,race\n1.jpg,20,m,white\n2.jpg,31.5,Female,4\n3.jpg,7,0,Asian\n"
LABELS = [("1.jpg", 20, 0, 0), ("2.jpg", 31.5, 1, 4), ("3.jpg", 7, 0, 2)]


@pytest.fixture
def read(here: Path) -> Callable[..., Labels]:
    """Writes a table, and reads the labels of files with it."""

    def write_and_read(
        table: str | bytes, files: list[str] = FILES, name: str = "labels.csv", root: str = "faces", **options: Any
    ) -> Labels:
        Path(name).write_bytes(table.encode() if isinstance(table, str) else table)
        return read_labels(files, Path(root), LabelOptions(name, **options))

    return write_and_read


def _rows(labels: Labels, *columns: str) -> list[tuple[Any, ...]]:
    return list(labels.table[[*columns]].itertuples(index=False, name=None))


def _labels(labels: Labels) -> list[tuple[Any, ...]]:
    return _rows(labels, "file", "age", "gender", "race")


def _parquet() -> bytes:
    pytest.importorskip("pyarrow")
    output = io.BytesIO()
    pd.read_csv(io.StringIO(CSV)).astype({"gender": "category"}).to_parquet(output)
    return output.getvalue()


def _json_lines() -> str:
    return "\n".join(json.dumps(row) for row in pd.read_csv(io.StringIO(CSV)).to_dict("records")) + "\n\n"


@pytest.mark.parametrize(
    ("table", "name"),
    [
        (CSV, "labels.csv"),
        (CSV.replace(",", "\t"), "labels.tsv"),
        (CSV.replace(",", ";"), "labels.txt"),
        (CSV.replace(",", " , ").replace("\n", " \r\n"), "labels.csv"),
        (CSV.encode("utf-8-sig"), "labels.csv"),
        (CSV.replace(",", "\t").encode("utf-16"), "labels.txt"),
        (gzip.compress(CSV.encode(), mtime=0), "labels.csv.gz"),
        (CSV.upper().replace(".JPG", ".jpg"), "labels.csv"),
        (_json_lines, "labels.jsonl"),
        (_parquet, "labels.parquet"),
    ],
)
def test_reads_tables_of_all_kinds(
    read: Callable[..., Labels], table: str | bytes | Callable[[], str | bytes], name: str
) -> None:
    labels = read(table() if callable(table) else table, name=name)
    assert _labels(labels) == LABELS and not labels.rejects and not labels.notes
    assert [str(kind) for kind in labels.table.dtypes[["age", "gender", "race"]]] == ["float64", "int64", "int64"]
    assert labels.table[["x", "y", "width", "height"]].isna().all(axis=None)
    assert set(labels.table["split"]) == set(labels.table["person"]) == {""}


def test_names_that_windows_wrote(read: Callable[..., Labels]) -> None:
    assert _labels(read("file,age\nMüller.jpg,20\n".encode("cp1252"), ["Müller.jpg"])) == [("Müller.jpg", 20, -1, -1)]


def test_tables_of_a_glob_are_joined(here: Path) -> None:
    Path("faces/folds").mkdir(parents=True)
    for fold in range(3):
        Path(f"faces/folds/fold_{fold}_data.txt").write_text(f"file\tage\n{fold + 1}.jpg\t{fold}\n")
    Path("faces/folds/fold_frontal.txt").write_text("no table")
    files = [*FILES, *(f"folds/{file.name}" for file in Path("faces/folds").iterdir())]
    for pattern in ("fold_?_data.txt", "folds/fold_[0-2]*", "faces/folds/fold_*_data.txt"):
        labels = read_labels(sorted(files), Path("faces"), LabelOptions(pattern))
        assert _rows(labels, "file", "age") == [("1.jpg", 0), ("2.jpg", 1), ("3.jpg", 2)]
        assert sorted(labels.rejects.values()) == ["not in the table", *["the table of labels"] * 3]


def test_columns_of_other_names(read: Callable[..., Labels]) -> None:
    table = "img;years;who;sex\na/1;20;NA;f\nb/2;30;;x\n"
    options = {"columns": {"file": "pics/{img}.jpg", "age": "years", "gender": "sex"}, "group": "who"}
    labels = read(table, ["pics/a/1.jpg", "pics/b/2.jpg"], **options)
    assert _rows(labels, "file", "age", "gender", "person") == [
        ("pics/a/1.jpg", 20, 1, "NA"),
        ("pics/b/2.jpg", 30, -1, ""),
    ]


@pytest.mark.parametrize(
    ("table", "options", "error"),
    [
        ("img_name,age\n", {}, r"columns of labels\.csv are img_name, age: which is the file\?.*\{file: img_name\}"),
        ("file,years\n", {}, r"which are labels\? Give --data\.columns '\{age: NAME"),
        ("file,age\n", {"columns": {"age": "agee"}}, r"none is called 'agee' \(did you mean 'age'\?\)"),
        ("file,age\n", {"columns": {"file": "{fil}.jpg"}}, r"none is called 'fil' \(did you mean 'file'\?\)"),
        ("file,age,person\n", {"group": "persons"}, r"none is called 'persons' \(did you mean 'person'\?\)"),
        (
            "file,age\n",
            {"columns": {"ages": "age"}},
            r"--data\.columns has no 'ages' \(did you mean 'age'\?\): file, age",
        ),
        ("file,age, age\n", {}, "2 are called 'age'"),
        ("file,age,race\n", {"race_map": {"x": "asean"}}, r"'x: asean' \(did you mean 'asian'\?\)"),
    ],
)
def test_columns_that_are_not_there(
    read: Callable[..., Labels], table: str, options: dict[str, Any], error: str
) -> None:
    with pytest.raises(UserError, match=error):
        read(f"{table}{'1.jpg,20,'[: 2 * table.count(',') + 5]}\n", **options)


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        ("labels.xlsx", b"PK", r"labels\.xlsx is a spreadsheet: save it as CSV"),
        ("labels.mat", b"MATLAB", r"labels\.mat is a MATLAB file: .* docs/data\.md"),
        ("labels.csv", b"PK\x03\x04\0\0", r"labels\.csv: this is no text; expected CSV"),
        ("labels.csv", b"", r"labels\.csv: .*expected CSV"),
        ("labels.csv", b"file,age\n", r"labels\.csv: there are no rows"),
        ("labels.csv", b"file,age\n1.jpg,2,3\n", r"labels\.csv: .*Expected 2 fields in line 2, saw 3"),
        ("labels.jsonl", b'{"file": 1\n', r"labels\.jsonl: .*expected CSV"),
        ("labels.parquet", b"PAR1", r"labels\.parquet: .*expected CSV"),
        ("labels.csv.gz", b"\x1f\x8b", r"labels\.csv\.gz: .*expected CSV"),
    ],
)
def test_what_is_no_table(read: Callable[..., Labels], name: str, content: bytes, error: str) -> None:
    with pytest.raises(UserError, match=error) as caught:
        read(content, name=name)
    assert "\n" not in str(caught.value)


def test_tables_that_are_not_there(here: Path) -> None:
    Path("faces").mkdir()
    for name, error in (("gone.csv", "neither here nor below faces"), ("faces", "is a folder: name the table in it")):
        with pytest.raises(UserError, match=error):
            read_labels(FILES, Path("faces"), LabelOptions(name))


def test_parquet_without_its_library(read: Callable[..., Labels], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ImportError

    monkeypatch.setattr(pd, "read_parquet", fail)
    with pytest.raises(UserError, match="needs pyarrow: uv sync"):
        read(b"PAR1", name="labels.parquet")


def test_labels_that_are_unknown_cost_only_themselves_and_are_counted(read: Callable[..., Labels]) -> None:
    files = [f"{n}.jpg" for n in range(9)]
    rows = [
        "999,m,2",
        "-5,x,white",
        "20-29,?,martian",
        "more than 70,X,",
        "33,,nan",
        ",,",
        "-1,None,unknown",
        "8,1.0,2.0",
    ]
    table = "file,age,gender,race\n" + "".join(f"{n}.jpg,{row}\n" for n, row in enumerate(rows))
    labels = read(table, files)
    assert _labels(labels) == [
        ("0.jpg", -1, 0, 2),
        ("1.jpg", -1, -1, 0),
        ("2.jpg", 24.5, -1, -1),
        ("3.jpg", 80, -1, -1),
        ("4.jpg", 33, -1, -1),
        ("7.jpg", 8, 1, 2),
    ]
    assert labels.rejects == {"5.jpg": "no label", "6.jpg": "no label", "8.jpg": "not in the table"}
    assert labels.notes == [
        "labels.csv: 2 ages are unknown (999, -5)",
        "labels.csv: 2 genders are unknown (x, X)",
        "labels.csv: 1 races are unknown (martian)",
        "labels.csv: 2 ages are ranges, taken as their middles (20-29, more than 70)",
    ]


def test_splits_by_any_name(read: Callable[..., Labels]) -> None:
    files = [f"{n}.jpg" for n in range(7)]
    names = ["train", "Training", "val", "validation", "TEST", "", "fold 3"]
    labels = read("file,age,split\n" + "".join(f"{n}.jpg,3,{name}\n" for n, name in enumerate(names)), files)
    assert labels.table["split"].tolist() == ["train", "train", "val", "val", "test", "", ""]
    assert labels.notes == ["labels.csv: 1 splits are unknown (fold 3)"]


@pytest.mark.parametrize(
    ("listed", "file"),
    [
        ("./a/1.jpg", "a/1.jpg"),
        ("a\\1.jpg", "a/1.jpg"),
        (".\\a\\1.jpg", "a/1.jpg"),
        ("1.jpg", "a/1.jpg"),
        ("faces/a/1.jpg", "a/1.jpg"),
        ("/home/me/faces/a/1.jpg", "a/1.jpg"),
        ("C:\\Users\\me\\a\\1.jpg", "a/1.jpg"),
        ("100 % of %20 {me}.jpg", "a/100 % of %20 {me}.jpg"),
        ("faces/a/1.jpg", "faces/a/1.jpg"),
    ],
)
def test_files_are_found_by_their_paths(read: Callable[..., Labels], listed: str, file: str) -> None:
    labels = read(f"file,age\n{listed},20\n", [file, "b/2.jpg"])
    assert labels.table["file"].tolist() == [file] and labels.rejects == {"b/2.jpg": "not in the table"}
    assert bool(labels.notes) == listed.startswith(("/home", "C:"))  # where the front may be that of another folder


def test_an_absolute_path_is_that_of_the_file(read: Callable[..., Labels], here: Path) -> None:
    table = f"file,age\n{here}/faces/a/1.jpg,20\n{here}/others/a/1.jpg,30\n"
    assert _rows(read(table, ["a/1.jpg"]), "file", "age") == [("a/1.jpg", 20)]


def test_a_file_is_not_taken_for_one_of_another_folder(read: Callable[..., Labels]) -> None:
    table = "file,age\ntrain/1.jpg,20\nval/1.jpg,30\ntrain/2.jpg,40\n"
    labels = read(table, ["1.jpg"], root="val")
    assert _rows(labels, "file", "age") == [("1.jpg", 30)]
    assert labels.notes == ["labels.csv: 2 rows name files that are not there (train/1.jpg, train/2.jpg)"]
    assert read(table, ["val/1.jpg"]).table["age"].tolist() == [30]
    # Where nothing tells them apart, it is said.
    labels = read("file,age\n/old/1.jpg,20\n", ["1.jpg"])
    assert labels.notes == ["labels.csv: 1 rows name their files with more folders in front (/old/1.jpg)"]


def test_files_that_are_not_there_are_counted(read: Callable[..., Labels]) -> None:
    rows = "".join(f"gone {n}.jpg,1\n" for n in range(5))
    labels = read(f"file,age\n{rows}1.jpg,2\nsame.jpg,3\n", [*FILES, "a/same.jpg", "b/same.jpg"])
    assert labels.table["file"].tolist() == ["1.jpg"]
    assert labels.notes == [
        "labels.csv: 5 rows name files that are not there (gone 0.jpg, gone 1.jpg, gone 2.jpg, ...)",
        "labels.csv: 1 rows name what can be more than one file (same.jpg)",
    ]
    with pytest.raises(
        UserError, match=r"none of its rows names a file of faces: x\.jpg is not there, but 1\.jpg is\."
    ):
        read("file,age\nx.jpg,1\n", ["Thumbs.db", *FILES])


def test_rows_that_are_there_twice(read: Callable[..., Labels]) -> None:
    rows = ["1.jpg,20,m", "1.jpg,20.0,male", "2.jpg,30,f", "2.jpg,31,f", "2.jpg,31,f", "3.jpg,40,f", "3.jpg,,"]
    labels = read("file,age,gender\n" + "\n".join(rows))
    assert _labels(labels) == [("1.jpg", 20, 0, -1), ("3.jpg", 40, 1, -1)]
    assert labels.rejects == {"2.jpg": "rows disagree: 30 f and 31 f", "labels.csv line 8": "no label"}
    assert labels.notes == ["labels.csv: 2 rows are there more than once (1.jpg, 2.jpg)"]


def test_boxes_are_squares_with_a_margin(read: Callable[..., Labels]) -> None:
    rows = [
        "1.jpg,1,10,20,40,20",
        "1.jpg,2,100,20,10,30",
        "2.jpg,3,-5,0,20,20",
        "3.jpg,4,0,0,,",
        "1.jpg,5,-1,-1,-1,-1",
        "1.jpg,6,-30,0,20,20",
    ]
    labels = read("file,age,x,y,width,height\n" + "\n".join(rows), box_margin=0.25)
    assert _rows(labels, "file", "age", "x", "y", "width", "height") == [
        ("1.jpg", 1, 0, 0, 60, 60),
        ("1.jpg", 2, 82.5, 12.5, 45, 45),
        ("2.jpg", 3, -10, -5, 30, 30),
    ]
    assert labels.rejects == dict.fromkeys(("3.jpg", "labels.csv line 6", "labels.csv line 7"), "no face box")


def test_boxes_by_their_corners(read: Callable[..., Labels]) -> None:
    table = "file,age,x0,y0,x1,y1\n1.jpg,1,10,20,40,30\n2.jpg,2,-1,-1,-1,-1\n3.jpg,3,5,5,5,9\n"
    labels = read(table, columns={"x": "x0", "y": "y0", "right": "x1", "bottom": "y1"})
    assert _rows(labels, "x", "y", "width", "height") == [(10, 10, 30, 30)]
    assert labels.rejects == {"2.jpg": "no face box", "3.jpg": "no face box"}


def test_half_a_box_is_none(read: Callable[..., Labels]) -> None:
    labels = read("file,age,x,y\n1.jpg,1,10,20\n")
    assert labels.table["x"].isna().all()
    assert labels.notes == [
        "labels.csv: 2 columns are not used: a face box is x, y, width and height, or right and bottom (x, y)"
    ]


@pytest.mark.parametrize(
    ("pattern", "files", "labels"),
    [
        ("{number}_{person}_{age}_{gender}.jpg", ["0_MariaCallas_35_f.jpg"], [(35, 1, -1, "MariaCallas")]),
        ("{age}_{person}_{number}.jpg", ["14_Aaron_Johnson_0001.jpg"], [(14, -1, -1, "Aaron_Johnson")]),
        (
            "{person}_{number}{gender}{age}.JPG",
            ["009055_10M14.JPG", "a/1_0F8.jpg"],
            [(14, 0, -1, "009055"), (8, 1, -1, "1")],
        ),
        ("{person}/{race}/{age}.{number}.jpg", ["x/Ann (2)/asian/7.1.jpg"], [(7, -1, 2, "Ann (2)")]),
    ],
)
def test_patterns_of_file_names(
    here: Path, pattern: str, files: list[str], labels: list[tuple[float, int, int, str]]
) -> None:
    found = read_labels([*files, "Thumbs.db"], here, LabelOptions(pattern, group="person"))
    assert _rows(found, "age", "gender", "race", "person") == labels
    assert found.table["file"].tolist() == files and found.rejects == {"Thumbs.db": f"name is not {pattern}"}
    with pytest.raises(UserError, match=r"none of 1 file names is of this form, x\.jpg for one"):
        read_labels(["x.jpg"], here, LabelOptions(pattern))


def test_names_have_no_person(here: Path) -> None:
    with pytest.raises(
        UserError, match=r"columns of names, without --data\.labels, are age, gender, race, file: none is called .who."
    ):
        read_labels(["20_0_1_1.jpg"], here, LabelOptions(group="who"))


def test_names_that_no_table_could_hold(read: Callable[..., Labels]) -> None:
    files = ["1.jpg", "two\nlines.jpg", os.fsdecode(b"\xff.jpg")]
    assert list(read("file,age\n1.jpg,3\n", files).rejects.values()) == [
        "line break in the file name",
        "file name is not UTF-8",
    ]


@given(st.text(max_size=200), st.sampled_from(["utf-8", "utf-16", "cp1252"]))
@settings(max_examples=200, deadline=None)
def test_any_text_is_a_table_or_an_error(tmp_path_factory: pytest.TempPathFactory, text: str, encoding: str) -> None:
    table = tmp_path_factory.getbasetemp() / "any.csv"
    table.write_bytes(("file,age,gender,race,x,y,width,height\n1.jpg," + text).encode(encoding, "replace"))
    try:
        labels = read_labels(FILES, Path("faces"), LabelOptions(str(table)))
    except UserError as error:
        assert "any.csv" in str(error)
    else:
        assert labels.table["age"].between(-1, 116).all() and len(labels.table) + len(labels.rejects) >= 3


def test_many_rows_are_read_in_seconds(here: Path) -> None:
    count = 100_000
    files = [f"{n % 50}/{n}.jpg" for n in range(count)]
    random = np.random.default_rng(0)
    table = pd.DataFrame({"file": files, "age": random.random(count) * 99, "gender": "f", "race": "white"})
    table.to_csv("labels.csv", index=False)
    labels = read_labels(files, here, LabelOptions("labels.csv"))
    assert len(labels.table) == count and np.allclose(labels.table["age"], table["age"])


def test_an_index_of_a_table(here: Path) -> None:
    for seed, file in enumerate(FILES):
        save_noise(here / "faces" / file, seed)
    (here / "faces" / "2.jpg").write_text("no image")
    (here / "faces" / "labels.csv").write_text(CSV)
    index = build_index("faces", options=LabelOptions("labels.csv", race_map={"Asian": "unknown"}))
    assert index.samples[["name", "age", "gender", "race"]].to_numpy().tolist() == [
        ["1.jpg", 20, 0, 0],
        ["3.jpg", 7, 0, -1],
    ]
    assert index.rejects == {"2.jpg": "not an image", "labels.csv": "the table of labels"}
    assert index.summary().startswith("faces: 2 images (1 without a label for race), 2 files rejected: ")


def test_trains_and_tests_by_a_table(run: Callable[..., tuple[int, str, str]], here: Path) -> None:
    rows = [f"{n}.jpg;{20 + n % 9};{'mf'[n % 2]};{n % 5 + 7}" for n in range(60)]
    (here / "labels.csv").write_text("\n".join(["photo;years;sex;race", *rows, "gone.jpg;1;m;7"]))
    for n in range(60):
        save_noise(here / "faces" / f"{n}.jpg", n)
    options = ["--data.root", "faces", "--data.labels", "labels.csv", *FAST]
    columns = ["--data.columns", "{file: photo, age: years, gender: sex}"]
    races = ["--data.race_map", "{7: white, 8: black, 9: asian, 10: indian, 11: others}"]
    code, out, err = run("fit", *options, *columns, *races, "--trainer.max_epochs", "1")
    assert code == 0, err
    assert "faces: 60 images\nlabels.csv: 1 rows name files that are not there (gone.jpg)\n" in out
    results = json.loads((here / "lightning_logs/version_0/results.json").read_text())
    assert results["n"] == 6
    # The checkpoint brings the table.
    assert run("test", "--ckpt_path", "best")[0] == 0
    code, _, err = run("fit", *options)
    assert code == 1 and err.startswith(
        "error: the columns of labels.csv are photo, years, sex, race: which is the file?"
    )

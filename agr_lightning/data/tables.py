"""Labels of faces: from the names of files, or from a table of them."""

import glob
import gzip
import io
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from agr_lightning.files import decode_text, match_paths, user_path
from agr_lightning.images import EXTENSIONS
from agr_lightning.labels import MISSING, NAME, TASKS, class_codes, parse_age, spelled
from agr_lightning.messages import UserError, did_you_mean, needs, one_line

_SQUARE = ["x", "y", "width", "height"]
_BOX = [*_SQUARE, "right", "bottom"]
_COLUMNS = ["file", *TASKS, "split", *_BOX]

# What tables call the splits.
_SPLITS = {"": "", "train": "train", "training": "train", "test": "test", "testing": "test"}
_SPLITS |= dict.fromkeys(("val", "valid", "validation", "dev"), "val")

# What is given as a table and is none, with the cure.
_REFUSED = dict.fromkeys((".xlsx", ".xls", ".ods"), "a spreadsheet: save it as CSV")
_REFUSED |= {".mat": "a MATLAB file: make a table of it, as docs/data.md shows"}

# What a part of a file name is; those of other names are all that stands there.
_PARTS = {"age": "[0-9.]+"} | dict.fromkeys(("gender", "race"), "[a-z]+|(?<![0-9])[0-9](?![0-9])")
_BRACES = re.compile(r"\{(.*?)\}")


@dataclass(frozen=True)
class LabelOptions:
    """Where labels come from: the ``--data`` options of these names."""

    labels: str | None = None
    columns: dict[str, str] = field(default_factory=dict)
    race_map: dict[str, str] = field(default_factory=dict)
    group: str | None = None
    box_margin: float = 0.0


class Labels(NamedTuple):
    """What is known of the faces in a folder.

    Attributes:
        table: a row a face: ``file`` (path below the folder); ``age`` (years, float64), ``gender`` and ``race`` (codes
            of ``labels``, int64), each ``MISSING`` where unknown; ``split`` (train, val, test or empty); ``person``
            (empty where unknown); ``x``, ``y``, ``width``, ``height`` of the square to crop (float64, pixels; or NaN).
        rejects: why a file is not used, or a row of the table whose file is.
        notes: what was counted, a sentence each.
    """

    table: pd.DataFrame
    rejects: dict[str, str]
    notes: list[str]


def read_labels(files: list[str], folder: Path, options: LabelOptions) -> Labels:
    """Finds the labels of ``files``, paths below ``folder``; raises UserError for a table that cannot be used."""
    rejects = {file: reason for file in files if (reason := _unlisted(file))}
    files = [file for file in files if file not in rejects]
    notes: list[str] = []
    form = options.labels or "AGE_GENDER_RACE_DATETIME"
    if options.labels is None or ("{" in form and not user_path(form).exists()):
        cells, unnamed = _choose_columns(_from_names(files, options.labels), options), f"name is not {form}"
    else:
        tables, unnamed = _find_tables(form, files, folder), "not in the table"
        raw = pd.concat([_read_table(table) for table in tables])
        below = {table.as_posix().removeprefix(f"{folder.as_posix()}/") for table in tables}
        rejects |= dict.fromkeys(below.intersection(files), "the table of labels")
        cells = _find_files(_choose_columns(raw, options), files, folder, form, notes)
    labels = _parse(cells, options, notes)
    _note(notes, "rows are there more than once", cells["file"][labels.duplicated()])
    labels = labels.drop_duplicates()
    reason = _check(labels, cells)
    used, unused = labels[reason == ""], labels[reason != ""]
    keys = unused["file"].where(~unused["file"].isin(used["file"]), cells["row"])
    rejects |= dict(zip(keys, reason[unused.index], strict=True))
    rejects |= dict.fromkeys(set(files).difference(cells["file"], rejects), unnamed)
    return Labels(used.reset_index(drop=True), rejects, [f"{options.labels or 'file names'}: {note}" for note in notes])


def _unlisted(file: str) -> str:
    """Why no list of names could hold this one, if so."""
    try:
        file.encode()
    except UnicodeEncodeError:
        return "file name is not UTF-8"
    return "line break in the file name" if "\n" in file or "\r" in file else ""


def _from_names(files: list[str], form: str | None) -> pd.DataFrame:
    """The parts of the names that are of a form, in columns, with their ``file``."""
    names: list[str] = [*TASKS]
    pattern = f"{NAME}[^/]*"
    if form is not None:
        pieces = _BRACES.split(form)
        names, pieces[::2] = pieces[1::2], [re.escape(text) for text in pieces[::2]]
        pieces[1::2] = [f"({_PARTS.get(name, '[^/]+')})" for name in names]
        pattern = "".join(pieces)
    found = pd.Series(files, dtype=object).str.extract(f"^(?:.*/)?{pattern}$", flags=re.IGNORECASE)
    found = found.set_axis(names, axis=1).assign(file=files).dropna(how="all", subset=names)
    if found.empty and form is not None:
        problem = f"none of {len(files):,} file names is of this form, {next(iter(files), '')} for one"
        raise UserError(f"--data.labels {form}: {problem}.")
    return found


def _find_tables(labels: str, files: list[str], folder: Path) -> list[Path]:
    """The tables that are named, or that a glob matches: as it was typed, or else below the folder."""
    for path in (user_path(labels), folder / labels):
        if path.exists():
            return [path]
    found = [Path(path) for path in sorted(glob.glob(str(user_path(labels))))]  # noqa: PTH207
    found = found or [folder / file for file in files if fnmatchcase(f"/{file}", f"*/{labels}")]
    if not found:
        raise UserError(f"--data.labels {labels} is neither here nor below {folder}: name a table, or a glob of some.")
    return found


def _read_table(path: Path) -> pd.DataFrame:
    """A table of any format, by names of columns, indexed by file and line."""
    if path.is_dir() or path.suffix.lower() in _REFUSED:
        problem = "a folder: name the table in it" if path.is_dir() else _REFUSED[path.suffix.lower()]
        raise UserError(f"--data.labels {path} is {problem}.")
    try:
        table = _decode_table(path.read_bytes())
    except ImportError:
        raise UserError(f"--data.labels {path} {needs('pyarrow', 'app')}.") from None
    except Exception as error:  # each format raises its own
        formats = "CSV, TSV, JSON lines or Parquet with names of columns"
        raise UserError(f"--data.labels {path}: {one_line(error)}; expected {formats}.") from None
    table.columns = [str(name).strip() for name in table.columns]
    return table.set_axis(f"{path.name} line " + table.index.astype(str))


def _decode_table(content: bytes) -> pd.DataFrame:
    if content.startswith(b"\x1f\x8b"):
        content = gzip.decompress(content)
    if content.startswith(b"PAR1"):
        table = pd.read_parquet(io.BytesIO(content)).reset_index(drop=True)
    elif (text := decode_text(content, "cp1252", "replace").lstrip("\r\n")).startswith("{"):
        table = pd.DataFrame([json.loads(line) for line in text.split("\n") if line.strip()], dtype=object)
    elif "\0" in text:
        raise ValueError("this is no text")
    else:
        separator = max("\t;,", key=text.partition("\n")[0].count)
        as_text = {"header": None, "dtype": str, "keep_default_na": False, "skipinitialspace": True}
        table = pd.read_csv(io.StringIO(text), sep=separator, **as_text)
        table = table.set_axis(table.iloc[0], axis=1)[1:]
    if table.empty:
        raise ValueError("there are no rows")
    return table.set_axis(table.index + 1)


def _choose_columns(raw: pd.DataFrame, options: LabelOptions) -> pd.DataFrame:
    """The cells that are read, as text, by their names here; ``row`` is the file and line of each."""
    for name in set(options.columns).difference(_COLUMNS):
        raise UserError(f"--data.columns has no '{name}'{did_you_mean(name, _COLUMNS)}: {', '.join(_COLUMNS)}.")
    there = {name.lower(): name for name in reversed(raw.columns)}
    sources = {name: there[name] for name in _COLUMNS if name in there} | options.columns
    sources |= {} if options.group is None else {"person": options.group}
    pieces = {name: _BRACES.split(source) if "{" in source else ["", source, ""] for name, source in sources.items()}
    columns = f"the columns of {options.labels or 'names, without --data.labels,'} are {one_line(', '.join(raw))}"
    for name in (name for each in pieces.values() for name in each[1::2]):
        if (count := list(raw.columns).count(name)) != 1:
            problem = f"{count} are called '{name}'" if count else f"none is called '{name}'{did_you_mean(name, raw)}"
            raise UserError(f"{columns}: {problem}.")
    if "file" not in sources:
        alike = [name for word in ("file", "path", "im", "name") for name in raw if word in name.lower()]
        raise UserError(f"{columns}: which is the file? Give --data.columns '{{file: {[*alike, 'NAME'][0]}}}'.")
    if not sources.keys() & {*TASKS}:
        raise UserError(f"{columns}: which are labels? Give --data.columns '{{age: NAME, gender: NAME, race: NAME}}'.")
    cells = pd.DataFrame({name: _fill(raw, each) for name, each in pieces.items()})
    return cells.assign(row=raw.index).reset_index(drop=True)


def _fill(raw: pd.DataFrame, pieces: list[str]) -> pd.Series:
    """Texts and the columns between them, by turns, as text."""
    filled = pd.Series(pieces[0], raw.index)
    for name, text in zip(pieces[1::2], pieces[2::2], strict=True):
        column = raw[name].astype(object)
        filled = filled + column.where(column.notna(), "").astype(str).str.strip() + text
    return filled.astype(object)  # quicker to look up


def _find_files(cells: pd.DataFrame, files: list[str], folder: Path, labels: str, notes: list[str]) -> pd.DataFrame:
    """The rows whose file is there, with its path below the folder."""
    wanted, known = cells["file"].str.replace("\\", "/").astype(object), set(files)
    for front in (".", folder.resolve().as_posix(), folder.as_posix(), folder.name):
        wanted = wanted.map(lambda path, front=front: path if path in known else path.removeprefix(f"{front}/"))
    means = match_paths(wanted, files)
    found = pd.Series([files[each[0]] if len(each) == 1 else "" for each in means], dtype=object)
    # What stands in front of a file's path may be another folder's name: not so where a row names the file itself.
    longer = wanted.str.len() > found.str.len()
    found = found.mask(longer & found.isin(found[~longer]), "")
    there, several = found != "", np.array([len(each) > 1 for each in means])
    if not there.any():
        image = next((file for file in files if Path(file).suffix.lower() in EXTENSIONS), "no image")
        example = "--data.columns '{file: \"FOLDER/{COLUMN}.jpg\"}'"
        problem = f"none of its rows names a file of {folder}: {cells['file'][0]} is not there, but {image} is"
        raise UserError(f"{labels}: {problem}. {example} makes paths of columns.")
    for chosen, sentence in (
        (~there & ~several, "rows name files that are not there"),
        (several, "rows name what can be more than one file"),
        (there & longer, "rows name their files with more folders in front"),
    ):
        _note(notes, sentence, cells["file"][chosen])
    return cells.assign(file=found)[there].reset_index(drop=True)


def _parse(cells: pd.DataFrame, options: LabelOptions, notes: list[str]) -> pd.DataFrame:
    """The columns of ``Labels.table`` for all rows; a width of 0 where the table has boxes, but none for the row."""
    genders, races = class_codes("gender"), class_codes("race", options.race_map)
    parsers: dict[str, Callable[[str], object]] = {
        "age": parse_age,
        "gender": lambda text: genders.get(spelled(text)),
        "race": lambda text: races.get(spelled(text)),
        "split": lambda text: _SPLITS.get(spelled(text)),
    }
    texts = cells.reindex(columns=[*parsers, "person"], fill_value="")
    labels = cells[["file"]].copy()
    for name, parse in parsers.items():
        values = texts[name].map({text: parse(text) for text in texts[name].unique()})
        _note(notes, f"{name}s are unknown", texts[name][values.isna()])
        labels[name] = values.fillna("") if name == "split" else values.astype(np.float64).fillna(MISSING)
    ranges = (labels["age"] != MISSING) & pd.to_numeric(texts["age"], errors="coerce").isna()
    _note(notes, "ages are ranges, taken as their middles", texts["age"][ranges])
    labels = labels.astype({"gender": np.int64, "race": np.int64}).assign(person=texts["person"])
    return labels.join(_squares(cells, options.box_margin, notes))


def _squares(cells: pd.DataFrame, margin: float, notes: list[str]) -> pd.DataFrame:
    """The square around each face box, with a margin on each side in shares of it."""
    given = {name for name in _BOX if name in cells}
    box = cells.reindex(columns=_BOX).apply(pd.to_numeric, errors="coerce")
    for start, size, end in (("x", "width", "right"), ("y", "height", "bottom")):
        box[size] = box[size] if size in given else box[end] - box[start]
    if not ({"x", "y"} <= given and given & {"width", "right"} and given & {"height", "bottom"}):
        needed = "columns are not used: a face box is x, y, width and height, or right and bottom"
        _note(notes, needed, pd.Series(sorted(given)))
        return box[_SQUARE] * np.nan
    start, size = box[["x", "y"]].to_numpy(), box[["width", "height"]].to_numpy()
    real = np.isfinite([start, size]).all((0, 2)) & (size > 0).all(1) & (start + size > 0).all(1)
    side = np.where(real, size.max(1) * (1 + 2 * margin), 0)[:, None]
    return pd.DataFrame(np.hstack([start + size / 2 - side / 2, side, side]), columns=_SQUARE)


def _check(labels: pd.DataFrame, cells: pd.DataFrame) -> pd.Series:
    """Why each row is not used; empty where it is."""
    unknown, no_box = (labels[[*TASKS]] == MISSING).all(axis=1), labels["width"] == 0
    reason = pd.Series(np.select([unknown, no_box], ["no label", "no face box"], ""), labels.index, dtype=object)
    left = labels[reason == ""]
    again = left.index[left.duplicated(["file", *_SQUARE], keep=False)]
    if len(again):
        said = cells.filter([*TASKS, "split", "person"]).loc[again]
        said = said.iloc[:, 0].str.cat(said.iloc[:, 1:], sep=" ").groupby(cells["file"]).agg(" and ".join)
        reason[again] = "rows disagree: " + cells["file"][again].map(said)
    return reason


def _note(notes: list[str], sentence: str, texts: pd.Series) -> None:
    """Counts texts, and names the first of them."""
    if len(texts):
        shown = [one_line(text, 60) for text in texts.unique()[:4]]
        notes.append(f"{len(texts):,} {sentence} ({', '.join([*shown[:3], *(['...'] if len(shown) > 3 else [])])})")

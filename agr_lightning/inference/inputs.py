"""What `predict` is pointed at -> files of photos and videos."""

import contextlib
import glob
import logging
import re
from collections import Counter, deque
from pathlib import Path

from agr_lightning.files import decode_text, user_path, walk_files
from agr_lightning.images import EXTENSIONS, ImageError, open_file
from agr_lightning.messages import UserError

_log = logging.getLogger(__name__)

VIDEO_EXTENSIONS = frozenset((".mp4", ".m4v", ".mov", ".3gp", ".avi", ".mkv", ".webm", ".ogv", ".wmv", ".flv"))
VIDEO_EXTENSIONS |= {".mpg", ".mpeg", ".ts", ".mts", ".m2ts"}

# What files that are named in place of photos are, and the cure.
_REFUSED = dict.fromkeys((".csv", ".tsv", ".xlsx"), "a table: write the photos into a .txt list, one in each line")
_ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".7z", ".rar")
_REFUSED |= dict.fromkeys(_ARCHIVES, "an archive: unpack it, and name the folder")

# Folders that operating systems and network disks put beside photos, other than hidden ones.
_OF_SYSTEMS = {"@eaDir", "#recycle", "#snapshot", "@Recycle", "$RECYCLE.BIN", "__MACOSX", "System Volume Information"}

# The JPEG comment of an annotated copy, by which it is told from a photo; it stands in the first bytes of the file.
COPY_COMMENT = b"annotated by agr_lightning"


def find_photos(path: str | None, option: str = "--data.predict_path") -> list[Path]:
    """Lists the photos and videos that ``path`` names; raises UserError, which names ``option``, when there are none.

    It is one of them; a folder, searched recursively; a glob, ``**`` included; or a .txt file that names one of these
    in each line. Those of folders and globs are sorted, without annotated copies, hidden files and those of systems.
    """
    if not path:
        raise UserError(f"no photos are named: give {option} PHOTO, FOLDER or 'GLOB'.")
    named, left_out = user_path(path), Counter[str]()
    ending = named.suffix.lower() if named.is_file() else ""
    if ending in _REFUSED:
        raise UserError(f"{option} {path} is {_REFUSED[ending]}.")
    photos = _read_list(named, left_out) if ending == ".txt" else _search(named, left_out)
    described = ", ".join(f"{count:,} {kind}" for kind, count in left_out.most_common(9))
    if described and photos:
        _log.info(f"{path}: {left_out.total():,} files that are no photos left out: {described}")
    if not photos:
        problem = "names no photo" if ending else "is no photo or folder of photos, and none matches it as a glob"
        raise UserError(f"{option} {path} {f'has no photo, but {described}' if described else problem}.")
    return photos


def _read_list(file: Path, left_out: Counter[str]) -> list[Path]:
    """What the lines of a file name; what is not there is an input like any other, and gets a row that says so."""
    lines = re.split("[\r\n]+", decode_text(file.read_bytes()))
    photos = []
    for named in (user_path(line.strip()) for line in lines if line.strip()):
        found: list[Path] = []
        with contextlib.suppress(OSError, ValueError):  # for names that no file can have
            found = _search(named, left_out)
        photos += found or [named]
    return photos


def _search(named: Path, left_out: Counter[str]) -> list[Path]:
    """The photos in a folder or of a glob, or the one that is named; counts other files by their kind."""
    if named.exists() and not named.is_dir():
        return [named]
    endings = EXTENSIONS | VIDEO_EXTENSIONS
    if named.is_dir():
        files = [named / name for name in walk_files(named)]
    else:
        files = [file for match in _glob(named) if (file := Path(match)).is_file()]
        endings |= {"", named.suffix.lower()}
    kinds = {file: _kind(file, named, endings) for file in sorted(files)}
    left_out.update(kind for kind in kinds.values() if kind)
    return [file for file, kind in kinds.items() if not kind]


def _glob(named: Path) -> list[str]:
    """The files that match; a bracket in the name of a folder that is there is no pattern."""
    there = next(parent for parent in named.parents if parent.exists())
    pattern = Path(glob.escape(str(there)), named.relative_to(there))
    if "**" in pattern.parts:
        deque(walk_files(there), 0)  # says what cannot be read
    return glob.glob(str(pattern), recursive=True) or glob.glob(str(named).replace("[", "[[]"), recursive=True)  # noqa: PTH207


def _kind(file: Path, named: Path, endings: frozenset[str]) -> str:
    """What a file is, that was found where ``named`` says; empty for a photo."""
    if any(part.startswith(".") or part in _OF_SYSTEMS for part in {*file.parts} - {*named.parts}):
        return "hidden or of a system"
    if file.suffix.lower() not in endings:
        return file.suffix.lower() or "without an ending"
    with contextlib.suppress(ImageError), open_file(file) as opened:
        if COPY_COMMENT in opened.read(64):
            return "annotated copies"
    return ""

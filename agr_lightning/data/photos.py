"""What `predict` is pointed at -> the files to predict, in order."""

import codecs
import glob
import logging
import os
from pathlib import Path

from agr_lightning.data.images import EXTENSIONS
from agr_lightning.files import user_path, walk_files
from agr_lightning.messages import UserError

_log = logging.getLogger(__name__)

VIDEO_EXTENSIONS = frozenset({".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm"})


def find_photos(place: str | None, option: str = "--data.predict_path") -> list[Path]:
    """Lists the photos that ``place`` names.

    Args:
        place: a photo or video; a folder, searched recursively for them; a glob, ``**`` included; or a .txt file that
            names one of them in each line.
        option: how the user named it, for messages.

    Returns:
        The paths: those of a folder or glob sorted, those of a list as it has them.

    Raises:
        UserError: when nothing is named or found.
    """
    if place is None:
        raise UserError(f"no photos are named: give {option} PHOTO, FOLDER or 'GLOB'.")
    path = user_path(place)
    if path.suffix.lower() == ".txt" and path.is_file():
        return _listed(path, option)
    if path.is_dir():
        files = sorted(path / name for name in walk_files(path))
        photos = [file for file in files if file.suffix.lower() in EXTENSIONS | VIDEO_EXTENSIONS]
        if len(files) > len(photos):
            _log.info(f"{place}: {len(files) - len(photos):,} files of other kinds left out")
        if not photos:
            raise UserError(f"{option} {place} holds no image files ({', '.join(sorted(EXTENSIONS))}).")
        return photos
    if path.exists():
        return [path]
    found = sorted(Path(match) for match in glob.glob(str(path), recursive=True))  # noqa: PTH207 (absolute ones too)
    photos = [file for file in found if file.is_file()]
    if not photos:
        raise UserError(f"{option} {place}: no such photo or folder, and no file matches it as a glob.")
    return photos


def _listed(path: Path, option: str) -> list[Path]:
    """The lines of a list; a file that is not there is an input like any other, and gets a row that says so."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{option} {path} cannot be read ({error.strerror}).") from None
    # As Windows' editors write them.
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    lines = content.decode("utf-16" if wide else "utf-8-sig", "replace" if wide else "surrogateescape").splitlines()
    photos = [Path(os.path.expanduser(line.strip())) for line in lines if line.strip()]  # noqa: PTH111 (never fails)
    if not photos:
        raise UserError(f"{option} {path} names no photo.")
    return photos

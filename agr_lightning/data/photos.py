"""What `predict` is pointed at -> the files to predict, in order."""

import glob
import logging
from pathlib import Path

from agr_lightning.data.images import EXTENSIONS
from agr_lightning.errors import UserError
from agr_lightning.files import user_path, walk_files

_log = logging.getLogger(__name__)


def find_photos(place: str | None) -> list[Path]:
    """Lists the photos that ``place`` names.

    Args:
        place: a file; a folder, searched recursively for image files; or a glob, ``**`` included.

    Returns:
        The paths: those of a folder or glob sorted.

    Raises:
        UserError: when nothing is named or found.
    """
    if place is None:
        raise UserError("nothing to predict: give --data.predict_path PHOTO, FOLDER or 'GLOB'.")
    path = user_path(place)
    if path.is_dir():
        files = sorted(path / name for name in walk_files(path))
        photos = [file for file in files if file.suffix.lower() in EXTENSIONS]
        if len(files) > len(photos):
            _log.info(f"{place}: {len(files) - len(photos):,} files without an image's extension left out")
        if not photos:
            raise UserError(f"--data.predict_path {place} holds no image files ({', '.join(sorted(EXTENSIONS))}).")
        return photos
    if path.exists():
        return [path]
    found = sorted(Path(match) for match in glob.glob(str(path), recursive=True))  # noqa: PTH207 (absolute ones too)
    photos = [file for file in found if file.is_file()]
    if not photos:
        raise UserError(f"--data.predict_path {place}: no such photo or folder, and no file matches it as a glob.")
    return photos

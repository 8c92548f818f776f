"""What `predict` is pointed at -> files of photos and videos."""

import codecs
import contextlib
import glob
import logging
from pathlib import Path

from agr_lightning.data.images import EXTENSIONS, ImageError, open_file
from agr_lightning.files import user_path, walk_files
from agr_lightning.messages import UserError

_log = logging.getLogger(__name__)

VIDEO_EXTENSIONS = frozenset(
    (
        ".mp4",
        ".m4v",
        ".mov",
        ".avi",
        ".mkv",
        ".webm",
        ".wmv",
        ".3gp",
        ".mpg",
        ".mpeg",
        ".mts",
        ".m2ts",
        ".ts",
        ".flv",
        ".ogv",
    )
)

# The JPEG comment of an annotated copy, by which it is told from a photo; it stands in the first bytes of the file.
COPY_COMMENT = b"annotated by agr_lightning"


def find_photos(path: str | None, option: str = "--data.predict_path") -> list[Path]:
    """Lists the photos and videos that ``path`` names; raises UserError, which names ``option``, when there are none.

    It is one of them; a folder, searched recursively; a glob, ``**`` included; or a .txt file that names one in each
    line. Those of folders and globs are sorted, without annotated copies.
    """
    if not path:
        raise UserError(f"no photos are named: give {option} PHOTO, FOLDER or 'GLOB'.")
    named = user_path(path)
    if named.suffix.lower() == ".txt" and named.is_file():
        wide = named.read_bytes()[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)  # of Windows' editors
        text = named.read_text("utf-16" if wide else "utf-8-sig", "replace" if wide else "surrogateescape")
        photos = [user_path(line.strip()) for line in text.splitlines() if line.strip()]
        if not photos:
            raise UserError(f"{option} {path} names no photo.")
        return photos  # a file that is not there is an input like any other, and gets a row that says so
    if named.is_dir():
        files = sorted(named / name for name in walk_files(named))
        photos = [file for file in files if file.suffix.lower() in EXTENSIONS | VIDEO_EXTENSIONS]
    elif named.exists():
        return [named]
    else:
        matches = glob.glob(str(named), recursive=True)  # noqa: PTH207 (absolute ones too)
        files = photos = sorted(file for match in matches if (file := Path(match)).is_file())
    photos = [file for file in photos if not _is_by_product(file)]
    if len(files) > len(photos):
        _log.info(f"{path}: {len(files) - len(photos):,} files that are no photos left out")
    if not photos:
        raise UserError(f"{option} {path}: no photo or folder of photos, and none matches it as a glob.")
    return photos


def _is_by_product(path: Path) -> bool:
    """Whether macOS, a Synology disk or `--annotate` has put a file beside photos."""
    if path.name.startswith("._") or "@eaDir" in path.parts:
        return True
    with contextlib.suppress(ImageError), open_file(path) as file:
        return COPY_COMMENT in file.read(64)
    return False

"""Where derived files live, and how they are written: whole or not at all."""

import contextlib
import errno
import glob
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from agr_lightning.messages import UserError

# A partial file or folder that nobody has written to for so long, in seconds, is of a process that was killed.
_ABANDONED = 3600

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]


def user_path(text: str) -> Path:
    """A path as somebody typed it, with ``~`` for a home folder; raises UserError where there is no such home."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise UserError(f"{text}: nobody here has such a home folder.") from None


def named_files(option: str | list[str] | None) -> list[str]:
    """The files that an option names which takes none, one or several."""
    return [option] if isinstance(option, str) else list(option or [])


def check_readable(path: Path, option: str) -> None:
    """Raises UserError, with the option that named it, for a file that is missing or cannot be read."""
    if not path.is_file():
        raise UserError(f"{option} {path} does not exist.")
    try:
        path.open("rb").close()
    except OSError as error:
        raise UserError(f"{option} {path} cannot be read ({error.strerror}).") from None


def cache_folder(cache_dir: str | None) -> Path:
    """The folder for derived files, made if needed: ``cache_dir``, or one in the user's cache folder."""
    if cache_dir is None:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = Path(base) / "agr_lightning"
    else:
        folder = user_path(cache_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"the cache folder {folder} cannot be made ({error.strerror}); choose one with --data.cache_dir."
        ) from None
    return folder


def name_digests(names: Iterable[str]) -> NDArray[np.int64]:
    """A number for each file name, whatever its folder, int64 ``(n,)``; two names share one with a chance of 2^-64."""
    plain = (name.rpartition("/")[2].encode("utf-8", "surrogateescape") for name in names)
    return np.array([int.from_bytes(hashlib.sha256(name).digest()[:8], signed=True) for name in plain], np.int64)


def walk_files(folder: Path) -> Iterator[str]:
    """Paths below ``folder`` of all files in it, through links too, each real folder once."""
    seen = set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        status = Path(parent).stat()
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders.sort()
        below = "" if Path(parent) == folder else f"{Path(parent).relative_to(folder).as_posix()}/"
        for file in files:
            yield below + file


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """A binary file that appears under its name only when the block ends without an error."""
    _sweep(path)
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
    partial = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
        # mkstemp makes private files; these are for everyone the folder is for.
        partial.chmod(0o666 & ~_umask())
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from None
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def atomic_text(path: Path, text: str) -> None:
    """Writes ``text`` as UTF-8, whole or not at all; undecodable file names in it survive."""
    with atomic_write(path) as file:
        file.write(text.encode("utf-8", "surrogateescape"))


def atomic_json(path: Path, content: Json) -> None:
    """Writes ``content`` as JSON, whole or not at all; raises ValueError for NaN, which JSON does not have."""
    atomic_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A folder that appears under its name only when the block ends without an error.

    When another process made the same folder meanwhile, that one stays.
    """
    _sweep(path)
    partial = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent))
    try:
        partial.chmod(0o777 & ~_umask())
        yield partial
        try:
            partial.rename(path)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _sweep(path: Path) -> None:
    """Removes what killed processes have left of earlier attempts at the same file or folder."""
    for partial in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        with contextlib.suppress(OSError):
            if time.time() - partial.stat().st_mtime < _ABANDONED:
                continue
            if partial.is_dir():
                shutil.rmtree(partial)
            else:
                partial.unlink()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask

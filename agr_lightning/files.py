"""Files: how they are written, whole or not at all; where derived ones live; what lies in a run folder."""

import codecs
import contextlib
import errno
import functools
import json
import logging
import math
import os
import shutil
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, TypeVar

from tqdm import tqdm

from agr_lightning.messages import UserError

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

RUNS_FOLDER = "lightning_logs"

CONFIG_FILE = "config.yaml"
CHECKPOINTS_FOLDER = "checkpoints"
SPLITS_FOLDER = "splits"
RESULTS_FILE = "results.json"
FIGURES_FOLDER = "figures"
PREDICTIONS_FILES = {"csv": "predictions.csv", "jsonl": "predictions.jsonl"}
REPORT_FILE = "report.html"
CARD_FILE = "MODEL_CARD.md"

# The networks that come with this project, and how exported ones end.
WEIGHTS = Path(__file__).parent / "weights"
SAFETENSORS_SUFFIX, ONNX_SUFFIX = ".safetensors", ".onnx"

# The checkpoints of a run: that of the lowest validation loss, and that of the last epoch.
BEST, LAST = "best", "last"

# Where Linux says what a container may use.
_CGROUPS = Path("/sys/fs/cgroup")

# So many rows are done ahead by threads, so that they do not run away from a slow disk, or fill the memory.
_PORTION = 1024

# A partial file or folder that nobody has written to for so long, in seconds, is of a process that was killed.
_ABANDONED = 3600


def usable_cpus() -> int:
    """How many processors this process may use: by its affinity, and by the quotas of its container or service."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    group = _CGROUPS
    with contextlib.suppress(OSError):
        group /= Path("/proc/self/cgroup").read_text().rpartition("0::/")[2].strip()
    version_2 = [[folder / "cpu.max"] for folder in (group, *group.parents)]
    version_1 = [_CGROUPS / "cpu" / f"cpu.cfs_{name}_us" for name in ("quota", "period")]
    for files in (*version_2, version_1):
        with contextlib.suppress(OSError, ValueError):  # where there is no such file, or no quota
            quota, period = map(int, " ".join(file.read_text() for file in files).split())
            count = min(count, math.ceil(quota / period)) if quota > 0 else count
    return max(1, count)


def in_threads(function: Callable[[int], _T], rows: Sequence[int], description: str) -> Iterator[_T]:
    """What a function makes of each row, in their order, a portion ahead of what is asked for; with a progress bar."""
    bar = tqdm(desc=description, total=len(rows), unit="image", delay=2, leave=False, disable=None)
    with ThreadPoolExecutor(usable_cpus()) as pool, bar:
        for start in range(0, len(rows), _PORTION):
            for found in pool.map(function, rows[start : start + _PORTION]):
                yield found
                bar.update()


def user_path(text: str) -> Path:
    """A path as somebody typed it, with ``~`` for a home folder."""
    return Path(text if "\0" in text else os.path.expanduser(text))  # noqa: PTH111 (never fails)


def stamp(file: str | Path) -> tuple[int, int, int]:
    """Size and times of change of a file, the second of which no program sets back; zeros where there is none."""
    try:
        status = os.stat(file)  # noqa: PTH116 (a Path for each of many files takes as long as its stat)
    except (OSError, ValueError):  # ValueError: of a name that no file can have
        return 0, 0, 0
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def lock(file: IO[bytes] | int, path: Path) -> None:
    """Keeps other processes from what ``path`` names until ``file`` is closed; raises UserError where one has it."""
    with contextlib.suppress(ImportError):  # of Windows
        import fcntl

        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{path} is being written by another process: wait for it, or stop it.") from None


def check_readable(path: Path, option: str) -> None:
    """Raises UserError, with the option that named it, for a file that is missing or cannot be read."""
    try:
        path.open("rb").close()
    except OSError as error:
        raise UserError(f"{option} {path} cannot be read: {error.strerror}.") from None


def cache_folder(cache_dir: str | None) -> Path:
    """The folder for derived files, made if needed: ``cache_dir``, or one in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base) / "agr_lightning" if cache_dir is None else user_path(cache_dir)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def decode_text(content: bytes, encoding: str = "utf-8", errors: str = "surrogateescape") -> str:
    """Text as the editors of any system write it: UTF-16 by its mark, UTF-8 with or without one, or else as is said."""
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content.decode("utf-16", "replace")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode(encoding, errors)


def match_paths(wanted: Sequence[str], known: Sequence[str]) -> list[list[int]]:
    """For each wanted path, which of the known ones it can mean.

    That is itself; or those that end in it; or the longest that it ends in, where only what stands in front differs.
    """
    whole, ends = defaultdict[str, list[int]](list), defaultdict[str, list[int]](list)
    for number, path in enumerate(known):
        whole[path].append(number)
    for path, numbers in whole.items() if any(path not in whole for path in wanted) else ():
        while path := path.partition("/")[2]:
            ends[path] += numbers
    found = []
    for path in wanted:
        means, rest = whole.get(path) or ends.get(path), path
        while not means and (rest := rest.partition("/")[2]):
            means = whole.get(rest)
        found.append(means or [])
    return found


def walk_files(folder: Path) -> Iterator[str]:
    """Paths below ``folder`` of all files in it, through links too, each real folder once; says what it cannot read."""
    seen = set()

    def say(error: OSError) -> None:
        _log.warning(f"{error.filename} cannot be read, and is left out: {error.strerror}.")

    for parent, folders, files in os.walk(folder, onerror=say, followlinks=True):
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
def atomic_write(path: Path, lasting: bool = True) -> Iterator[IO[bytes]]:
    """A binary file that has its name only when the block ends without an error; ``lasting`` survives power cuts."""
    partial = _partial(path)
    try:
        with partial.open("xb") as file:
            yield file
            if lasting:
                file.flush()
                os.fsync(file.fileno())
        partial.replace(path)
        if lasting and os.name == "posix":
            folder = os.open(path.parent, os.O_RDONLY)
            os.fsync(folder)
            os.close(folder)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        partial.unlink(missing_ok=True)


def atomic_text(path: Path, text: str) -> None:
    """Writes ``text`` as UTF-8, whole or not at all; undecodable file names in it survive."""
    with atomic_write(path) as file:
        file.write(text.encode("utf-8", "surrogateescape"))


def atomic_json(path: Path, content: object) -> None:
    """Writes ``content`` as JSON, whole or not at all; raises ValueError for NaN, which JSON does not have."""
    atomic_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A folder that appears under its name only when the block ends without an error.

    When another process made the same folder meanwhile, that one stays.
    """
    partial = _partial(path)
    partial.mkdir()
    try:
        yield partial
        try:
            partial.rename(path)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _partial(path: Path) -> Path:
    """A name beside ``path`` that nobody else has."""
    _sweep(path.parent)
    name = os.fsencode(path.name)[:200].decode(errors="ignore")  # with the rest, less than the 255 bytes of a name
    return path.with_name(f".{name}.{uuid.uuid4().hex[:8]}.partial")


@functools.cache  # once for a folder: to list thousands of files for each that is written would take longer than that
def _sweep(folder: Path) -> None:
    """Removes what killed processes have left under names of ``_partial``."""
    for left in folder.glob(f".*.{8 * '[0-9a-f]'}.partial"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > _ABANDONED:
                remove(left)


def remove(path: Path) -> None:
    """Removes a file, or a folder with all that is in it; what is not there is no error."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def run_name(run: Path) -> str:
    """The folder's, with the folder above its logs where many are called version_0."""
    path = run.resolve()
    return path.name if path.name != "version_0" else f"{path.parent.parent.name}/{path.name}"


def number_of(run: Path) -> int | None:
    """N of a folder ``version_N``; None for another name."""
    number = run.name.removeprefix("version_")
    return int(number) if number.isdecimal() else None


def reserve_run(root: Path) -> int:
    """Makes the folder of the next run under ``root``, which no other process then takes, and returns its number."""
    runs = root / RUNS_FOLDER
    runs.mkdir(parents=True, exist_ok=True)
    number = max((n + 1 for run in runs.glob("version_*") if (n := number_of(run)) is not None), default=0)
    while True:
        with contextlib.suppress(FileExistsError):
            (runs / f"version_{number}").mkdir()
            return number
        number += 1


def read_results(run: str) -> tuple[Path, dict[str, Any]]:
    """The folder and results of a tested run, named by the folder or the file; raises UserError for anything else."""
    named = user_path(run)
    path = named / RESULTS_FILE if named.is_dir() else named
    if not named.exists():
        raise UserError(f"{run} does not exist; name run folders like {RUNS_FOLDER}/version_0.")
    if not path.is_file():
        raise UserError(f"{run} has no {RESULTS_FILE}: name the run folder that `test --ckpt_path {run}` makes.")
    try:
        return path.parent, dict(json.loads(path.read_text("utf-8")))
    except (ValueError, TypeError, RecursionError):
        raise not_ours(path) from None


def not_ours(path: Path) -> UserError:
    """The error for results that cannot be understood."""
    return UserError(f"{path} is not a {RESULTS_FILE} of this version of the project: test the run's checkpoint again.")

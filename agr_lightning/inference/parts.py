"""The rows of a job on disk as they are made, a part for each process, by which a job that was stopped is resumed."""

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from agr_lightning.files import number_of
from agr_lightning.messages import UserError

# By column, and the index of the input.
Row = dict[str, str | int | float]

# What was asked for, by names that a message can show; of values that JSON has.
Job = Mapping[str, Any]


def describe_job(paths: Sequence[Path], network: str, **options: Any) -> Job:
    """What the rows of a job follow from: its photos and network, by their names, sizes and times of change."""
    photos = hashlib.sha256()
    for path in paths:
        photos.update(f"{path}\n{_stamp(path)}\n".encode("utf-8", "surrogatepass"))
    return {"photos": photos.hexdigest(), "network": [network, _stamp(Path(network))], **options}


def _stamp(path: Path) -> list[int]:
    with contextlib.suppress(OSError, ValueError):
        status = path.stat()
        return [status.st_size, status.st_mtime_ns]
    return []


def unfinished_run(runs: Path) -> Path | None:
    """The newest folder ``version_N`` in which a job was stopped; None where there is none."""
    stopped = {part.parent for part in runs.glob("version_*/predictions.part*") if number_of(part.parent) is not None}
    return max(stopped, key=lambda run: number_of(run) or 0, default=None)


def open_part(path: Path, job: Job, resume: bool) -> tuple[IO[bytes], int]:
    """Opens a part to write batches to its end, and returns it with the index of the input that is next.

    Its first line is the job, each other one a batch: batches, since those of a resumed job must be those of one that
    was never stopped, whose sums are rounded alike. Raises UserError for a part of another job.
    """
    first = json.dumps(job) + "\n"
    file = path.open("a+b")
    with contextlib.suppress(ImportError):  # of Windows
        import fcntl

        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{path} is being written by another process: wait for it, or stop it.") from None
    file.seek(0)
    found = file.readline()
    try:
        before = json.loads(found or first)
        others = [name for name in {**before, **json.loads(first)} if before.get(name) != json.loads(first).get(name)]
    except (ValueError, TypeError, AttributeError):
        raise UserError(f"{path} is no part of a table: move it away, or name another --output.") from None
    if resume and others:
        raise UserError(f"--resume: {path} is of a job with other {', '.join(others)}: repeat its options, or move it.")
    index = _keep_whole(file) if resume else 0
    if not resume and file.readline():
        raise UserError(f"{path} has rows of a job that was stopped: go on with --resume, or remove it.")
    if not index:
        file.truncate(0)
        file.write(first.encode())
        file.flush()
    return file, index


def _keep_whole(file: IO[bytes]) -> int:
    """Cuts a part, from its second line on, before the last batch that begins with a new input, and returns that.

    What follows may be half of a batch, or of the frames of a video.
    """
    start = end = file.tell()
    index, last = 0, -1
    with contextlib.suppress(ValueError):  # of half a line
        while line := file.readline():
            rows = json.loads(line)
            if rows[0]["index"] != last:
                start, index = end, rows[0]["index"]
            end, last = end + len(line), rows[-1]["index"]
    file.truncate(start)
    return int(index)


def read_part(file: IO[bytes]) -> Iterator[Row]:
    """The rows of a part."""
    file.readline()
    for line in file:
        yield from json.loads(line)

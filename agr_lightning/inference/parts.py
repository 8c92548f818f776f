"""The rows of a job on disk as they are made, a part for each process, by which a job that was stopped is resumed."""

import contextlib
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from agr_lightning.files import lock, number_of, stamp
from agr_lightning.messages import UserError

# By column, and the index of the input.
Row = dict[str, str | int | float]


def describe_job(paths: Sequence[Path], network: str, **options: Any) -> dict[str, Any]:
    """What the rows of a job follow from: its photos and network, by their names, sizes and times of change."""
    *photos, described = [(str(path), *stamp(path)[:2]) for path in (*paths, Path(network))]
    return {"photos": hashlib.sha256(json.dumps(photos).encode()).hexdigest(), "network": described, **options}


def unfinished_run(runs: Path) -> Path | None:
    """The newest folder ``version_N`` in which a job was stopped; None where there is none."""
    stopped = {part.parent for part in runs.glob("version_*/predictions.part*") if number_of(part.parent) is not None}
    return max(stopped, key=lambda run: number_of(run) or 0, default=None)


def open_part(path: Path, job: dict[str, Any], resume: bool) -> tuple[IO[bytes], int]:
    """Opens a part to write batches to its end, and returns it with the index of the input that is next.

    Its first line is the job, each other one a batch: a resumed job has the batches of one that was never stopped,
    whose sums are rounded alike. Raises UserError for a part of another job, and says by what names they differ.
    """
    file = path.open("a+b")
    lock(file, path)
    file.seek(0)
    first = json.dumps(job).encode() + b"\n"
    wanted, found = json.loads(first), file.readline() or first
    try:
        before = dict(json.loads(found))
    except (ValueError, TypeError):
        raise UserError(f"{path} is no part of a table: move it away, or name another --output.") from None
    index = 0
    if resume:
        if others := [name for name in before | wanted if before.get(name) != wanted.get(name)]:
            named = ", ".join(others)
            raise UserError(f"--resume: {path} is of a job with other {named}: repeat its options, or move it.")
        index = _keep_whole(file)
    elif file.readline():
        raise UserError(f"{path} has rows of a job that was stopped: go on with --resume, or remove it.")
    if not index:
        file.truncate(0)
        file.write(first)
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

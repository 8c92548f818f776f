"""A folder or an archive -> the samples in it, and the files that are none, each with its reason."""

import hashlib
import io
import os
import zipfile
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from agr_lightning.data.archive import unpack
from agr_lightning.data.duplicates import THUMBNAIL, find_groups
from agr_lightning.data.images import CANNOT_BE_READ, ImageError, decode_rgb, read_bytes
from agr_lightning.data.samples import Sample, Samples
from agr_lightning.files import atomic_write, cache_folder, user_path, walk_files
from agr_lightning.labels import MISSING, Label, LabelError, parse_name
from agr_lightning.messages import UserError

# Part of the name of every stored scan: raise it when what is stored, or how it is computed, changes.
_SCAN_VERSION = 2
_DIGEST_BYTES = 16


@dataclass(frozen=True, slots=True)
class Reject:
    """A file that is not used.

    Attributes:
        name: path below the root.
        reason: a few words for the user.
    """

    name: str
    reason: str


@dataclass(frozen=True)
class Index:
    """What a root holds.

    Attributes:
        root: what the user named.
        samples: sorted by name.
        rejects: sorted by name.
        store: file that holds what was seen in the images.
    """

    root: str
    samples: Samples
    rejects: list[Reject]
    store: Path

    def summary(self) -> str:
        """One line: how many images are used, how many are not, and why."""
        line = f"{self.root}: {len(self.samples):,} images"
        without_race = int((self.samples.race == MISSING).sum())
        if without_race:
            line += f" ({without_race} without a race label)"
        if self.rejects:
            reasons = Counter(reject.reason for reject in self.rejects).most_common()
            shown = "; ".join(f"{count} {reason}" for reason, count in reasons[:3])
            more = sum(count for _, count in reasons[3:])
            line += f", {len(self.rejects):,} files rejected: {shown}"
            line += f"; {more} for other reasons (see `audit`)" if more else ""
        return line

    def duplicate_groups(self) -> list[list[Sample]]:
        """The groups of two or more samples that show the same photo."""
        group = self.samples.group
        values, counts = np.unique(group, return_counts=True)
        members = defaultdict(list)
        for i in np.flatnonzero(np.isin(group, values[counts > 1])):
            members[int(group[i])].append(self.samples[int(i)])
        return list(members.values())


@dataclass(frozen=True)
class _Scan:
    """What one look at each file's content found, in columns.

    Attributes:
        files: paths below the folder, sorted.
        stamps: size and time of change, int64 ``(n, 2)``.
        reasons: why a file is no image; empty for those that are.
        digests: of the content, uint8 ``(n, 16)``.
        thumbnails: grayscale, uint8 ``(n, 32, 32)``; not read from the store where all files are known.
        groups: row of the first that shows the same photo; its own when alone, int64 ``(n,)``.
    """

    files: list[str]
    stamps: NDArray[np.int64]
    reasons: list[str]
    digests: NDArray[np.uint8]
    thumbnails: NDArray[np.uint8]
    groups: NDArray[np.int64]


def build_index(root: str, cache_dir: str | None = None, option: str = "--data.root") -> Index:
    """Finds the samples under ``root``.

    Every file is opened once; what was found is kept in the cache and looked up by name, size and time
    of change in later calls.

    Args:
        root: a folder, searched recursively, or an archive.
        cache_dir: where derived files go; None for the user's cache folder.
        option: how the user named the root, for messages.

    Raises:
        UserError: when the root is missing or unreadable, or holds no usable image.
    """
    cache = cache_folder(cache_dir)
    path = user_path(root)
    if not path.exists():
        raise UserError(f"{option} {root} does not exist; name a folder of UTKFace images or their archive.")
    folder = path if path.is_dir() else unpack(path, cache)
    files = sorted(walk_files(folder))
    if not files:
        raise UserError(f"{option} {root} holds no files; it should hold images named AGE_GENDER_RACE_DATETIME.jpg.")

    labels, rejects = _read_labels(files)
    store = cache / f"scan-v{_SCAN_VERSION}-{hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:12]}.npz"
    scan = _scan(folder, list(labels), store)
    rejects += [Reject(name, reason) for name, reason in zip(scan.files, scan.reasons, strict=True) if reason]
    kept, copies = _short_names(scan)
    rejects += [Reject(scan.files[row], "copy of a file of the same name") for row in copies]
    rejects.sort(key=lambda reject: reject.name)
    if not kept:
        raise UserError(
            f"{option} {root} holds {len(files)} files but no usable image; for one, {rejects[0].name}: "
            f"{rejects[0].reason}. Names should be AGE_GENDER_RACE_DATETIME.jpg."
        )
    rows = np.array(sorted(kept, key=kept.__getitem__))
    known = [labels[scan.files[row]] for row in rows]
    samples = Samples(
        folder,
        names=[kept[row] for row in rows],
        files=[scan.files[row] for row in rows],
        stamps=scan.stamps[rows],
        age=np.array([label.age for label in known], np.uint8),
        gender=np.array([label.gender for label in known], np.int8),
        race=np.array([label.race for label in known], np.int8),
        group=scan.groups[rows],
        row=np.arange(len(rows)),
    )
    return Index(root, samples, rejects, store)


def shared_photos(index: Index, other: Index) -> NDArray[np.bool_]:
    """Which samples of ``index`` show a photo that ``other`` shows too, ``(samples,)``."""
    digests, thumbnails = zip(_looks(other), _looks(index), strict=True)
    leaders = find_groups(np.concatenate(thumbnails), np.concatenate(digests))
    n = len(other.samples)
    return np.isin(leaders[n:], leaders[:n])


def _looks(index: Index) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Digests and thumbnails of an index's samples."""
    scan = _load(index.store, thumbnails=True)
    assert scan is not None, "build_index has written it"
    place = {name: row for row, name in enumerate(scan.files)}
    rows = [place[name] for name in index.samples.files]
    return scan.digests[rows], scan.thumbnails[rows]


def _read_labels(files: list[str]) -> tuple[dict[str, Label], list[Reject]]:
    labels, rejects = {}, []
    for file in files:
        try:
            if "\n" in file or "\r" in file:
                raise LabelError("line break in the file name")  # which no list of names could hold
            labels[file] = parse_name(file.rpartition("/")[2])
        except LabelError as error:
            rejects.append(Reject(file, str(error)))
    return labels, rejects


def _short_names(scan: _Scan) -> tuple[dict[int, str], list[int]]:
    """Gives each image its sample name, by row; a second copy of the same name and bytes is left out."""
    by_name = defaultdict(list)
    for row, (file, reason) in enumerate(zip(scan.files, scan.reasons, strict=True)):
        if not reason:
            by_name[file.rpartition("/")[2]].append(row)
    kept, copies = {}, []
    for name, rows in by_name.items():
        if len(rows) == 1:
            kept[rows[0]] = name
            continue
        seen: dict[bytes, int] = {}
        copies += [row for row in rows if seen.setdefault(scan.digests[row].tobytes(), row) != row]
        for row in seen.values():
            kept[row] = name if len(seen) == 1 else scan.files[row]
    return kept, copies


def _scan(folder: Path, files: list[str], store: Path) -> _Scan:
    """Looks at the content of each file, or at what an earlier look found."""
    stamps = np.array([_stamp(folder, file) for file in files], np.int64).reshape(-1, 2)
    known = _load(store, thumbnails=False)
    if known is not None and known.files == files and (_unchanged(known, files, stamps) >= 0).all():
        return known
    known = _load(store, thumbnails=True)
    earlier = _unchanged(known, files, stamps)
    old, new = np.flatnonzero(earlier >= 0), np.flatnonzero(earlier < 0)
    reasons = [""] * len(files)
    digests = np.zeros((len(files), _DIGEST_BYTES), np.uint8)
    thumbnails = np.zeros((len(files), THUMBNAIL, THUMBNAIL), np.uint8)
    if known is not None:
        digests[old], thumbnails[old] = known.digests[earlier[old]], known.thumbnails[earlier[old]]
        for row in old:
            reasons[row] = known.reasons[earlier[row]]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = pool.map(lambda row: _scan_file(folder / files[row]), new)
        bar = tqdm(found, "Checking images", len(new), unit="image", delay=2, leave=False, disable=None)
        for row, (reason, digest, thumbnail) in zip(new, bar, strict=True):
            reasons[row], digests[row], thumbnails[row] = reason, digest, thumbnail
    groups = np.arange(len(files))
    readable = np.flatnonzero([not reason for reason in reasons])
    groups[readable] = readable[find_groups(thumbnails[readable], digests[readable])]
    scan = _Scan(files, stamps, reasons, digests, thumbnails, groups)
    _save(store, scan)
    return scan


def _stamp(folder: Path, file: str) -> tuple[int, int]:
    try:
        status = os.stat(f"{folder}/{file}")  # noqa: PTH116 (a Path for each of many files takes as long as its stat)
    except OSError:
        return (0, 0)
    return (status.st_size, status.st_mtime_ns)


def _unchanged(known: _Scan | None, files: list[str], stamps: NDArray[np.int64]) -> NDArray[np.int64]:
    """The row of each file in what an earlier look found; -1 for those that have to be looked at."""
    if known is None or not known.files:
        return np.full(len(files), -1)
    rows = {file: row for row, file in enumerate(known.files)}
    earlier = np.array([rows.get(file, -1) for file in files], np.int64)
    # A file that could not be opened is tried again: permissions change without its time of change.
    denied = np.array([reason.startswith(CANNOT_BE_READ) for reason in known.reasons])
    return np.where((known.stamps[earlier] != stamps).any(1) | denied[earlier], -1, earlier)


def _scan_file(path: Path) -> tuple[str, NDArray[np.uint8], NDArray[np.uint8]]:
    """Why it is no image, digest, and thumbnail."""
    try:
        content = read_bytes(path)
        rgb = decode_rgb(content, draft=2 * THUMBNAIL)
    except ImageError as error:
        return str(error), np.zeros(_DIGEST_BYTES, np.uint8), np.zeros((THUMBNAIL, THUMBNAIL), np.uint8)
    digest = hashlib.blake2b(content, digest_size=_DIGEST_BYTES).digest()
    gray = Image.fromarray(rgb).convert("L").resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
    return "", np.frombuffer(digest, np.uint8), np.asarray(gray)


def _load(store: Path, thumbnails: bool) -> _Scan | None:
    """What an earlier look found; None when there was none, or it cannot be read."""
    try:
        with np.load(store, allow_pickle=False) as arrays:
            looks = arrays["thumbnails"] if thumbnails else np.empty((0, THUMBNAIL, THUMBNAIL), np.uint8)
            files, reasons = _lines(arrays["files"]), _lines(arrays["reasons"])
            return _Scan(files, arrays["stamps"], reasons, arrays["digests"], looks, arrays["groups"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):  # absent, or not what this version wrote
        return None


def _save(store: Path, scan: _Scan) -> None:
    columns = {name: value for name, value in vars(scan).items() if isinstance(value, np.ndarray)}
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, files=_text(scan.files), reasons=_text(scan.reasons), **columns)
    with atomic_write(store) as file:
        file.write(buffer.getbuffer())


def _text(lines: list[str]) -> NDArray[np.uint8]:
    return np.frombuffer("".join(f"{line}\n" for line in lines).encode("utf-8", "surrogateescape"), np.uint8)


def _lines(text: NDArray[np.uint8]) -> list[str]:
    return text.tobytes().decode("utf-8", "surrogateescape").split("\n")[:-1]

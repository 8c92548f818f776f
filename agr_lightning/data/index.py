"""A folder or an archive -> the samples in it, and the files that are none, each with its reason."""

import hashlib
import io
import os
import zipfile
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from agr_lightning.data.archive import unpack
from agr_lightning.data.duplicates import THUMBNAIL, find_groups
from agr_lightning.data.images import ImageError, decode_rgb, read_bytes
from agr_lightning.errors import UserError
from agr_lightning.files import atomic_write, cache_folder, walk_files
from agr_lightning.labels import LabelError, parse_name

# Part of the name of every stored scan: raise it when what is stored, or how it is computed, changes.
_SCAN_VERSION = 1
_DIGEST_BYTES = 16


@dataclass(frozen=True, slots=True)
class Sample:
    """One usable image.

    Attributes:
        name: file name; with its folders below the root only where the file name alone is taken twice.
        path: where the file lies.
        stamp: size and time of change, to notice that the file is another one now.
        age: years.
        gender: index into ``labels.GENDERS``.
        race: index into ``labels.RACES``, or ``labels.MISSING``.
        group: name of the first sample, in name order, that shows the same photo; its own when alone.
    """

    name: str
    path: str
    stamp: tuple[int, int]
    age: int
    gender: int
    race: int
    group: str


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
        digests: of the samples' files, uint8 ``(samples, 16)``.
        thumbnails: of the samples, grayscale, uint8 ``(samples, 32, 32)``.
    """

    root: str
    samples: list[Sample]
    rejects: list[Reject]
    digests: NDArray[np.uint8]
    thumbnails: NDArray[np.uint8]

    def summary(self) -> str:
        """One line: how many images are used, how many are not, and why."""
        line = f"{self.root}: {len(self.samples):,} images"
        without_race = sum(sample.race < 0 for sample in self.samples)
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
        groups = defaultdict(list)
        for sample in self.samples:
            groups[sample.group].append(sample)
        return [members for members in groups.values() if len(members) > 1]


@dataclass(frozen=True, slots=True)
class _Scan:
    """What one look at a file's content found."""

    stamp: tuple[int, int]
    reason: str
    digest: bytes
    thumbnail: bytes


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
    path = Path(root).expanduser()
    if not path.exists():
        raise UserError(f"{option} {root} does not exist; name a folder of UTKFace images or their archive.")
    folder = path if path.is_dir() else unpack(path, cache)
    files = sorted(walk_files(folder))
    if not files:
        raise UserError(f"{option} {root} holds no files; it should hold images named AGE_GENDER_RACE_DATETIME.jpg.")

    labels, rejects = {}, []
    for name in files:
        try:
            if "\n" in name or "\r" in name:
                raise LabelError("line break in the file name")  # which no list of names could hold
            labels[name] = parse_name(PurePosixPath(name).name)
        except LabelError as error:
            rejects.append(Reject(name, str(error)))
    scans = _scan(folder, list(labels), cache)
    rejects += [Reject(name, scan.reason) for name, scan in scans.items() if scan.reason]
    kept, copies = _short_names({name: scan for name, scan in scans.items() if not scan.reason})
    rejects += copies

    if not kept:
        first = min(rejects, key=lambda reject: reject.name)
        raise UserError(
            f"{option} {root} holds {len(files)} files but no usable image; for one, {first.name}: {first.reason}. "
            "Names should be AGE_GENDER_RACE_DATETIME.jpg."
        )

    samples = []
    names = sorted(kept, key=kept.__getitem__)
    for name in names:
        short, label = kept[name], labels[name]
        samples.append(Sample(short, str(folder / name), scans[name].stamp, label.age, label.gender, label.race, short))
    digests = _rows([scans[name].digest for name in names])
    thumbnails = _rows([scans[name].thumbnail for name in names]).reshape(-1, THUMBNAIL, THUMBNAIL)
    leaders = find_groups(thumbnails, digests)
    samples = [replace(sample, group=samples[leader].name) for sample, leader in zip(samples, leaders, strict=True)]
    return Index(root, samples, sorted(rejects, key=lambda reject: reject.name), digests, thumbnails)


def shared_photos(index: Index, other: Index) -> set[str]:
    """Names of the samples of ``index`` that show a photo that ``other`` shows too."""
    leaders = find_groups(
        np.concatenate([other.thumbnails, index.thumbnails]), np.concatenate([other.digests, index.digests])
    )
    taken = set(leaders[: len(other.samples)].tolist())
    own = leaders[len(other.samples) :].tolist()
    return {sample.name for sample, leader in zip(index.samples, own, strict=True) if leader in taken}


def _short_names(scans: dict[str, _Scan]) -> tuple[dict[str, str], list[Reject]]:
    """Gives each path its sample name; a second copy of the same name and bytes is rejected."""
    by_file_name = defaultdict(list)
    for name in sorted(scans):
        by_file_name[PurePosixPath(name).name].append(name)
    kept, rejects = {}, []
    for file_name, names in by_file_name.items():
        seen: dict[bytes, str] = {}
        for name in names:
            if scans[name].digest in seen:
                rejects.append(Reject(name, "copy of a file of the same name"))
            else:
                seen[scans[name].digest] = name
        for name in seen.values():
            kept[name] = file_name if len(seen) == 1 else name
    return kept, rejects


def _scan(folder: Path, names: list[str], cache: Path) -> dict[str, _Scan]:
    """Looks at the content of each file, or at what an earlier look found."""
    key = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:12]
    store = cache / f"scan-v{_SCAN_VERSION}-{key}.npz"
    known = _load_scans(store)
    stamps = {name: _stamp(folder / name) for name in names}
    scans = {name: known[name] for name in names if name in known and known[name].stamp == stamps[name]}
    missing = [name for name in names if name not in scans]
    if missing:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            found = pool.map(lambda name: _scan_file(folder / name, stamps[name]), missing)
            bar = tqdm(found, "Checking images", len(missing), unit="image", delay=2, leave=False, disable=None)
            scans.update(zip(missing, bar, strict=True))
        _save_scans(store, scans)
    return {name: scans[name] for name in names}


def _stamp(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError:
        return (0, 0)
    return (status.st_size, status.st_mtime_ns)


def _scan_file(path: Path, stamp: tuple[int, int]) -> _Scan:
    try:
        content = read_bytes(path)
        rgb = decode_rgb(content, draft=2 * THUMBNAIL)
    except ImageError as error:
        return _Scan(stamp, str(error), bytes(_DIGEST_BYTES), bytes(THUMBNAIL**2))
    size = (THUMBNAIL, THUMBNAIL)
    digest = hashlib.blake2b(content, digest_size=_DIGEST_BYTES).digest()
    gray = Image.fromarray(rgb).convert("L").resize(size, Image.Resampling.BOX)
    return _Scan(stamp, "", digest, gray.tobytes())


def _load_scans(store: Path) -> dict[str, _Scan]:
    try:
        with np.load(store, allow_pickle=False) as arrays:
            columns = [arrays[name] for name in ("name", "stamp", "reason", "digest", "thumbnail")]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):  # absent, or not what this version wrote
        return {}
    return {
        str(name): _Scan((int(stamp[0]), int(stamp[1])), str(reason), digest.tobytes(), thumbnail.tobytes())
        for name, stamp, reason, digest, thumbnail in zip(*columns, strict=True)
    }


def _save_scans(store: Path, scans: dict[str, _Scan]) -> None:
    found = list(scans.values())
    buffer = io.BytesIO()
    np.savez(
        buffer,
        name=np.array(list(scans), dtype=np.str_),
        stamp=np.array([scan.stamp for scan in found], dtype=np.int64),
        reason=np.array([scan.reason for scan in found], dtype=np.str_),
        digest=_rows([scan.digest for scan in found]),
        thumbnail=_rows([scan.thumbnail for scan in found]),
    )
    with atomic_write(store) as file:
        file.write(buffer.getvalue())


def _rows(values: list[bytes]) -> NDArray[np.uint8]:
    return np.frombuffer(b"".join(values), np.uint8).reshape(len(values), -1)

"""A folder or an archive -> the samples in it, and the files that are none, each with its reason."""

import gzip
import hashlib
import os
import shutil
import zipfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from agr_lightning.data.duplicates import THUMBNAIL, find_groups, fingerprints, join_groups
from agr_lightning.data.tables import LabelOptions, read_labels
from agr_lightning.files import atomic_folder, atomic_write, cache_folder, in_threads, stamp, user_path, walk_files
from agr_lightning.images import CANNOT_BE_READ, ImageError, decode_face, read_bytes
from agr_lightning.labels import MISSING, TASKS
from agr_lightning.messages import UserError

# Part of the name of every stored scan: raise it when what is stored, or how it is computed, changes.
_SCAN_VERSION = 8
_SCAN = ["file", "box", "size", "mtime_ns", "ctime_ns", "reason", "digest", "photo", "fingerprint"]


# An archive of photos is about as large as they are; one that would become so many times as large is none.
_RATIO = 100


@dataclass(frozen=True)
class Index:
    """What a root, as the user named it, holds in a folder.

    Attributes:
        samples: the usable images, sorted by name, with the columns ``name`` (the file name; the path where two
            files have one name, with the number of the face where a file has several), ``file`` (path below the
            folder), ``box`` (square to crop: x, y, width, height, pixels; zeros for the whole image), ``digest`` (of
            the file and the square), ``age``, ``gender``, ``race`` (codes of ``labels``), ``split`` (that of the table
            of labels, or empty), ``photo`` (shared by those that show the same photo), ``group`` (shared by those that
            show the same photo or person), ``fingerprint`` (of the photo, uint8 ``(32,)``) and ``row`` (in this index,
            and among its cached images).
        rejects: why other files, or rows of a table, are not used, by their path, sorted.
        notes: what was counted in the labels, a sentence each.
        scan: file that stores what was seen in the images.
    """

    root: str
    folder: Path
    samples: pd.DataFrame
    rejects: dict[str, str]
    notes: list[str]
    scan: Path

    @property
    def key(self) -> str:
        """Part of the names of all files that are derived from its images."""
        return self.scan.stem.rpartition("-")[2]

    def summary(self) -> str:
        """One line: how many images are used, how many are not, and why; and one for each note."""
        line = f"{self.root}: {len(self.samples):,} images"
        missing = (self.samples[[*TASKS]] == MISSING).sum()
        if missing.any():
            unknown = ", ".join(f"{count:,} without a label for {name}" for name, count in missing.items() if count)
            line += f" ({unknown})"
        if self.rejects:
            reasons = Counter(self.rejects.values()).most_common()
            shown = "; ".join(f"{count} {reason}" for reason, count in reasons[:3])
            more = sum(count for _, count in reasons[3:])
            line += f", {len(self.rejects):,} files rejected: {shown}"
            line += f"; {more} for other reasons (see `audit`)" if more else ""
        return "\n".join([line, *self.notes])


def build_index(
    root: str,
    cache_dir: str | None = None,
    option: str = "--data.root",
    options: LabelOptions = LabelOptions(),  # noqa: B008 (frozen)
) -> Index:
    """Finds the samples under ``root``, a folder that is searched recursively, or an archive.

    Every file is opened once; what was found is kept in the cache and looked up by name, size and time
    of change in later calls. Raises UserError, with the ``option`` that named the root, when it holds no usable image.
    """
    cache, path = cache_folder(cache_dir), user_path(root)
    if not path.is_dir() and not path.is_file():
        problem = "is neither a folder nor a file" if path.exists() else "does not exist"
        raise UserError(f"{option} {root} {problem}; name a folder of UTKFace images or their archive.")
    folder = path if path.is_dir() else _unpack(path, cache)
    files = sorted(walk_files(folder))
    if not files:
        raise UserError(f"{option} {root} holds no files; it should hold images named AGE_GENDER_RACE_DATETIME.jpg.")
    labels, rejects, notes = read_labels(files, folder, options)
    key = _digest(os.fsencode(folder.resolve()))
    key += "" if options.labels is None else _digest(f"{options.labels} {options.box_margin}".encode())
    stored = cache / f"scan-v{_SCAN_VERSION}-{key}.npz"
    boxes = labels[["x", "y", "width", "height"]].fillna(0).to_numpy(np.float64)
    # The rows of the scan are those of the labels.
    scan = _scan(folder, labels["file"].tolist(), boxes, stored).join(labels.drop(columns="file"))
    scan = scan.assign(name=labels["file"].str.replace(".*/", "", regex=True))
    scan.loc[(scan["reason"] == "") & scan.duplicated(["name", "digest"]), "reason"] = "copy of a file of the same name"
    usable = scan["reason"] == ""
    rejects = dict(sorted((rejects | scan[~usable].set_index("file")["reason"].to_dict()).items()))
    if not usable.any():
        first, reason = next(iter(rejects.items()))
        raise UserError(f"{option} {root}: none of its {len(files):,} files is a usable image; {first}: {reason}.")
    samples = scan[usable]
    faces = samples["file"] + "#" + (samples.groupby("file").cumcount() + 1).astype(str)
    faces = samples["file"].where(~samples.duplicated("file", keep=False), faces)
    samples = samples.assign(
        name=samples["name"].where(~samples.duplicated("name", keep=False), faces),
        group=join_groups(samples["photo"].to_numpy(np.int64), samples["person"].to_numpy()),
    )
    samples = samples.sort_values("name", ignore_index=True).assign(row=np.arange(len(samples)))
    columns = ["name", "file", "box", "digest", *TASKS, "split", "photo", "group", "fingerprint", "row"]
    return Index(root, folder, samples[columns], rejects, notes, stored)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:12]


def _scan(folder: Path, files: list[str], boxes: NDArray[np.float64], stored: Path) -> pd.DataFrame:
    """Looks at the content of each file, or at what an earlier scan found; the columns are ``_SCAN``."""
    stamps = [(file, box.tobytes(), *stamp(f"{folder}/{file}")) for file, box in zip(files, boxes, strict=True)]
    arrays = _load(stored, _SCAN)
    earlier = pd.DataFrame(
        {name: list(each) if each.ndim > 1 else each for name, each in arrays.items()}, columns=_SCAN
    )
    rows = ((file, box.tobytes(), *rest) for file, box, *rest in earlier[_SCAN[:6]].itertuples(index=False, name=None))
    # A file that could not be opened is tried again: permissions change without its time of change.
    known = {(*each,): row for row, (*each, reason) in enumerate(rows) if not reason.startswith(CANNOT_BE_READ)}
    if stamps == [*known]:
        return earlier
    before = _load(stored, ["thumbnail"])
    source = np.array([known.get(each, -1) if before else -1 for each in stamps])
    kept, new = source >= 0, np.flatnonzero(source < 0).tolist()
    thumbnails = np.zeros((len(stamps), THUMBNAIL, THUMBNAIL), np.uint8)
    reasons, digests = np.full((2, len(stamps)), "", object)
    if kept.any():
        thumbnails[kept] = before["thumbnail"][source[kept]]
        reasons[kept], digests[kept] = earlier[["reason", "digest"]].to_numpy()[source[kept]].T
    looks = in_threads(lambda row: _look(folder / files[row], boxes[row]), new, "Checking images")
    for row, look in zip(new, looks, strict=True):
        reasons[row], digests[row], thumbnails[row] = look
    scan = pd.DataFrame(stamps, columns=_SCAN[:5]).assign(box=[*boxes], reason=reasons, digest=digests)
    scan = scan.assign(photo=find_groups(thumbnails, digests.astype(str)), fingerprint=[*fingerprints(thumbnails)])
    columns = {name: np.array(scan[name].tolist()) for name in _SCAN} | {"thumbnail": thumbnails}
    with atomic_write(stored, lasting=False) as output:
        np.savez(output, **{f"scan_{name}": column for name, column in columns.items()})  # type: ignore[arg-type]
    return scan


def _look(path: Path, box: NDArray[np.float64]) -> tuple[str, str, NDArray[np.uint8]]:
    """Why a file is no image, digest, and thumbnail, of the part of it in a box."""
    try:
        content = read_bytes(path)
        rgb = decode_face(content, box, draft=2 * THUMBNAIL)
    except ImageError as error:
        return str(error), "", np.zeros((THUMBNAIL, THUMBNAIL), np.uint8)
    gray = Image.fromarray(rgb).convert("L").resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
    return "", hashlib.blake2b(content + box.tobytes(), digest_size=16).hexdigest(), np.asarray(gray)


def _load(stored: Path, names: list[str]) -> dict[str, NDArray[Any]]:
    """Some of what an earlier scan stored; nothing when there was none, or it cannot be read."""
    try:
        with np.load(stored) as arrays:
            return {name: arrays[f"scan_{name}"] for name in names}
    except Exception:  # absent, or not what this version wrote; of what a damaged one raises there is no list
        return {}


def derived_files(root: str, cache_dir: str | None = None) -> list[Path]:
    """What the cache has of a folder, by any table of labels, or of an archive; the folder that it was unpacked to."""
    cache, path = cache_folder(cache_dir), user_path(root)
    folder = path if path.is_dir() else _unpacked(path, cache)
    found = [*cache.glob(f"*-{_digest(os.fsencode(folder.resolve()))}*")]
    return [*found, folder] if folder != path and folder.is_dir() else found


def _unpacked(archive: Path, cache: Path) -> Path:
    """The folder of an archive."""
    return cache / f"{archive.name.split('.')[0]}-{_digest(f'{archive.resolve()}|{stamp(archive)}'.encode())}"


def _unpack(archive: Path, cache: Path) -> Path:
    """Unpacks a .zip, .tar or .tar.gz once, in a folder of its own; later calls return the same folder."""
    folder = _unpacked(archive, cache)
    if folder.is_dir():
        return folder
    try:
        with atomic_folder(folder) as target:
            _check_archive(archive, shutil.disk_usage(cache).free)
            if zipfile.is_zipfile(archive):
                shutil.unpack_archive(archive, target, "zip")
            else:
                shutil.unpack_archive(archive, target, "tar", filter="data")
    except Exception as error:  # each format raises its own
        raise UserError(f"{archive} cannot be unpacked into {cache} (--data.cache_dir): {error}.") from None
    return folder


def _check_archive(archive: Path, room: int) -> None:
    """Raises ValueError for an archive that is damaged, that would fill a disk, or whose members lie outside of it.

    In a .tar alone there are no checksums of what is in its members.
    """
    size = 0
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as opened:
            size = sum(member.file_size for member in opened.infolist())
            outside = [name for name in opened.namelist() if name.startswith("/") or ".." in name.split("/")]
        if outside:
            raise ValueError(f"its member {outside[0]} would lie outside of the folder")
    elif archive.open("rb").read(2) == b"\x1f\x8b":
        with gzip.open(archive) as stream:  # to its end, where the checksum is
            while (portion := len(stream.read(2**20))) and size <= room:
                size += portion
    if size > min(room, _RATIO * archive.stat().st_size):
        raise ValueError(f"it would take {size / 1e9:.1f} GB or more, more than its size or the disk allows")

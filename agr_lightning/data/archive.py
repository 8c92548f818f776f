"""A downloaded archive as a data folder: unpacked once, whole, into the cache."""

import gzip
import hashlib
import shutil
import tarfile
import zipfile
import zlib
from pathlib import Path

from agr_lightning.files import atomic_folder
from agr_lightning.messages import UserError


def unpack(archive: Path, cache: Path) -> Path:
    """Unpacks a .zip, .tar or .tar.gz once; later calls return the same folder.

    Args:
        archive: the file.
        cache: the folder to unpack into, in a folder of its own.

    Raises:
        UserError: when the file is no archive, is damaged, or holds more than the disk can take.
    """
    status = archive.stat()
    key = hashlib.sha256(f"{archive.resolve()}|{status.st_size}|{status.st_mtime_ns}".encode())
    folder = cache / f"{archive.name.split('.')[0]}-{key.hexdigest()[:12]}"
    if folder.is_dir():
        return folder
    try:
        if zipfile.is_zipfile(archive):
            _unpack_zip(archive, folder)
        elif tarfile.is_tarfile(archive):
            _unpack_tar(archive, folder)
        else:
            raise UserError(f"{archive} is neither a folder nor a .zip, .tar or .tar.gz archive.")
    except (RuntimeError, NotImplementedError) as error:  # as zipfile says of passwords and rare compressions
        raise UserError(f"{archive} cannot be unpacked ({error}); unpack it by other means.") from None
    except (EOFError, gzip.BadGzipFile, tarfile.TarError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{archive} is damaged ({error}); download it again.") from None
    return folder


def _unpack_zip(archive: Path, folder: Path) -> None:
    with zipfile.ZipFile(archive) as source:
        files = [entry for entry in source.infolist() if not entry.is_dir()]
        _check_room(archive, folder.parent, sum(entry.file_size for entry in files))
        with atomic_folder(folder) as target:
            source.extractall(target, files)


def _unpack_tar(archive: Path, folder: Path) -> None:
    with tarfile.open(archive) as source, atomic_folder(folder) as target:
        for member in source:
            if member.isfile():
                _check_room(archive, folder.parent, member.size)
                source.extract(member, target, filter="data")


def _check_room(archive: Path, folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"unpacking {archive} needs {needed / 1e6:.0f} MB more, but {folder} has {free / 1e6:.0f} MB "
            "left: free some space, or choose another disk with --data.cache_dir."
        )

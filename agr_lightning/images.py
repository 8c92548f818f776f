"""One file -> one RGB array, or the reason why not. The only decoder of the project."""

import contextlib
import io
import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile

# Those of `_FORMATS`: to import all of Pillow's would take a tenth of the time to a first answer.
from PIL import AvifImagePlugin, BmpImagePlugin, GifImagePlugin, JpegImagePlugin  # noqa: F401 isort: skip
from PIL import PngImagePlugin, TiffImagePlugin, WebPImagePlugin  # noqa: F401 isort: skip

from agr_lightning.messages import needs

# A 100-megapixel photo takes 300 MB decoded, and 400 MB on the way; more is refused before it is decoded, here and not
# by Pillow. A JPEG may have more: above MAX_PIXELS it is decoded at half its size.
MAX_PIXELS, MAX_JPEG_PIXELS = 100_000_000, 250_000_000
Image.MAX_IMAGE_PIXELS = None

# A block for each photo, which goes back to the system: the usual 16 MB stay with their thread, and take longer.
Image.core.set_block_size(2**30)  # type: ignore[attr-defined]

# What is decoded, whatever a file's name says; other plugins of Pillow start other programs, Ghostscript for one.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "DIB", "GIF", "TIFF", "AVIF", "HEIF")

# What a folder given to `predict` is searched for.
EXTENSIONS = frozenset((".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"))
EXTENSIONS |= {".heic", ".heif", ".avif"}

# The entry of an orientation in EXIF, as it nearly always is, for what a damaged one before it hides.
_ORIENTATION = re.compile(rb"\x12\x01\x03\0\x01\0\0\0([\x01-\x08])\0|\x01\x12\0\x03\0\0\0\x01\0([\x01-\x08])")

# Several threads or loader workers, each with OpenCV's own threads, are slower than they are alone.
cv2.setNumThreads(0)

# How HEIC files begin, after four bytes: the commonest brands of ISO 23008-12.
_HEIC = frozenset({b"ftypheic", b"ftypheix", b"ftypmif1", b"ftyphevc", b"ftypmsf1"})

# Data of a JPEG, as good as any: bits of two kinds, and restart markers from the first on and from the fifth on.
_MORE_DATA = [
    b"".join(bits * 8 + bytes((0xFF, 0xD0 + (first + mark) % 8)) for mark in range(8)) + bits * 8
    for bits, first in ((b"\x5a\xa5", 0), (b"\xe3\x1c", 4))
]

# How the reason begins where the file could not be opened at all.
CANNOT_BE_READ = "cannot be read"


class ImageError(ValueError):
    """A file that cannot be used as an image; the text is the reason."""


def read_rgb(path: str | Path) -> NDArray[np.uint8]:
    """Decodes one image file to RGB, uint8 ``(height, width, 3)``.

    The EXIF orientation is applied; grayscale, palette, CMYK and 16-bit images become 8-bit RGB;
    transparent pixels become white, unless all are; of an animation the first frame is taken; a JPEG above MAX_PIXELS
    has half its size. Raises ImageError, with the reason, for anything that is not a whole, decodable image.
    """
    return decode_photo(read_bytes(path))[0]


def read_bytes(path: str | Path) -> bytes:
    """The content of a file; raises ImageError when it is empty or cannot be read."""
    with _reasons(), open_file(path) as file:
        content = file.read()
    if not content:
        raise ImageError("empty file")
    return content


def open_file(path: str | Path) -> BinaryIO:
    """Opens a file; raises ImageError for a pipe or a device, and for what nobody may read."""
    with _reasons():
        if Path(path).exists() and not Path(path).is_file():
            raise ImageError(f"{CANNOT_BE_READ} (not a file)")
        return Path(path).open("rb")


def decode_photo(content: bytes, draft: int | None = None) -> tuple[NDArray[np.uint8], int]:
    """What ``read_rgb`` returns, of the content of a file, and how many pixels of that one of its is wide, 1 or 2.

    With a ``draft``, a JPEG may be decoded at a fraction of its size, no side below this many pixels.
    """
    with _reasons():
        image, exif, factor = _load(content, draft)
        rgb = _rgb(image)
        del image  # of four bytes a pixel
        return _upright(rgb, exif), factor


def decode_face(content: bytes, box: NDArray[np.float64], draft: int | None = None) -> NDArray[np.uint8]:
    """What ``read_rgb`` returns, of the content of a file, in a box: x, y, width, height, pixels; zeros for all of it.

    What the box has outside of the image repeats its edge; one whose middle lies there raises ImageError.
    """
    if not box.any():
        return decode_photo(content, draft)[0]
    rgb, factor = decode_photo(content)
    left, top, width, height = np.round(box / factor).astype(np.int64).tolist()
    if not (0 <= left + width // 2 < rgb.shape[1] and 0 <= top + height // 2 < rgb.shape[0]):
        raise ImageError(f"face box outside the image of {rgb.shape[1]}x{rgb.shape[0]} pixels")
    rows, columns = np.arange(top, top + max(1, height)), np.arange(left, left + max(1, width))
    return np.asarray(rgb[np.ix_(rows.clip(0, rgb.shape[0] - 1), columns.clip(0, rgb.shape[1] - 1))], np.uint8)


def _without_metadata(content: bytes) -> tuple[bytes, bytes]:
    """A JPEG or PNG without what Pillow stumbles over though no pixel needs it, and its EXIF."""
    if content.startswith(b"\xff\xd8\xff"):
        start = content.find(b"Exif\0\0", 0, content.find(b"\xff\xda"))  # before the scan: of this picture
        exif = content[start : start + 65536] if start > 0 else b""
        for name in (b"Exif\0\0", b"ICC_PROFILE\0", b"Photoshop 3.0\0"):
            content = content.replace(name, bytes(len(name)))  # unknown segments are passed over
        return content, exif
    if not content.startswith(b"\x89PNG\r\n\x1a\n"):
        return content, b""
    kept, exif, start = [content[:8]], b"", 8
    while start + 8 <= len(content):
        length, kind = struct.unpack_from(">I4s", content, start)
        end = start + 12 + length
        body, checksum = content[start + 4 : end - 4], content[end - 4 : end]
        if kind == b"eXIf":
            exif = body[4:]
        elif not kind[0] & 32 or (kind == b"tRNS" and zlib.crc32(body).to_bytes(4, "big") == checksum):
            kept.append(content[start:end])  # a small first letter: what decoders may pass over
        start = end
    return b"".join(kept), exif


def _load(content: bytes, draft: int | None) -> tuple[Image.Image, bytes, int]:
    """The decoded image, its EXIF, and how many pixels of the file one of its is wide."""
    content, exif = _without_metadata(content)
    image, factor = _open(content, draft)
    try:
        image.load()
    except OSError:
        if not isinstance(image, JpegImageFile):
            raise
        # Its end marker may be all that is missing: then what is put after its data changes no pixel.
        content = content.rstrip(b"\xff")
        image, *others = (_open(content + after + b"\xff\xd9")[0] for after in (b"", *_MORE_DATA))
        if any(ImageChops.difference(image, other).getbbox() for other in others):
            raise
    return image, exif or image.info.get("exif") or b"", factor


def _open(content: bytes, draft: int | None = None) -> tuple[Image.Image, int]:
    if content[4:12] in _HEIC:
        try:
            from pillow_heif import register_heif_opener
        except ImportError:
            raise ImageError(f"HEIC {needs('pillow-heif', 'heic')}") from None
        register_heif_opener()
    image: Image.Image = Image.open(io.BytesIO(content), formats=[name for name in _FORMATS if name in Image.OPEN])
    pixels, most = image.width * image.height, MAX_JPEG_PIXELS if isinstance(image, JpegImageFile) else MAX_PIXELS
    if pixels > most:
        raise ImageError(f"{image.width}x{image.height} pixels, more than {most // 10**6} million")
    if pixels > MAX_PIXELS:
        image.draft("RGB", (image.width // 2, image.height // 2))
    elif draft:
        image.draft("RGB", (draft, draft))
    return image, 2 if pixels > MAX_PIXELS else 1


def _rgb(image: Image.Image) -> NDArray[np.uint8]:
    if image.mode == "F":
        raise ImageError("floating-point pixels, of unknown range")
    if image.mode == "I" or image.mode.startswith("I;16"):
        # Pillow clips these to 255 when asked to convert them. Rounds a 257th, within 16 bits.
        gray = (np.asarray(image).clip(0, 65407) + 128) // 257
        return np.stack([gray.astype(np.uint8)] * 3, axis=2)
    if image.has_transparency_data:
        image = layer = image.convert("RGBA")
        if layer.getbbox():  # where nothing is visible, transparency was not meant
            image = Image.new("RGB", layer.size, "white")
            image.paste(layer, mask=layer)
        del layer
    rgb: NDArray[np.uint8] = np.empty((image.height, image.width, 3), np.uint8)
    for top in range(0, image.height, 256):  # as a whole, Pillow would copy it three times on the way
        bottom = min(top + 256, image.height)
        rgb[top:bottom] = np.asarray(image.crop((0, top, image.width, bottom)).convert("RGB"))
    return rgb


def _upright(rgb: NDArray[np.uint8], exif: bytes) -> NDArray[np.uint8]:
    """Mirrors and turns a photo by the orientation in its EXIF, however damaged the rest of that is."""
    found, entry = Image.Exif(), _ORIENTATION.search(exif)
    orientation = ord(entry[1] or entry[2]) if entry else 1
    with contextlib.suppress(Exception):
        found.load(exif)
        orientation = int(found.get(0x0112, orientation))
    if 5 <= orientation <= 8:
        rgb = np.asarray(cv2.transpose(rgb), np.uint8)
    axis = {2: 1, 3: -1, 4: 0, 6: 1, 7: -1, 8: 0}.get(orientation)
    return rgb if axis is None else np.asarray(cv2.flip(rgb, axis, rgb), np.uint8)  # in place


def resize(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """The one resize of the project: uint8 ``(height, width, 3)`` to ``(size, size, 3)``.

    Averages areas when shrinking; a photo that is not square is squeezed into one.
    """
    interpolation = cv2.INTER_AREA if min(image.shape[:2]) >= size else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image, (size, size), interpolation=interpolation), np.uint8)


@contextlib.contextmanager
def _reasons() -> Iterator[None]:
    """Turns whatever opening and decoding raise into an ImageError: OSError, SyntaxError, struct.error, ..."""
    try:
        yield
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise ImageError("not an image") from None
    except Exception as error:
        if isinstance(error, OSError) and error.strerror:  # of the system; decoders raise it with a text alone
            raise ImageError(f"{CANNOT_BE_READ} ({error.strerror})") from None
        text = str(error).split("\n")[0] or type(error).__name__
        raise ImageError("truncated" if "truncated" in text.lower() else f"damaged ({text[:80]})") from None

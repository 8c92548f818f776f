"""One file -> one RGB array, or the reason why not. The only decoder of the project."""

import contextlib
import functools
import io
import stat
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from agr_lightning.messages import needs

# A 100-megapixel photo takes 300 MB decoded; more is refused before it is decoded.
MAX_PIXELS = 100_000_000

# Pixels that are converted at once: Pillow makes a copy or two of what it converts.
_STRIP = 4_000_000

# What is decoded, whatever a file's name says; other plugins of Pillow start other programs, Ghostscript for one.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "DIB", "GIF", "TIFF", "AVIF", "HEIF")

# Larger photos are refused below, without a warning of Pillow's before.
Image.MAX_IMAGE_PIXELS = MAX_PIXELS
warnings.simplefilter("ignore", Image.DecompressionBombWarning)

# What a folder given to `predict` is searched for.
EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".heic", ".heif"})

# Several threads or loader workers, each with OpenCV's own threads, are slower than they are alone.
cv2.setNumThreads(0)

# How HEIC files begin, after four bytes: the commonest brands of ISO 23008-12.
_HEIC = frozenset({b"ftypheic", b"ftypheix", b"ftypmif1", b"ftyphevc", b"ftypmsf1"})

# How the reason begins where the file could not be opened at all.
CANNOT_BE_READ = "cannot be read"


class ImageError(ValueError):
    """A file that cannot be used as an image; the text is the reason."""


def read_rgb(path: str | Path) -> NDArray[np.uint8]:
    """Decodes one image file.

    The EXIF orientation is applied; grayscale, palette, CMYK and 16-bit images become 8-bit RGB;
    transparent pixels become white; of an animation the first frame is taken.

    Args:
        path: the file.

    Returns:
        uint8 ``(height, width, 3)``, RGB.

    Raises:
        ImageError: with the reason, for anything that is not a whole, decodable image.
    """
    return decode_rgb(read_bytes(path))


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
        if not stat.S_ISREG(Path(path).stat().st_mode):
            raise ImageError(f"{CANNOT_BE_READ} (not a file)")
        return Path(path).open("rb")


def decode_rgb(content: bytes, draft: int | None = None) -> NDArray[np.uint8]:
    """Decodes the content of an image file; see ``read_rgb``.

    Args:
        content: the whole file.
        draft: lets a JPEG be decoded at a fraction of its size, no side below this many pixels.
    """
    with open_image(content) as image:
        if draft:
            image.draft("RGB", (draft, draft))
        return pixels_of(image)


def open_image(content: bytes) -> Image.Image:
    """Reads the header of an image file and decodes nothing yet; raises ImageError when it is none or too large."""
    if content[4:12] in _HEIC:
        _register_heic()
    with _reasons():
        Image.init()  # does nothing after the first time
        image = Image.open(io.BytesIO(content), formats=[name for name in _FORMATS if name in Image.OPEN])
        if image.width * image.height > MAX_PIXELS:
            raise ImageError(f"{image.width}x{image.height} pixels, more than {MAX_PIXELS // 10**6} million")
        return image


def pixels_of(image: Image.Image) -> NDArray[np.uint8]:
    """Decodes what ``open_image`` opened, which is turned upright in place; see ``read_rgb``."""
    with _reasons():
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        if image.width * image.height <= _STRIP:
            return _to_rgb(image)
        pixels = np.empty((image.height, image.width, 3), np.uint8)
        rows = max(1, _STRIP // image.width)
        for top in range(0, image.height, rows):
            bottom = min(top + rows, image.height)
            pixels[top:bottom] = _to_rgb(image.crop((0, top, image.width, bottom)))
        return pixels


def resize(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """The one resize of the project: uint8 ``(height, width, 3)`` to ``(size, size, 3)``.

    Averages areas when shrinking; a photo that is not square is squeezed into one.
    """
    if image.shape[:2] == (size, size):
        return image
    shrinks = min(image.shape[:2]) >= size
    resized = cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return np.asarray(resized, dtype=np.uint8)


def _to_rgb(image: Image.Image) -> NDArray[np.uint8]:
    if image.mode == "F":
        raise ImageError("floating-point pixels, of unknown range")
    if image.mode == "I" or image.mode.startswith("I;16"):
        # Pillow clips these to 255 when asked to convert them.
        gray = np.rint(np.asarray(image).clip(0, 65535) / 257).astype(np.uint8)
        return np.stack([gray] * 3, axis=2)
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.new("RGB", layer.size, "white")
        image.paste(layer, mask=layer)
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


@contextlib.contextmanager
def _reasons() -> Iterator[None]:
    """Turns whatever opening and decoding raise into an ImageError: OSError, SyntaxError, struct.error, ..."""
    try:
        yield
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise ImageError("not an image") from None
    except Image.DecompressionBombError:
        raise ImageError(f"more than {MAX_PIXELS // 10**6} million pixels") from None
    except Exception as error:
        if isinstance(error, OSError) and error.strerror:  # of the system; decoders raise it with a text alone
            raise ImageError(f"{CANNOT_BE_READ} ({error.strerror})") from None
        text = str(error).split("\n")[0] or type(error).__name__
        raise ImageError("truncated" if "truncated" in text.lower() else f"damaged ({text[:80]})") from None


@functools.cache
def _register_heic() -> None:
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        raise ImageError(f"HEIC {needs('pillow-heif', 'faces')}") from None
    register_heif_opener()

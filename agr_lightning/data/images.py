"""One file -> one RGB array, or the reason why not. The only decoder of the project."""

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from agr_lightning.messages import needs

# A 100-megapixel photo takes 300 MB decoded; more is refused before it is decoded, here and not by Pillow.
MAX_PIXELS = 100_000_000
Image.MAX_IMAGE_PIXELS = None

# What is decoded, whatever a file's name says; other plugins of Pillow start other programs, Ghostscript for one.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "DIB", "GIF", "TIFF", "AVIF", "HEIF")

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
    """Decodes one image file to RGB, uint8 ``(height, width, 3)``.

    The EXIF orientation is applied; grayscale, palette, CMYK and 16-bit images become 8-bit RGB;
    transparent pixels become white; of an animation the first frame is taken. Raises ImageError, with the
    reason, for anything that is not a whole, decodable image.
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
        if Path(path).exists() and not Path(path).is_file():
            raise ImageError(f"{CANNOT_BE_READ} (not a file)")
        return Path(path).open("rb")


def decode_rgb(content: bytes, draft: int | None = None) -> NDArray[np.uint8]:
    """Decodes the content of an image file, as ``read_rgb`` does.

    With a ``draft``, a JPEG may be decoded at a fraction of its size, no side below this many pixels.
    """
    with _reasons():
        if content[4:12] in _HEIC:
            try:
                from pillow_heif import register_heif_opener
            except ImportError:
                raise ImageError(f"HEIC {needs('pillow-heif', 'faces')}") from None
            register_heif_opener()
        Image.init()  # does nothing after the first time
        image: Image.Image = Image.open(io.BytesIO(content), formats=[name for name in _FORMATS if name in Image.OPEN])
        if image.width * image.height > MAX_PIXELS:
            raise ImageError(f"{image.width}x{image.height} pixels, more than {MAX_PIXELS // 10**6} million")
        if draft:
            image.draft("RGB", (draft, draft))
        ImageOps.exif_transpose(image, in_place=True)
        if image.mode == "F":
            raise ImageError("floating-point pixels, of unknown range")
        if image.mode == "I" or image.mode.startswith("I;16"):
            # Pillow clips these to 255 when asked to convert them. Rounds a 257th, within 16 bits.
            gray = (np.asarray(image).clip(0, 65407) + 128) // 257
            return np.stack([gray.astype(np.uint8)] * 3, axis=2)
        if image.has_transparency_data:
            layer = image.convert("RGBA")
            image = Image.new("RGB", layer.size, "white")
            image.paste(layer, mask=layer)
            del layer
        if image.mode != "RGB":
            image = image.convert("RGB")
        return np.array(image)


def resize(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """The one resize of the project: uint8 ``(height, width, 3)`` to ``(size, size, 3)``.

    Averages areas when shrinking; a photo that is not square is squeezed into one.
    """
    shrinks = min(image.shape[:2]) >= size
    resized = cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return np.asarray(resized, dtype=np.uint8)


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

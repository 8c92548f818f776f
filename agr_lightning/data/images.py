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

# Pixels that are copied at once.
_STRIP = 4_000_000

# What is decoded, whatever a file is called; other plugins of Pillow start other programs, Ghostscript for one.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "DIB", "GIF", "TIFF", "AVIF", "HEIF")

# What is larger is refused below, in words, without a warning before.
Image.MAX_IMAGE_PIXELS = MAX_PIXELS
warnings.simplefilter("ignore", Image.DecompressionBombWarning)

# EXIF's tag for how to turn a photo.
_ORIENTATION = 0x0112

# What a folder given to `predict` is searched for.
EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".heic", ".heif"})

# Several threads or loader workers, each with OpenCV's own threads, are slower than they are alone.
cv2.setNumThreads(0)

# How photos of telephones begin, after four bytes: the commonest brands of ISO 23008-12.
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
    try:
        with open_file(path) as file:
            content = file.read()
    except OSError as error:
        raise ImageError(f"{CANNOT_BE_READ} ({error.strerror})") from error
    except MemoryError:
        raise ImageError(f"{CANNOT_BE_READ} (too large for this machine's memory)") from None
    if not content:
        raise ImageError("empty file")
    return content


def open_file(path: str | Path) -> BinaryIO:
    """Opens a file; raises ImageError for what is none, a pipe or a device for example, and what nobody may read."""
    try:
        if stat.S_ISREG(Path(path).stat().st_mode):
            return Path(path).open("rb")
    except OSError as error:
        raise ImageError(f"{CANNOT_BE_READ} ({error.strerror})") from error
    except ValueError:  # a name that no file can have
        raise ImageError(f"{CANNOT_BE_READ} (not the name of a file)") from None
    raise ImageError(f"{CANNOT_BE_READ} (not a file)")


def decode_rgb(content: bytes, draft: int | None = None) -> NDArray[np.uint8]:
    """Decodes what an image file contains; see ``read_rgb``.

    Args:
        content: the whole file.
        draft: lets a JPEG be decoded at a fraction of its size, no side below this many pixels.
    """
    with open_image(content) as image:
        if draft:
            image.draft("RGB", (draft, draft))
        return pixels_of(image)


def open_image(content: bytes) -> Image.Image:
    """Reads what an image file says of itself, its size above all, and decodes nothing yet; raises ImageError."""
    if content[4:12] in _HEIC:
        _learn_heic()
    with _in_words():
        Image.init()  # does nothing after the first time
        image = Image.open(io.BytesIO(content), formats=[name for name in _FORMATS if name in Image.OPEN])
        if image.width * image.height > MAX_PIXELS:
            raise ImageError(f"{image.width}x{image.height} pixels, more than {MAX_PIXELS // 10**6} million")
        return image


def pixels_of(image: Image.Image) -> NDArray[np.uint8]:
    """Decodes what ``open_image`` opened; see ``read_rgb``."""
    with _in_words():
        return _to_rgb(image)


def resize(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """The one resize of the project: uint8 ``(height, width, 3)`` to ``(size, size, 3)``.

    Averages areas when shrinking; a photo that is not square is squeezed into one.
    """
    if image.shape[:2] == (size, size):
        return image
    shrinks = min(image.shape[:2]) >= size
    resized = cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return np.asarray(resized, dtype=np.uint8)


def without_colour(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The brightness of RGB images in all three channels: uint8 ``(images, height, width, 3)`` to the same shape.

    ``0.299 R + 0.587 G + 0.114 B``, rounded (ITU-R BT.601).
    """
    rows = images.reshape(-1, images.shape[2], 3)
    grey = np.asarray(cv2.cvtColor(cv2.cvtColor(rows, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB), np.uint8)
    return grey.reshape(images.shape)


@contextlib.contextmanager
def _in_words() -> Iterator[None]:
    """Says what is wrong with an image, whatever its decoder raises."""
    try:
        yield
    except UnidentifiedImageError:
        raise ImageError("not an image") from None
    except Image.DecompressionBombError:
        raise ImageError(f"more than {MAX_PIXELS // 10**6} million pixels") from None
    except ImageError:
        raise
    except Exception as error:  # decoders raise anything: OSError, SyntaxError, struct.error, ...
        raise ImageError(_reason(error)) from None


@functools.cache
def _learn_heic() -> None:
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        raise ImageError(f"HEIC {needs('pillow-heif', 'faces')}") from None
    register_heif_opener()


def _to_rgb(image: Image.Image) -> NDArray[np.uint8]:
    image.load()
    # Asked first, since Pillow copies an image that needs no turning.
    upright = image if image.getexif().get(_ORIENTATION, 1) == 1 else ImageOps.exif_transpose(image)
    if upright.mode == "RGB" and "transparency" not in upright.info:
        return _array(upright)
    if upright.mode == "F":
        raise ImageError("floating-point pixels, of unknown range")
    if upright.mode == "I" or upright.mode.startswith("I;16"):
        # Pillow clips these to 255 when asked to convert them. OpenCV needs no copy for it, which would be large.
        wide = np.asarray(upright)
        wide = wide if wide.dtype == np.uint16 else wide.clip(0, 65535).astype(np.uint16)
        return np.asarray(cv2.cvtColor(cv2.convertScaleAbs(wide, alpha=1 / 257), cv2.COLOR_GRAY2RGB), np.uint8)
    if upright.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in upright.info:
        layer = upright if upright.mode == "RGBA" else upright.convert("RGBA")
        upright = Image.new("RGB", layer.size, "white")
        upright.paste(layer, mask=layer.getchannel("A"))
    return _array(upright if upright.mode == "RGB" else upright.convert("RGB"))


def _array(image: Image.Image) -> NDArray[np.uint8]:
    """The pixels of an RGB image; strip by strip, since Pillow makes one more copy of what it hands over."""
    array = np.empty((image.height, image.width, 3), np.uint8)
    rows = max(1, _STRIP // image.width)
    for top in range(0, image.height, rows):
        strip = image if rows >= image.height else image.crop((0, top, image.width, min(top + rows, image.height)))
        array[top : top + rows] = np.asarray(strip)
    return array


def _reason(error: Exception) -> str:
    text = str(error).split("\n")[0] or type(error).__name__
    return "truncated" if "truncated" in text.lower() else f"damaged ({text[:80]})"

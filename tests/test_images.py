import contextlib
import io
import itertools
import struct
import subprocess
import sys
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from agr_lightning import images
from agr_lightning.images import ImageError, decode_photo, read_rgb
from agr_lightning.inference.photos import PhotoOptions, PhotoReader
from tests.drawn_face import draw_photo

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")


def decode_rgb(content: bytes, draft: int | None = None) -> NDArray[np.uint8]:
    return decode_photo(content, draft)[0]


def _encode(image: Image.Image, kind: str, **options: object) -> bytes:
    content = io.BytesIO()
    image.save(content, format=kind, **options)
    return content.getvalue()


GRADIENT = Image.fromarray(np.tile(np.linspace(0, 255, 40).astype(np.uint8), (30, 1)))
PHOTO = Image.merge("RGB", [GRADIENT, GRADIENT.transpose(Image.Transpose.FLIP_LEFT_RIGHT), GRADIENT])


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"])
def test_reads_every_format(kind: str) -> None:
    rgb = decode_rgb(_encode(PHOTO, kind))
    assert rgb.shape == (30, 40, 3) and rgb.dtype == np.uint8
    assert np.abs(rgb.astype(int) - np.asarray(PHOTO)).mean() < 12


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "LA", "RGBA", "I;16"])
def test_every_mode_becomes_rgb_of_the_same_brightness(mode: str) -> None:
    if mode == "I;16":
        image = Image.fromarray(np.asarray(GRADIENT).astype(np.uint16) * 257)
    else:
        image = GRADIENT.convert("RGB").convert(mode)
    rgb = decode_rgb(_encode(image, "TIFF" if mode == "CMYK" else "PNG"))
    tolerance = {"1": 130, "P": 30}.get(mode, 12)
    assert np.abs(rgb.astype(int) - np.asarray(GRADIENT)[:, :, None]).mean() < tolerance
    assert rgb[:, 0].mean() < 30 < 220 < rgb[:, -1].mean()


def test_cmyk_jpeg_is_not_inverted() -> None:
    rgb = decode_rgb(_encode(GRADIENT.convert("CMYK"), "JPEG"))
    assert rgb[:, 0].mean() < 30 and rgb[:, -1].mean() > 220


def test_transparent_pixels_become_white() -> None:
    image = Image.new("RGBA", (4, 4), (9, 9, 9, 0))
    image.putpixel((0, 0), (9, 9, 9, 255))
    assert decode_rgb(_encode(image, "PNG"))[0, :, 0].tolist() == [9, 255, 255, 255]


@pytest.mark.parametrize(("kind", "mode"), [("PNG", "RGBA"), ("PNG", "LA"), ("TIFF", "RGBA"), ("BMP", "RGBA")])
def test_what_is_transparent_everywhere_is_shown(kind: str, mode: str) -> None:
    image = PHOTO.convert(mode)
    image.putalpha(0)
    assert (decode_rgb(_encode(image, kind)) == np.asarray(PHOTO.convert(mode).convert("RGB"))).all()


def _exif(orientation: int, order: str = "<", *entries: tuple[int, int, int, bytes], kind: int = 3) -> bytes:
    """EXIF of an orientation, as a SHORT or (kind 4) a LONG, and of other entries: tag, kind, count, value."""
    value = struct.pack(order + ("H" if kind == 3 else "I"), orientation).ljust(4, b"\0")
    rows = [struct.pack(order + "HHI4s", *entry) for entry in sorted(((0x0112, kind, 1, value), *entries))]
    head = {"<": b"II", ">": b"MM"}[order] + struct.pack(order + "HIH", 42, 8, len(rows))
    return head + b"".join(rows) + bytes(4)


def _jpeg_with(exif: bytes) -> bytes:
    content = _encode(PHOTO, "JPEG", quality=95)
    return content[:2] + b"\xff\xe1" + struct.pack(">H", 8 + len(exif)) + b"Exif\0\0" + exif + content[2:]


def _png_with(*chunks: tuple[bytes, bytes], wrong: int = 0) -> bytes:
    """The photo, with more chunks in front of its pixels, whose checksums are wrong by so much."""
    content = _encode(PHOTO, "PNG")
    packed = [struct.pack(">I", len(body)) + name + body for name, body in chunks]
    sealed = [chunk + struct.pack(">I", zlib.crc32(chunk[4:]) ^ wrong) for chunk in packed]
    return content[:33] + b"".join(sealed) + content[33:]


@pytest.mark.parametrize("orientation", range(10))
def test_exif_orientation_is_applied(orientation: int) -> None:
    turn = Image.Transpose
    mirrored, turned = (turn.FLIP_LEFT_RIGHT, turn.FLIP_TOP_BOTTOM, turn.TRANSPOSE), (turn.ROTATE_270, turn.TRANSVERSE)
    turns = [None, None, mirrored[0], turn.ROTATE_180, *mirrored[1:], *turned, turn.ROTATE_90, None]
    upright = PHOTO if (way := turns[orientation]) is None else PHOTO.transpose(way)
    contents = [_encode(PHOTO, "TIFF", tiffinfo={0x0112: orientation})]
    for order, kind in itertools.product("<>", (3, 4)):
        exif = _exif(orientation, order, kind=kind)
        webp = _encode(PHOTO, "WEBP", quality=95, exif=exif)
        contents += [_jpeg_with(exif), _png_with((b"eXIf", exif)), webp]
    for content in contents:
        rgb = decode_rgb(content)
        assert rgb.shape == (upright.height, upright.width, 3)
        assert np.abs(rgb.astype(int) - np.asarray(upright)).mean() < 8


@pytest.mark.parametrize(
    "entry",
    [
        (0x011A, 2, 4, b"72\0\0"),  # a resolution, as text
        (0x011A, 5, 1, b"\xff\xff\xff\xff"),  # beyond the end
        (0x010F, 2, 50, b"\xff\xff\xff\xff"),  # before the orientation
        (0x8769, 4, 1, struct.pack("<I", 8)),  # a directory inside itself
        (0x9999, 7, 0xFFFFFFFF, b"\0\0\0\0"),
        (0x011A, 99, 0, b"\0\0\0\0"),
    ],
)
def test_the_orientation_is_applied_whatever_else_exif_says(entry: tuple[int, int, int, bytes]) -> None:
    exif = _exif(6, "<", entry, (0x0128, 3, 1, b"\2\0\0\0"))
    for content in (_jpeg_with(exif), _png_with((b"eXIf", exif))):
        assert decode_rgb(content).shape == (40, 30, 3)


@given(st.one_of(st.binary(max_size=60), st.integers(0, 25).map(lambda cut: _exif(6)[:cut])))
def test_no_exif_keeps_a_photo_from_being_read(exif: bytes) -> None:
    for content in (_jpeg_with(exif), _png_with((b"eXIf", exif))):
        assert sorted(decode_rgb(content).shape) == [3, 30, 40]


def test_texts_and_profiles_of_a_png_are_passed_over() -> None:
    long = zlib.compress(bytes(3_000_000))
    chunks = [(b"zTXt", b"a\0\0" + long), (b"iTXt", b"a\0\1\0\0\0" + long), (b"iCCP", b"a\0\0" + long)]
    chunks += [(b"tEXt", b"a\0" + bytes(2_000_000)), (b"iCCP", b""), (b"gAMA", b"\0"), (b"acTL", b"\0")]
    for content in (_png_with(*chunks), _png_with((b"tRNS", bytes(6)), (b"gAMA", bytes(4)), wrong=1)):
        assert (decode_rgb(content) == np.asarray(PHOTO)).all()


def test_texts_of_a_png_take_no_memory() -> None:
    content = _png_with(*[(b"zTXt", b"a\0\0" + zlib.compress(bytes(900_000)))] * 50)
    tracemalloc.start()
    try:
        decode_rgb(content)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_a_bomb_is_refused_without_a_warning_of_pillow_s(tmp_path: Path) -> None:
    Image.new("1", (12_000, 12_000)).save(tmp_path / "bomb.png")
    code = """
import sys
from agr_lightning.images import ImageError, read_rgb
try:
    read_rgb(sys.argv[1])
except ImageError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "bomb.png"], capture_output=True, text=True)
    assert done.stdout == "12000x12000 pixels, more than 100 million\n" and not done.stderr


def test_takes_the_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    content = io.BytesIO()
    frames[0].save(content, format="GIF", save_all=True, append_images=frames[1:])
    assert decode_rgb(content.getvalue())[0, 0].tolist() == [255, 0, 0]


def test_says_why_a_file_is_no_image(tmp_path: Path) -> None:
    empty, text = tmp_path / "empty.jpg", tmp_path / "text.jpg"
    empty.write_bytes(b"")
    text.write_text("not a picture")
    for path, reason in ((empty, "empty"), (text, "not an image"), (tmp_path / "gone.jpg", "cannot be read")):
        with pytest.raises(ImageError, match=reason):
            read_rgb(path)
    with pytest.raises(ImageError, match="cannot be read"):
        read_rgb(tmp_path)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_truncated_files_are_refused(kind: str) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    content = _encode(noise, kind)
    for share in (0.3, 0.6, 0.9):
        with pytest.raises(ImageError):
            decode_rgb(content[: int(share * len(content))])
        with pytest.raises(ImageError):
            decode_rgb(content[: int(share * len(content))], draft=16)


@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"restart_marker_rows": 1}, {"subsampling": 0}, {"quality": 5}]
)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_jpeg_may_lack_its_end_marker_but_no_pixels(mode: str, options: dict[str, int]) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 50, 3), np.uint8))
    for image in (PHOTO, noise, Image.new("RGB", (40, 40), (128, 128, 128))):
        content = _encode(image.convert(mode), "JPEG", **options)
        whole = decode_rgb(content)
        for left in (content[:-1], content[:-2], content[:-2] + bytes(99), content + b"\xff\xd8more"):
            assert (decode_rgb(left) == whole).all()
            assert decode_rgb(left, draft=16).size
        for lost in range(3, len(content) - 2, 1 + len(content) // 40):  # a byte may have been mere padding
            with contextlib.suppress(ImageError):
                assert (decode_rgb(content[:-lost]) == whole).all() or options.get("progressive")
        with pytest.raises(ImageError):
            decode_rgb(content[: -len(content) // 10])


def test_a_jpeg_above_the_limit_is_decoded_at_half_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_PIXELS", 1000)
    content = _encode(PHOTO, "JPEG", quality=95)
    rgb, factor = decode_photo(content)
    assert rgb.shape == (15, 20, 3) and factor == 2
    assert np.abs(rgb.astype(int) - np.asarray(PHOTO.resize((20, 15), Image.Resampling.BOX))).mean() < 8
    assert decode_rgb(content[:-2], draft=4).shape == (15, 20, 3)
    monkeypatch.setattr(images, "MAX_JPEG_PIXELS", 1100)
    with pytest.raises(ImageError, match="40x30 pixels, more than"):
        decode_rgb(content)


def test_boxes_are_in_pixels_of_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    reader = PhotoReader(PhotoOptions(min_size=100), 64, keep_picture=True)
    content = _encode(Image.fromarray(draw_photo((200, 60, 320))), "JPEG")
    ((whole,),) = (list(reader.read(Path("a.jpg"), content)),)
    monkeypatch.setattr(images, "MAX_PIXELS", 200_000)
    ((half,),) = (list(reader.read(Path("a.jpg"), content)),)
    assert np.abs(np.subtract(whole.boxes[0][:4], half.boxes[0][:4])).max() < 30
    assert whole.picture.shape == (480, 760, 3) and whole.scale == 1
    assert half.picture.shape == (240, 380, 3) and half.scale == 0.5


def test_refuses_more_pixels_than_memory_should_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_PIXELS", 1000)
    with pytest.raises(ImageError, match="40x30 pixels"):
        decode_rgb(_encode(PHOTO, "PNG"))


def test_float_images_are_refused() -> None:
    with pytest.raises(ImageError, match="floating-point"):
        decode_rgb(_encode(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"))


CONTENTS = [
    *(_encode(PHOTO, kind) for kind in ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")),
    _encode(PHOTO, "JPEG", progressive=True, exif=_exif(6)),
    _encode(PHOTO.convert("CMYK"), "JPEG"),
    _encode(PHOTO.convert("RGBA"), "PNG"),
    _encode(PHOTO, "MPO", save_all=True, append_images=[PHOTO]),
    _encode(PHOTO, "WEBP", exif=_exif(6)),
]


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(CONTENTS), st.data())
def test_any_bytes_are_an_image_or_a_reason(content: bytes, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(content)))
    end = start + data.draw(st.sampled_from([0, 1, 4, 100, len(content)]))
    damage = data.draw(st.binary(max_size=20))
    for draft in (None, 16):
        try:
            rgb = decode_rgb(content[:start] + damage + content[end:], draft)
        except ImageError as error:
            assert str(error)
        else:
            assert rgb.dtype == np.uint8 and rgb.ndim == 3

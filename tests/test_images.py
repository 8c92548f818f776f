import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from agr_lightning.data import images
from agr_lightning.data.images import ImageError, decode_rgb, read_rgb


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
    assert (decode_rgb(_encode(Image.new("RGBA", (4, 4), (0, 0, 0, 0)), "PNG")) == 255).all()


def test_exif_orientation_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: to be rotated by 90 degrees clockwise
    rgb = decode_rgb(_encode(PHOTO, "JPEG", exif=exif))
    assert rgb.shape == (40, 30, 3)
    assert rgb[0, :, 0].mean() < 40 < rgb[-1, :, 0].mean()


def test_a_bomb_is_refused_without_a_warning_of_pillow_s(tmp_path: Path) -> None:
    Image.new("1", (12_000, 12_000)).save(tmp_path / "bomb.png")
    code = """
import sys
from agr_lightning.data.images import ImageError, read_rgb
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


def test_refuses_more_pixels_than_memory_should_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_PIXELS", 1000)
    with pytest.raises(ImageError, match="40x30 pixels"):
        decode_rgb(_encode(PHOTO, "PNG"))


def test_float_images_are_refused() -> None:
    with pytest.raises(ImageError, match="floating-point"):
        decode_rgb(_encode(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"))


VALID = _encode(PHOTO, "JPEG")


@given(st.binary(max_size=200), st.integers(0, len(VALID)))
def test_any_bytes_are_an_image_or_a_reason(garbage: bytes, cut: int) -> None:
    for content in (garbage, VALID[:cut] + garbage + VALID[cut:]):
        try:
            rgb = decode_rgb(content)
        except ImageError as error:
            assert str(error)
        else:
            assert rgb.dtype == np.uint8 and rgb.ndim == 3

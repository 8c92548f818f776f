"""Drawn, labelled test cards, for machines without UTKFace.

A card shows three things that have nothing to do with each other or with people: a gauge, filled in
proportion to the age; a round or a square face plate, for the gender code; and one of five patterns on it,
for the race code. A network that learns the cards has a working pipeline behind it; one that does not, has not.
"""

import contextlib
import hashlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from agr_lightning.files import atomic_folder, atomic_text, cache_folder, remove
from agr_lightning.labels import AGE_MAX, GENDERS, RACES
from agr_lightning.messages import UserError

Floats = NDArray[np.floating[Any]]

CARD_SIZE = 128

# Part of the folder's name: raise it when the same card would be drawn otherwise.
_CARDS_VERSION = 1

# OpenCV takes coordinates in fractions of a pixel, shifted by this many bits.
_SHIFT = 4


def draw_cards(count: int, seed: int, cache_dir: str | None = None) -> Path:
    """Draws ``count`` cards, once for a seed, as JPEG files named like UTKFace's, and returns their folder."""
    if count < 10:
        raise UserError(f"--data.synthetic {count} must be 10 or more: fewer cards cannot be split.")
    folder = cache_folder(cache_dir) / f"cards-v{_CARDS_VERSION}-{count}-{seed}"
    drawn = folder.with_name(f"sha256-{folder.name}")  # of what is in it
    with contextlib.suppress(FileNotFoundError):  # not drawn yet, or being drawn by another process
        if not folder.is_file() and drawn.read_bytes() == _digest(folder):
            return folder
        remove(folder)
    random = np.random.default_rng([_CARDS_VERSION, seed])
    with atomic_folder(folder) as target:
        for number in range(count):
            age, gender, race = (int(random.integers(n)) for n in (AGE_MAX + 1, len(GENDERS), len(RACES)))
            card = draw_card(age, gender, race, random)
            path = target / f"{age}_{gender}_{race}_{20200101000000000 + number}.jpg"
            _, encoded = cv2.imencode(".jpg", card[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])
            path.write_bytes(encoded.tobytes())
        atomic_text(drawn, _digest(target).decode())
    return draw_cards(count, seed, cache_dir)  # which looks at them: they may be another process's


def _digest(folder: Path) -> bytes:
    """Of the names and bytes of all files."""
    digest = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest().encode()


def draw_card(age: int, gender: int, race: int, random: np.random.Generator) -> NDArray[np.uint8]:
    """Draws one card, RGB, uint8 ``(128, 128, 3)``.

    The gauge is full at an age of 116 years; gender 0 is a disc, 1 a square; race is which of five patterns. ``random``
    decides position, size, tilt, colours and grain.
    """
    dark, light = random.uniform(20, 90, 3), random.uniform(165, 250, 3)
    ground, ink = (dark, light) if random.random() < 0.5 else (light, dark)
    plate = 0.35 * ground + 0.65 * ink
    # The background brightens slowly in a random direction.
    x, y = np.meshgrid(np.linspace(-1, 1, CARD_SIZE), np.linspace(-1, 1, CARD_SIZE))
    angle, depth = random.uniform(0, 2 * np.pi), random.uniform(5, 25)
    slope = depth * (x * np.cos(angle) + y * np.sin(angle))
    image: Floats = np.asarray(ground + slope[:, :, None], np.float32)
    centre = 64 + random.uniform(-5, 5, 2)
    radius = random.uniform(47, 53)
    tilt = random.uniform(-6, 6)

    _arc(image, centre, radius, 360, 0.75 * ground + 0.25 * ink)
    _arc(image, centre, radius, 360 * age / AGE_MAX, ink)
    outline = _plate(gender, centre, 0.56 * radius, tilt)
    # The pattern keeps clear of the rim, which tells a disc from a square.
    marks = _pattern(race, centre, tilt) * _plate(gender, centre, 0.45 * radius, tilt)
    surface = plate + marks[:, :, None] * (ground - plate)
    image += outline[:, :, None] * (surface - image)
    image += random.uniform(2, 8) * random.standard_normal(image.shape, np.float32)
    return image.clip(0, 255).astype(np.uint8)


def _arc(image: Floats, centre: Floats, radius: float, degrees: float, colour: Floats) -> None:
    """An open ring from the top, clockwise; drawn as a line of many points."""
    angles = np.radians(np.linspace(-90, -90 + degrees, max(2, int(degrees) // 2)))
    points = centre + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    line = (points * 2**_SHIFT).astype(np.int32).reshape(-1, 1, 2)
    cv2.polylines(image, [line], False, colour.tolist(), 9, cv2.LINE_AA, _SHIFT)


def _plate(gender: int, centre: Floats, half: float, tilt: float) -> Floats:
    """How much of the disc, or of the square around it, covers each pixel, 0 to 1."""
    shape: Floats = np.zeros((CARD_SIZE, CARD_SIZE), np.float32)
    if gender == 0:
        point = (centre * 2**_SHIFT).astype(int).tolist()
        cv2.circle(shape, point, int(half * 2**_SHIFT), 1.0, -1, cv2.LINE_AA, _SHIFT)
    else:
        corners = cv2.boxPoints((centre.tolist(), (2.1 * half, 2.1 * half), tilt))
        cv2.fillConvexPoly(shape, (corners * 2**_SHIFT).astype(np.int32), 1.0, cv2.LINE_AA, _SHIFT)
    return shape


def _pattern(race: int, centre: Floats, tilt: float) -> Floats:
    """How much of the pattern covers each pixel, 0 to 1: plain, bars across, bars upright, dots, rings."""
    x, y = np.meshgrid(np.arange(CARD_SIZE) - centre[0], np.arange(CARD_SIZE) - centre[1])
    turn = np.radians(tilt)
    u, v = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
    wave = 2 * np.pi / 14
    across, upright, rings = np.cos(wave * v), np.cos(wave * u), np.cos(wave * np.hypot(u, v))
    height = [np.full_like(u, -1), across, upright, upright + across - 0.6, rings][race]
    return np.asarray((2.5 * height + 0.5).clip(0, 1), np.float32)

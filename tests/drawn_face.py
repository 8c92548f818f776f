"""A drawn head, which face finders take for a real one."""

import cv2
import numpy as np
from numpy.typing import NDArray

Colour = tuple[int, int, int]

# The middle of the eyes, as a share of the picture's side.
EYES = ((0.395, 0.46), (0.605, 0.46))

GROUND: Colour = (168, 188, 205)

_FINE = 4


def draw_face(size: int, skin: Colour = (224, 172, 140), hair: Colour = (60, 40, 30)) -> NDArray[np.uint8]:
    """Head and shoulders on a plain ground: RGB, uint8 ``(size, size, 3)``."""
    side = size * _FINE
    picture = np.full((side, side, 3), GROUND, np.uint8)

    def ellipse(
        x: float, y: float, wide: float, high: float, colour: Colour, start: int = 0, end: int = 360, line: float = 0
    ) -> None:
        middle, axes = (int(x * side), int(y * side)), (int(wide * side), int(high * side))
        cv2.ellipse(picture, middle, axes, 0, start, end, colour, int(line * side) or -1, cv2.LINE_AA)

    shade: Colour = tuple(int(0.8 * value) for value in skin)  # type: ignore[assignment]
    dark: Colour = tuple(int(0.55 * value) for value in skin)  # type: ignore[assignment]
    ellipse(0.5, 1.05, 0.42, 0.25, (70, 90, 140))  # shoulders
    ellipse(0.5, 0.80, 0.11, 0.16, shade)  # neck
    ellipse(0.5, 0.42, 0.285, 0.36, hair)
    for x in (0.235, 0.765):
        ellipse(x, 0.50, 0.035, 0.07, shade)  # ears
    ellipse(0.5, 0.50, 0.25, 0.33, skin)
    ellipse(0.5, 0.24, 0.235, 0.13, hair, 180, 360)
    for x, y in EYES:
        ellipse(x, y, 0.062, 0.036, shade)
        ellipse(x, y, 0.048, 0.024, (245, 245, 245))
        ellipse(x, y, 0.022, 0.023, (70, 50, 40))
        ellipse(x, y, 0.010, 0.010, (10, 10, 10))
        ellipse(x, y - 0.005, 0.052, 0.026, (40, 30, 25), 190, 350, 0.01)
        ellipse(x, y - 0.055, 0.068, 0.030, hair, 200, 340, 0.016)
    ellipse(0.5, 0.585, 0.045, 0.03, shade)  # nose
    ellipse(0.5, 0.575, 0.036, 0.024, skin)
    for x in (0.48, 0.52):
        ellipse(x, 0.60, 0.011, 0.007, dark)
    ellipse(0.5, 0.695, 0.085, 0.032, (185, 95, 90))  # mouth
    ellipse(0.5, 0.693, 0.080, 0.002, (120, 50, 50))
    ellipse(0.5, 0.775, 0.05, 0.012, shade)  # chin
    y, x = np.mgrid[:side, :side] / side
    light = 1.08 - 0.28 * np.hypot((x - 0.42) / 0.5, (y - 0.42) / 0.6).clip(0, 1.2)
    lit = cv2.GaussianBlur((picture * light[..., None]).clip(0, 255).astype(np.uint8), (0, 0), 1.2 * side / 200)
    small = cv2.resize(lit, (size, size), interpolation=cv2.INTER_AREA).astype(float)
    return (small + np.random.default_rng(0).normal(0, 2, small.shape)).clip(0, 255).astype(np.uint8)


def draw_photo(*faces: tuple[int, int, int], width: int = 760, height: int = 480) -> NDArray[np.uint8]:
    """A photo with drawn heads, each given as left, top and size."""
    photo = np.full((height, width, 3), GROUND, np.uint8)
    for number, (left, top, size) in enumerate(faces):
        skin: Colour = (224, 172, 140) if number % 2 == 0 else (150, 100, 70)
        photo[top : top + size, left : left + size] = draw_face(size, skin)
    return photo

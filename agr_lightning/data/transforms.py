"""Random changes to training images. No other file knows Albumentations, which takes a while to import."""

import os
import random
import warnings
from collections.abc import Sequence
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from agr_lightning.messages import UserError

Preset = Literal["none", "light", "strong"]

# One transform in YAML: `class_path` with the name, `init_args` with the arguments.
TransformSpec = dict[str, str | dict[str, object]]


class Augmentation:
    """Random changes to a training image, fixed by the numbers given with it.

    Albumentations' own random state is copied to each loader worker and each rank, where all copies then
    draw the same numbers, every epoch again. So the state is set anew for each image.

    Args:
        spec: light, strong, or a list of Albumentations transforms, each ``{class_path: NAME, init_args: {...}}``.
        size: side of the images, pixels.
    """

    def __init__(self, spec: Preset | Sequence[TransformSpec], size: int) -> None:
        # It would ask the network for a newer version of itself.
        os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
        import albumentations

        with warnings.catch_warnings():
            # Of arguments that do not fit, Albumentations only warns, and falls back to its defaults.
            warnings.simplefilter("error", UserWarning)
            if isinstance(spec, str):
                transforms = {"light": _light, "strong": _strong}[spec](albumentations, size)
            else:
                transforms = [_transform(albumentations, **item) for item in spec]  # type: ignore[arg-type]
        self._pipeline = albumentations.Compose(transforms)
        changed = self(np.random.default_rng(0).integers(0, 256, (size, size, 3), np.uint8), (0,))
        if changed.shape != (size, size, 3) or changed.dtype != np.uint8:
            made = f"{changed.dtype} images of shape {changed.shape}"
            raise UserError(f"--data.augmentation makes {made}; expected uint8 ({size}, {size}, 3).")

    def __call__(self, image: NDArray[np.uint8], seed: tuple[int, ...]) -> NDArray[np.uint8]:
        """Changes one image, uint8 ``(size, size, 3)``; the same way for the same ``seed``."""
        generator = np.random.default_rng(seed)
        self._pipeline.set_random_state(generator, random.Random(int(generator.integers(2**63))))
        return np.asarray(self._pipeline(image=image)["image"])


def _light(A: Any, size: int) -> list[Any]:
    return [
        A.HorizontalFlip(p=0.5),
        _affine(A, scale=0.1, shift=0.05, degrees=10),
        A.RandomBrightnessContrast(brightness_limit=0.2, contrast_limit=0.2, p=0.5),
    ]


def _strong(A: Any, size: int) -> list[Any]:
    return [
        A.HorizontalFlip(p=0.5),
        A.RandomResizedCrop(size=(size, size), scale=(0.7, 1.0), ratio=(0.9, 1.1), p=0.5),
        _affine(A, scale=0.2, shift=0.08, degrees=15),
        A.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.3, hue=0.03, p=0.4),
        A.RandomBrightnessContrast(brightness_limit=0.2, contrast_limit=0.2, p=0.4),
        A.OneOf([A.GaussianBlur(blur_limit=(3, 5)), A.ImageCompression(quality_range=(30, 80))], p=0.2),
        A.CoarseDropout(num_holes_range=(1, 2), hole_height_range=(0.1, 0.3), hole_width_range=(0.1, 0.3), p=0.4),
    ]


def _affine(A: Any, scale: float, shift: float, degrees: float) -> Any:
    return A.Affine(
        scale=(1 - scale, 1 + scale),
        translate_percent=(-shift, shift),
        rotate=(-degrees, degrees),
        border_mode=cv2.BORDER_REFLECT_101,
        p=0.7,
    )


def _transform(A: Any, class_path: str, init_args: Any = None) -> Any:
    """A transform from its YAML form, with those in it; YAML's lists become the tuples that Albumentations asks for."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict) and "class_path" in value:
            return _transform(A, **value)
        return tuple(plain(each) for each in value) if isinstance(value, list) else value

    arguments = {name: plain(value) for name, value in (init_args or {}).items()}
    return getattr(A, class_path.removeprefix("albumentations."))(**arguments)

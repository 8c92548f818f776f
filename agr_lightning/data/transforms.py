"""Albumentations pipelines for training. No other file knows Albumentations; this one is imported to train only."""

import inspect
import os
import random
import warnings
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from agr_lightning.data.presets import PRESETS, Preset, TransformSpec
from agr_lightning.messages import UserError, did_you_mean

# Albumentations asks the network for a newer version when it is imported; that can take a second.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
import albumentations as A
import cv2

# How often a pipeline is tried before it is used: a transform with p = 0.2 then fires with 99 % certainty.
_TRIALS = 20


class Augmentation:
    """Random changes to a training image, fixed by the numbers given with it.

    Albumentations' own random state is copied to each loader worker and each rank, where all copies then
    draw the same numbers, every epoch again. So the state is set anew for each image.

    Args:
        spec: a preset, or a list of Albumentations transforms, each ``{class_path: NAME, init_args: {...}}``.
        size: side of the images, pixels.

    Raises:
        UserError: for an unknown preset or transform, or arguments that it does not take.
    """

    def __init__(self, spec: Preset | Sequence[TransformSpec], size: int) -> None:
        if isinstance(spec, str):
            if spec not in PRESETS:
                raise UserError(
                    f"no augmentation is called '{spec}'{did_you_mean(spec, PRESETS)}; known: {', '.join(PRESETS)}, "
                    "or a list of Albumentations transforms."
                )
            transforms = _PRESETS[spec](size)
        else:
            transforms = [_build(item) for item in spec]
        self._pipeline = A.Compose(transforms) if transforms else None
        self._size = size
        self._try_out()

    def __call__(self, image: NDArray[np.uint8], seed: tuple[int, ...]) -> NDArray[np.uint8]:
        """Changes one image, uint8 ``(size, size, 3)``; the same way for the same ``seed``."""
        if self._pipeline is None:
            return image
        generator = np.random.default_rng(seed)
        self._pipeline.set_random_state(generator, random.Random(int(generator.integers(2**63))))
        try:
            changed: NDArray[np.uint8] = self._pipeline(image=image)["image"]
        except Exception as error:  # a transform may raise anything
            detail = " ".join(str(error).split())[:200]
            raise UserError(f"--data.augmentation fails on a {self._size}x{self._size} image: {detail}") from None
        return changed

    def _try_out(self) -> None:
        """Lets what cannot work fail now, in words, and not in a loader worker at some later batch."""
        image = np.random.default_rng(0).integers(0, 256, (self._size, self._size, 3), np.uint8)
        for trial in range(_TRIALS):
            self._check_result(self(image, (trial,)))

    def _check_result(self, changed: NDArray[np.uint8]) -> None:
        if changed.shape != (self._size, self._size, 3) or changed.dtype != np.uint8:
            raise UserError(
                f"--data.augmentation makes {changed.dtype} images of shape {changed.shape}; it must keep "
                f"uint8 ({self._size}, {self._size}, 3): leave out Normalize, ToTensorV2 and other sizes."
            )


def _light(size: int) -> list[A.BasicTransform | A.BaseCompose]:
    return [
        A.HorizontalFlip(p=0.5),
        _affine(scale=0.1, shift=0.05, degrees=10, p=0.7),
        A.RandomBrightnessContrast(brightness_limit=0.2, contrast_limit=0.2, p=0.5),
    ]


def _strong(size: int) -> list[A.BasicTransform | A.BaseCompose]:
    return [
        A.HorizontalFlip(p=0.5),
        A.RandomResizedCrop(size=(size, size), scale=(0.7, 1.0), ratio=(0.9, 1.1), p=0.5),
        _affine(scale=0.2, shift=0.08, degrees=15, p=0.7),
        A.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.3, hue=0.03, p=0.4),
        A.RandomBrightnessContrast(brightness_limit=0.2, contrast_limit=0.2, p=0.4),
        A.OneOf([A.GaussianBlur(blur_limit=(3, 5)), A.ImageCompression(quality_range=(30, 80))], p=0.2),
        A.CoarseDropout(num_holes_range=(1, 2), hole_height_range=(0.1, 0.3), hole_width_range=(0.1, 0.3), p=0.4),
    ]


def _affine(scale: float, shift: float, degrees: float, p: float) -> A.Affine:
    return A.Affine(
        scale=(1 - scale, 1 + scale),
        translate_percent=(-shift, shift),
        rotate=(-degrees, degrees),
        border_mode=cv2.BORDER_REFLECT_101,
        p=p,
    )


_PRESETS = {"none": lambda size: [], "light": _light, "strong": _strong}


def _build(item: TransformSpec) -> A.BasicTransform | A.BaseCompose:
    """One transform from its YAML form; only names of Albumentations are looked up, none is imported."""
    path, arguments = (item.get("class_path"), item.get("init_args", {})) if isinstance(item, dict) else (None, None)
    if not isinstance(path, str) or not isinstance(arguments, dict) or set(item) - {"class_path", "init_args"}:
        raise UserError(
            f"--data.augmentation: {item} must be a transform like "
            "{class_path: HorizontalFlip, init_args: {p: 0.5}}."
        )
    name = path.removeprefix("albumentations.")
    kind = getattr(A, name, None)
    if not (inspect.isclass(kind) and issubclass(kind, A.BasicTransform | A.BaseCompose)):
        known = [n for n in dir(A) if n[0].isupper()]
        raise UserError(f"--data.augmentation: Albumentations has no transform '{name}'{did_you_mean(name, known)}.")
    accepted = [n for n in inspect.signature(kind).parameters if n not in ("args", "kwargs")]
    for argument in arguments:
        if argument not in accepted:
            raise UserError(
                f"--data.augmentation: {name} takes no '{argument}'{did_you_mean(argument, accepted)}; "
                f"it takes {', '.join(accepted)}."
            )
    try:
        plain = {key: _plain(value, key) for key, value in arguments.items()}
        with warnings.catch_warnings():
            # Where a value does not fit, some transforms only warn and fall back to their defaults.
            warnings.simplefilter("error", UserWarning)
            built: A.BasicTransform | A.BaseCompose = kind(**plain)
    except UserError:
        raise
    except Exception as error:  # a constructor may raise anything
        detail = " ".join(str(error).split())
        raise UserError(f"--data.augmentation: {name} does not take {arguments}: {detail[:300]}") from None
    return built


def _plain(value: object, argument: str) -> object:
    """YAML lists as the tuples that Albumentations asks for; nested transforms built."""
    if argument == "transforms" and isinstance(value, list):
        return [_build(item) for item in value]
    if isinstance(value, dict) and "class_path" in value:
        return _build(value)
    return tuple(_plain(item, "") for item in value) if isinstance(value, list) else value

"""An exported ONNX file behind a ``Predictor``. Needs onnxruntime, and no torch."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agr_lightning.files import check_readable
from agr_lightning.inference.answers import OUTPUTS, Arrays
from agr_lightning.labels import CLASSES
from agr_lightning.messages import UserError, needs

INPUT = "images"

# Where the file says of itself what it is; another layout gets another number.
METADATA_KEY, FORMAT = "agr_lightning", 1

# What computes, the best first. Others want more set up than they say when they are asked whether they are there.
_PROVIDERS = ("CUDAExecutionProvider", "CPUExecutionProvider")


class OnnxEngine:
    """Computes with onnxruntime.

    Args:
        session: an ``onnxruntime.InferenceSession``.
        image_size: side, in pixels, of the images that the network was made for.
    """

    def __init__(self, session: Any, image_size: int) -> None:
        self._session = session
        self.image_size = image_size
        self._names = [output.name for output in session.get_outputs()]

    def __call__(self, images: NDArray[np.uint8]) -> Arrays:
        """See ``Engine``."""
        found = self._session.run(self._names, {INPUT: np.ascontiguousarray(images.transpose(0, 3, 1, 2))})
        return dict(zip(self._names, found, strict=True))


def load_onnx(path: Path, option: str = "--ckpt_path") -> OnnxEngine:
    """Opens a file that ``export`` wrote.

    Args:
        path: the file.
        option: how the user named it, for messages.

    Raises:
        UserError: when it is missing, damaged, of something else, or onnxruntime is not installed.
    """
    check_readable(path, option)
    try:
        import onnxruntime
    except ImportError:
        raise UserError(f"{option} {path} {needs('onnxruntime', 'onnx')}.") from None
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 4  # what goes wrong is said below
    there = onnxruntime.get_available_providers()
    try:
        session = onnxruntime.InferenceSession(path, settings, providers=[name for name in _PROVIDERS if name in there])
    except Exception:  # onnxruntime has an exception for each kind of damage, of no common kind
        raise UserError(f"{option} {path} is no ONNX file, or is damaged or cut short.") from None
    engine = OnnxEngine(session, _image_size(session, path, option))
    _check_answers(engine, path, option)
    return engine


def _image_size(session: Any, path: Path, option: str) -> int:
    """What the file says of itself; refuses one that is not ours."""
    try:
        facts = json.loads(session.get_modelmeta().custom_metadata_map.get(METADATA_KEY, "null"))
    except (ValueError, RecursionError):
        facts = None
    if not isinstance(facts, dict) or [value.name for value in session.get_inputs()] != [INPUT]:
        raise UserError(f"{option} {path} was not written by this project's export.")
    if facts.get("format") != FORMAT:
        raise UserError(
            f"{option} {path} is of another version of this project (its format is {facts.get('format')}, this "
            f"version reads {FORMAT}): export its checkpoint again."
        )
    size = facts.get("image_size")
    named = [output.name for output in session.get_outputs()]
    labels = {task: list(names) for task, names in CLASSES.items() if task in named}
    if type(size) is not int or size < 1 or not set(named) <= set(OUTPUTS) or facts.get("labels") != labels:
        raise UserError(f"{option} {path} does not say of itself what it should: it is damaged.")
    return size


def _check_answers(engine: OnnxEngine, path: Path, option: str) -> None:
    """Refuses a file that only says that it is ours, by what it makes of two black images."""
    expected = {name: (2,) if name.startswith("age") else (2, len(CLASSES[name])) for name in OUTPUTS}  # type: ignore[index]
    try:
        found = engine(np.zeros((2, engine.image_size, engine.image_size, 3), np.uint8))
    except Exception as error:  # of onnxruntime, of no common kind
        raise UserError(f"{option} {path} cannot be computed: {str(error).splitlines()[0][:200]}") from None
    if any(value.dtype != np.float32 or value.shape != expected[name] for name, value in found.items()):
        raise UserError(f"{option} {path} does not answer as this project's files do: it is damaged.")

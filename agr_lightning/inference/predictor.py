"""A trained network, whatever file it is in, for images of faces. Knows no Lightning; ONNX files need no torch."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from agr_lightning.data.images import resize
from agr_lightning.files import user_path
from agr_lightning.inference.answers import Answer, Arrays, answers
from agr_lightning.messages import UserError
from agr_lightning.runs import ONNX_SUFFIX

# Images of a batch: RGB, uint8 (faces, size, size, 3), to what was found in them.
Engine = Callable[[NDArray[np.uint8]], Arrays]


class Predictor:
    """Age, gender and race of faces.

    Safe to call from several threads at once.

    Example:
        ``Predictor.load("faces.onnx")([image])[0].age``

    Args:
        engine: what computes.
        image_size: side of the images that the engine gets, pixels.
        source: what the network was read from, for people.
        of_cards: whether it was trained on drawn cards, which are no photos with faces in them.
    """

    def __init__(self, engine: Engine, image_size: int, source: str, of_cards: bool = False) -> None:
        self._engine = engine
        self.image_size, self.source, self.of_cards = image_size, source, of_cards

    @classmethod
    def load(cls, path: str | os.PathLike[str] | None = None, root: Path = Path()) -> "Predictor":
        """Reads a trained network, without running any code that is in its file.

        Args:
            path: an exported .onnx or .safetensors file, a checkpoint, a run folder, ``best`` or ``last``; ``small``
                for the small network that comes with this project, None for the other.
            root: the folder whose ``lightning_logs`` is meant by ``best`` and ``last``.

        Raises:
            UserError: when it cannot be had, or onnxruntime is needed and not installed.
        """
        named = None if path is None else os.fspath(path)
        if named is not None and Path(named).suffix.lower() == ONNX_SUFFIX:
            from agr_lightning.inference.onnx_engine import load_onnx

            file = user_path(named)
            engine = load_onnx(file)
            return cls(engine, engine.image_size, str(file))
        from agr_lightning.checkpoints import find_checkpoint, read_checkpoint
        from agr_lightning.inference.torch_engine import TorchEngine

        checkpoint = read_checkpoint(find_checkpoint(named, root))
        network = checkpoint.network()
        return cls(TorchEngine(network), network.image_size, checkpoint.called, checkpoint.of_cards)

    def __call__(self, images: Sequence[NDArray[np.uint8]] | NDArray[np.uint8], batch_size: int = 64) -> list[Answer]:
        """What the network says of each image.

        Args:
            images: faces, cropped like UTKFace's: RGB, uint8 ``(height, width, 3)`` of any sizes, or one array
                ``(images, height, width, 3)``.
            batch_size: how many are computed at once.

        Raises:
            UserError: for images of another kind.
        """
        found: list[Answer] = []
        for start in range(0, len(images), batch_size):
            batch = np.stack([self._fit(image) for image in images[start : start + batch_size]])
            found += answers(self._engine(batch))
        return found

    def _fit(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise UserError(
                f"an image of shape {image.shape} and type {image.dtype}; expected uint8 (height, width, 3), RGB."
            )
        return resize(image, self.image_size)

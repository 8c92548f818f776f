"""A trained network, whatever file it is in, for images of faces. ONNX files need no torch."""

import json
import logging
import math
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from agr_lightning.files import ONNX_SUFFIX, WEIGHTS, check_readable, usable_cpus, user_path
from agr_lightning.images import resize
from agr_lightning.labels import CLASSES, ClassTask
from agr_lightning.messages import UserError, one_line
from agr_lightning.models.config import NetworkConfig

if TYPE_CHECKING:
    from agr_lightning.checkpoints import TrainedNetwork
    from agr_lightning.models.network import AGRNetwork

_log = logging.getLogger(__name__)

# What an engine returns, and an ONNX file has as outputs, of the tasks that the network has: years, float32 (faces,),
# and probabilities, float32 (faces, classes) and (faces,).
OUTPUTS = ("age", "age_low", "age_high", "gender", "race", "prob_under_18")

# The input of an ONNX file; where it says what it is, and the number of that layout.
ONNX_INPUT, ONNX_KEY, ONNX_FORMAT = "images", "agr_lightning", 3

# The networks that come with this project, by the names that --ckpt_path takes, in 16 bits.
SHIPPED = {"agr": WEIGHTS / "agr.onnx", "small": WEIGHTS / "agr_small.onnx"}

Arrays = Mapping[str, NDArray[np.float32]]

# From RGB images, uint8 (faces, size, size, 3).
Engine = Callable[[NDArray[np.uint8]], Arrays]


@dataclass(frozen=True)
class Answer:
    """What the network predicts for one face; None for a task that it does not have.

    Attributes:
        age: years.
        age_low: lower end of the 80 % age interval, years; None also where the network was never calibrated.
        age_high: its upper end.
        genders: probability of each of ``labels.GENDERS``.
        races: probability of each of ``labels.RACES``.
        prob_under_18: probability of an age below 18 years; None also where the network gives no distribution of ages.
        face_probability: how sure the face detector was; None for crops.
    """

    age: float | None = None
    age_low: float | None = None
    age_high: float | None = None
    genders: dict[str, float] | None = None
    races: dict[str, float] | None = None
    prob_under_18: float | None = None
    face_probability: float | None = None

    @property
    def ranked(self) -> dict[ClassTask, list[tuple[str, float]]]:
        """The classes of those tasks that the network has, with their probabilities, the most probable first."""
        found = zip(CLASSES, (self.genders, self.races), strict=True)
        return {task: sorted(each.items(), key=lambda item: -item[1]) for task, each in found if each}

    @property
    def gender(self) -> str | None:
        """The most probable gender."""
        return self.ranked["gender"][0][0] if self.genders else None

    @property
    def race(self) -> str | None:
        """The most probable race."""
        return self.ranked["race"][0][0] if self.races else None


def answers(arrays: Arrays) -> list[Answer]:
    """The answer for each face of a batch."""
    found = []
    for face in range(len(next(iter(arrays.values())))):
        row = {name: values[face].tolist() for name, values in arrays.items()}
        years = [None if math.isnan(row.get(name, math.nan)) else row[name] for name in OUTPUTS[:3]]
        classes = [dict(zip(names, row[task], strict=True)) if task in row else None for task, names in CLASSES.items()]
        values: list[Any] = [*years, *classes, row.get("prob_under_18")]
        found.append(Answer(*values))
    return found


class Predictor:
    """Age, gender and race of faces: ``Predictor.load("faces.onnx")([image])[0].age``. Threads may share it.

    Attributes:
        image_size: side of the images that the engine gets, pixels.
        source: the name of a shipped network, or the path of the file.
        of_cards: whether it was trained on drawn cards, which are no photos with faces in them.
    """

    def __init__(self, engine: Engine, image_size: int, source: str, of_cards: bool = False) -> None:
        self._engine = engine
        self.image_size, self.source, self.of_cards = image_size, source, of_cards

    @classmethod
    def load(cls, path: str | os.PathLike[str] | None = None) -> "Predictor":
        """Reads a trained network, without running any code in its file; raises UserError when there is none.

        Args:
            path: an exported .onnx or .safetensors file, a checkpoint, a run folder, ``best`` or ``last``; ``agr`` or
                ``small`` for a shipped network; None for ``agr``. Those and .onnx files need no torch.
        """
        named = "agr" if path is None else os.fspath(path)
        if named in SHIPPED or Path(named).suffix.lower() == ONNX_SUFFIX:
            return cls(*load_onnx(SHIPPED.get(named) or user_path(named)))
        import torch

        from agr_lightning.checkpoints import load_trained

        trained = load_trained(named)
        network, device = _to_gpu(trained) or (trained.network(), "cpu")

        @torch.inference_mode()
        def torch_engine(images: NDArray[np.uint8]) -> Arrays:
            return network.predict(torch.from_numpy(images).permute(0, 3, 1, 2).to(device)).arrays()

        return cls(torch_engine, trained.config.image_size, trained.name, bool(trained.data.get("synthetic")))

    def __call__(self, images: Sequence[NDArray[np.uint8]] | NDArray[np.uint8], batch_size: int = 64) -> list[Answer]:
        """Predicts for each image, ``batch_size`` of them at once; others than these raise UserError.

        Images are faces, cropped like UTKFace's: RGB, uint8 ``(height, width, 3)`` of any sizes, or an array of them.
        """
        for image in images:
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
                raise UserError(f"an image is {image.dtype} {image.shape}; expected uint8 (height, width, 3), RGB.")
        found: list[Answer] = []
        for start in range(0, len(images), batch_size):
            batch = [resize(image, self.image_size) for image in images[start : start + batch_size]]
            found += answers(self._engine(np.stack(batch)))
        return found


def _to_gpu(trained: "TrainedNetwork") -> "tuple[AGRNetwork, str] | None":
    """The network on the GPU, and the name of it; None where there is none, or none that torch can compute with."""
    import torch

    size, reason = trained.config.image_size, ""
    with warnings.catch_warnings(record=True) as said:  # what torch has to say of a GPU takes many lines
        try:
            if torch.cuda.is_available():
                network = trained.network().to("cuda")
                network.predict(torch.zeros(2, 3, size, size, dtype=torch.uint8, device="cuda")).arrays()
                return network, "cuda"
            reason = str(said[0].message) if said else ""
        except RuntimeError as error:  # of a driver or a torch that is too old or too new for it
            reason = str(error)
    if reason:
        _log.warning(f"the GPU cannot be used, so the CPU is: {one_line(reason, 120)}")
    return None


def open_session(model: Path | bytes) -> Any:
    """An ONNX file, or its content, in onnxruntime, on the GPU where that can use it."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 4  # what goes wrong is raised
    settings.intra_op_num_threads = usable_cpus()
    settings.enable_mem_pattern = False  # which is planned anew for each size of a photo
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")  # other threads have work to do
    # Other providers want more set up than they say when they are asked for.
    wanted = ("CUDAExecutionProvider", "CPUExecutionProvider")
    providers = [name for name in wanted if name in onnxruntime.get_available_providers()]
    return onnxruntime.InferenceSession(model, settings, providers=providers)


def load_onnx(path: Path, option: str = "--ckpt_path") -> tuple[Engine, int, str, bool]:
    """What a ``Predictor`` is made of, from an ONNX file of ``export``: engine, image size, source, and of_cards.

    Raises UserError, with the option that named it, when the file cannot be used.
    """
    check_readable(path, option)
    name = next((name for name, shipped in SHIPPED.items() if shipped == path), str(path))

    def engine(images: NDArray[np.uint8]) -> Arrays:
        found = session.run(names, {ONNX_INPUT: np.ascontiguousarray(images.transpose(0, 3, 1, 2))})
        return dict(zip(names, found, strict=True))

    try:
        session = open_session(path)
        facts = json.loads(session.get_modelmeta().custom_metadata_map.get(ONNX_KEY, "{}"))
        if facts.get("format") != ONNX_FORMAT:
            raise UserError(f"its format is {facts.get('format')}, not {ONNX_FORMAT}: export the checkpoint again")
        config = NetworkConfig.from_dict(facts.get("network"))
        names = [output.name for output in session.get_outputs()]
        if facts.get("labels") != {task: list(CLASSES[task]) for task in CLASSES if task in names}:
            raise UserError("its labels are not those of this project")
        of_cards = bool(facts["data"].get("synthetic"))
        if name not in SHIPPED:  # whose answers are known, and are waited for
            answers(engine(np.zeros((2, config.image_size, config.image_size, 3), np.uint8)))
    except Exception as error:  # of onnxruntime, of no common kind
        raise UserError(f"{option} {path} cannot be used: {str(error).partition(chr(10))[0][:200]}.") from None
    return engine, config.image_size, name, of_cards

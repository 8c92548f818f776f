"""A trained network -> one ONNX file that needs nothing else, compared with the network before it is kept."""

import contextlib
import io
import json
import logging
import math
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from agr_lightning import __version__
from agr_lightning.checkpoints import Checkpoint
from agr_lightning.data.images import resize
from agr_lightning.files import Json, atomic_write
from agr_lightning.inference.answers import OUTPUTS
from agr_lightning.inference.onnx_engine import FORMAT, INPUT, METADATA_KEY, load_onnx
from agr_lightning.labels import CLASSES
from agr_lightning.messages import UserError, needs
from agr_lightning.models.calibration import AGE_INTERVAL_LEVEL
from agr_lightning.models.network import AGRNetwork

if TYPE_CHECKING:
    import onnx

# Resize with anti-aliasing came with 18.
_OPSET = 18

# How far a file's answers may be from the network's, years and probability: as computed, and with weights in 16 bits.
_LIMITS, _LIMITS_OF_HALF = (0.01, 1e-4), (0.1, 0.01)

_DESCRIPTION = (
    "Age in years, gender and race of a face. Input: RGB faces cropped like UTKFace's, uint8 (batch, 3, height, "
    "width), of any size. Outputs: years, and probabilities in the order of the labels, which the metadata name."
)


class _Whole(nn.Module):
    """What the file computes: resize, network, read-out, calibration."""

    def __init__(self, network: AGRNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> list[Tensor]:
        """Those of ``OUTPUTS`` that the network has, for RGB uint8 ``(batch, 3, height, width)``."""
        size = (self.network.image_size, self.network.image_size)
        resized = F.interpolate(images.float(), size, mode="bilinear", antialias=True)
        return [value for value in self.network.predict(resized) if value is not None]


def write_onnx(path: Path, checkpoint: Checkpoint, faces: Sequence[NDArray[np.uint8]], half: bool) -> str:
    """Writes a checkpoint's network as ONNX, if that gives the same answers.

    Args:
        path: the file to write.
        checkpoint: what to export.
        faces: images to compare the answers by: RGB, uint8 ``(height, width, 3)``.
        half: store matrices in 16 bits; they are computed with in 32.

    Returns:
        A sentence on the differences.

    Raises:
        UserError: when the answers differ by more than 0.01 years or 0.0001 probability (0.1 and 0.01 with 16 bits), or
            a library is missing.
    """
    try:
        import onnx
        import onnxruntime  # noqa: F401 (asked for before the work begins)
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(f"ONNX {needs(str(error.name), 'onnx')}.") from None
    whole = _Whole(checkpoint.network()).eval()
    model = _converted(whole)
    for node in model.graph.node:
        node.ClearField("metadata_props")  # where in whose source it came from
        node.ClearField("doc_string")
    if half:
        _halve(model)
    onnx.helper.set_model_props(model, {METADATA_KEY: json.dumps(_facts(checkpoint, whole.network))})
    model.producer_name, model.producer_version = METADATA_KEY, __version__
    model.doc_string = _DESCRIPTION
    onnx.checker.check_model(model, full_check=True)
    content = model.SerializeToString()
    with tempfile.TemporaryDirectory() as folder:
        trial = Path(folder) / path.name
        trial.write_bytes(content)
        text = _compare(whole, trial, faces, _LIMITS_OF_HALF if half else _LIMITS)
    with atomic_write(path) as file:
        file.write(content)
    return text


def _converted(whole: _Whole) -> "onnx.ModelProto":
    size = whole.network.image_size
    example = torch.zeros(2, 3, size + 1, size + 2, dtype=torch.uint8)
    with _quiet():
        program = torch.onnx.export(
            whole,
            (example,),
            dynamo=True,
            opset_version=_OPSET,
            input_names=[INPUT],
            output_names=_output_names(whole.network),
            dynamic_shapes=({0: "batch", 2: "height", 3: "width"},),
            verbose=False,
        )
    assert program is not None
    return program.model_proto


def _halve(model: "onnx.ModelProto") -> None:
    """Stores all matrices in 16 bits, each with a cast that runtimes compute once, when they load the file."""
    import onnx
    from onnx import numpy_helper

    graph = model.graph
    casts = []
    for place, tensor in enumerate(graph.initializer):
        if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) > 1:
            name = tensor.name
            small = numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), f"{name}.16")
            graph.initializer[place].CopyFrom(small)
            casts.append(onnx.helper.make_node("Cast", [small.name], [name], to=onnx.TensorProto.FLOAT))
    for node in reversed(casts):
        graph.node.insert(0, node)


def _output_names(network: AGRNetwork) -> list[str]:
    return [name for name in OUTPUTS if name.partition("_")[0] in network.tasks]


def _facts(checkpoint: Checkpoint, network: AGRNetwork) -> dict[str, Json]:
    """What the file says of itself."""
    fit: dict[str, Json] = {
        name: [_or_none(number) for number in value.flatten().tolist()]
        for name, value in network.calibration.state_dict().items()
    }
    return {
        "format": FORMAT,
        "version": __version__,
        "backbone": checkpoint.model["backbone"],
        "image_size": network.image_size,
        "labels": {task: list(names) for task, names in CLASSES.items() if task in network.tasks},
        "age_interval_level": AGE_INTERVAL_LEVEL,
        "calibration": fit,
        "epoch": checkpoint.epoch,
    }


def _or_none(number: float) -> float | None:
    """JSON has neither NaN nor infinity."""
    return number if math.isfinite(number) else None


def _compare(whole: _Whole, file: Path, faces: Sequence[NDArray[np.uint8]], limits: tuple[float, float]) -> str:
    """Compares what both say of faces: at the network's size in one batch, and each as it is."""
    engine = load_onnx(file, "--output")
    size = whole.network.image_size
    batches = [np.stack([resize(face, size) for face in faces]), *(face[None] for face in faces)]
    largest = {"years": 0.0, "probability": 0.0}
    for batch in batches:
        with torch.inference_mode():
            answers = whole(torch.from_numpy(batch).permute(0, 3, 1, 2))
        found = engine(batch)
        expected = dict(zip(found, answers, strict=True))
        if "age" in found:
            # Those of the age that was found: they jump where the calibration's next bin begins.
            ends = whole.network.calibration.age_interval(torch.from_numpy(found["age"]))
            expected |= dict(zip(("age_low", "age_high"), ends, strict=True))
        for name, right in expected.items():
            unit = "years" if name.startswith("age") else "probability"
            largest[unit] = max(largest[unit], _gap(found[name], right.numpy()))
    years, probability = largest.values()
    gap = f"at most {years:.1g} years and {probability:.1g} probability from the checkpoint's, on {len(faces):,} faces"
    if not (years <= limits[0] and probability <= limits[1]):
        raise UserError(
            f"nothing was written: the ONNX file's answers are {gap}; allowed are {limits[0]} and {limits[1]}."
        )
    return f"answers {gap}"


def _gap(found: NDArray[np.float32], right: NDArray[np.float32]) -> float:
    """The largest difference; the ends of an interval that was never calibrated are NaN in both."""
    same = np.array_equal(np.isnan(found), np.isnan(right))
    return float(np.abs(np.nan_to_num(found - right)).max()) if same else math.inf


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences what torch says to its own developers while it converts."""
    levels = {name: logging.getLogger(name).level for name in ("torch.onnx", "onnxscript", "onnx_ir")}
    for name in levels:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)

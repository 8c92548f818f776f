"""A checkpoint -> one file that travels; an ONNX file is compared with the network before it is kept."""

import json
import math
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from agr_lightning import __version__
from agr_lightning.checkpoints import load_trained, write_safetensors
from agr_lightning.data.cards import draw_cards
from agr_lightning.data.images import ImageError, read_rgb, resize
from agr_lightning.files import atomic_write, user_path
from agr_lightning.inference.photos import find_photos
from agr_lightning.inference.predictor import ONNX_FORMAT, ONNX_INPUT, ONNX_KEY, OUTPUTS, load_onnx
from agr_lightning.labels import CLASSES
from agr_lightning.messages import UserError, needs
from agr_lightning.models.calibration import AGE_INTERVAL_LEVEL
from agr_lightning.models.network import AGRNetwork
from agr_lightning.runs import ONNX_SUFFIX, SAFETENSORS_SUFFIX

if TYPE_CHECKING:
    import onnx

# How many faces the answers of an ONNX file are compared on.
_FACES = 64

# Resize with anti-aliasing came with 18.
_OPSET = 18

# How far a file's answers may be from the network's, years and probability: as computed, and with weights in 16 bits.
_LIMITS, _HALF_LIMITS = (0.01, 1e-4), (0.1, 0.01)

_DESCRIPTION = (
    "Age in years, gender and race of a face. Input: RGB faces cropped like UTKFace's, uint8 (batch, 3, height, "
    "width), of any size. Outputs: years, and probabilities in the order of the labels, which the metadata name."
)


def export(ckpt_path: str | None = None, output: str = "", images: str | None = None, half: bool = False) -> str:
    """Writes the network of a checkpoint into one file that loads without running code.

    FILE.onnx: resizing, normalisation and calibration included, for onnxruntime and everything else that runs ONNX; it
    is kept only if its answers are those of the checkpoint, within 0.01 years and 0.0001 probability (0.1 and 0.01 with
    16 bits). FILE.safetensors: weights in 16 bits, for --ckpt_path of test and predict and for --model.weights; test
    then leaves out the images that they have seen.

    Args:
        ckpt_path: a checkpoint, a run folder, 'best' or 'last', or 'agr' or 'small' for a network that is shipped with
            this project; null for 'agr'.
        output: the .onnx or .safetensors file to write.
        images: photo, folder or glob of faces to compare the answers of an ONNX file on; null for drawn cards.
        half: store the weights of an ONNX file in 16 bits; they are computed with in 32.

    Returns:
        A sentence on what was written.

    Raises:
        UserError: when the checkpoint cannot be read, the ONNX file gives other answers, a library is missing, or for
            another kind of output.
    """
    path = user_path(output)
    if path.suffix not in (ONNX_SUFFIX, SAFETENSORS_SUFFIX):
        raise UserError(f"--output {output} must end in {ONNX_SUFFIX} or {SAFETENSORS_SUFFIX}.")
    if path.suffix == SAFETENSORS_SUFFIX and (images is not None or half):
        raise UserError(f"--images and --half are for {ONNX_SUFFIX} files alone.")
    trained = load_trained(ckpt_path)
    if path.suffix == SAFETENSORS_SUFFIX:
        if trained.exported:
            raise UserError(f"{trained.name} is an exported file already; name a checkpoint.")
        write_safetensors(path, trained)
        text = "weights in 16 bits"
    else:
        faces = _faces(images)
        whole = _Whole(trained.network()).eval()
        content = _to_onnx(whole, trained.epoch, half)
        with tempfile.TemporaryDirectory() as folder:
            trial = Path(folder) / path.name
            trial.write_bytes(content)
            text = _compare(whole, trial, faces, _HALF_LIMITS if half else _LIMITS)
        with atomic_write(path) as file:
            file.write(content)
    return f"{path}: {path.stat().st_size / 1e6:.1f} MB, {trained.config.backbone}, {text}"


def _faces(images: str | None) -> list[NDArray[np.uint8]]:
    """What to compare answers on: photos from all over the folder, or cards."""
    photos = find_photos(images or str(draw_cards(_FACES, seed=0)), "--images")
    try:
        return [read_rgb(path) for path in photos[:: -(-len(photos) // _FACES)]]
    except ImageError as error:
        raise UserError(f"--images {images}: one of the photos is {error}.") from None


class _Whole(nn.Module):
    """What an ONNX file computes: resize, network, read-out, calibration."""

    def __init__(self, network: AGRNetwork) -> None:
        super().__init__()
        self.network, self.size = network, network.config.image_size

    def forward(self, images: Tensor) -> list[Tensor]:
        """Those of ``OUTPUTS`` that the network has, for RGB uint8 ``(batch, 3, height, width)``."""
        resized = F.interpolate(images.float(), (self.size, self.size), mode="bilinear", antialias=True)
        return [value for value in self.network.predict(resized) if value is not None]


def _to_onnx(whole: _Whole, epoch: int | None, half: bool) -> bytes:
    try:
        import onnx
        import onnxruntime  # noqa: F401 (asked for before the work begins)
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(f"ONNX {needs(str(error.name), 'onnx')}.") from None
    config = whole.network.config
    example = torch.zeros(2, 3, whole.size + 1, whole.size + 2, dtype=torch.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            whole,
            (example,),
            dynamo=True,
            opset_version=_OPSET,
            input_names=[ONNX_INPUT],
            output_names=[name for name in OUTPUTS if name.partition("_")[0] in config.tasks],
            dynamic_shapes=({0: "batch", 2: "height", 3: "width"},),
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    for node in model.graph.node:
        node.ClearField("metadata_props")  # where in whose source it came from
        node.ClearField("doc_string")
    if half:
        _halve(model)
    facts = {
        "format": ONNX_FORMAT,
        "version": __version__,
        "network": config.to_dict(),
        "labels": {task: classes for task, classes in CLASSES.items() if task in config.tasks},
        "age_interval_level": AGE_INTERVAL_LEVEL,
        # JSON has neither NaN nor infinity.
        "calibration": {
            name: [number if math.isfinite(number) else None for number in value.flatten().tolist()]
            for name, value in whole.network.calibration.state_dict().items()
        },
        "epoch": epoch,
    }
    onnx.helper.set_model_props(model, {ONNX_KEY: json.dumps(facts)})
    model.doc_string = _DESCRIPTION
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def _halve(model: "onnx.ModelProto") -> None:
    """Stores all matrices in 16 bits, each with a cast that runtimes compute once, when they load the file."""
    import onnx
    from onnx import numpy_helper

    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) > 1:
            name = tensor.name
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), f"{name}.16"))
            cast = onnx.helper.make_node("Cast", [tensor.name], [name], to=onnx.TensorProto.FLOAT)
            model.graph.node.insert(0, cast)


def _compare(whole: _Whole, file: Path, faces: Sequence[NDArray[np.uint8]], limits: tuple[float, float]) -> str:
    """Compares both's answers for faces: at the network's size in one batch, and each as it is."""
    engine, _ = load_onnx(file, "--output")
    years = probability = 0.0
    for batch in [np.stack([resize(face, whole.size) for face in faces]), *(face[None] for face in faces)]:
        found = engine(batch)
        with torch.inference_mode():
            expected = dict(zip(found, whole(torch.from_numpy(batch).permute(0, 3, 1, 2)), strict=True))
        if "age" in found:
            # Those of the age that was found: they jump where the calibration's next bin begins.
            ends = whole.network.calibration.age_interval(torch.from_numpy(found["age"]))
            expected |= dict(zip(("age_low", "age_high"), ends, strict=True))
        gaps = {name: _gap(found[name], right.numpy()) for name, right in expected.items()}
        years = max([years, *(gap for name, gap in gaps.items() if name not in CLASSES)])
        probability = max([probability, *(gap for name, gap in gaps.items() if name in CLASSES)])
    text = f"at most {years:.1g} years and {probability:.1g} probability from the checkpoint's, on {len(faces):,} faces"
    if not (years <= limits[0] and probability <= limits[1]):
        raise UserError(
            f"nothing was written: the ONNX file's answers are {text}; allowed are {limits[0]} and {limits[1]}."
        )
    return f"answers {text}"


def _gap(found: NDArray[np.float32], right: NDArray[np.float32]) -> float:
    """The largest difference; the ends of an interval that was never calibrated are NaN in both."""
    same = np.array_equal(np.isnan(found), np.isnan(right))
    return float(np.abs(np.nan_to_num(found - right)).max()) if same else math.inf

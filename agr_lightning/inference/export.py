"""A checkpoint -> one file that travels; an ONNX file is compared with the network before it is kept."""

import json
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from agr_lightning import __version__
from agr_lightning.checkpoints import describe, load_trained, write_safetensors
from agr_lightning.data.cards import draw_cards
from agr_lightning.files import ONNX_SUFFIX, SAFETENSORS_SUFFIX, atomic_write, user_path
from agr_lightning.images import read_rgb, resize
from agr_lightning.inference.inputs import find_photos
from agr_lightning.inference.predictor import ONNX_FORMAT, ONNX_INPUT, ONNX_KEY, load_onnx
from agr_lightning.labels import CLASSES
from agr_lightning.messages import UserError, needs
from agr_lightning.models.calibration import AGE_INTERVAL_LEVEL
from agr_lightning.models.network import AGRNetwork

# How many faces the answers of an ONNX file are compared on.
_FACES = 64


def export(ckpt_path: str | None = None, output: str = "", images: str | None = None, half: bool = False) -> str:
    """Writes the network of a checkpoint into one file that loads without running code, and says so in a sentence.

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
    """
    path = user_path(output)
    if path.suffix not in (ONNX_SUFFIX, SAFETENSORS_SUFFIX):
        raise UserError(f"--output {output} must end in {ONNX_SUFFIX} or {SAFETENSORS_SUFFIX}.")
    trained = load_trained(ckpt_path)
    if path.suffix == SAFETENSORS_SUFFIX:
        if images is not None or half:
            raise UserError(f"--images and --half are for {ONNX_SUFFIX} files alone.")
        if trained.exported:
            raise UserError(f"{trained.name} is an exported file already; name a checkpoint.")
        write_safetensors(path, trained)
        text = "weights in 16 bits"
    else:
        photos = find_photos(images or str(draw_cards(_FACES, seed=0)), "--images")
        faces = [read_rgb(photo) for photo in photos[:: -(-len(photos) // _FACES)]]  # from all over the folder
        network = trained.network()
        facts = describe(trained.config, trained.data, trained.epoch)
        content = _to_onnx(network, facts, half)
        with atomic_write(path) as file:
            file.write(content)
            file.flush()
            text = _compare(network, Path(file.name), faces, (0.1, 0.01) if half else (0.01, 1e-4))
    return f"{path}: {path.stat().st_size / 1e6:.1f} MB, {trained.config.backbone}, {text}"


class _Whole(nn.Module):
    """What an ONNX file computes: resize, network, read-out, calibration."""

    def __init__(self, network: AGRNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> list[Tensor]:
        """Those of ``OUTPUTS`` that the network has, for RGB uint8 ``(batch, 3, height, width)``."""
        size = self.network.config.image_size
        resized = F.interpolate(images.float(), (size, size), mode="bilinear", antialias=True)
        return [value for value in self.network.predict(resized) if value is not None]


def _to_onnx(network: AGRNetwork, facts: dict[str, Any], half: bool) -> bytes:
    try:
        import onnx
        import onnxscript  # noqa: F401 (asked for before the work begins)
    except ImportError as error:
        raise UserError(f"ONNX {needs(str(error.name), 'onnx')}.") from None
    config = network.config
    example = torch.zeros(2, 3, config.image_size + 1, config.image_size + 2, dtype=torch.uint8)
    with warnings.catch_warnings(action="ignore"):
        program = torch.onnx.export(
            _Whole(network).eval(),
            (example,),
            dynamo=True,
            opset_version=18,  # with which resizing with anti-aliasing came
            input_names=[ONNX_INPUT],
            output_names=list(network.predict(example).arrays()),
            dynamic_shapes=({0: "batch", 2: "height", 3: "width"},),
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    for node in model.graph.node:
        node.ClearField("metadata_props")  # where in whose source it came from
        node.ClearField("doc_string")
    if half:
        # Each matrix has a cast, which runtimes compute once, when they load the file.
        for tensor in model.graph.initializer:
            if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) > 1:
                name, weights = tensor.name, onnx.numpy_helper.to_array(tensor).astype(np.float16)
                tensor.CopyFrom(onnx.numpy_helper.from_array(weights, f"{name}.16"))
                cast = onnx.helper.make_node("Cast", [tensor.name], [name], to=onnx.TensorProto.FLOAT)
                model.graph.node.insert(0, cast)
    facts |= {
        "format": ONNX_FORMAT,
        "version": __version__,
        "labels": {task: classes for task, classes in CLASSES.items() if task in config.tasks},
        "age_interval_level": AGE_INTERVAL_LEVEL,
        # JSON has neither NaN nor infinity.
        "calibration": {
            name: [number if math.isfinite(number) else None for number in value.flatten().tolist()]
            for name, value in network.calibration.state_dict().items()
        },
    }
    onnx.helper.set_model_props(model, {ONNX_KEY: json.dumps(facts)})
    model.doc_string = "Age, gender and race of RGB faces cropped like UTKFace's; the metadata has the labels."
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def _compare(network: AGRNetwork, file: Path, faces: Sequence[NDArray[np.uint8]], limits: tuple[float, float]) -> str:
    """Compares both's answers for faces, in words: at the network's size in one batch, and each as it is."""
    engine, size, *_ = load_onnx(file, "--output")
    worst = {"years": 0.0, "probability": 0.0}
    for batch in [np.stack([resize(face, size) for face in faces]), *(face[None] for face in faces)]:
        found = engine(batch)
        with torch.inference_mode():
            expected = network.predict(torch.from_numpy(batch).permute(0, 3, 1, 2))
            if expected.age is not None:
                # Those of the age that was found: they jump where the calibration's next bin begins.
                low, high = network.calibration.age_interval(torch.from_numpy(found["age"]))
                expected = expected._replace(age_low=low, age_high=high)
        for name, right in expected.arrays().items():
            # Both ends of an interval that was never calibrated are NaN.
            gap = np.where(np.isnan(found[name]) & np.isnan(right), 0, np.abs(found[name] - right)).max()
            unit = "years" if name.startswith("age") else "probability"
            worst[unit] = np.maximum(worst[unit], gap)  # unlike max, NaN if one of both is
    years, probability = worst.values()
    text = f"at most {years:.1g} years and {probability:.1g} probability from the checkpoint's, on {len(faces):,} faces"
    if not (years <= limits[0] and probability <= limits[1]):
        raise UserError(f"nothing was written: answers are {text}; allowed are {limits[0]} and {limits[1]}.")
    return f"answers {text}"

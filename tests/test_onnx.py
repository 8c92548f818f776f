"""Networks as ONNX files: the same answers, without torch."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image

from agr_lightning.checkpoints import KEY, SHIPPED, describe
from agr_lightning.images import ImageError, read_rgb, resize
from agr_lightning.inference import export as door
from agr_lightning.inference.export import export
from agr_lightning.inference.predictor import Predictor
from agr_lightning.labels import GENDERS, RACES
from agr_lightning.messages import UserError
from agr_lightning.models.config import NetworkConfig
from agr_lightning.models.network import AGRNetwork
from tests.conftest import once
from tests.drawn_face import draw_face, draw_photo

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def exported(trained: Path, shared: Path) -> Path:
    """The network that has learnt the cards. Not to be changed."""

    def write(folder: Path) -> None:
        path = folder / "cards.onnx"
        text = export(str(trained), str(path))
        assert text.startswith(f"{path}: 13.9 MB, agr_cnn, answers at most ") and text.endswith("on 64 faces")

    return once(shared / "cards_onnx", write) / "cards.onnx"


@pytest.fixture(scope="module")
def small(shared: Path) -> Path:
    """The small shipped network. Not to be changed."""
    return once(shared / "small_onnx", lambda folder: export("small", str(folder / "small.onnx"))) / "small.onnx"


def test_answers_are_those_of_the_checkpoint(exported: Path, trained: Path, cards: Path) -> None:
    images = [read_rgb(path) for path in sorted(cards.iterdir())]
    ours, theirs = Predictor.load(exported)(images), Predictor.load(trained)(images)
    for one, other in zip(ours, theirs, strict=True):
        for name in ("age", "age_low", "age_high", "genders", "races", "prob_under_18"):
            assert getattr(one, name) == pytest.approx(getattr(other, name), abs=1e-3)
        assert (one.gender, one.race) == (other.gender, other.race)


def _check_shipped(name: str, images: list[np.ndarray[Any, Any]]) -> None:
    """The answers of a shipped network's two files are the same."""
    ours, theirs = Predictor.load(name), Predictor.load(SHIPPED[name])
    assert ours.source == theirs.source == name and not ours.of_cards
    for one, other in zip(ours(images), theirs(images), strict=True):
        assert one.age == pytest.approx(other.age, abs=0.05)
        assert one.genders == pytest.approx(other.genders, abs=0.005)
        assert one.races == pytest.approx(other.races, abs=0.005)
        assert one.prob_under_18 == pytest.approx(other.prob_under_18, abs=0.005)
        assert one.age_low is not None and one.age_high is not None and one.age_low < one.age_high


@pytest.mark.parametrize("name", SHIPPED)
def test_the_shipped_networks_answer_the_same_without_torch(name: str, cards: Path) -> None:
    images = [read_rgb(path) for path in sorted(cards.iterdir())[::4]]
    _check_shipped(name, [*images, *(draw_face(size) for size in (40, 96, 200, 400))])


@pytest.mark.real_data
@pytest.mark.parametrize("name", SHIPPED)
def test_the_shipped_networks_answer_the_same_on_real_images(name: str, utkface: Path) -> None:
    _check_shipped(name, [read_rgb(path) for path in sorted(utkface.rglob("*.jpg"))[::50]])


def test_the_file_says_that_the_network_is_of_cards(exported: Path, small: Path) -> None:
    assert Predictor.load(exported).of_cards and not Predictor.load(small).of_cards


def test_a_stranger_needs_the_file_alone(exported: Path, cards: Path) -> None:
    """As somebody would use it who has onnxruntime, and nothing of this project."""
    session = onnxruntime.InferenceSession(exported)
    facts = json.loads(session.get_modelmeta().custom_metadata_map["agr_lightning"])
    assert facts["labels"] == {"gender": list(GENDERS), "race": list(RACES)} and facts["format"] == 3
    assert facts["network"]["image_size"] == 48 and facts["network"]["backbone"] == "agr_cnn"
    assert len(facts["calibration"]["age_low"]) == 10 and facts["age_interval_level"] == 0.8
    files = sorted(cards.iterdir())[:40]
    image = np.stack([read_rgb(path) for path in files]).transpose(0, 3, 1, 2)
    found = dict(
        zip([output.name for output in session.get_outputs()], session.run(None, {"images": image}), strict=True)
    )
    assert list(found) == ["age", "age_low", "age_high", "gender", "race"]
    # Cards of 128 pixels, which the file resizes itself to 48: it knows the cards.
    labels = np.array([[int(field) for field in path.name.split("_")[:3]] for path in files])
    assert np.abs(found["age"] - labels[:, 0]).mean() < 8
    assert (found["gender"].argmax(1) == labels[:, 1]).mean() > 0.9 and found["race"].sum(1) == pytest.approx(1)
    assert ((found["age_low"] <= found["age"]) & (found["age"] <= found["age_high"])).all()
    # One of another shape, alone.
    (age, *_) = session.run(None, {"images": np.zeros((1, 3, 31, 250), np.uint8)})
    assert age.shape == (1,) and np.isfinite(age).all()


def test_the_file_names_nobody_s_folders(small: Path) -> None:
    content = small.read_bytes()
    assert b"site-packages" not in content and b"agr_lightning/" not in content and b"/tmp" not in content


def test_weights_in_16_bits(cards: Path, here: Path) -> None:
    assert export("small", "half.onnx", str(cards), half=True).startswith("half.onnx: 2.8 MB")
    images = [read_rgb(path) for path in sorted(cards.iterdir())]
    for one, other in zip(Predictor.load("half.onnx")(images), Predictor.load(SHIPPED["small"])(images), strict=True):
        assert one.age == pytest.approx(other.age, abs=0.1)


def test_ages_that_rounding_moves_into_the_next_bin_have_its_interval(cards: Path, here: Path) -> None:
    Path("faces").mkdir()
    for path in sorted(cards.iterdir())[:8]:
        shutil.copy(path, "faces")
    faces = [read_rgb(path) for path in sorted(Path("faces").iterdir())]
    network = AGRNetwork(NetworkConfig(image_size=48))
    _save(network, here / "plain.ckpt")
    fit = network.calibration
    ages = torch.tensor(sorted(answer.age or 0.0 for answer in Predictor.load("plain.ckpt")(faces)))
    # Every other age lies just below its edge, so that some move whichever way rounding goes.
    ages[1::2] = torch.nextafter(ages[1::2], torch.tensor(torch.inf))
    fit.age_edges[:8] = ages
    fit.age_low[:] = -10.0 - torch.arange(10.0)
    fit.age_high[:] = 10.0
    _save(network, here / "edges.ckpt")
    export("edges.ckpt", "edges.onnx", "faces", half=True)
    low = [[answer.age_low for answer in Predictor.load(f"edges.{kind}")(faces)] for kind in ("ckpt", "onnx")]
    assert np.abs(np.subtract(*low)).max() > 0.5  # some did move


def test_the_command_exports_the_shipped_network_where_no_checkpoint_is_named(here: Path, run: Run) -> None:
    code, out, err = run("export", "--output", "faces.onnx")
    assert code == 0 and out.startswith("faces.onnx: 14.1 MB, agr_cnn, answers at most") and err == ""
    image = np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)
    (one,), (other,) = Predictor.load("faces.onnx")([image]), Predictor.load(SHIPPED["agr"])([image])
    assert one.age == pytest.approx(other.age, abs=1e-3) and one.race == other.race


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["mobilenet_v3_small", "vgg11_bn", "convnext_tiny"])
def test_backbones_of_torchvision_can_be_exported(backbone: str, here: Path) -> None:
    """Of several ages: residual with gates, plain with pooling of any size, and with normalised layers."""
    _export_fresh(NetworkConfig(backbone, image_size=32))


@pytest.mark.parametrize(
    "config",
    [
        NetworkConfig(tasks=("gender",), tta_flip=True, image_size=64),
        NetworkConfig(age_loss="coral", age_readout="median", grayscale=True, image_size=64),
        NetworkConfig("two_branch_cnn", age_loss="dldl", tasks=("age", "race"), image_size=64),
    ],
    ids=["one task, mirrored", "ordinal median, gray", "branches"],
)
def test_every_kind_of_network_can_be_exported(config: NetworkConfig, here: Path) -> None:
    (answer,) = Predictor.load(_export_fresh(config))([np.zeros((64, 64, 3), np.uint8)])
    present = {"age": answer.age, "gender": answer.gender, "race": answer.race}
    assert tuple(task for task, value in present.items() if value is not None) == config.tasks
    assert answer.age_low is None  # never calibrated
    assert (answer.prob_under_18 is not None) == ("age" in config.tasks)  # read from a distribution


def _export_fresh(config: NetworkConfig) -> Path:
    """Exports a network with random weights, whose answers are compared in doing so."""
    torch.manual_seed(0)
    network = AGRNetwork(config)
    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(layer.weight, 0.5, 1.0)
    _save(network, Path("fresh.ckpt"))
    export("fresh.ckpt", "fresh.onnx")
    return Path("fresh.onnx")


def _save(network: AGRNetwork, path: Path) -> None:
    weights = {f"network.{name}": value for name, value in network.state_dict().items()}
    torch.save({"state_dict": weights, KEY: describe(network.config, {"synthetic": 0}, 3)}, path)


def test_other_answers_are_not_kept(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    convert = torch.onnx.export

    def wrong(*given: Any, **options: Any) -> Any:
        program = convert(*given, **options)
        model = program.model_proto
        for tensor in model.graph.initializer:
            if len(tensor.dims) == 2:
                weights = onnx.numpy_helper.to_array(tensor) * 1.01
                tensor.CopyFrom(onnx.numpy_helper.from_array(weights.astype(np.float32), tensor.name))
        return SimpleNamespace(model_proto=model)

    monkeypatch.setattr(door.torch.onnx, "export", wrong)
    with pytest.raises(UserError, match="nothing was written: answers are at most"):
        export("small", "a.onnx")
    assert not list(here.iterdir())


def test_what_is_no_export_of_ours_is_refused(small: Path, here: Path) -> None:
    whole = small.read_bytes()
    Path("cut.onnx").write_bytes(whole[: len(whole) // 2])
    Path("text.onnx").write_text("hello")
    Path("empty.onnx").touch()
    for name in ("cut", "text", "empty"):
        with pytest.raises(UserError, match=rf"--ckpt_path {name}\.onnx cannot be used: "):
            Predictor.load(f"{name}.onnx")
    network = json.loads(onnx.load_from_string(whole).metadata_props[0].value)["network"]
    for name, change, message in (
        ("other", None, "its format is None, not 3: export the checkpoint again"),
        ("earlier", {"format": 2}, "its format is 2, not 3"),
        ("size", {"network": network | {"image_size": "48"}}, "its image_size cannot be '48'"),
        ("data", {"data": [1]}, "'list' object has no attribute 'get'"),
        ("labels", {"labels": {"gender": ["female", "male"]}}, "its labels are not those of this project"),
    ):
        model = onnx.load_from_string(whole)
        facts = json.loads(model.metadata_props[0].value)
        del model.metadata_props[:]
        if change is not None:
            onnx.helper.set_model_props(model, {"agr_lightning": json.dumps(facts | change)})
        onnx.save(model, f"{name}.onnx")
        with pytest.raises(UserError, match=message):
            Predictor.load(f"{name}.onnx")


def test_what_only_says_that_it_is_ours_is_refused(small: Path, here: Path) -> None:
    facts = onnx.load(small).metadata_props[0].value
    float_images = onnx.helper.make_tensor_value_info("images", onnx.TensorProto.FLOAT, [None, 3, None, None])
    images = onnx.helper.make_tensor_value_info("images", onnx.TensorProto.UINT8, [None, 3, None, None])
    outputs = {
        name: onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in ("gender", "race")
    }
    copies = [onnx.helper.make_node("Identity", ["images"], [name]) for name in outputs]
    casts = [onnx.helper.make_node("Cast", ["images"], [name], to=onnx.TensorProto.FLOAT) for name in outputs]
    for name, given, nodes in (("input", float_images, copies), ("shapes", images, casts)):
        graph = onnx.helper.make_graph(nodes, "graph", [given], list(outputs.values()))
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
        onnx.helper.set_model_props(model, {"agr_lightning": facts})
        onnx.save(model, f"{name}.onnx")
        with pytest.raises(UserError, match=rf"{name}\.onnx cannot be used: "):
            Predictor.load(f"{name}.onnx")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output": "a.bin"}, r"--output a\.bin must end in \.onnx or \.safetensors\."),
        ({"output": "a.safetensors", "half": True}, r"--images and --half are for \.onnx files"),
        ({"output": "a.safetensors"}, "agr is an exported file already"),
        ({"output": "a.onnx", "images": "nowhere"}, "--images nowhere is no photo or folder"),
        ({"output": "a.onnx", "images": "bad.jpg"}, "not an image"),
    ],
)
def test_mistakes_end_in_a_line(here: Path, options: dict[str, Any], message: str) -> None:
    Path("bad.jpg").write_text("text")
    with pytest.raises((UserError, ImageError), match=message):
        export(**options)
    assert [path.name for path in here.iterdir()] == ["bad.jpg"]


@pytest.mark.parametrize("missing", ["onnx", "onnxscript"])
def test_a_missing_library_is_named(here: Path, monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(
        UserError, match=rf"ONNX needs {missing}: uv sync --all-extras, or pip install 'agr-lightning\[onnx\]'"
    ):
        export(output="a.onnx")


def test_predicting_needs_no_torch(small: Path, here: Path) -> None:
    Image.fromarray(draw_photo((200, 60, 320))).save("a.jpg")
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from agr_lightning.inference.predict import Inputs, predict\n"
        f"predict(Inputs('a.jpg'), {str(small)!r}, annotate='copies')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (table,) = Path("lightning_logs/version_0").iterdir()
    assert "a.jpg,0,ok," in table.read_text() and Path("copies/a.jpg").is_file()


def test_a_first_answer_waits_for_no_library_that_it_does_not_need(here: Path) -> None:
    Image.fromarray(draw_photo((200, 60, 320))).save("a.jpg")
    code = (
        "import sys\n"
        "from agr_lightning.cli import main\n"
        "assert main(['predict', '--data.predict_path', 'a.jpg']) == 0\n"
        "print({name.partition('.')[0] for name in sys.modules} & set(sys.argv[1:]))"
    )
    heavy = ("torch", "lightning", "lightning_utilities", "pandas", "scipy", "matplotlib", "safetensors", "onnx")
    done = subprocess.run([sys.executable, "-c", code, *heavy], capture_output=True, text=True)
    assert done.returncode == 0 and "1 inputs: 1 ok" in done.stdout, done.stderr
    assert done.stdout.endswith("\nset()\n"), done.stdout


@pytest.mark.real_data
def test_answers_on_real_images(utkface: Path, here: Path) -> None:
    assert "on 64 faces" in export(output="faces.onnx", images=str(utkface))
    images = [resize(read_rgb(path), 96) for path in sorted(utkface.rglob("*.jpg"))[::200]]
    for one, other in zip(Predictor.load("faces.onnx")(images), Predictor.load(SHIPPED["agr"])(images), strict=True):
        assert one.age == pytest.approx(other.age, abs=0.01)
        assert one.genders == pytest.approx(other.genders, abs=1e-4)
        assert one.races == pytest.approx(other.races, abs=1e-4)

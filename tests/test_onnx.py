"""Networks as ONNX files: the same answers, without torch."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from agr_lightning.checkpoints import read_checkpoint
from agr_lightning.data.images import read_rgb, resize
from agr_lightning.inference import onnx_export
from agr_lightning.inference.onnx_engine import load_onnx
from agr_lightning.inference.predictor import Predictor
from agr_lightning.labels import GENDERS, RACES
from agr_lightning.messages import UserError
from agr_lightning.module import AGRModule

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def exported(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The network that has learnt the cards. Not to be changed."""
    from agr_lightning.inference.export import export

    path = tmp_path_factory.mktemp("onnx") / "cards.onnx"
    text = export(str(trained), str(path))
    assert text.startswith(f"{path}: 13.9 MB, agr_cnn, answers at most ") and text.endswith("on 64 faces")
    return path


def test_answers_are_those_of_the_checkpoint(exported: Path, trained: Path, cards: Path) -> None:
    images = [read_rgb(path) for path in sorted(cards.iterdir())]
    ours, theirs = Predictor.load(exported)(images), Predictor.load(trained)(images)
    for one, other in zip(ours, theirs, strict=True):
        for name in ("age", "age_low", "age_high", "gender_probability", "race_probability"):
            assert getattr(one, name) == pytest.approx(getattr(other, name), abs=1e-3)
        assert (one.gender, one.race) == (other.gender, other.race)


def test_a_stranger_needs_the_file_alone(exported: Path, cards: Path) -> None:
    """As somebody would use it who has onnxruntime, and nothing of this project."""
    session = onnxruntime.InferenceSession(exported)
    facts = json.loads(session.get_modelmeta().custom_metadata_map["agr_lightning"])
    assert facts["labels"] == {"gender": list(GENDERS), "race": list(RACES)} and facts["image_size"] == 48
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


def test_the_file_names_nobody_s_folders(exported: Path) -> None:
    content = exported.read_bytes()
    assert b"site-packages" not in content and b"agr_lightning/" not in content and b"/tmp" not in content


def test_weights_in_16_bits(trained: Path, cards: Path, here: Path, run: Run) -> None:
    code, out, err = run(
        "export", "--ckpt_path", str(trained), "--output", "half.onnx", "--half", "--images", str(cards)
    )
    assert code == 0 and out.startswith("half.onnx: 7.0 MB"), err
    images = [read_rgb(path) for path in sorted(cards.iterdir())]
    for one, other in zip(Predictor.load("half.onnx")(images), Predictor.load(trained)(images), strict=True):
        assert one.age == pytest.approx(other.age, abs=0.1)


def test_ages_that_rounding_moves_into_the_next_bin_have_its_interval(trained: Path, cards: Path, here: Path) -> None:
    faces = [read_rgb(path) for path in sorted(cards.iterdir())[:8]]
    content = torch.load(trained / "checkpoints" / "best.ckpt", weights_only=True)
    weights = content["state_dict"]
    place = "network.calibration.age_edges"
    weights[place][:8] = torch.tensor(sorted(answer.age or 0.0 for answer in Predictor.load(trained)(faces)))
    weights[place][8] = torch.inf
    weights["network.calibration.age_low"] = -10.0 - torch.arange(10.0)
    weights["network.calibration.age_high"] = torch.full((10,), 10.0)
    torch.save(content, "edges.ckpt")
    onnx_export.write_onnx(here / "edges.onnx", read_checkpoint(here / "edges.ckpt"), faces, half=True)
    low = [[answer.age_low for answer in Predictor.load(f"edges.{kind}")(faces)] for kind in ("ckpt", "onnx")]
    assert np.abs(np.subtract(*low)).max() > 0.5  # some did move


def test_the_box_is_exported_where_no_checkpoint_is_named(here: Path, run: Run) -> None:
    code, out, err = run("export", "--output", "faces.onnx")
    assert code == 0 and out.startswith("faces.onnx: 14.1 MB, agr_cnn"), err
    image = np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)
    (one,), (other,) = Predictor.load("faces.onnx")([image]), Predictor.load()([image])
    assert one.age == pytest.approx(other.age, abs=1e-3) and one.race == other.race


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["resnet18", "mobilenet_v3_small", "efficientnet_b0", "vgg16_bn", "convnext_tiny"])
def test_every_family_of_backbones_can_be_exported(backbone: str, tmp_path: Path) -> None:
    _export_fresh(tmp_path, backbone=backbone, input_size=64)


@pytest.mark.parametrize(
    "options",
    [
        {"tasks": ["gender"], "mirror": True},
        {"age_loss": "coral", "age_readout": "median", "grayscale": True},
        {"age_loss": "dldl", "tasks": ["age", "race"], "backbone": "two_branch_cnn"},
    ],
    ids=["one task, mirrored", "ordinal median, gray", "branches"],
)
def test_every_kind_of_network_can_be_exported(options: dict[str, object], tmp_path: Path) -> None:
    tasks = options.get("tasks", ["age", "gender", "race"])
    path = _export_fresh(tmp_path, input_size=64, **options)
    (answer,) = Predictor.load(path)([np.zeros((64, 64, 3), np.uint8)])
    present = {"age": answer.age, "gender": answer.gender, "race": answer.race}
    assert [task for task, value in present.items() if value is not None] == tasks
    assert answer.age_low is None  # never calibrated


def _export_fresh(folder: Path, **options: object) -> Path:
    """Exports a network with random weights, whose answers are compared in doing so."""
    torch.manual_seed(0)
    module = AGRModule(**options)  # type: ignore[arg-type]
    for layer in module.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(layer.weight, 0.5, 1.0)
    content = {
        "state_dict": module.state_dict(),
        "hyper_parameters": dict(module.hparams),
        "datamodule_hyper_parameters": {
            "image_size": options["input_size"],
            "grayscale": bool(options.get("grayscale")),
        },
    }
    torch.save(content, folder / "fresh.ckpt")
    faces = list(np.random.default_rng(0).integers(0, 256, (3, 70, 80, 3), np.uint8))
    onnx_export.write_onnx(folder / "fresh.onnx", read_checkpoint(folder / "fresh.ckpt"), faces, half=False)
    return folder / "fresh.onnx"


def test_other_answers_are_not_kept(trained: Path, here: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    converted = onnx_export._converted

    def wrong(whole: onnx_export._Whole) -> onnx.ModelProto:
        model = converted(whole)
        for tensor in model.graph.initializer:
            if len(tensor.dims) == 2:
                weights = onnx.numpy_helper.to_array(tensor) * 1.01
                tensor.CopyFrom(onnx.numpy_helper.from_array(weights.astype(np.float32), tensor.name))
        return model

    monkeypatch.setattr(onnx_export, "_converted", wrong)
    code, _, err = run("export", "--ckpt_path", str(trained), "--output", "a.onnx")
    assert code == 1 and "nothing was written: the ONNX file's answers are at most" in err
    assert not list(here.iterdir())


def test_what_is_no_export_of_ours_is_refused(exported: Path, here: Path) -> None:
    whole = exported.read_bytes()
    Path("cut.onnx").write_bytes(whole[: len(whole) // 2])
    Path("text.onnx").write_text("hello")
    Path("empty.onnx").touch()
    for name in ("cut", "text", "empty"):
        with pytest.raises(UserError, match=f"{name}.onnx is no ONNX file, or is damaged"):
            load_onnx(Path(f"{name}.onnx"))
    for name, change, message in (
        ("other", None, "was not written by this project's export"),
        ("later", {"format": 2}, "of another version"),
        ("size", {"image_size": "48"}, "does not say of itself what it should"),
        ("labels", {"labels": {"gender": ["female", "male"]}}, "does not say of itself what it should"),
    ):
        model = onnx.load_from_string(whole)
        facts = json.loads(model.metadata_props[0].value)
        del model.metadata_props[:]
        if change is not None:
            onnx.helper.set_model_props(model, {"agr_lightning": json.dumps(facts | change)})
        onnx.save(model, f"{name}.onnx")
        with pytest.raises(UserError, match=message):
            Predictor.load(f"{name}.onnx")


def test_what_only_says_that_it_is_ours_is_refused(exported: Path, here: Path) -> None:
    facts = onnx.load(exported).metadata_props[0].value
    float_images = onnx.helper.make_tensor_value_info("images", onnx.TensorProto.FLOAT, [None, 3, None, None])
    images = onnx.helper.make_tensor_value_info("images", onnx.TensorProto.UINT8, [None, 3, None, None])
    outputs = {
        name: onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in ("gender", "race")
    }
    copies = [onnx.helper.make_node("Identity", ["images"], [name]) for name in outputs]
    casts = [onnx.helper.make_node("Cast", ["images"], [name], to=onnx.TensorProto.FLOAT) for name in outputs]
    for name, given, nodes, message in (
        ("input", float_images, copies, "cannot be computed: "),
        ("shapes", images, casts, "does not answer as this project's files do"),
    ):
        graph = onnx.helper.make_graph(nodes, "graph", [given], list(outputs.values()))
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
        onnx.helper.set_model_props(model, {"agr_lightning": facts})
        onnx.save(model, f"{name}.onnx")
        with pytest.raises(UserError, match=f"{name}.onnx {message}"):
            Predictor.load(f"{name}.onnx")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--output", "a.bin"), "--output a.bin must end in .onnx or .safetensors."),
        (("--output", "nowhere/a.onnx"), "--output nowhere/a.onnx: there is no folder nowhere."),
        (("--output", "a.safetensors", "--half"), "--images and --half are for .onnx files"),
        (("--output", "a.safetensors"), "the network that comes with this project is an exported file already"),
        (("--output", "a.onnx", "--images", "nowhere"), "--images nowhere: no such photo or folder"),
        (("--output", "a.onnx", "--images", "bad.jpg"), "--images bad.jpg: one of the photos is not an image."),
    ],
)
def test_mistakes_end_in_a_line(here: Path, run: Run, options: tuple[str, ...], message: str) -> None:
    Path("bad.jpg").write_text("text")
    code, _, err = run("export", *options)
    assert code == 1 and message in err and err.count("\n") == 1 and not Path("a.onnx").exists()


@pytest.mark.parametrize("missing", ["onnxruntime", "onnxscript"])
def test_a_missing_library_is_named(
    exported: Path, here: Path, run: Run, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    code, _, err = run("export", "--output", "a.onnx")
    assert code == 1 and f"ONNX needs {missing}: uv sync --all-extras, or pip install -e '.[onnx]'" in err
    if missing == "onnxruntime":
        with pytest.raises(UserError, match="needs onnxruntime: uv sync"):
            Predictor.load(exported)


def test_predicting_needs_no_torch(exported: Path, cards: Path, here: Path) -> None:
    shutil.copytree(cards, "cards")
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from agr_lightning.cli import main\n"
        f"options = ['--ckpt_path', {str(exported)!r}, '--data.predict_path', 'cards', '--faces', 'none']\n"
        "sys.exit(main(['predict', *options]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "120 inputs: 120 ok" in done.stdout, done.stderr


@pytest.mark.real_data
def test_answers_on_real_images(utkface: Path, here: Path, run: Run) -> None:
    code, out, err = run("export", "--output", "faces.onnx", "--images", str(utkface))
    assert code == 0 and "on 64 faces" in out, err
    images = [resize(read_rgb(path), 96) for path in sorted(utkface.rglob("*.jpg"))[::200]]
    for one, other in zip(Predictor.load("faces.onnx")(images), Predictor.load()(images), strict=True):
        assert one.age == pytest.approx(other.age, abs=0.01)
        assert one.gender_probability == pytest.approx(other.gender_probability, abs=1e-4)
        assert one.race_probability == pytest.approx(other.race_probability, abs=1e-4)

"""The rules of the house: who may import whom, and how long a file may be."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "agr_lightning"
FILES = sorted(PACKAGE.rglob("*.py"))

# Storeys from the ground up: a file imports from its own storey or from lower ones.
STOREYS = [
    ("messages", "files", "runs", "__init__"),
    ("labels",),
    ("models", "data"),
    ("evaluation", "metrics", "checkpoints", "audit"),
    ("inference",),
    ("optimization", "module", "checkpoint_io"),
    ("callbacks",),
    (
        "option_errors",
        "parser",
        "terminal",
        "predict_cli",
        "app",
        "app_server",
        "checkpoint_options",
        "trainer_cli",
        "trainer_run",
    ),
    ("cli",),
    ("__main__",),
]


def _storey(name: str) -> int:
    return next(level for level, rooms in enumerate(STOREYS) if name in rooms)


def _imports(file: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_point_down(file: Path) -> None:
    own = file.relative_to(PACKAGE).with_suffix("").parts[0]
    for name in _imports(file):
        if name.startswith("agr_lightning."):
            other = name.split(".")[1]
            assert _storey(other) <= _storey(own), f"{own} imports {name}"


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_the_network_and_the_labels_know_no_lightning(file: Path) -> None:
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    imports = {name.split(".")[0] for name in _imports(file)}
    if parts[0] in ("messages", "files", "labels", "models", "evaluation"):
        assert "lightning" not in imports
    if parts != ("data", "transforms"):
        assert "albumentations" not in imports


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_no_file_is_too_long_to_read(file: Path) -> None:
    assert len(file.read_text().splitlines()) <= 320


def test_the_page_knows_inference_alone() -> None:
    own = {name for name in _imports(PACKAGE / "app.py") if name.startswith("agr_lightning.")}
    assert {name.split(".")[1] for name in own} <= {"inference", "data"}
    assert {name for name in own if name.startswith("agr_lightning.data.")} == {"agr_lightning.data.images"}


@pytest.mark.parametrize("file", sorted((PACKAGE / "inference").glob("*.py")), ids=lambda file: file.name)
def test_inference_knows_no_lightning(file: Path) -> None:
    assert "lightning" not in {name.split(".")[0] for name in _imports(file)}
    if file.stem not in ("torch_engine", "onnx_export"):
        tops = {
            name.split(".")[0]
            for node in ast.parse(file.read_text()).body
            if isinstance(node, ast.Import)
            for name in [alias.name for alias in node.names]
        }
        assert "torch" not in tops

"""The rules of the house: who may import whom, how long a file may be, and whose private names may be used."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "agr_lightning"
FILES = sorted(PACKAGE.rglob("*.py"))

# Storeys from the ground up: a file imports from its own storey or from lower ones.
STOREYS = [
    ("__init__", "messages", "files", "images"),
    ("labels",),
    ("models", "data"),
    ("evaluation", "checkpoints"),
    ("inference", "distillation"),
    ("metrics", "base_module", "module", "datamodule", "audit"),
    ("callbacks", "run_checkpoints"),
    ("app", "training_cli"),
    ("cli",),
    ("__main__",),
]

# Names of other libraries that begin with an underscore, with the versions that they were tried with.
PRIVATE = {
    ("base_module.py", "_trainer"): "lightning 2.6: `trainer` raises where there is none",
}


def _names(file: Path) -> set[str]:
    """All modules that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


def _room(file: Path) -> str:
    return file.relative_to(PACKAGE).with_suffix("").parts[0]


def _storey(room: str) -> int:
    return next(level for level, rooms in enumerate(STOREYS) if room in rooms)


def _id(file: Path) -> str:
    return str(file.relative_to(PACKAGE))


@pytest.mark.parametrize("file", FILES, ids=_id)
def test_imports_point_down(file: Path) -> None:
    for name in _names(file):
        if name.startswith("agr_lightning.") and file.name != "__init__.py":
            other = name.split(".")[1]
            assert _storey(other) <= _storey(_room(file)), f"{_id(file)} imports {name}"


@pytest.mark.parametrize("file", FILES, ids=_id)
def test_libraries_stay_in_their_rooms(file: Path) -> None:
    libraries = {name.split(".")[0] for name in _names(file)}
    if _storey(_room(file)) <= _storey("inference") and _room(file) != "messages":
        assert "lightning" not in libraries
    if file != PACKAGE / "data" / "transforms.py":
        assert "albumentations" not in libraries
    if _room(file) != "app":
        assert "streamlit" not in libraries


@pytest.mark.parametrize("file", sorted((PACKAGE / "inference").glob("*.py")), ids=_id)
def test_inference_loads_no_torch_before_it_is_needed(file: Path) -> None:
    if file.name == "export.py":
        return
    tops = {name for node in ast.parse(file.read_text()).body for name in _imported(node)}
    assert not {name for name in tops if name.split(".")[0] == "torch"}


def _imported(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module] if isinstance(node, ast.ImportFrom) and node.module else []


@pytest.mark.parametrize("file", FILES, ids=_id)
def test_no_private_name_of_another_library_is_used(file: Path) -> None:
    tree = ast.parse(file.read_text())
    own = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)}
    own |= {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    own |= {
        node.target.id
        for node in ast.walk(tree)
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    own |= {"_replace", "_asdict", "_fields", "_make"}  # of named tuples: public in spite of their names
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr.startswith("_")}
    imported = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and not (node.module or "").startswith("agr_lightning")
        for alias in node.names
        if alias.name.startswith("_")
    }
    foreign = {name for name in (used - own) | imported if not name.endswith("__")}
    assert foreign == {name for place, name in PRIVATE if place == file.name}


@pytest.mark.parametrize("file", FILES, ids=_id)
def test_no_file_is_too_long_to_read(file: Path) -> None:
    assert len(file.read_text().splitlines()) < 300


def test_the_house_does_not_grow() -> None:
    lines = {file: len(file.read_text().splitlines()) for file in FILES}
    assert len(FILES) <= 60 and sum(lines.values()) <= 7755
    core = (
        "labels",
        "data",
        "models",
        "module",
        "base_module",
        "datamodule",
        "callbacks",
        "run_checkpoints",
        "training_cli",
        "cli",
    )
    assert sum(count for file, count in lines.items() if _room(file) in core) <= 3850

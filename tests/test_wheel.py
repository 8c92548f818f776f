"""The package as it is installed elsewhere: its wheel, its metadata, and the versions that it was tested with."""

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from agr_lightning import __version__
from tests.conftest import save_noise

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the content of the wheel, as it lies in another environment."""
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, check=True, cwd=ROOT, capture_output=True)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        wheel.extractall(folder / "site")
    return folder / "site"


def test_a_wheel_has_all_that_the_package_reads(installed: Path) -> None:
    package = installed / "agr_lightning"
    tracked = subprocess.run(["git", "ls-files", "agr_lightning"], cwd=ROOT, capture_output=True, text=True)
    for name in tracked.stdout.splitlines():
        assert (installed / name).is_file(), name
    assert (package / "py.typed").is_file()
    assert (package / "weights/agr.safetensors").is_file() and (package / "weights/agr.onnx").is_file()
    assert (package / "configs/quickstart.yaml").read_bytes() == (ROOT / "configs/quickstart.yaml").read_bytes()


@pytest.mark.slow
def test_an_installed_wheel_trains_on_cards_and_predicts(installed: Path, here: Path) -> None:
    def run(*args: str) -> None:
        code = "import agr_lightning, sys; assert sys.argv.pop() in agr_lightning.__file__; "
        code += "from agr_lightning.cli import main; sys.exit(main())"
        done = subprocess.run(
            [sys.executable, "-c", code, *args, str(installed)],
            capture_output=True,
            text=True,
            env=os.environ | {"PYTHONPATH": str(installed)},
        )
        assert done.returncode == 0, done.stderr

    run("fit", "--data.synthetic", "120", "--trainer.max_epochs", "1")
    assert "image_size: 64" in (here / "lightning_logs/version_0/config.yaml").read_text()  # the quickstart's
    save_noise(here / "photos/a.jpg")
    run("predict", "--data.predict_path", "photos", "--faces", "none")
    assert (here / "lightning_logs/version_1/predictions.csv").is_file()


def test_constraints_pin_all_dependencies_and_name_no_registry() -> None:
    text = (ROOT / "constraints.txt").read_text()
    assert "://" not in text and "--" not in text
    pinned = {re.split("==", line)[0] for line in text.splitlines()}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [
        *project["dependencies"],
        *(name for extra in project["optional-dependencies"].values() for name in extra),
    ]
    assert {re.split(r"[\[<>=]", name)[0].lower() for name in wanted} <= pinned


def test_version_is_the_same_everywhere() -> None:
    assert f"\nversion: {__version__}\n" in (ROOT / "CITATION.cff").read_text()
    heading = re.search(r"^## (.*)", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert heading is not None and heading[1].split()[0] in (__version__, "Unreleased")

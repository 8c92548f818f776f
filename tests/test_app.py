"""The web page: what is on it, and how it behaves in a real browser where there is one."""

import csv
import io
import re
import shutil
import socket
import subprocess
import sys
import time
import tomllib
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from streamlit.testing.v1 import AppTest

import agr_lightning.app
from agr_lightning.app import app
from agr_lightning.inference import photos as photos_module
from agr_lightning.inference.photos import Photo, PhotoReader
from agr_lightning.messages import UserError
from tests.drawn_face import draw_photo

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

SECONDS = 120


# A name that shows an image from elsewhere where it is taken for Markdown.
HOSTILE = "![x](https://example.org/x.jpg) `:red[b]`.jpg"


def _png(*faces: tuple[int, int, int]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(draw_photo(*faces)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> AppTest:
    """The page without a browser."""
    monkeypatch.setattr(sys, "argv", ["page.py"])
    file = Path(agr_lightning.app.__file__).with_name("page.py")
    page = AppTest.from_file(str(file), default_timeout=SECONDS).run()
    assert not page.exception and [caption.value for caption in page.caption] == ["Network: `agr`"]
    return page


def test_what_is_on_the_page(opened: AppTest) -> None:
    files = [
        ("two.png", _png((40, 100, 220), (330, 40, 380)), ""),
        ("none.png", _png(), ""),
        ("broken.jpg", b"text", ""),
    ]
    page = opened.file_uploader[0].set_value(files).run()
    assert not page.exception
    assert [header.value for header in page.subheader] == ["`two.png`", "`none.png`", "`broken.jpg`"]
    assert page.caption[0].value.startswith("Found 2 faces, the largest first")
    assert [warning.value[:13] for warning in page.warning] == ["No face was f"]
    assert [error.value for error in page.error] == ["This file cannot be used: `not an image`."]
    table = page.table[0].value
    assert list(table) == ["Face", "Age", "Under 18", "Gender", "Race", "Face probability"]
    assert list(table["Face"]) == ["#0", "#1"]
    page.sidebar.toggle[0].set_value(False).run()
    assert list(page.table[0].value) == ["Face", "Age", "Under 18", "Gender", "Face probability"]


def test_photos_are_looked_at_once(opened: AppTest, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[str] = []
    read, find = PhotoReader.read, photos_module.find_faces

    def counted(self: PhotoReader, path: Path, content: bytes | None = None) -> Iterator[Photo]:
        looked.append(path.name)
        return read(self, path, content)

    def fragile(photo: Any, *options: Any) -> Any:
        if photo.shape[0] == 50:
            raise ValueError("no such size")
        return [replace(face, probability=0.876) for face in find(photo, *options)]

    monkeypatch.setattr(PhotoReader, "read", counted)
    monkeypatch.setattr(photos_module, "find_faces", fragile)
    bad = io.BytesIO()
    Image.new("RGB", (60, 50)).save(bad, "PNG")
    files = [("bad.png", bad.getvalue(), ""), ("one.png", _png((200, 60, 320)), "")]
    page = opened.file_uploader[0].set_value(files).run()
    assert not page.exception and [error.value for error in page.error] == [
        "This file cannot be used: `failed (no such size)`."
    ]
    assert list(page.table[0].value["Face probability"]) == ["88%"]
    page.sidebar.toggle[0].set_value(False).run()
    assert looked == ["bad.png", "one.png"] and "Race" not in page.table[0].value
    more = [("copy.png", files[1][1], ""), *files, ("one.png", _png(), "")]
    page.file_uploader[0].set_value(more).run()
    assert looked[2:] == ["copy.png", "one.png"]
    assert [header.value for header in page.subheader] == ["`copy.png`", "`bad.png`", "`one.png`", "`one.png`"]
    assert len(page.table) == 2 and len(page.warning) == 1 and len(page.session_state["kept"]) == 4
    many = []
    for size in range(1, 41):
        Image.new("RGB", (8, size)).save(tiny := io.BytesIO(), "PNG")
        many.append((f"{size}.png", tiny.getvalue(), ""))
    page.file_uploader[0].set_value(many).run()
    assert len(page.warning) == 40 and len(page.session_state["kept"]) == 32


def test_names_are_no_markdown(opened: AppTest) -> None:
    page = opened.file_uploader[0].set_value([(HOSTILE, _png(), ""), ("a\n\n# b.jpg", b"text", "")]).run()
    assert not page.exception
    assert [header.value for header in page.subheader] == [
        "`![x](https://example.org/x.jpg) ':red[b]'.jpg`",
        "`a # b.jpg`",
    ]


def test_settings_lie_where_streamlit_finds_them() -> None:
    """Beside the page: without them it would report its use, and watch files."""
    settings = Path(agr_lightning.app.__file__).parent / ".streamlit" / "config.toml"
    assert tomllib.loads(settings.read_text())["browser"] == {"gatherUsageStats": False}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where the page is served, with the shipped network."""
    port = _free_port()
    command = [sys.executable, "-c", f"from agr_lightning.app import app; app(port={port}, no_browser=True)"]
    with (tmp_path_factory.mktemp("app") / "log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        for _ in range(10 * SECONDS):
            time.sleep(0.1)
            assert server.poll() is None, Path(log.name).read_text()
            with socket.socket() as probe:
                if probe.connect_ex(("localhost", port)) == 0:
                    break
        yield f"http://localhost:{port}"
    finally:
        server.terminate()
        server.wait(20)


@pytest.fixture
def page(address: str) -> Iterator[Any]:
    """The open page; whatever it complains of, or asks other machines for, fails the test."""
    if CHROMIUM is None:
        pytest.skip("install chromium to test the web page in it")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1000, "height": 1800})
        page.set_default_timeout(1000 * SECONDS)
        said: list[str] = []
        page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: said.append(request.url) if not _is_own(request.url, address) else None)
        page.goto(address)
        page.get_by_text("Photos", exact=True).wait_for()
        yield page
        assert said == []
        browser.close()


def _is_own(url: str, address: str) -> bool:
    return url.startswith((address, address.replace("http", "ws", 1), "blob:", "data:"))


def _upload(page: Any, *paths: Path) -> None:
    page.locator("input[type=file]").set_input_files([str(path) for path in paths])


def test_a_photo_with_two_faces(page: Any, tmp_path: Path) -> None:
    Image.fromarray(draw_photo((40, 100, 220), (330, 40, 380))).save(tmp_path / "two.png")
    _upload(page, tmp_path / "two.png")
    page.get_by_text("Found 2 faces").wait_for()
    table = page.get_by_test_id("stTable")
    table.locator("tbody tr").nth(1).wait_for()
    cells = table.locator("tbody tr").all_inner_texts()
    assert len(cells) == 2 and table.locator("th", has_text="Race").count() == 1
    for face, row in enumerate(cells):
        found = re.match(rf"#{face}\s+(\d+) years \((\d+) to (\d+)\)\s+\d+%\s+(male|female) \d+%", row)
        assert found, row
        assert int(found[2]) <= int(found[1]) <= int(found[3])
    with page.expect_download() as download:
        page.get_by_text("Download the table").click()
    with Path(download.value.path()).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == ["two.png"] * 2 and f"{float(rows[0]['age']):.0f} years" in cells[0]
    page.get_by_text("Show race").click()
    table.locator("th", has_text="Race").wait_for(state="detached")
    assert "years" in table.inner_text()
    page.screenshot(path=tmp_path / "page.png")
    shot = Image.open(tmp_path / "page.png").convert("RGB").resize((100, 180))
    assert len(shot.getcolors(100 * 180)) > 200


def test_photos_without_a_face_and_broken_files(page: Any, tmp_path: Path) -> None:
    Image.fromarray(draw_photo()).save(tmp_path / "none.png")
    (tmp_path / "broken.jpg").write_text("text")
    Image.new("1", (20000, 20000)).save(tmp_path / "bomb.png")
    _upload(page, tmp_path / "broken.jpg", tmp_path / "none.png", tmp_path / "bomb.png")
    page.get_by_text("This file cannot be used: not an image.").wait_for()
    page.get_by_text("No face was found in this photo.").wait_for()
    page.get_by_text("more than 100 million").wait_for()
    purpose = page.get_by_text("What this is for, and what not")
    purpose.wait_for()
    assert purpose.count() == 1


def test_names_show_nothing_from_elsewhere(page: Any) -> None:
    file = {"name": HOSTILE.replace("/", ":"), "mimeType": "image/png", "buffer": _png()}
    page.locator("input[type=file]").set_input_files([file])
    page.get_by_text("No face was found in this photo.").wait_for()
    assert page.locator("h3 code", has_text="![x](https").count() == 1 and page.locator("h3 img").count() == 0


def test_the_page_is_served(address: str) -> None:
    with urllib.request.urlopen(address) as answer:
        assert answer.status == 200 and b"<title>Streamlit</title>" in answer.read()


def test_mistakes_are_said_before_the_page_is_served(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for options, message in (
        ({"ckpt_path": "gone.onnx"}, r"--ckpt_path gone\.onnx cannot be read: "),
        ({"ckpt_path": "best"}, r"no run under lightning_logs has a best\.ckpt"),
    ):
        with pytest.raises(UserError, match=message):
            app(**({"port": _free_port()} | options))  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "streamlit.web", None)
    with pytest.raises(UserError, match="app needs streamlit: uv sync --all-extras"):
        app(port=_free_port())

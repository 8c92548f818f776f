"""The web page, in a real browser."""

import csv
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.drawn_face import draw_photo

Run = Callable[..., tuple[int, str, str]]

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

SECONDS = 120


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where the page is served, with the network that comes along."""
    port = _free_port()
    command = [sys.executable, "-m", "agr_lightning", "app", "--port", str(port), "--no_browser"]
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
        found = re.match(rf"#{face}\s+(\d+) years \((\d+) to (\d+)\)\s+(male|female) \d+%", row)
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
    assert len(set(Image.open(tmp_path / "page.png").convert("RGB").resize((100, 180)).getdata())) > 200


def test_photos_without_a_face_and_broken_files(page: Any, tmp_path: Path) -> None:
    Image.fromarray(draw_photo()).save(tmp_path / "none.png")
    (tmp_path / "broken.jpg").write_text("text")
    Image.new("1", (20000, 20000)).save(tmp_path / "bomb.png")
    _upload(page, tmp_path / "broken.jpg", tmp_path / "none.png", tmp_path / "bomb.png")
    page.get_by_text("This file cannot be used: not an image.").wait_for()
    page.get_by_text("No face was found in this photo.").wait_for()
    page.get_by_text("more than 100 million").wait_for()
    assert page.get_by_text("What this is for, and what not").count() == 1


def test_mistakes_end_in_a_line(here: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("localhost", 0)) as taken:
        port = taken.getsockname()[1]
        code, _, err = run("app", "--port", str(port))
        assert code == 1 and f"--port {port} cannot be listened on (Address already in use)" in err
    free = str(_free_port())
    for options, message in (
        (("--port", "70000"), "--port 70000 must be 1 to 65535."),
        (("--port", free, "--ckpt_path", "gone.onnx"), "--ckpt_path gone.onnx does not exist."),
        (("--port", free, "--ckpt_path", "best"), "no run under lightning_logs has a best.ckpt"),
    ):
        code, _, err = run("app", *options)
        assert code == 1 and message in err and err.count("\n") == 1
    monkeypatch.setitem(sys.modules, "streamlit.web", None)
    code, _, err = run("app", "--port", free)
    assert code == 1 and "app needs streamlit: uv sync --all-extras" in err

"""How files are written, and what this machine grants."""

import os
from pathlib import Path

import pytest

from agr_lightning import files


@pytest.mark.parametrize(
    ("limits", "count"),
    [
        ({}, 8),
        ({"cpu.max": "max 100000"}, 8),
        ({"cpu.max": "250000 100000"}, 3),
        ({"cpu.max": "1000 100000"}, 1),
        ({"cpu.max": "9900000 100000"}, 8),
        ({"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8),
        ({"cpu.max": "garbage"}, 8),
    ],
)
def test_processors_by_affinity_and_quota(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limits: dict[str, str], count: int
) -> None:
    for name, text in limits.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(files, "_CGROUPS", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert files.usable_cpus() == count


@pytest.mark.parametrize("name", ["a" * 255, "é" * 127, os.fsdecode(b"\xff" * 250)])
def test_names_may_be_as_long_as_file_systems_take(tmp_path: Path, name: str) -> None:
    files.atomic_text(tmp_path / name, "text")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_what_a_killed_writer_left_is_swept_up(tmp_path: Path) -> None:
    old, new, other = (tmp_path / f".{name}.partial" for name in ("a.txt.0123abcd", "b.4567cdef", "of others"))
    for partial in (old, new, other):
        partial.touch()
        os.utime(partial, None if partial == new else (1, 1))
    files.atomic_text(tmp_path / "a.txt", "text")
    assert {path.name for path in tmp_path.iterdir()} == {"a.txt", new.name, other.name}


@pytest.mark.parametrize("lasting", [True, False])
def test_what_lasts_is_on_the_disk_before_it_has_its_name_and_its_name_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lasting: bool
) -> None:
    path, seen = tmp_path / "a.txt", list[tuple[str, bool]]()
    fsync = os.fsync

    def noted(descriptor: int) -> None:
        seen.append((Path(f"/proc/self/fd/{descriptor}").resolve().name, path.exists()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    with files.atomic_write(path, lasting) as file:
        file.write(b"text")
    assert path.read_bytes() == b"text"
    if lasting:
        (partial, before), (folder, after) = seen
        assert partial.endswith(".partial") and not before and folder == tmp_path.name and after
    else:
        assert not seen

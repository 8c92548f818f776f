"""Cache, cards, transforms, batches."""

import json
import os
import pickle
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import lightning
import numpy as np
import pandas as pd
import pytest
import torch
from lightning.fabric.utilities import move_data_to_device
from PIL import Image

from agr_lightning.checkpoints import SEEN, Seen
from agr_lightning.data.cache import ImageCache
from agr_lightning.data.cards import draw_card, draw_cards
from agr_lightning.data.duplicates import of_samples
from agr_lightning.data.index import Index, build_index
from agr_lightning.data.loading import Batch, Draw, FaceDataset
from agr_lightning.data.splits import SPLITS
from agr_lightning.data.transforms import Augmentation, Preset
from agr_lightning.datamodule import PhotoBatch, UTKFaceDataModule
from agr_lightning.images import read_bytes, read_rgb, resize
from agr_lightning.inference.photos import Photo, PhotoOptions
from agr_lightning.labels import MISSING, TASKS, Task
from agr_lightning.messages import UserError
from agr_lightning.models.config import AgeLossName
from tests.conftest import FAST, save_noise

Run = Callable[..., tuple[int, str, str]]

# ---------------------------------------------------------------------- cards


def test_cards_show_three_independent_things() -> None:
    def card(age: int, gender: int, race: int) -> np.ndarray:
        return draw_card(age, gender, race, np.random.default_rng(3)).astype(int)

    base = card(40, 0, 0)
    assert base.shape == (128, 128, 3)
    ring = np.zeros((128, 128), bool)
    y, x = np.mgrid[:128, :128]
    ring[np.hypot(x - 64, y - 64) > 42] = True
    for other, where in ((card(90, 0, 0), ring), (card(40, 1, 0), ~ring), (card(40, 0, 3), ~ring)):
        changed = np.abs(other - base).sum(2) > 60
        assert changed.any()
        assert (changed & where).sum() > 0.95 * changed.sum()


def test_cards_are_drawn_once_and_the_same(tmp_path: Path) -> None:
    one = draw_cards(20, 5, str(tmp_path / "a"))
    two = draw_cards(20, 5, str(tmp_path / "b"))
    assert {f.name: f.read_bytes() for f in one.iterdir()} == {f.name: f.read_bytes() for f in two.iterdir()}
    assert draw_cards(20, 6, str(tmp_path / "a")) != one
    with pytest.raises(UserError, match="synthetic 5"):
        draw_cards(5, 0, str(tmp_path))


# ---------------------------------------------------------------------- cache


def _path(index: Index, row: int) -> Path:
    return index.folder / index.samples["file"][row]


def _filled(index: Index, size: int) -> tuple[ImageCache, np.ndarray]:
    """The cache of an index, and all images in it."""
    images, rows = ImageCache(index, size), np.arange(len(index.samples))
    images.fill(rows)
    return images, images.read(rows)


def _refuse(*_: object) -> None:
    raise AssertionError("decoded again")


def test_the_cache_holds_what_decoding_gives(index: Index) -> None:
    _, images = _filled(index, 40)
    assert images.shape == (120, 40, 40, 3) and images.dtype == np.uint8
    for row in (0, 57, 119):
        assert (images[row] == resize(read_rgb(_path(index, row)), 40)).all()


def test_only_what_is_needed_is_decoded_and_once(index: Index, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    index, decoded = replace(index, scan=tmp_path / index.scan.name), list[str]()
    monkeypatch.setattr("agr_lightning.data.cache.read_bytes", lambda file: decoded.append(file) or read_bytes(file))
    for _ in range(2):
        ImageCache(index, 32).fill(np.array([3, 50]))
    assert decoded == [str(_path(index, 3)), str(_path(index, 50))]
    ImageCache(index, 32).fill(np.arange(60))
    assert len(decoded) == len(set(decoded)) == 60


def test_an_image_that_changes_is_decoded_anew_into_the_same_file(tmp_path: Path) -> None:
    data, cache = tmp_path / "data", tmp_path / "cache"
    for seed in range(3):
        save_noise(data / f"2{seed}_0_1_1.jpg", seed)

    def images() -> np.ndarray:
        return _filled(build_index(str(data), str(cache)), 32)[1]

    first = images()
    save_noise(data / "21_0_1_1.jpg", 9)
    os.utime(data / "21_0_1_1.jpg", ns=(1, 1))
    assert (images()[1] != first[1]).any() and (images()[[0, 2]] == first[[0, 2]]).all()
    save_noise(data / "20_0_0_0.jpg", 10)  # which comes first
    assert (images()[[1, 3]] == first[[0, 2]]).all() and len(list(cache.glob("images-*"))) == 1


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "swap"])
def test_what_is_damaged_in_the_cache_is_decoded_anew(index: Index, tmp_path: Path, damage: str) -> None:
    index = replace(index, scan=tmp_path / index.scan.name)
    images, whole = _filled(index, 32)
    (file,) = tmp_path.iterdir()
    content = bytearray(file.read_bytes())
    if damage == "flip":
        for byte in np.random.default_rng(0).integers(0, len(content), 200):
            content[byte] ^= 1
    elif damage == "swap":
        content[-6144:] = content[-3072:] + content[-6144:-3072]
    file.write_bytes({"cut": content[: len(content) // 2], "empty": b""}.get(damage, content))
    assert (images.read(np.arange(120)) == whole).all()  # meanwhile
    file.write_bytes({"cut": content[: len(content) // 2], "empty": b""}.get(damage, content))
    assert (_filled(index, 32)[1] == whole).all()  # next time
    assert (_filled(index, 32)[1] == whole).all()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks Linux what is resident")
def test_what_was_read_of_the_cache_does_not_stay_in_memory(index: Index) -> None:
    images, _ = _filled(index, 400)

    def resident() -> int:
        fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return int(fields["RssFile"].split()[0]) // 1000

    before = resident()
    for start in range(0, 120, 10):
        assert images.read(np.arange(start, start + 10)).any()
    assert resident() - before < 10  # of 57 MB


def test_a_killed_build_goes_on_and_two_at_once_agree(tmp_path: Path) -> None:
    """Two processes fill the same cache, a third is killed while it does: all images are there, and right."""
    data, cache = tmp_path / "data", tmp_path / "cache"
    for seed in range(40):
        save_noise(data / f"2{seed % 10}_0_1_{seed}.jpg", seed)
    code = (
        "import sys, time, numpy, agr_lightning.data.cache as c; from agr_lightning.data.index import build_index\n"
        "read = c.read_bytes; c.read_bytes = lambda file: time.sleep(0.05) or read(file)\n"
        "images = c.ImageCache(build_index(sys.argv[1], sys.argv[2]), 64); print('filling', flush=True)\n"
        "images.fill(numpy.arange(40)); print(int(images.read(numpy.arange(40)).sum()))"
    )
    command = [sys.executable, "-c", code, str(data), str(cache)]
    killed, *others = (subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3))
    assert killed.stdout is not None and killed.stdout.readline() == "filling\n"
    time.sleep(0.3)
    killed.kill()
    killed.communicate()
    sums = {other.communicate(timeout=120)[0].split()[-1] for other in others}
    index = build_index(str(data), str(cache))
    _, whole = _filled(index, 64)
    assert sums == {str(whole.sum())} and len(list(cache.glob("images-*"))) == 1
    assert (whole[7] == resize(read_rgb(_path(index, 7)), 64)).all()


@pytest.mark.skipif(sys.platform == "win32", reason="limits file sizes as Unix does")
def test_a_full_disk_names_the_file_and_keeps_what_is_whole(index: Index, tmp_path: Path) -> None:
    index = replace(index, scan=tmp_path / index.scan.name)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(OSError, match=r"File too large.*images-32"):
            _filled(index, 32)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (_filled(index, 32)[1][:3] == [resize(read_rgb(_path(index, row)), 32) for row in range(3)]).all()


def test_an_image_that_vanishes_meanwhile_is_named(tmp_path: Path) -> None:
    save_noise(tmp_path / "data" / "20_0_1_1.jpg")
    index = build_index(str(tmp_path / "data"), str(tmp_path / "cache"))
    (tmp_path / "data" / "20_0_1_1.jpg").unlink()
    with pytest.raises(UserError, match=r"20_0_1_1\.jpg has changed"):
        _filled(index, 32)


def test_resize_squeezes_into_a_square() -> None:
    tall = np.zeros((60, 20, 3), np.uint8)
    tall[:30] = 200
    square = resize(tall, 20)
    assert square.shape == (20, 20, 3)
    assert (square[:9] == 200).all() and (square[11:] == 0).all()


def test_resize_averages_when_it_shrinks() -> None:
    dots = np.zeros((60, 60, 3), np.uint8)
    dots[1::3, 1::3] = 255
    assert np.abs(resize(dots, 20).astype(int) - 255 / 9).max() < 1


# ---------------------------------------------------------------------- transforms

PICTURE = np.random.default_rng(0).integers(0, 256, (48, 48, 3), np.uint8)


@pytest.mark.parametrize("preset", ["light", "strong"])
def test_presets_keep_shape_and_type(preset: Preset) -> None:
    augment = Augmentation(preset, 48)
    changed = [augment(PICTURE, (0, 0, i)) for i in range(30)]
    assert all(c.shape == (48, 48, 3) and c.dtype == np.uint8 for c in changed)
    assert sum((c != PICTURE).any() for c in changed) >= 25


def test_one_seed_repeats_and_others_differ() -> None:
    one, two = Augmentation("strong", 48), Augmentation("strong", 48)
    for seed in ((0, 0, 1), (0, 1, 1), (7, 0, 1)):
        assert (one(PICTURE, seed) == two(PICTURE, seed)).all()
    for other in ((0, 1, 1), (0, 0, 2), (7, 0, 1)):
        assert (one(PICTURE, (0, 0, 1)) != one(PICTURE, other)).any()


def test_transforms_of_a_list_are_not_in_lockstep() -> None:
    half = {"p": 0.5}
    augment = Augmentation(
        [{"class_path": "HorizontalFlip", "init_args": half}, {"class_path": "ToGray", "init_args": half}], 48
    )
    fired = []
    for i in range(300):
        changed = augment(PICTURE, (i,))
        gray = bool((changed[:, :, 0] == changed[:, :, 1]).all())
        plain = augment_gray(PICTURE) if gray else PICTURE
        fired.append((bool((changed != plain).any()), gray))
    correlation = np.corrcoef(np.array(fired).T)[0, 1]
    assert abs(correlation) < 0.2


def augment_gray(picture: np.ndarray) -> np.ndarray:
    return Augmentation([{"class_path": "albumentations.ToGray", "init_args": {"p": 1.0}}], 48)(picture, (0,))


def test_nested_transforms_and_lists_as_in_yaml() -> None:
    blur = {"class_path": "GaussianBlur", "init_args": {"blur_limit": [3, 5], "p": 1.0}}
    augment = Augmentation(
        [{"class_path": "OneOf", "init_args": {"transforms": [blur, {"class_path": "ToGray"}], "p": 1.0}}], 48
    )
    assert any((augment(PICTURE, (i,)) != PICTURE).any() for i in range(4))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("lite", "'lite'"),
        ([{"class_path": "HorizontalFlop"}], "no attribute 'HorizontalFlop'"),
        ([{"class_path": "os.system", "init_args": {"command": "true"}}], "no attribute 'os.system'"),
        ([{"class_path": "CoarseDropout", "init_args": {"max_holes": 3}}], "'max_holes' are not valid"),
        ([{"class_path": "HorizontalFlip", "init_args": {"p": 7}}], "less than or equal to 1"),
        ([{"class_path": "HorizontalFlip", "init_arg": {"p": 1}}], "unexpected keyword argument 'init_arg'"),
        ([{"class_path": "Normalize"}], "makes float32 images"),
        ([{"class_path": "CenterCrop", "init_args": {"height": 20, "width": 20}}], r"shape \(20, 20, 3\)"),
        (["HorizontalFlip"], "must be a mapping"),
        ([{"class_path": "OneOf", "init_args": {"transforms": [{"class_pth": "ToGray"}]}}], "'dict' object"),
    ],
)
def test_augmentation_that_cannot_work(spec: object, message: str) -> None:
    with pytest.raises(Exception, match=message):
        Augmentation(spec, 48)  # type: ignore[arg-type]


# ---------------------------------------------------------------------- batches


def _module(**options: object) -> UTKFaceDataModule:
    settings: dict[str, object] = {"synthetic": 120, "image_size": 32, "batch_size": 16, "num_workers": 0}
    module = UTKFaceDataModule(**(settings | options))  # type: ignore[arg-type]
    module.prepare_data()
    module.setup("fit")
    return module


def test_batches_carry_images_and_labels() -> None:
    module = _module()
    batch = next(iter(module.val_dataloader()))
    samples = module.samples("val")
    assert batch.images.dtype == torch.uint8 and batch.images.shape == (len(samples), 3, 32, 32)
    assert batch.age.tolist() == samples["age"].tolist() and batch.age.dtype == torch.float32
    assert batch.gender.tolist() == samples["gender"].tolist() and batch.race.tolist() == samples["race"].tolist()
    assert batch.index.tolist() == list(range(len(samples)))
    (folder,) = (Path(os.environ["XDG_CACHE_HOME"]) / "agr_lightning").glob("cards-*-120-0")
    for row in (0, 5):
        assert (batch.images[row].permute(1, 2, 0).numpy() == resize(read_rgb(folder / samples["file"][row]), 32)).all()
    faces = module.faces("val", [5, 0])
    assert (faces == batch.images[[5, 0]].permute(0, 2, 3, 1).numpy()).all()


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_batches_do_not_depend_on_the_number_of_workers(workers: int) -> None:
    torch.manual_seed(0)
    expected = [batch.images for batch in _module(augmentation="strong").train_dataloader()]
    torch.manual_seed(0)
    found = [batch.images for batch in _module(augmentation="strong", num_workers=workers).train_dataloader()]
    assert len(found) == len(expected) == 6
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_workers_and_epochs_draw_different_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    module = _module(augmentation="strong", num_workers=2)
    epoch = 0
    monkeypatch.setattr(module, "_progress", lambda: (epoch, 0))
    loader = module.train_dataloader()
    seen: dict[int, list[torch.Tensor]] = {}
    for epoch in range(3):  # noqa: B007 (read through the closure)
        for batch in loader:
            for index, image in zip(batch.index.tolist(), batch.images, strict=True):
                seen.setdefault(index, []).append(image)
    repeated = [images for images in seen.values() if len(images) == 3]
    assert len(repeated) > 50
    assert all(not torch.equal(images[0], images[1]) for images in repeated)
    assert all(not torch.equal(images[1], images[2]) for images in repeated)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_begins_with_its_first_batch(monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    """Lightning reads from the checkpoint which epoch it is after it has made the iterator."""
    module, epoch = _module(num_workers=workers), 0
    monkeypatch.setattr(module, "_progress", lambda: (epoch, 0))
    first = next(iter(module.train_dataloader())).index.tolist()
    iterator = iter(module.train_dataloader())
    epoch = 1
    found = next(iterator).index.tolist()
    assert found == next(iter(module.train_dataloader())).index.tolist() != first


def test_workers_do_not_share_their_draws(index: Index) -> None:
    """The same picture in all places: what two workers make of it must differ."""
    images, _ = _filled(index, 48)
    samples = pd.DataFrame({"row": [0] * 64, "age": 30, "gender": 0, "race": 0})
    dataset = FaceDataset(samples, images, Augmentation("strong", 48), seed=0)
    loader = torch.utils.data.DataLoader(
        dataset, 16, sampler=[Draw(0, i, i) for i in range(64)], collate_fn=Batch._make, num_workers=2
    )
    made = torch.cat([batch.images for batch in loader]).flatten(1)
    assert len(torch.unique(made, dim=0)) == 64


def test_a_pickled_dataset_opens_the_cache_itself() -> None:
    module = _module()
    dataset = module.val_dataloader().dataset
    content = pickle.dumps(dataset)
    assert len(content) < 100_000
    copy = pickle.loads(content)
    assert len(pickle.dumps(module)) < 200_000  # as where processes are spawned
    assert torch.equal(copy.__getitems__([2]).images, dataset.__getitems__([2]).images)


def test_a_test_root_is_the_test_and_is_not_trained_on(cards: Path, tmp_path: Path) -> None:
    names = sorted(card.name for card in cards.iterdir())
    for name in names[:10]:
        os.link(cards / name, tmp_path / f"9{name[name.index('_') :]}")
    module = _module(synthetic=0, root=str(cards), test_root=str(tmp_path))
    assert len(module.samples("test")) == 10
    used = {*module.samples("train")["name"], *module.samples("val")["name"]}
    assert len(used) >= 105 and not used & set(names[:10])
    assert next(iter(module.test_dataloader())).images.shape == (10, 3, 32, 32)


def test_a_test_root_needs_no_other_images_to_be_tested_on(cards: Path) -> None:
    module = UTKFaceDataModule(test_root=str(cards), age_min=50, num_workers=0, image_size=32)
    module.setup("test")
    assert len(module.samples("test")) > 20 and module.samples("test")["age"].min() >= 50
    with pytest.raises(UserError, match="no images"):
        module.setup("fit")


def test_age_range_is_kept_in_all_splits() -> None:
    module = _module(age_min=21, age_max=60)
    ages = pd.concat([module.samples(name)["age"] for name in SPLITS])
    assert len(ages) > 20 and ages.between(21, 60).all()


def test_nothing_is_read_or_split_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    module = _module()
    before = module.samples("train")
    for split in SPLITS:
        module.faces(split, [0])
    for name in ("datamodule.build_index", "datamodule.make_split", "data.cache.read_bytes"):
        monkeypatch.setattr(f"agr_lightning.{name}", None)
    for stage in ("fit", "validate", "test"):
        module.prepare_data()
        module.setup(stage)
    assert module.samples("train").equals(before) and len(list(module.test_dataloader())) == 1


class _Weights(lightning.LightningModule):
    """A module that has seen these samples."""

    def __init__(self, training: pd.DataFrame, validation: pd.DataFrame) -> None:
        super().__init__()
        self.seen: Seen | None = dict(zip(SEEN, map(of_samples, (training, validation)), strict=True))
        self.shown: list[int] = []

    def validation_step(self, batch: tuple[torch.Tensor, ...], batch_idx: int) -> None:
        self.shown += batch[-1].tolist()

    test_step = validation_step


def _evaluate(module: _Weights, data: UTKFaceDataModule, stage: str) -> list[str]:
    """The names of the images that a Trainer shows to a module."""
    module.shown = []
    trainer = lightning.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
    getattr(trainer, stage)(module, data)
    split = "val" if stage == "validate" else "test"
    assert module.shown == list(range(len(data.samples(split))))  # type: ignore[arg-type]
    return list(data.samples(split)["name"])  # type: ignore[arg-type]


def test_nothing_is_measured_on_what_the_weights_have_seen(caplog: pytest.LogCaptureFixture) -> None:
    data = _module()
    val, test = (data.samples(name) for name in ("val", "test"))  # type: ignore[arg-type]
    caplog.set_level("INFO")
    module = _Weights(pd.concat([val[:1], test[1:2]]), pd.concat([val[2:3], test[3:4]]))
    assert _evaluate(module, data, "validate") == list(val["name"][1:])
    assert f"1 of {len(val)} val images left out" in caplog.text
    assert _evaluate(module, data, "test") == list(test["name"].drop([1, 3]))
    # Weights are known when loaders are made, and other weights have seen other images.
    assert _evaluate(_Weights(test[:0], test[:0]), data, "test") == list(test["name"])
    assert "It is not known" not in caplog.text
    module.seen = None
    assert _evaluate(module, data, "test") == list(test["name"])
    assert "It is not known whether these weights have seen images of test" in caplog.text
    with pytest.raises(UserError, match="have seen all images for test"):
        _evaluate(_Weights(test, test[:0]), data, "test")


def test_photos_that_the_weights_have_seen_are_known_by_any_name_and_form(tmp_path: Path) -> None:
    (tmp_path / "before").mkdir()
    for seed in range(40):
        pixels = np.random.default_rng(seed).integers(0, 256, (24, 24, 3), np.uint8)
        photo = Image.fromarray(pixels).resize((200, 200), Image.Resampling.BICUBIC)
        photo.save(tmp_path / "before" / f"2{seed % 10}_0_1_{seed}.jpg.chip.jpg")
    seen = build_index(str(tmp_path / "before")).samples[:30]
    changes = {
        "renamed.jpg": lambda image: image,
        "converted.png": lambda image: image,
        "small.png": lambda image: image.resize((64, 64)),
        "grey.jpg": lambda image: image.convert("L"),
        "dark.webp": lambda image: image.point(lambda value: value * 0.4),
    }
    for name, change in changes.items():
        for seed in range(40):
            with Image.open(tmp_path / "before" / f"2{seed % 10}_0_1_{seed}.jpg.chip.jpg") as image:
                (tmp_path / name).mkdir(exist_ok=True)
                change(image).save(tmp_path / name / f"30_1_2_{seed}{Path(name).suffix}", quality=70)
        data = UTKFaceDataModule(test_root=str(tmp_path / name), num_workers=0, image_size=32)
        found = _evaluate(_Weights(seen, seen[:0]), data, "test")
        left = {str(file).split("_")[3].split(".")[0] for file in seen["file"]}
        assert {Path(file).stem.split("_")[3] for file in found} == {str(seed) for seed in range(40)} - left, name


def test_photos_come_with_their_faces(tmp_path: Path) -> None:
    for number in range(5):
        save_noise(tmp_path / f"{number}.jpg", number)
    (tmp_path / "5.jpg").write_text("no photo")
    data = UTKFaceDataModule(predict_path=str(tmp_path), image_size=32, batch_size=2, photos=PhotoOptions(faces="none"))
    assert "photos" not in data.hparams
    seen = []

    class Reading(lightning.LightningModule):
        def predict_step(self, batch, batch_idx: int) -> None:
            assert batch.images.dtype == torch.uint8 and batch.images.shape[1:] == (3, 32, 32)
            crops = np.concatenate([photo.crops for photo in batch.photos])
            assert (batch.images.permute(0, 2, 3, 1).numpy() == crops).all()
            seen.extend((photo.index, photo.path.name, len(photo.crops)) for photo in batch.photos)

    lightning.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, precision="bf16-true").predict(
        Reading(), data
    )
    assert seen == [*((n, f"{n}.jpg", 1) for n in range(5)), (5, "5.jpg", 0)]
    assert [path.name for path in data.photos_to_predict] == [f"{n}.jpg" for n in range(6)]


def test_photos_stay_where_they_are_when_faces_go_to_a_device() -> None:
    photos = [Photo(Path("a.jpg"), np.zeros((2, 8, 8, 3), np.uint8))]
    batch = move_data_to_device(PhotoBatch(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), photos), torch.device("meta"))
    assert batch.images.device.type == "meta" and batch.photos[0].crops is photos[0].crops


def test_processes_share_the_photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(5):
        save_noise(tmp_path / f"{number}.jpg", number)
    found = []
    for rank in range(2):
        data = UTKFaceDataModule(predict_path=str(tmp_path), image_size=32, photos=PhotoOptions(faces="none"))
        data.setup("predict")
        monkeypatch.setattr(data, "_rank", lambda images, rank=rank: (rank, 2))
        found.append([photo.index for batch in data.predict_dataloader() for photo in batch.photos])
    assert found == [[0, 2, 4], [1, 3]]


def test_samples_without_race_reach_the_batch(tmp_path: Path) -> None:
    for i in range(40):
        save_noise(tmp_path / f"{20 + i}_1_2017010900000{i:04}.jpg", i)
    module = _module(synthetic=0, root=str(tmp_path))
    batch = next(iter(module.train_dataloader()))
    assert (batch.race == MISSING).all() and (batch.gender == 1).all()


def test_race_is_not_learnt_where_nobody_has_a_label(tmp_path: Path, here: Path, run: Run) -> None:
    for i in range(40):
        save_noise(tmp_path / "a folder" / f"{20 + i}_{i % 2}_2017010900000{i:04}.jpg", i)
    command = ("fit", *FAST, "--data.root", "a folder", "--trainer.max_epochs", "1")
    code, _, err = run(*command)
    assert code == 1 and err == (
        "error: no training image has a label for race: leave it out with --model.tasks '[age, gender]'.\n"
    )
    # What is to be typed next can be typed.
    code, out, err = run(*command, "--model.tasks", "[age, gender]", "--trainer.default_root_dir", "its runs")
    assert code == 0 and "--ckpt_path 'its runs/lightning_logs/version_0/checkpoints/best.ckpt' --data" in out, err


def _forget(monkeypatch: pytest.MonkeyPatch, *tasks: Task, share: float = 1.0) -> None:
    """Ages become decimal, and this share of all labels of the tasks unknown."""

    def build(*args: str) -> Index:
        index, random = build_index(*args), np.random.default_rng(0)
        samples = index.samples.assign(age=index.samples["age"] + random.choice([0, 0.25, 0.5], len(index.samples)))
        for task in tasks:
            samples.loc[random.random(len(samples)) < share, task] = MISSING
        return replace(index, samples=samples)

    monkeypatch.setattr("agr_lightning.datamodule.build_index", build)


def test_labels_reach_the_batch_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    _forget(monkeypatch, "age", "gender", "race", share=0.5)
    module = _module(balance="age")
    samples, batch = module.samples("train"), next(iter(module.train_dataloader()))
    assert (batch.age.dtype, batch.gender.dtype, batch.race.dtype) == (torch.float32, torch.int64, torch.int64)
    for task in ("age", "gender", "race"):
        assert getattr(batch, task).tolist() == samples[task].to_numpy()[batch.index.numpy()].tolist()
        assert (getattr(batch, task) == MISSING).any()
    assert (batch.age % 1 != 0).any()


@pytest.mark.parametrize(
    ("tasks", "unlabelled", "message"),
    [
        (TASKS, ("age",), "age: leave it out with --model.tasks '[gender, race]'."),
        (TASKS, ("gender", "race"), "gender: leave it out with --model.tasks '[age]'."),
        (("gender",), ("gender",), "gender: label some."),
    ],
)
def test_a_task_needs_a_label(
    here: Path,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    tasks: tuple[Task, ...],
    unlabelled: tuple[Task, ...],
    message: str,
) -> None:
    _forget(monkeypatch, *unlabelled)
    options = ("--data.synthetic", "120", "--model.tasks", f"[{', '.join(tasks)}]", "--trainer.max_epochs", "1")
    code, _, err = run("fit", *FAST, *options)
    assert code == 1 and err == f"error: no training image has a label for {message}\n"
    rest = [task for task in TASKS if task not in unlabelled]
    code, _, err = run("fit", *FAST, *options, "--model.tasks", f"[{', '.join(rest)}]", "--test_after_fit", "false")
    assert code == 0, err


@pytest.mark.parametrize("loss", ["l1", "coral"])
def test_missing_labels_cost_their_own_task_alone(
    here: Path, run: Run, monkeypatch: pytest.MonkeyPatch, loss: AgeLossName
) -> None:
    _forget(monkeypatch, *TASKS, share=0.4)
    options = ("--data.synthetic", "240", "--data.test_fraction", "0.3", "--model.age_loss", loss)
    options += ("--data.balance", "age", "--trainer.max_epochs", "1")
    code, _, err = run("fit", *FAST, *options)
    assert code == 0, err
    results = json.loads((here / "lightning_logs" / "version_0" / "results.json").read_text())
    assert results["n"] == 72 and all(results["metrics"][name] is not None for name in ("age_mae", "gender_acc"))
    labelled = {each: sum(g["n"] for g in results["groups"] if g["attribute"] == each) for each in ("age_band", "race")}
    assert results["minors"]["minors"] + results["minors"]["adults"] == labelled["age_band"] < 60
    assert sum(map(sum, results["classes"]["race"]["confusion"])) == labelled["race"] < 60
    assert results["metrics"]["age_mae"] < 60
    code, _, err = run("report", "lightning_logs/version_0")
    assert code == 0, err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size 0"),
        ({"seed": -1}, "seed -1"),
        ({"num_workers": -1}, "num_workers -1"),
        ({"image_size": 8}, "image_size 8"),
        ({"root": "x"}, "exclude each other"),
    ],
)
def test_values_that_cannot_work(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        UTKFaceDataModule(**({"synthetic": 120} | options))  # type: ignore[arg-type]


def test_no_images_at_all() -> None:
    with pytest.raises(UserError, match=r"--data\.root FOLDER"):
        UTKFaceDataModule().setup("fit")
    with pytest.raises(UserError, match=r"no images are left for train: "):
        UTKFaceDataModule(synthetic=20, age_min=116).setup("fit")


@pytest.mark.parametrize(
    "options",
    [
        {"val_fraction": 0.5, "test_fraction": 0.5},
        {"val_fraction": 0.6, "test_fraction": 0.7},
        {"val_fraction": -0.1},
        {"age_min": 60, "age_max": 20},
        {"max_samples": 0},
        {"max_per_gender": -1},
    ],
)
def test_options_that_leave_a_split_empty(options: dict[str, float]) -> None:
    with pytest.raises(UserError, match=r"no images are left for (train|val): "):
        UTKFaceDataModule(synthetic=120, **options).setup("fit")  # type: ignore[arg-type]


def test_importing_draws_no_random_numbers() -> None:
    code = (
        "import random, numpy, torch; random.seed(1); numpy.random.seed(1); torch.manual_seed(1)\n"
        "before = random.getstate(), numpy.random.get_state()[1].tobytes(), torch.get_rng_state().numpy().tobytes()\n"
        "import agr_lightning.module, agr_lightning.datamodule\n"
        "after = random.getstate(), numpy.random.get_state()[1].tobytes(), torch.get_rng_state().numpy().tobytes()\n"
        "assert before == after"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

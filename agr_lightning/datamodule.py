"""UTKFaceDataModule: index -> split -> cache -> batches, for the Trainer."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Literal, NamedTuple

import lightning
import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from agr_lightning.checkpoints import SEEN
from agr_lightning.data.cache import ImageCache
from agr_lightning.data.cards import draw_cards
from agr_lightning.data.duplicates import COPY_BITS, are_known, of_samples
from agr_lightning.data.index import Index, build_index
from agr_lightning.data.loading import (
    Batch,
    EvalSampler,
    FaceDataset,
    LazyDataLoader,
    TrainSampler,
    balancing_weights,
    ignore_signals,
)
from agr_lightning.data.splits import SPLITS, SplitName, SplitOptions, make_split, within_ages
from agr_lightning.data.tables import LabelOptions
from agr_lightning.data.transforms import Augmentation, Preset, TransformSpec
from agr_lightning.inference.crop import not_crops
from agr_lightning.inference.inputs import find_photos
from agr_lightning.inference.photos import Photo, PhotoOptions, PhotoReader, photo_batches
from agr_lightning.labels import AGE_MAX, AGE_MIN
from agr_lightning.messages import UserError

_log = logging.getLogger(__name__)

_NEEDED: dict[str, tuple[SplitName, ...]] = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",)}


class PhotoBatch(NamedTuple):
    """Photos, and all faces in them: RGB, uint8 ``(faces, 3, size, size)``."""

    images: Tensor
    photos: list[Photo]


class UTKFaceDataModule(lightning.LightningDataModule):
    """UTKFace images, or any images whose labels stand in their names or in a table.

    Args:
        root: folder of images named AGE_GENDER_RACE_DATETIME.jpg, or that labels names, searched recursively; or the
            downloaded archive itself (.zip, .tar, .tar.gz).
        labels: table of labels (CSV, TSV, JSON lines, Parquet), here or below the root, or a glob of several; or the
            form of the file names, '{number}_{person}_{age}_{gender}.jpg'; null for names AGE_GENDER_RACE_.
        columns: what the table calls file, age, gender, race, split, x, y, width, height, right and bottom, where
            it is something else, {file: img_name}, or what is made of its columns, {file: 'images/{id}.jpg'}.
        race_map: classes of another taxonomy, with white, black, asian, indian, others or unknown for each.
        group: column of the table that names the person: nobody is in two splits.
        box_margin: what a crop has around a face box of the table, on each side, in shares of its longer side.
        synthetic: instead of a root, this many drawn, labelled test cards; 0 for none.
        split: 'random' (equal shares of age band, gender and race; copies of a photo never in two splits; the same on
            every machine for one seed), which is that of the table of labels where it says one; or a folder with
            train.txt, val.txt and test.txt of file names.
        seed: of the random split, the subsets and the cards; training has --seed_everything.
        age_min: youngest age that is used, years; with a limit no image of unknown age is used.
        age_max: oldest age that is used, years.
        val_fraction: share of the photos that the random split sets aside for validation.
        test_fraction: share of the photos that the random split sets aside for the test.
        test_root: folder or archive of which all images are the test set; none of its photos is trained on.
        predict_path: for predict: a photo or video, a folder (searched recursively), a glob in quotes, or a .txt list.
        max_samples: use so many images of all splits, each split, age band, gender and race its share; null for all.
        max_per_gender: use at most this many images of each gender, likewise, and none of unknown gender; null for all.
        balance: draw each class of this label, or age band, equally often in training; images without it as they come.
        batch_size: images in a batch, on each device.
        num_workers: processes that prepare batches; 0 prepares them in the main process.
        image_size: side of the images that the network gets, pixels.
        cache_dir: folder for decoded images and unpacked archives; null for ~/.cache/agr_lightning.
        augmentation: random changes to training images: none, light (flip, affine, brightness and contrast), strong
            (also resized crop, colour jitter, blur or compression, dropout), or a list of Albumentations transforms,
            each {class_path: NAME, init_args: {...}}.
        photos: for predict: which faces of the photos are wanted.
    """

    def __init__(
        self,
        root: str | None = None,
        labels: str | None = None,
        columns: dict[str, str] | None = None,
        race_map: dict[str, str] | None = None,
        group: str | None = None,
        box_margin: float = 0.0,
        synthetic: int = 0,
        split: str = "random",
        seed: int = 0,
        age_min: int = AGE_MIN,
        age_max: int = AGE_MAX,
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
        test_root: str | None = None,
        predict_path: str | None = None,
        max_samples: int | None = None,
        max_per_gender: int | None = None,
        balance: Literal["none", "age", "gender", "race"] = "none",
        batch_size: int = 64,
        num_workers: int = 2,
        image_size: int = 128,
        cache_dir: str | None = None,
        augmentation: Preset | list[TransformSpec] = "light",
        photos: PhotoOptions = PhotoOptions(),  # noqa: B008 (frozen)
    ) -> None:
        super().__init__()
        # Plain values, so that a checkpoint loads without running code; read at use, since finders change them.
        self.save_hyperparameters(ignore="photos")
        for name in ("batch_size", "image_size", "num_workers", "synthetic", "seed", "box_margin"):
            if self.hparams[name] < (least := {"batch_size": 1, "image_size": 16}.get(name, 0)):
                raise UserError(f"--data.{name} {self.hparams[name]} must be {least} or more.")
        if root is not None and synthetic:
            raise UserError(f"--data.root {root} and --data.synthetic {synthetic} exclude each other.")
        self._options = SplitOptions(**{each.name: self.hparams[each.name] for each in fields(SplitOptions)})
        self._labels = LabelOptions(labels, columns or {}, race_map or {}, group, box_margin)
        self.photo_options = photos
        self.photos_to_predict: list[Path] = []  # all inputs, in order
        self.first_to_predict = 0  # of this process; those before it are done
        self.keep_pictures = False  # of the photos to predict, to be annotated
        self._indexes: dict[SplitName, Index] = {}
        self._splits: dict[SplitName, pd.DataFrame] = {}
        self._unseen: dict[SplitName, pd.DataFrame] = {}
        self._caches: dict[tuple[str, int], ImageCache] = {}
        self._train_seed: int | None = None

    def prepare_data(self) -> None:
        """Reads, checks and decodes all images, once on each machine; what was found is kept in the cache."""
        stage = "fit" if self.trainer is None else str(self.trainer.state.fn.value)  # type: ignore[union-attr]
        if stage != "predict":
            self._read(stage)
            for name in _NEEDED[stage]:
                self._images(name)

    def setup(self, stage: str) -> None:
        """Decides who is in train, val and test, or which photos to predict; raises UserError where there are none."""
        if stage == "predict":
            self.photos_to_predict = self.photos_to_predict or find_photos(self.hparams["predict_path"])
            return
        self._read(stage)
        self._unseen = {}
        for name in _NEEDED[stage]:
            if self._splits[name].empty:
                raise UserError(f"no images are left for {name}: use more, or change --data.split or what limits it.")
        images, batch_size = len(self._splits.get("train", ())), self.hparams["batch_size"]
        if stage == "fit" and min(images, batch_size) < 2:
            raise UserError(f"--data.batch_size {batch_size}, {images:,} images: training needs 2 in a batch.")

    def train_dataloader(self) -> DataLoader[Batch]:
        samples, balance = self.samples("train"), self.hparams["balance"]
        if self._train_seed is None:
            # The same on all ranks, and the same in a resumed run: what --seed_everything set.
            seed = torch.initial_seed() % 2**32
            self._train_seed = seed if self.trainer is None else int(self.trainer.strategy.broadcast(seed))
        weights = None if balance == "none" else balancing_weights(samples, balance)
        sampler = TrainSampler(len(samples), self._train_seed, self._progress, weights, *self._rank(len(samples)))
        spec = self.hparams["augmentation"]
        augmentation = None if spec == "none" else Augmentation(spec, self.hparams["image_size"])
        return self._loader(FaceDataset(samples, self._images("train"), augmentation, self._train_seed), sampler)

    def val_dataloader(self) -> DataLoader[Batch]:
        return self._eval_loader("val")

    def test_dataloader(self) -> DataLoader[Batch]:
        return self._eval_loader("test")

    def predict_dataloader(self) -> Iterator[PhotoBatch]:
        (rank, ranks), of_cards = self._rank(len(self.photos_to_predict)), bool(self.hparams["synthetic"])
        reader = PhotoReader(self.photo_options, self.hparams["image_size"], self.keep_pictures, of_cards)
        inputs = list(enumerate(self.photos_to_predict))[max(rank, self.first_to_predict) :: ranks]
        for photos in photo_batches(inputs, reader, self.hparams["batch_size"]):
            faces = np.concatenate([photo.crops for photo in photos])
            yield PhotoBatch(torch.from_numpy(faces).permute(0, 3, 1, 2), photos)

    def samples(self, split: SplitName) -> pd.DataFrame:
        """A split's samples, in the order of ``Batch.index``: of val and test those that the weights have not seen.

        Asked of the module when first needed, since the weights of a checkpoint are loaded after ``setup``.
        """
        if split not in self._splits:
            self._read(split)  # under ddp_fork this process set nothing up
        if split not in self._unseen:
            self._unseen[split] = self._without_seen(split)
        return self._unseen[split]

    def faces(self, split: SplitName, indices: Sequence[int]) -> NDArray[np.uint8]:
        """Some images of a split, as the network gets them: uint8 ``(indices, size, size, 3)``."""
        return self._images(split).read(self.samples(split)["row"].to_numpy()[indices])

    def _read(self, stage: str) -> None:
        """Finds and splits the images that a stage needs, unless that was done before."""
        options, test_root = self._options, self.hparams["test_root"]
        if test_root is not None and "test" not in self._splits:
            self._indexes["test"] = self._index(test_root, "--data.test_root", self._labels)
            self._splits["test"] = within_ages(self._indexes["test"].samples, options)
        if "train" in self._splits or (test_root is not None and stage == "test"):
            return
        if self.hparams["synthetic"]:
            cards = draw_cards(self.hparams["synthetic"], self.hparams["seed"], self.hparams["cache_dir"])
            index = self._index(str(cards), "--data.synthetic")
        elif self.hparams["root"] is not None:
            index = self._index(self.hparams["root"], "--data.root", self._labels)
        else:
            raise UserError("no images: give --data.root FOLDER, or --data.synthetic 1500 for drawn test cards.")
        samples, names = index.samples, SPLITS
        if test_root is not None:
            # All photos of the test root are the test, so none of them may be learned from.
            if (shared := self._of_photos(samples, of_samples(self._indexes["test"].samples))).any():
                _log.info(f"{index.root}: {shared.sum():,} images left out: {test_root} shows the same photos")
            samples, options, names = samples[~shared], replace(options, test_fraction=0.0), SPLITS[:2]
        split = make_split(samples, options, names)
        for name in names:
            self._indexes[name], self._splits[name] = index, split[name]

    def _index(self, root: str, option: str, labels: LabelOptions | None = None) -> Index:
        """Finds the samples in a folder, and says what is there; None for the labels of drawn cards."""
        index = build_index(root, self.hparams["cache_dir"], option, labels or LabelOptions())
        _log.info(index.summary())
        if labels is not None and (problem := not_crops(index)):
            _log.warning(problem)
        return index

    def _images(self, split: SplitName) -> ImageCache:
        """The decoded images of a split, by the ``row`` of its samples."""
        index, size = self._indexes[split], self.hparams["image_size"]
        if (index.key, size) not in self._caches:
            self._caches[index.key, size] = ImageCache(index, size)
        self._caches[index.key, size].fill(self._splits[split]["row"].to_numpy())
        return self._caches[index.key, size]

    def _without_seen(self, split: SplitName) -> pd.DataFrame:
        """A split without the photos that the weights have seen, whatever their files are called."""
        samples = self._splits[split]
        module = None if self.trainer is None else self.trainer.lightning_module
        if split == "train" or module is None:
            return samples
        seen = getattr(module, "seen", None)
        if seen is None:
            _log.info(f"It is not known whether these weights have seen images of {split}.")
            return samples
        known = np.concatenate([seen[kind] for kind in (SEEN[:1] if split == "val" else SEEN)])
        everyone = self._indexes[split].samples
        related = everyone[everyone["group"].isin(samples["group"])]
        unseen = samples[~samples["group"].isin(related["group"][self._of_photos(related, known)])]
        if left_out := len(samples) - len(unseen):
            _log.info(f"{left_out:,} of {len(samples):,} {split} images left out, because these weights have seen them")
        return unseen.reset_index(drop=True)

    def _of_photos(self, samples: pd.DataFrame, photos: NDArray[np.uint8]) -> "pd.Series[bool]":
        """Which samples show one of some photos, by their fingerprints, or are in the group of one that does."""
        bits = 0 if self.hparams["synthetic"] else COPY_BITS  # drawn cards look alike
        return samples["group"].isin(samples["group"][are_known(of_samples(samples), photos, bits)])

    def _rank(self, images: int) -> tuple[int, int]:
        """This process among all; raises UserError where there are fewer images than processes."""
        rank, ranks = (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)
        # Of all images, so that all processes stop: one that did alone would leave the others waiting.
        if images < ranks:
            raise UserError(f"{images:,} images are too few for {ranks} devices; use fewer with --trainer.devices.")
        return rank, ranks

    def _progress(self) -> tuple[int, int]:
        """The current epoch, and how many samples of it this process has trained on."""
        if self.trainer is None:
            return 0, 0
        batches = self.trainer.fit_loop.epoch_loop.batch_progress.current.ready
        return self.trainer.current_epoch, batches * self.hparams["batch_size"]

    def _eval_loader(self, split: SplitName) -> DataLoader[Batch]:
        samples = self._unseen[split] = self._without_seen(split)
        if samples.empty:
            raise UserError(f"these weights have seen all images for {split}: name others with --data.test_root.")
        dataset, (rank, ranks) = FaceDataset(samples, self._images(split)), self._rank(len(samples))
        return self._loader(dataset, EvalSampler(dataset, ranks, rank))

    def _loader(self, dataset: FaceDataset, sampler: TrainSampler | EvalSampler) -> DataLoader[Batch]:
        batch_size, workers = self.hparams["batch_size"], self.hparams["num_workers"]
        return LazyDataLoader(
            dataset,
            batch_size=batch_size,
            sampler=sampler,
            # A small last batch would disturb the batch statistics; where there is only that one, it must do.
            drop_last=isinstance(sampler, TrainSampler) and len(sampler) >= batch_size,
            collate_fn=Batch._make,  # of a batch, which the dataset fetches whole: itself
            num_workers=workers,
            worker_init_fn=ignore_signals,
            persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

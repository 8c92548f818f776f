"""UTKFaceDataModule: index, split, cache and transforms, tied to the Trainer."""

import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import lightning
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from agr_lightning.data.dataset import Batch, FaceDataset, LateLoader, PhotoBatch, PhotoStream, whole
from agr_lightning.data.photos import find_photos
from agr_lightning.data.presets import Preset, TransformSpec
from agr_lightning.data.sampling import Draw, EvalSampler, TrainSampler, balancing_weights
from agr_lightning.data.sources import Sources
from agr_lightning.data.splits import Side, Split, SplitOptions
from agr_lightning.labels import AGE_MAX, AGE_MIN
from agr_lightning.messages import UserError

if TYPE_CHECKING:
    from agr_lightning.data.transforms import Augmentation

T = TypeVar("T")

# Reads inputs, given with their places among all; see PhotoStream.
ReadPhotos = Callable[[Sequence[tuple[int, Path]]], Iterator[Sequence[Any]]]

# Which sides a stage cannot do without.
_NEEDED: dict[str, tuple[Side, ...]] = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",)}


class UTKFaceDataModule(lightning.LightningDataModule):
    """UTKFace images, or any images named as they are.

    Args:
        root: folder of images named AGE_GENDER_RACE_DATETIME.jpg, searched recursively, or the downloaded
            archive itself (.zip, .tar, .tar.gz).
        synthetic: instead of a root, this many drawn, labelled test cards; 0 for none.
        split: 'random' (same shares of age band, gender and race on each side; copies of a photo never on
            two sides; the same on every machine for one seed), or a folder with train.txt, val.txt and
            test.txt of file names.
        seed: of the random split, the subsets and the cards; training has --seed_everything.
        age_min: youngest age that is used, years.
        age_max: oldest age that is used, years.
        val_fraction: share of the photos that the random split sets aside for validation.
        test_fraction: share of the photos that the random split sets aside for the test.
        test_root: folder or archive of which all images are the test set; none of its photos is trained on.
        predict_path: for predict: a photo or video, a folder (searched recursively), a glob in quotes, or a .txt list.
        max_samples: use at most this many images on all sides together, each side, age band, gender and
            race keeping its share; null for all.
        max_per_gender: use at most this many images of each gender, likewise; null for all.
        balance: draw each class of this label equally often in training, with replacement.
        batch_size: images in a batch, on each device.
        num_workers: processes that prepare batches; 0 prepares them in the main process.
        image_size: side of the images that the network gets, pixels.
        grayscale: leave the colour of the images out.
        cache_dir: folder for decoded images and unpacked archives; null for ~/.cache/agr_lightning.
        augmentation: random changes to training images: none, light (flip, affine, brightness and
            contrast), strong (also resized crop, colour jitter, blur or compression, dropout), or a list of
            Albumentations transforms, each {class_path: NAME, init_args: {...}}.

    Raises:
        UserError: for values that cannot work, before anything is read.
    """

    def __init__(
        self,
        root: str | None = None,
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
        balance: Literal["none", "gender", "race"] = "none",
        batch_size: int = 64,
        num_workers: int = 2,
        image_size: int = 128,
        grayscale: bool = False,
        cache_dir: str | None = None,
        augmentation: Preset | list[TransformSpec] = "light",
    ) -> None:
        super().__init__()
        # Lightning logs the hyperparameters of module and data module together: plain values only, so that
        # a checkpoint loads without running code.
        self.save_hyperparameters()
        self._predict_path = predict_path
        self._balance = balance
        self._batch_size, self._num_workers = batch_size, num_workers
        self._image_size, self._grayscale = image_size, grayscale
        self._augmentation = augmentation
        options = SplitOptions(split, seed, val_fraction, test_fraction, max_samples, max_per_gender, age_min, age_max)
        options.check()
        self._check(synthetic, seed)
        if root is not None and synthetic:
            raise UserError(f"--data.root {root} and --data.synthetic {synthetic} exclude each other.")
        self._sources = Sources(root, synthetic, test_root, options, image_size, cache_dir)
        self._photos: list[Path] = []
        self._read: ReadPhotos | None = None
        self._train_seed: int | None = None

    # ------------------------------------------------------------------ what Lightning calls

    def prepare_data(self) -> None:
        """Reads, checks, splits and decodes all images, once on each machine, and reports what was rejected."""
        stage = self._stage()
        # Here rather than in setup() alone: by then a logger has made the run folder, in vain if this fails.
        self.setup(stage)
        self._sources.fill_cache()

    def setup(self, stage: str) -> None:
        """Decides who is in train, val and test, or which photos to predict.

        Raises:
            UserError: for a root or an augmentation that does not work, when a side that the stage needs is
                empty, or when there is nothing to predict.
        """
        if stage == "predict":
            self._photos = self._photos or find_photos(self._predict_path)
            return
        if stage == "fit":
            self._build_augmentation()
        split = self._sources.read(stage)
        for side in _NEEDED[stage]:
            if not split[side]:
                raise UserError(self._sources.no_images(side))
        if stage == "fit" and min(len(split["train"]), self._batch_size) < 2:
            raise UserError(
                f"training needs 2 images in a batch, but there are {len(split['train']):,} and "
                f"--data.batch_size is {self._batch_size}."
            )

    def train_dataloader(self) -> DataLoader[Batch]:
        samples = self.split["train"]
        rank, ranks = self._rank()
        if self._train_seed is None:
            # The same on all ranks, and the same in a resumed run: what --seed_everything set.
            seed = torch.initial_seed() % 2**32
            self._train_seed = seed if self.trainer is None else int(self.trainer.strategy.broadcast(seed))
        weights = None
        if self._balance != "none":
            weights = balancing_weights(samples.gender if self._balance == "gender" else samples.race)
        sampler = TrainSampler(len(samples), self._train_seed, self._progress, weights, rank, ranks)
        dataset = self._dataset("train", self._build_augmentation())
        # A small last batch would disturb the batch statistics; where there is only that one, it must do.
        return self._loader(dataset, sampler, drop_last=len(sampler) >= self._batch_size)

    def val_dataloader(self) -> DataLoader[Batch]:
        return self._eval_loader("val")

    def test_dataloader(self) -> DataLoader[Batch]:
        return self._eval_loader("test")

    def predict_dataloader(self) -> DataLoader[PhotoBatch]:
        assert self._read is not None  # see read_photos_by
        rank, ranks = self._rank()
        self._check_enough(len(self._photos), ranks)
        inputs = list(enumerate(self._photos))[rank::ranks]
        # Batches come as they are, read by threads that know how many faces there are.
        return DataLoader(PhotoStream(functools.partial(self._read, inputs)), batch_size=None)

    def read_photos_by(self, read: ReadPhotos) -> None:
        """Says how `predict` reads its inputs."""
        self._read = read

    def leave_out(self, seen: NDArray[np.int64]) -> None:
        """Keeps photos out of what measures, before it is read: those whose name has one of these ``name_digests``."""
        self._sources.seen = seen

    # ------------------------------------------------------------------ what callbacks ask

    @property
    def split(self) -> Split:
        """The members of all sides."""
        return self._sources.split

    def faces(self, side: Side, places: Sequence[int]) -> Tensor:
        """Some images of a side, as the network gets them: uint8 ``(places, 3, size, size)``."""
        dataset = self._dataset(side)
        return dataset.__getitems__([Draw(0, place, place) for place in places]).images

    @property
    def photos(self) -> list[Path]:
        """The inputs of predict, in order."""
        return self._photos

    # ------------------------------------------------------------------ inside

    def _check(self, synthetic: int, seed: int) -> None:
        for name, value, least in (
            ("batch_size", self._batch_size, 1),
            ("num_workers", self._num_workers, 0),
            ("image_size", self._image_size, 16),
            ("synthetic", synthetic, 0),
            ("seed", seed, 0),
        ):
            if value < least:
                raise UserError(f"--data.{name} {value} must be {least} or more.")

    def _stage(self) -> str:
        return "fit" if self.trainer is None else str(self.trainer.state.fn.value)  # type: ignore[union-attr]

    def _rank(self) -> tuple[int, int]:
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    def _progress(self) -> tuple[int, int]:
        """The current epoch, and how many samples of it this process has trained on."""
        if self.trainer is None:
            return 0, 0
        batches = self.trainer.fit_loop.epoch_loop.batch_progress.current.ready
        return self.trainer.current_epoch, batches * self._batch_size

    def _build_augmentation(self) -> "Augmentation":
        from agr_lightning.data.transforms import Augmentation

        return Augmentation(self._augmentation, self._image_size)

    def _dataset(self, side: Side, augmentation: "Augmentation | None" = None) -> FaceDataset:
        return FaceDataset(*self._sources.members(side), augmentation, self._train_seed or 0, self._grayscale)

    def _eval_loader(self, side: Side) -> DataLoader[Batch]:
        dataset = self._dataset(side)
        return self._loader(dataset, EvalSampler(len(dataset), *self._rank()))

    @staticmethod
    def _check_enough(images: int, devices: int) -> None:
        # Asked of the whole, so that all processes stop: one that did alone would leave the others waiting.
        if images < devices:
            raise UserError(f"{images:,} images are too few for {devices} devices; use fewer with --trainer.devices.")

    def _loader(
        self, dataset: Dataset[T], sampler: TrainSampler | EvalSampler, drop_last: bool = False
    ) -> DataLoader[T]:
        self._check_enough(len(dataset), sampler.num_replicas)  # type: ignore[arg-type]
        return LateLoader(
            dataset=dataset,
            batch_size=self._batch_size,
            sampler=sampler,
            drop_last=drop_last,
            collate_fn=whole,
            num_workers=self._num_workers,
            persistent_workers=self._num_workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

"""UTKFaceDataModule: index, split, cache and transforms, tied to the Trainer."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, TypeVar

import lightning
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from agr_lightning.data.cache import cached_images
from agr_lightning.data.cards import draw_cards
from agr_lightning.data.dataset import Batch, FaceDataset, LateLoader, PhotoBatch, PhotoDataset, whole
from agr_lightning.data.index import Index, Sample, build_index, shared_photos
from agr_lightning.data.photos import find_photos
from agr_lightning.data.sampling import Draw, EvalSampler, TrainSampler, balancing_weights
from agr_lightning.data.splits import Side, Split, SplitOptions, make_split
from agr_lightning.data.transforms import Augmentation, Preset, TransformSpec
from agr_lightning.errors import UserError
from agr_lightning.labels import AGE_MAX, AGE_MIN

_log = logging.getLogger(__name__)

T = TypeVar("T")

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
        predict_path: for predict: a photo, a folder (searched recursively), or a glob in quotes.
        max_samples: use at most this many images on all sides together, each side, age band, gender and
            race keeping its share; null for all.
        max_per_gender: use at most this many images of each gender, likewise; null for all.
        balance: draw each class of this label equally often in training, with replacement.
        batch_size: images in a batch, on each device.
        num_workers: processes that prepare batches; 0 prepares them in the main process.
        image_size: side of the images that the network gets, pixels.
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
        cache_dir: str | None = None,
        augmentation: Preset | list[TransformSpec] = "light",
    ) -> None:
        super().__init__()
        # Lightning logs the hyperparameters of module and data module together: plain values only, so that
        # a checkpoint loads without running code.
        self.save_hyperparameters()
        self._root, self._synthetic, self._test_root = root, synthetic, test_root
        self._predict_path = predict_path
        self._balance = balance
        self._batch_size, self._num_workers, self._image_size = batch_size, num_workers, image_size
        self._cache_dir = cache_dir
        self._augmentation = augmentation
        self._split_options = SplitOptions(
            split, seed, val_fraction, test_fraction, max_samples, max_per_gender, age_min, age_max
        )
        self._check()
        self._indexes: dict[str, Index] = {}
        self._split: Split | None = None
        self._rows: dict[str, tuple[Index, int]] = {}
        self._photos: list[Path] = []
        self._train_seed: int | None = None

    # ------------------------------------------------------------------ what Lightning calls

    def prepare_data(self) -> None:
        """Reads, checks, splits and decodes all images, once on each machine, and reports what was rejected."""
        stage = self._stage()
        # Here rather than in setup() alone: by then a logger has made the run folder, in vain if this fails.
        self.setup(stage)
        for index in self._indexes.values():
            cached_images(index.samples, self._image_size, self._cache_dir)

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
            Augmentation(self._augmentation, self._image_size)
        if self._split is None:
            self._split = self._make_split(stage)
            self._rows = self._find_rows()
        for side in _NEEDED[stage]:
            if not self._split[side]:
                raise UserError(self._no_images(side))
        if stage == "fit" and min(len(self._split["train"]), self._batch_size) < 2:
            raise UserError(
                f"training needs 2 images in a batch, but there are {len(self._split['train']):,} and "
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
            weights = balancing_weights([getattr(sample, self._balance) for sample in samples])
        sampler = TrainSampler(len(samples), self._train_seed, self._progress, weights, rank, ranks)
        dataset = self._dataset("train", Augmentation(self._augmentation, self._image_size), self._train_seed)
        # A small last batch would disturb the batch statistics; where there is only that one, it must do.
        return self._loader(dataset, sampler, drop_last=len(sampler) >= self._batch_size)

    def val_dataloader(self) -> DataLoader[Batch]:
        return self._eval_loader("val")

    def test_dataloader(self) -> DataLoader[Batch]:
        return self._eval_loader("test")

    def predict_dataloader(self) -> DataLoader[PhotoBatch]:
        dataset = PhotoDataset(self._photos, self._image_size)
        return self._loader(dataset, EvalSampler(len(dataset), *self._rank()))

    # ------------------------------------------------------------------ what callbacks ask

    @property
    def split(self) -> Split:
        """The members of all sides."""
        assert self._split is not None, "setup() comes first"
        return self._split

    def faces(self, side: Side, places: Sequence[int]) -> Tensor:
        """Some images of a side, as the network gets them: uint8 ``(places, 3, size, size)``."""
        return self._dataset(side).__getitems__([Draw(0, place, place) for place in places]).images

    @property
    def photos(self) -> list[Path]:
        """The inputs of predict, in order."""
        return self._photos

    # ------------------------------------------------------------------ inside

    def _no_images(self, empty: Side) -> str:
        """What to tell of a side without images."""
        options, counts = self._split_options, ", ".join(f"{len(part):,} {side}" for side, part in self.split.items())
        if options.split != "random":
            cure = f"see {empty}.txt in --data.split {options.split}"
        elif empty != "train" and getattr(options, f"{empty}_fraction") == 0:
            cure = f"--data.{empty}_fraction is 0"
        else:
            cure = "use more images, or other --data.val_fraction and --data.test_fraction"
        if (options.age_min, options.age_max) != (AGE_MIN, AGE_MAX):
            cure += f"; --data.age_min {options.age_min} and --data.age_max {options.age_max} leave others out"
        return f"the split leaves no images for {empty} ({counts}): {cure}."

    def _check(self) -> None:
        for name, value, least in (
            ("batch_size", self._batch_size, 1),
            ("num_workers", self._num_workers, 0),
            ("image_size", self._image_size, 32),
            ("synthetic", self._synthetic, 0),
            ("seed", self._split_options.seed, 0),
        ):
            if value < least:
                raise UserError(f"--data.{name} {value} must be {least} or more.")
        self._split_options.check()
        if self._root is not None and self._synthetic:
            raise UserError(f"--data.root {self._root} and --data.synthetic {self._synthetic} exclude each other.")

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

    def _read_sources(self, stage: str) -> list[Index]:
        """What the stage reads: the main root, and a root of its own for the test."""
        if self._test_root is not None and stage == "test":
            return [self._index(self._test_root, "--data.test_root")]
        if self._synthetic:
            folder = draw_cards(self._synthetic, self._split_options.seed, self._cache_dir)
            sources = [self._index(str(folder), "--data.synthetic")]
        elif self._root is not None:
            sources = [self._index(self._root, "--data.root")]
        else:
            raise UserError(
                "no images: give --data.root FOLDER of UTKFace images, or --data.synthetic 1500 for drawn test cards."
            )
        if self._test_root is not None:
            sources.append(self._index(self._test_root, "--data.test_root"))
        return sources

    def _index(self, root: str, option: str) -> Index:
        if root not in self._indexes:
            self._indexes[root] = build_index(root, self._cache_dir, option)
            _log.info(self._indexes[root].summary())
        return self._indexes[root]

    def _make_split(self, stage: str) -> Split:
        main, *others = self._read_sources(stage)
        if self._test_root is None:
            return make_split(main.samples, self._split_options)
        if not others:
            return {"train": [], "val": [], "test": self._of_age(main)}
        # All photos of the test root are the test, so none of them may be learnt from.
        shared = shared_photos(main, others[0])
        if shared:
            _log.info(f"{main.root}: {len(shared):,} images left out, because {others[0].root} shows the same photos")
        usable = [sample for sample in main.samples if sample.name not in shared]
        options = replace(self._split_options, test_fraction=0.0)
        return make_split(usable, options, ("train", "val")) | {"test": self._of_age(others[0])}

    def _of_age(self, index: Index) -> list[Sample]:
        """All of a test root, within the ages that are used."""
        options = self._split_options
        return [sample for sample in index.samples if options.age_min <= sample.age <= options.age_max]

    def _find_rows(self) -> dict[str, tuple[Index, int]]:
        """Where each file's image is cached: which index, and which row of its array."""
        return {
            sample.path: (index, row) for index in self._indexes.values() for row, sample in enumerate(index.samples)
        }

    def _dataset(self, side: Side, augmentation: Augmentation | None = None, seed: int = 0) -> FaceDataset:
        samples = self.split[side]
        index, _ = self._rows[samples[0].path]
        images = cached_images(index.samples, self._image_size, self._cache_dir)
        rows = [self._rows[sample.path][1] for sample in samples]
        return FaceDataset(samples, images, rows, augmentation, seed)

    def _eval_loader(self, side: Side) -> DataLoader[Batch]:
        dataset = self._dataset(side)
        return self._loader(dataset, EvalSampler(len(dataset), *self._rank()))

    def _loader(
        self, dataset: Dataset[T], sampler: TrainSampler | EvalSampler, drop_last: bool = False
    ) -> DataLoader[T]:
        # Asked of the whole, so that all processes stop: one that did alone would leave the others waiting.
        if len(dataset) < sampler.num_replicas:  # type: ignore[arg-type]
            raise UserError(
                f"{len(dataset):,} images are too few for {sampler.num_replicas} devices; "  # type: ignore[arg-type]
                "use fewer with --trainer.devices."
            )
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

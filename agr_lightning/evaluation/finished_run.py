"""A run folder -> what a report says of it. Reads files; no model, no data."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from agr_lightning.evaluation.curves import Curve, read_curves
from agr_lightning.files import named_files
from agr_lightning.runs import (
    CONFIG_FILE,
    FIGURES_FOLDER,
    IN_THE_BOX,
    PACKED_SUFFIX,
    SPLITS_FOLDER,
    read_results,
    run_of,
)


@dataclass(frozen=True)
class FinishedRun:
    """A run that was tested, and the run that trained what it tested; often the same one.

    Attributes:
        folder: of the run that was tested.
        results: the content of its results.json.
        figures: its PNG files, by name.
        tested_with: its options, as config.yaml has them; empty where that is missing.
        trained_with: the options of the run that trained; empty where it is not to be found.
        images: how many were for train, val and test when it trained; empty likewise.
        curves: what it logged; empty likewise.
        kept_apart: whether the images it was tested on are known to be in neither training nor validation.
    """

    folder: Path
    results: dict[str, Any]
    figures: dict[str, bytes]
    tested_with: dict[str, Any]
    trained_with: dict[str, Any]
    images: dict[str, int]
    curves: dict[str, Curve]
    kept_apart: bool


def read_run(run: str) -> FinishedRun:
    """Reads a tested run.

    Args:
        run: its folder, or its results.json.

    Raises:
        UserError: when it has no results.
    """
    folder, results = read_results(run)
    checkpoint = results.get("checkpoint")
    trained = run_of(folder / checkpoint) if isinstance(checkpoint, str) and checkpoint else folder
    # A run that only tested has options and curves too, but no lists of who was in training.
    known = (trained / SPLITS_FOLDER).is_dir()
    options = _options(folder)
    return FinishedRun(
        folder,
        results,
        {path.stem: path.read_bytes() for path in sorted((folder / FIGURES_FOLDER).glob("*.png"))},
        options,
        _options(trained) if known else {},
        _count_images(trained / SPLITS_FOLDER),
        read_curves(trained) if known else {},
        (known and _on_its_own_list(folder, trained, options)) or is_exported(checkpoint),
    )


def _on_its_own_list(folder: Path, trained: Path, options: dict[str, Any]) -> bool:
    """Whether a run was tested on what the run that trained had kept for it."""
    if folder.resolve() == trained.resolve():
        return True
    data = _part(options, "data")
    # By its end, as runs may have been moved since.
    return not data.get("test_root") and str(data.get("split")).endswith(f"{trained.resolve().name}/{SPLITS_FOLDER}")


def is_exported(checkpoint: object) -> bool:
    """Whether results are of an exported file, which keeps what it has seen out of its tests."""
    return str(checkpoint).endswith(PACKED_SUFFIX) or checkpoint in IN_THE_BOX.values()


def _options(folder: Path) -> dict[str, Any]:
    try:
        options = yaml.safe_load((folder / CONFIG_FILE).read_text())
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return options if isinstance(options, dict) else {}


def _count_images(lists: Path) -> dict[str, int]:
    counts = {}
    for side in ("train", "val", "test"):
        path = lists / f"{side}.txt"
        if path.is_file():
            counts[side] = sum(1 for line in path.read_bytes().splitlines() if line.strip())
    return counts


def describe(run: FinishedRun) -> list[tuple[str, str]]:
    """Data and protocol of a run, as pairs of a name and a sentence."""
    model = run.results["model"]
    facts = [
        ("network", _network(model, int(run.results["parameters"]))),
        ("tested on", _test_set(run)),
    ]
    if run.trained_with:
        data, learning, trainer = (_part(run.trained_with, part) for part in ("data", "model", "trainer"))
        facts += [
            ("trained on", _training_set(data, run.images)),
            ("start", _start(learning)),
            ("training", _training(run, data, trainer)),
            ("loss", _loss(learning)),
            ("optimizer", _optimizer(learning, run.curves)),
        ]
    return facts


def _part(options: Mapping[str, Any], part: str) -> dict[str, Any]:
    found = options.get(part)
    return found if isinstance(found, dict) else {}


def _network(model: dict[str, Any], parameters: int) -> str:
    colour = "gray" if model.get("grayscale") else "RGB"
    size = model["image_size"]
    return (
        f"{model['backbone']}, {parameters / 1e6:.2f} million parameters, {colour} images of {size} x {size} pixels; "
        f"predicts {_listed(model['tasks'])}"
    )


def _test_set(run: FinishedRun) -> str:
    data = _part(run.tested_with, "data")
    count = f"{run.results['n']:,} images"
    if data.get("test_root"):
        count += f", all of {_name(data['test_root'])}"
    elif data:
        count += f" of {source(data)}"
    if run.kept_apart:
        count += ", in neither training nor validation"
    return f"{count}; fingerprint of the list and its labels: {run.results['test_set']}"


def source(data: Mapping[str, Any]) -> str:
    """What the images are: the folder's or archive's own name, not its place on somebody's machine."""
    return f"{data['synthetic']:,} drawn test cards" if data.get("synthetic") else _name(data.get("root"))


def _name(path: object) -> str:
    return Path(str(path)).name or str(path)


def _training_set(data: dict[str, Any], images: dict[str, int]) -> str:
    verbs = {"train": "to train", "val": "to validate", "test": "to test"}
    counts = ", ".join(f"{n:,} {verbs[side]}" for side, n in images.items())
    parts = [f"{counts} (images of {source(data)})"]
    if data.get("split") == "random":
        parts.append(
            f"random split with seed {data.get('seed')}, the same shares of age band, gender and race on each side, "
            "copies of a photo on one side only"
        )
    else:
        parts.append(f"split by the lists in {_name(data.get('split'))}")
    if (data.get("age_min"), data.get("age_max")) != (0, 116):
        parts.append(f"ages {data.get('age_min')} to {data.get('age_max')} only")
    for option, words in (("max_samples", "at most {} images"), ("max_per_gender", "at most {} images of each gender")):
        if data.get(option):
            parts.append(words.format(f"{data[option]:,}"))
    if data.get("balance", "none") != "none":
        parts.append(f"balanced by {data['balance']}")
    return "; ".join(parts)


def _start(learning: dict[str, Any]) -> str:
    files = named_files(learning.get("weights"))
    if files:
        return ("the mean of the weights" if len(files) > 1 else "weights") + f" from {', '.join(map(_name, files))}"
    return "torchvision's ImageNet weights" if learning.get("pretrained") else "random weights"


def _training(run: FinishedRun, data: dict[str, Any], trainer: dict[str, Any]) -> str:
    augmentation = data.get("augmentation")
    parts = [
        _length(trainer),
        f"batches of {data.get('batch_size')}",
        f"augmentation: {augmentation if isinstance(augmentation, str) else 'a list of its own'}",
        f"precision {trainer.get('precision') or '32-true'}",
        f"seed {run.trained_with.get('seed_everything')}",
    ]
    epoch, seconds = run.results.get("epoch"), run.results.get("training_seconds")
    if epoch is not None:
        chosen = Path(str(run.results.get("checkpoint"))).stem == "best"
        parts.append(f"weights of epoch {epoch + 1}" + (", chosen by validation loss" if chosen else ""))
    callbacks = [str(each.get("class_path")).rpartition(".")[2] for each in trainer.get("callbacks") or []]
    if callbacks:
        parts.append(f"with {_listed(callbacks)}")
    if seconds is not None:
        parts.append(f"{seconds / 60:.1f} minutes" if seconds >= 90 else f"{seconds:.0f} seconds")
    return ", ".join(parts)


def _length(trainer: dict[str, Any]) -> str:
    """How long it may train; something else may have ended it before."""
    limits = [(trainer.get("max_steps"), "step"), (trainer.get("max_epochs"), "epoch")]
    found = [f"{limit:,} {unit}{'s' if limit > 1 else ''}" for limit, unit in limits if limit and limit > 0]
    return f"up to {found[0]}" if found else "no fixed length"


def _loss(learning: dict[str, Any]) -> str:
    tasks = learning.get("tasks") or []
    weights = _part(learning, "loss_weights")
    parts = [f"{task} {weights.get(task)}" for task in tasks]
    named = f"age loss {learning.get('age_loss')}; " if "age" in tasks else ""
    kind = "learned weights that began at" if learning.get("loss_weighting") == "uncertainty" else "weights"
    text = f"{named}{kind} {', '.join(parts)}"
    if learning.get("label_smoothing"):
        text += f"; label smoothing {learning['label_smoothing']}"
    if learning.get("race_class_weights", "none") != "none":
        text += f"; race classes weighed: {learning['race_class_weights']}"
    teachers = [_name(teacher) for teacher in learning.get("teachers") or []]
    if teachers:
        text += f"; {learning['teaching']:.0%} of it is about the answers of {' and '.join(teachers)}"
    return text


def _optimizer(learning: dict[str, Any], curves: Mapping[str, Curve]) -> str:
    def named(option: str, default: str) -> str:
        chosen = learning.get(option)
        return str(chosen["class_path"]).rpartition(".")[2] if isinstance(chosen, dict) else default

    text = f"{named('optimizer', 'AdamW')}, {named('lr_scheduler', 'one-cycle schedule')}"
    if "train/learning_rate" in curves:
        text += f", learning rate up to {curves['train/learning_rate'].values.max():.3g}"
    for option, words in (
        ("backbone_learning_rate", "backbone {}"),
        ("freeze_epochs", "backbone frozen for {} epochs"),
        ("weight_decay", "weight decay {}"),
    ):
        if learning.get(option):
            text += f", {words.format(learning[option])}"
    return text


def _listed(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"

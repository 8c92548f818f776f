"""A finished run -> one HTML page and a model card. The words are in templates/."""

import base64
import io
import re
from pathlib import Path, PureWindowsPath
from typing import Any

import jinja2
import yaml
from markupsafe import Markup
from PIL import Image

from agr_lightning import runs
from agr_lightning.evaluation.figures import CURVES_FIGURE, draw_curves, read_curves
from agr_lightning.evaluation.metric_table import BY_GROUP, HEADLINE, METRICS
from agr_lightning.files import atomic_text, atomic_write

_TEMPLATES = {runs.REPORT_FILE: "report.html", runs.CARD_FILE: "model_card.md"}

_SHIPPED = ("agr", "small")

# Of the trainer, the options that decide what is learned.
_TRAINER = ("max_epochs", "max_steps", "precision", "accumulate_grad_batches", "gradient_clip_val", "callbacks")
_NO_OPTIONS: dict[str, dict[str, str]] = {"data": {}, "model": {}, "trainer": {}}

# Bytes from which a figure is embedded as a JPEG.
_LARGE = 400_000


def write_report(run: str, faces: bool = True) -> list[Path]:
    """Writes ``report.html``, ``MODEL_CARD.md`` and the figure of the training curves into a run folder.

    Args:
        run: a tested run's folder, or its results.json.
        faces: show the grids of photos.

    Returns:
        The page and the card.

    Raises:
        UserError: when the run has no results of this version.
    """
    folder, results = runs.read_results(run)
    try:
        checkpoint = str(results["checkpoint"])
        exported = checkpoint in _SHIPPED or checkpoint.endswith(runs.SAFETENSORS_SUFFIX)
        trained = (folder / checkpoint).parent.parent.resolve() if checkpoint else folder
        # A run that only tested has options too, but no lists of images that it trained on.
        known = not exported and (trained / runs.SPLITS_FOLDER).is_dir()
        content = {
            "name": runs.run_name(folder),
            "results": results,
            "metrics": METRICS,
            "headline": HEADLINE,
            "group_metrics": [metric for metric in BY_GROUP if results["metrics"][metric.name] is not None],
            "tested_with": _options(folder),
            "trained_with": _options(trained) if known else _NO_OPTIONS,
            "images": _count_images(trained / runs.SPLITS_FOLDER) if known else {},
            "exported": exported,
            "best": Path(checkpoint).stem == runs.BEST,
            "figures": _figures(folder, trained if known else None),
            "faces": faces,
        }
        texts = {file: _fill(template, content) for file, template in _TEMPLATES.items()}
    except (jinja2.UndefinedError, KeyError, TypeError, ValueError, AttributeError, OverflowError):
        raise runs.not_ours(folder / runs.RESULTS_FILE) from None
    for file, text in texts.items():
        atomic_text(folder / file, text)
    return [folder / file for file in texts]


def _fill(template: str, content: dict[str, Any]) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("agr_lightning.evaluation"),
        undefined=jinja2.StrictUndefined,
        autoescape=True,
        finalize=_markdown if template.endswith(".md") else None,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(template).render(content)


def _markdown(value: object) -> object:
    """Text that Markdown shows as it is, on one line; what the template's macros have made stays."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    special = r"[\\`*\[\]<>|&~]|(?<![^\W_])_|_(?![^\W_])"
    return Markup(re.sub(special, r"\\\g<0>", " ".join(value.split())))


def _figures(folder: Path, trained: Path | None) -> dict[str, dict[str, Any]]:
    """The figures in a run folder, by name, as the page embeds them.

    Args:
        folder: of the run that was tested; it gets a figure of the training curves where it has none.
        trained: of the run that trained, where it is known.
    """
    paths = {path.stem: path for path in sorted((folder / runs.FIGURES_FOLDER).glob("*.png"))}
    curves = draw_curves(read_curves(trained)) if trained and CURVES_FIGURE not in paths else None
    if curves is not None:
        paths[CURVES_FIGURE] = folder / runs.FIGURES_FOLDER / f"{CURVES_FIGURE}.png"
        paths[CURVES_FIGURE].parent.mkdir(exist_ok=True)
        with atomic_write(paths[CURVES_FIGURE]) as file:
            curves.savefig(file)
    return {name: _embedded(path) for name, path in paths.items()}


def _embedded(path: Path) -> dict[str, Any]:
    with Image.open(path) as picture:
        kind, content = "png", path.read_bytes()
        if len(content) > _LARGE:
            kind, file = "jpeg", io.BytesIO()
            picture.convert("RGB").save(file, "JPEG", quality=90)
            content = file.getvalue()
        return {"source": f"data:image/{kind};base64,{base64.b64encode(content).decode()}", "width": picture.width}


def _options(folder: Path) -> dict[str, dict[str, str]]:
    """A run's options in words, of data, model and trainer; none where its config.yaml is missing or damaged."""
    try:
        options = yaml.safe_load((folder / runs.CONFIG_FILE).read_text())
        options["trainer"] = {name: options["trainer"].get(name) for name in _TRAINER}
        options["trainer"]["seed"] = options["seed_everything"]
        found = {part: {name: _words(value) for name, value in options[part].items()} for part in _NO_OPTIONS}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError):
        return _NO_OPTIONS
    return {part: {name: words for name, words in named.items() if words} for part, named in found.items()}


def _words(value: object) -> str:
    """An option in words; of a path only the last part, not its place on somebody's machine."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {_words(each)}" for name, each in value.items())
    if isinstance(value, list):
        return ", ".join(map(_words, value))
    return "" if value is None or value is False or value == -1 else PureWindowsPath(str(value)).name or str(value)


def _count_images(lists: Path) -> dict[str, int]:
    """How many images there were for training, validation and test."""
    counts = {}
    for split in ("train", "val", "test"):
        path = lists / f"{split}.txt"
        if path.is_file():
            counts[split] = sum(1 for line in path.read_bytes().splitlines() if line.strip())
    return counts

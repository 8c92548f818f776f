"""A finished run -> one HTML page and a model card. The words are in templates/."""

import base64
import re
from pathlib import Path, PureWindowsPath
from typing import Any

import jinja2
import yaml
from markupsafe import Markup

from agr_lightning import files
from agr_lightning.evaluation.figures import CURVES_FIGURE
from agr_lightning.evaluation.metric_table import BY_GROUP, HEADLINE, METRICS
from agr_lightning.files import atomic_text

# Of the trainer, the options that decide what is learned.
_TRAINER = ("max_epochs", "max_steps", "precision", "accumulate_grad_batches", "gradient_clip_val", "callbacks")
_NO_OPTIONS: dict[str, dict[str, str]] = {"data": {}, "model": {}, "trainer": {}}


def report(run: str, no_faces: bool = False) -> str:
    """Writes report.html, one page that opens offline, and MODEL_CARD.md into the folder of a tested run; returns both.

    Args:
        run: the run's folder, or its results.json.
        no_faces: leave out the grids of photos, for a page that may be passed on.
    """
    folder, results = files.read_results(run)
    try:
        checkpoint = str(results["checkpoint"])
        exported = checkpoint in ("agr", "small") or checkpoint.endswith(files.SAFETENSORS_SUFFIX)
        trained = (folder / checkpoint).parent.parent.resolve() if checkpoint else folder
        # A run that only tested has options too, but no lists of images that it trained on.
        lists = [] if exported else (trained / files.SPLITS_FOLDER).glob("*.txt")
        images = {path.stem: path.read_bytes().count(b"\n") for path in lists}
        content = {
            "name": files.run_name(folder),
            "results": results,
            "metrics": METRICS,
            "headline": HEADLINE,
            "group_metrics": [metric for metric in BY_GROUP if results["metrics"][metric.name] is not None],
            "tested_with": _options(folder),
            "trained_with": _options(trained) if images else _NO_OPTIONS,
            "images": images,
            "exported": exported,
            "best": Path(checkpoint).stem == files.BEST,
            "figures": _figures(folder, trained if images else folder),
            "faces": not no_faces,
        }
        texts = {file: fill(file, content) for file in (files.REPORT_FILE, files.CARD_FILE)}
    except (jinja2.UndefinedError, KeyError, TypeError, ValueError, AttributeError, OverflowError):
        raise files.not_ours(folder / files.RESULTS_FILE) from None
    for file, text in texts.items():
        atomic_text(folder / file, text)
    return "\n".join(str(folder / file) for file in texts)


def fill(template: str, content: dict[str, Any]) -> str:
    """What a template makes of a content: .html, or .md."""
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


def _figures(folder: Path, trained: Path) -> dict[str, str]:
    """The figures of the run that was tested, and of the one that trained its checkpoint, as addresses with content."""
    paths = [trained / files.FIGURES_FOLDER / f"{CURVES_FIGURE}.png", *(folder / files.FIGURES_FOLDER).glob("*.png")]
    found = {path.stem: base64.b64encode(path.read_bytes()).decode() for path in paths if path.is_file()}
    return {name: f"data:image/png;base64,{content}" for name, content in found.items()}


def _options(folder: Path) -> dict[str, dict[str, str]]:
    """A run's options in words, of data, model and trainer; none where its config.yaml is missing or damaged."""
    try:
        options = yaml.safe_load((folder / files.CONFIG_FILE).read_text())
        trainer = {name: options["trainer"].get(name) for name in _TRAINER}
        options["trainer"] = trainer | {"seed": options["seed_everything"]}
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

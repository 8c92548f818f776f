"""A finished run -> one HTML page and a model card. The words are in templates/."""

import base64
import io
import re
from pathlib import Path
from typing import Any

import jinja2
from PIL import Image

from agr_lightning.evaluation import wording
from agr_lightning.evaluation.curves import CURVES_FIGURE, draw_curves
from agr_lightning.evaluation.figures import compact, encode, render
from agr_lightning.evaluation.finished_run import FinishedRun, describe, is_exported, read_run
from agr_lightning.evaluation.groups import GROUP_METRICS
from agr_lightning.files import atomic_text, atomic_write
from agr_lightning.messages import UserError
from agr_lightning.runs import CARD_FILE, FIGURES_FOLDER, REPORT_FILE, RESULTS_FILE, not_ours, run_name

# Figures that show photos, which may not be free to be passed on.
_OF_FACES = ("sample_faces", "worst_mistakes")


def write_report(run: str, faces: bool = True) -> list[Path]:
    """Writes ``report.html``, ``MODEL_CARD.md`` and the figure of the training curves into a run folder.

    Args:
        run: a tested run's folder, or its results.json.
        faces: show the grids of photos.

    Returns:
        The page and the card.

    Raises:
        UserError: when the run has no results of this version, or a figure is damaged.
    """
    found = read_run(run)
    curves = _draw_curves(found)
    try:
        content = _content(found, curves, faces)
        page, card = _fill("report.html", content), _fill("model_card.md", content)
    except (jinja2.UndefinedError, KeyError, TypeError, ValueError, AttributeError, OverflowError):
        raise not_ours(found.folder / RESULTS_FILE) from None
    if curves is not None:
        (found.folder / FIGURES_FOLDER).mkdir(exist_ok=True)
        with atomic_write(found.folder / FIGURES_FOLDER / f"{CURVES_FIGURE}.png") as file:
            file.write(curves)
    paths = [found.folder / REPORT_FILE, found.folder / CARD_FILE]
    for path, text in zip(paths, (page, card), strict=True):
        atomic_text(path, text)
    return paths


def _draw_curves(run: FinishedRun) -> bytes | None:
    """The training curves, where the run that was tested has no figure of them."""
    figure = None if CURVES_FIGURE in run.figures else draw_curves(run.curves)
    return None if figure is None else encode(render(figure))


def _content(run: FinishedRun, curves: bytes | None, faces: bool) -> dict[str, Any]:
    results = run.results
    figures = run.figures | ({} if curves is None else {CURVES_FIGURE: curves})
    return {
        "name": run_name(run.folder),
        "results": results,
        "metrics": results["metrics"],
        "facts": describe(run),
        "trained": bool(run.trained_with),
        "exported": is_exported(results["checkpoint"]),
        "drawn": _on_cards(run),
        "groups": results["groups"],
        "simple_groups": [group for group in results["groups"] if " x " not in group["attribute"]],
        "group_metrics": [name for name in GROUP_METRICS if results["metrics"][name] is not None],
        "figures": {
            name: _embedded(run.folder / FIGURES_FOLDER / f"{name}.png", picture)
            for name, picture in figures.items()
            if faces or name not in _OF_FACES
        },
        "faces": faces,
    }


def _on_cards(run: FinishedRun) -> str:
    """What was done with drawn cards: Trained, Tested, or nothing."""
    for verb, options in (("Trained", run.trained_with), ("Tested", run.tested_with)):
        data = options.get("data")
        if isinstance(data, dict) and data.get("synthetic") and not data.get("test_root"):
            return verb
    return ""


def _embedded(path: Path, png: bytes) -> dict[str, Any]:
    """A picture as the page holds it."""
    try:
        width = Image.open(io.BytesIO(png)).width
        content, kind = compact(png)
    except OSError:
        raise UserError(f"{path} is no picture, or is damaged: delete it, or test again.") from None
    return {"source": f"data:image/{kind};base64,{base64.b64encode(content).decode()}", "width": width}


def _fill(template: str, content: dict[str, Any]) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("agr_lightning.evaluation"),
        undefined=jinja2.StrictUndefined,
        autoescape=template.endswith(".html"),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.globals |= {"wording": wording.WORDING}
    environment.filters |= {"written": _written, "bounds": _bounds, "percent": _percent, "distance": _distance}
    environment.filters["plain"] = _plain
    return environment.get_template(template).render(content)


def _written(value: float | None, metric: str) -> str:
    return wording.written(metric, value)


def _bounds(interval: list[float] | None, metric: str) -> str:
    return wording.bounds(metric, interval)


def _distance(gap: dict[str, Any]) -> str:
    metric, interval = gap["metric"], gap["interval"]
    unit = "points" if wording.WORDING[metric].share else "years"
    text = f"{wording.written(metric, gap['gap']).split()[0]} {unit}"
    return text + (f" ({wording.bounds(metric, interval)})" if interval else "")


def _percent(share: float | None, digits: int = 1) -> str:
    return "" if share is None else f"{100 * share:.{digits}f} %"


def _plain(text: object) -> str:
    """Text that Markdown shows as it is."""
    return re.sub(r"([\\`*\[\]<>|])", r"\\\1", str(text).replace("\n", " "))

"""The one exception whose text is written for the person at the command line."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake that the user can cure; its text names the value and the cure in one or two lines."""


def needs(library: str, extra: str) -> str:
    """Returns the words for a library that is missing, and how to get the extra that brings it."""
    return f"needs {library}: uv sync --all-extras, or pip install -e '.[{extra}]'"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Returns `` (did you mean 'x'?)`` for the known word nearest to ``word``, or an empty string."""
    nearest = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" (did you mean '{nearest[0]}'?)" if nearest else ""

"""What jsonargparse says of options, reworded for users."""

import re
import sys
from argparse import ArgumentParser
from typing import NoReturn

from agr_lightning.messages import did_you_mean

_KEY = re.compile(r'Parser key "(?P<key>[^"]+)":\s*(?P<rest>.*)', re.DOTALL)
_GIVEN = re.compile(r"(?:Got value|Given value): (?P<value>[^\n]*)")
_LITERAL = re.compile(r"typing\.Literal\[(?P<values>[^\]]+)\]")
_TYPE = re.compile(r"<class '(?P<name>[\w.]+)'>")
_UNKNOWN = re.compile(r"Group '(?P<group>[\w.]+)' does not accept option '(?P<name>[\w.-]+)'")
_OF_CLASS = re.compile(
    r"(?P<why>Multiple subclasses with name [^\n]*|the following arguments are required: [^\n]*|"
    r"Expected '[^']*' to be a subclass of [^\n]*?>)"
)

_UNKNOWN_TOP = re.compile(r"(?:does not accept option|[Kk]ey|[Oo]ption) '(?P<name>[\w.-]+)'(?! is required)")


class Explaining(ArgumentParser):
    """A parser that says what is wrong with an option, and what would have worked."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Prints one line to stderr and exits with code 2."""
        parser = getattr(ex, "subcommand_parser", None) or self
        print(f"error: {explain(message, _options(parser))}", file=sys.stderr)
        self.exit(2)


def explain(message: str, options: list[str]) -> str:
    """Rewrites a message of jsonargparse for users.

    Args:
        message: what jsonargparse says.
        options: every option that exists, like ``--data.root``.

    Returns:
        One line with the option, the value, and what was expected.
    """
    if message.startswith("--config "):  # said by AGRArgumentParser itself
        return message
    unknown = re.search(r"[Uu]nrecognized arguments: (?P<words>.*)", message)
    if unknown:
        word = next(iter(unknown["words"].split()), "")
        if not word.startswith("-"):
            return f"'{word}' belongs to no option; options are given as --name value."
        return _no_option(word.split("=")[0], options)
    group = _UNKNOWN.search(message)
    if group:
        return _no_option(f"--{group['group']}.{group['name']}", options)
    top = _UNKNOWN_TOP.search(message)
    if top:
        return _no_option(f"--{top['name']}", options)
    if "Unexpected config" in message:
        return "--config: the file holds no options; it should be YAML like 'data: {root: FOLDER}'."
    found = _KEY.search(message)
    if found and "config" in found["key"].split("."):
        return f"--config: {_one_line(found['rest'])}"
    of_class = _OF_CLASS.search(found["rest"]) if found else None
    if found and of_class:
        return f"--{found['key']}: {of_class['why']}"
    if found:
        given = _GIVEN.search(found["rest"])
        expected = _expected(found["rest"])
        if given and expected:
            value = _one_line(given["value"])
            known = [word for part in _LITERAL.findall(found["rest"]) for word in _words(part)]
            return f"--{found['key']} {value}: expected {expected}{did_you_mean(value, known)}."
        return f"--{found['key']}: {_one_line(found['rest'])}"
    return _one_line(message)


def _no_option(name: str, options: list[str]) -> str:
    return f"no option is called '{name}'{did_you_mean(name, options)}; --help lists them all."


def _expected(text: str) -> str:
    """What the type says, in words: literals as they are typed, classes by name."""
    literals = dict.fromkeys(_LITERAL.findall(text))
    parts = ["one of " + ", ".join(_words(literal)) for literal in literals]
    names = {"NoneType": "null", "int": "a whole number", "float": "a number", "bool": "true or false"}
    names |= {"list": "a list like [a, b]", "str": "text", "dict": "a mapping"}
    # What follows is the type of the given value, not an expected one.
    kinds = _TYPE.findall(text.split("Given value type")[0])
    parts += [names.get(kind, kind.rsplit(".", 1)[-1]) for kind in kinds]
    if "dot import path" in text:
        parts = ["a class path like torch.optim.SGD", *parts]
    return " or ".join(dict.fromkeys(parts))


def _words(literal: str) -> list[str]:
    return [word.strip().strip("'\"") for word in literal.split(",")]


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 300 else line[:297] + "..."


def _options(parser: ArgumentParser) -> list[str]:
    return [name for action in parser._actions for name in action.option_strings if name.startswith("--")]

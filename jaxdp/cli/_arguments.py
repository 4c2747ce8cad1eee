"""What is wrong with a command line, in one sentence with the nearest name, before anything else is loaded."""

import difflib
import inspect
import re
from collections.abc import Callable, Iterable, Mapping

_HELP = ("-h", "--help")
_NUMBER = re.compile(r"-(?:\d|\.\d|inf|nan)", re.IGNORECASE)


class ArgumentError(Exception):
    """One sentence about the command line."""


def checked(arguments: list[str], commands: Mapping[str, Callable]) -> list[str]:
    """The arguments, each option joined to its value, as `--name=value`.

    Args:
      arguments: without the options of a configuration.
      commands: the functions of the commands; their parameters are positional (paths without a default) or options.

    Raises:
      ArgumentError: no command, an unknown one, an unknown option, one without its value, too many arguments.
    """
    if not arguments:
        raise ArgumentError(f"no command is given: use one of {', '.join(commands)}, or see `jaxdp --help`.")
    name, *rest = arguments
    if name in _HELP:
        return [name]
    if name not in commands:
        known = [*commands, "--help", "--version"] if name.startswith("-") else commands
        raise ArgumentError(f"{_short(name)} is not understood: {_nearest(name, known, 'use one of')}")
    parameters = inspect.signature(commands[name]).parameters.values()
    flags = [_option(p.name) for p in parameters if p.default is False]
    options = [_option(p.name) for p in parameters if p.default is not p.empty]
    places = [p.name for p in parameters if p.default is p.empty]
    return [name, *_joined(name, iter(rest), flags, options, places)]


def _joined(command: str, rest: Iterable[str], flags: list[str], options: list[str], places: list[str]) -> list[str]:
    result, positional, left = [], 0, iter(rest)
    for argument in left:
        name, equals, value = argument.partition("=")
        if argument in _HELP:
            return [*result, argument]
        if not argument.startswith("-") or argument == "-":
            positional += 1
            if positional > len(places):
                takes = f"{len(places)} argument{'s' * (len(places) > 1)}" if places else "options only"
                raise ArgumentError(f"{_short(argument)} is too much: {command} takes {takes}.")
            result.append(argument)
            continue
        plain = name.replace("_", "-")
        if plain in flags and not equals:
            result.append(plain)
            continue
        if plain not in options:
            raise ArgumentError(
                f"{_short(name)} is no option of {command}: {_nearest(name, [*options, '--help'], 'its options are')}"
            )
        if not equals:
            value = next(left, None)
            if value is None or (value.startswith("-") and not _NUMBER.match(value)):
                raise ArgumentError(f"{plain} has no value: write {plain} VALUE.")
        result.append(f"{plain}={value}")
    return result


def _nearest(name: str, known: Iterable[str], otherwise: str) -> str:
    near = difflib.get_close_matches(name, list(known), 1, 0.6)
    return f"did you mean {near[0]}?" if near else f"{otherwise} {', '.join(known)}."


def _option(parameter: str) -> str:
    return "--" + parameter.replace("_", "-")


def _short(text: str) -> str:
    text = text if text.isprintable() else repr(text)
    return text if len(text) <= 60 else f"{text[:57]}..."

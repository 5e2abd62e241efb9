"""Mappings into dataclasses: strict about keys, careful about types."""

import contextlib
import dataclasses
import functools
import math
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from utils.errors import UserError, suggest

LARGEST = {int: 2**63 - 1, float: 1e38}  # what tensors can hold
_NAMES = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    list: "a list",
    dict: "a mapping",
}


def merge(dataclass_type: type, mapping: Any, where: str) -> Any:
    """Return an instance of `dataclass_type` with the values of `mapping` over its defaults.

    Args:
        mapping: dict, EasyDict or dataclass instance. Fields with `init=False` are not keys.
        where: what the mapping is, for messages: a file and the path of keys below it, as in "cfgs/a.yaml: model".

    Raises:
        UserError: an unknown key (with the close ones), a missing one that has no default, a value of the wrong type,
            or whatever the `__post_init__` of the dataclass objects to.
    """
    values = _as_mapping(mapping, where)
    fields = {field.name: field for field in dataclasses.fields(dataclass_type) if field.init}
    for key in values:
        if key not in fields:
            raise UserError(f"{where}: unknown key {key!r}; {suggest(key, fields, what='keys here')}")
    hints = _hints(dataclass_type)
    arguments = {key: convert(value, hints[key], _below(where, key)) for key, value in values.items()}
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in arguments:
            raise UserError(f"{where}: key {name!r} is missing; add it")
    try:
        return dataclass_type(**arguments)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(_located(where, str(error))) from error


@functools.cache
def _hints(dataclass_type: type) -> dict[str, Any]:
    return typing.get_type_hints(dataclass_type)


def convert(value: Any, annotation: Any, where: str) -> Any:
    """Check `value` against a type annotation and convert where nothing is lost.

    Examples: 1 -> 1.0, 300.0 -> 300, "1e-3" -> 0.001. A bool is never taken for a number, nor a number for a bool.
    """
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is Any or annotation is object:
        return value
    if origin in (typing.Union, types.UnionType):
        return _convert_union(value, arguments, where)
    if origin is typing.Literal:
        return _convert_literal(value, arguments, where)
    if dataclasses.is_dataclass(annotation):
        return merge(annotation, value, where)
    if annotation in (list, tuple) or origin in (list, tuple):
        return _convert_list(value, origin or annotation, arguments, where)
    if annotation is dict or origin is dict:
        kind = arguments[1] if arguments else Any
        return {key: convert(entry, kind, _below(where, key)) for key, entry in _as_mapping(value, where).items()}
    return _convert_scalar(value, annotation, where)


def to_dict(config: Any) -> Any:
    """Return plain dicts, lists, numbers and strings: what YAML and `weights_only` checkpoints can hold."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {field.name: to_dict(getattr(config, field.name)) for field in dataclasses.fields(config) if field.init}
    if isinstance(config, Mapping):
        return {str(key): to_dict(value) for key, value in config.items()}
    if isinstance(config, list | tuple | set | frozenset):
        return [to_dict(value) for value in config]
    if isinstance(config, np.ndarray | np.generic):
        return config.tolist()
    if isinstance(config, Path):
        return config.as_posix()
    if config is None or isinstance(config, bool | int | float | str):
        return config
    raise TypeError(f"to_dict: {type(config).__name__} is neither a configuration nor a plain value")


def _as_mapping(value: Any, where: str) -> dict:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.init}
    if not isinstance(value, Mapping):
        raise UserError(f"{where}: is {_show(value)}; expected keys with values")
    for key in value:
        if not isinstance(key, str):
            raise UserError(f"{where}: key {key!r} is not text; quote it")
    return dict(value)


def _convert_union(value: Any, choices: tuple, where: str) -> Any:
    if value is None and type(None) in choices:
        return None
    choices = tuple(choice for choice in choices if choice is not type(None))
    if type(value) in choices:
        return value
    errors = []
    for choice in choices:
        try:
            return convert(value, choice, where)
        except UserError as error:
            errors.append(error)
    if len(errors) == 1:
        raise errors[0]
    raise UserError(f"{where}: is {_show(value)}; expected {' or '.join(_describe(choice) for choice in choices)}")


def _convert_literal(value: Any, choices: tuple, where: str) -> Any:
    for choice in choices:
        if type(value) is type(choice) and value == choice:
            return choice
    # YAML 1.1 reads a bare no, off, yes or on as a bool; a choice that is spelled so must be quoted.
    raise UserError(f"{where}: {value!r} is unknown; {suggest(value, choices, what='choose one of')}")


def _convert_list(value: Any, kind: type, arguments: tuple, where: str) -> Any:
    if not isinstance(value, list | tuple):
        raise UserError(f"{where}: is {_show(value)}; expected a list such as [1, 2, 3]")
    element = arguments[0] if arguments else Any
    return kind(convert(entry, element, f"{where}[{index}]") for index, entry in enumerate(value))


def _convert_scalar(value: Any, kind: type, where: str) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if kind is float and isinstance(value, str):
        with contextlib.suppress(ValueError):  # The message below says what is wrong.
            value = float(value)
    if isinstance(value, bool) or kind is bool:
        fits = isinstance(value, bool) and kind is bool
    elif kind is float:
        fits = isinstance(value, int | float) and (isinstance(value, int) or math.isfinite(value))
    elif kind is int:
        fits = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    else:
        fits = isinstance(value, kind)
    if not fits:
        raise UserError(f"{where}: is {_show(value)}; expected {_describe(kind)}")
    if kind in (int, float) and abs(value) > LARGEST[kind]:
        raise UserError(f"{where}: is {_show(value)}; it must not be above {LARGEST[kind]:.0e}")
    return kind(value) if kind in (int, float) else value


def _describe(kind: Any) -> str:
    if typing.get_origin(kind) is list:
        return f"a list of {_describe(typing.get_args(kind)[0]).removeprefix('a ')}s"
    return _NAMES.get(kind, getattr(kind, "__name__", str(kind)))


def _show(value: Any) -> str:
    if value is None:
        return "empty"
    try:
        text = repr(value)
    except ValueError:  # Python does not write whole numbers of thousands of digits
        return "a number of thousands of digits"
    return text if len(text) <= 60 else text[:57] + "..."


def _below(where: str, key: str) -> str:
    """Extend "file: a" to "file: a.key", and "file" to "file: key"."""
    return f"{where}.{key}" if ": " in where else f"{where}: {key}"


def _located(where: str, message: str) -> str:
    """Put `where` before a message that may already begin with the last part of it."""
    head, _, tail = where.rpartition(": ")
    known = bool(tail) and message.startswith((f"{tail}.", f"{tail}:"))
    prefix = head if known else where
    return f"{prefix}: {message}" if prefix else message

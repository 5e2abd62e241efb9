"""YAML files: read with clear errors, numbers as people write them; written in block style."""

import logging
import re
from pathlib import Path
from typing import Any

import yaml

from utils.config.merge import to_dict
from utils.errors import UserError
from utils.reading import check_file

# YAML 1.1 asks for a dot and a signed exponent, so that plain YAML readers take 1e-3 for text.
_FLOAT = re.compile(
    r"""^(?:[-+]?[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?
        |[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+
        |[-+]?\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?
        |[-+]?\.(?:inf|Inf|INF)
        |\.(?:nan|NaN|NAN))$""",
    re.VERBOSE,
)


_INT = re.compile(r"^[-+]?(?:[0-9][0-9_]*|0x[0-9a-fA-F_]+)$")
_OTHERWISE = ("tag:yaml.org,2002:float", "tag:yaml.org,2002:int", "tag:yaml.org,2002:timestamp")
MOST_VALUES, DEEPEST = 100_000, 50  # of one file


class Loader(yaml.SafeLoader):
    """Plain data only; `1e-3` is a number, `010` is ten, `1:00` and dates are text, and a key that stands twice is reported."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        """Build a mapping, refusing keys that appear twice."""
        known = set()
        for key_node, _ in node.value:
            key = getattr(key_node, "value", None)
            if isinstance(key, str) and key in known:
                mark = key_node.start_mark
                # As published readers do, the last one counts; but nobody should have to find that out.
                _LOG.warning("%s, line %d: key %r stands twice; the last one counts", mark.name, mark.line + 1, key)
            if isinstance(key, str):
                known.add(key)
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        """Build a whole number."""
        text = node.value.replace("_", "")
        return int(text, 16 if "x" in text else 10)


_LOG = logging.getLogger("m2ae.config")
Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _OTHERWISE]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))
Loader.add_implicit_resolver("tag:yaml.org,2002:int", _INT, list("-+0123456789"))
Loader.add_constructor("tag:yaml.org,2002:int", Loader.construct_yaml_int)


class _Dumper(yaml.SafeDumper):
    """Block style, with short lists of plain values on one line."""


def _represent_list(dumper: yaml.SafeDumper, values: list) -> yaml.Node:
    plain = all(not isinstance(value, list | dict) for value in values)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", values, flow_style=plain)


_Dumper.add_representer(list, _represent_list)


def parse_value(text: str, where: str) -> Any:
    """Parse the value of `--set key=value` as YAML.

    Raises:
        UserError: it is no YAML, such as an unclosed bracket.
    """
    try:
        value = yaml.load(text, Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or error
        raise UserError(f"{where}: value {text[:60]!r} is malformed ({problem}); quote text, close brackets") from error
    _check_size(value, where)
    return value


def read_yaml(path: str | Path) -> dict:
    """Read the mapping in a YAML file, in block or flow style.

    Raises:
        UserError: the file is missing, unreadable, malformed (with the line) or holds no mapping.
    """
    path = Path(path)
    try:
        if path.exists():
            check_file(path)  # a named pipe would wait for ever
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise UserError(f"{path}: configuration does not exist") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8 text (byte {error.start}); is it a YAML file?") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    if "\0" in text:
        raise UserError(f"{path}: holds binary data; is it a YAML file?")
    tree = _parse(path, text)
    if not isinstance(tree, dict):
        kind = "nothing" if tree is None else f"a {type(tree).__name__}"
        raise UserError(f"{path}: holds {kind}; expected keys with values")
    _check_size(tree, f"{path}")
    return tree


def _parse(path: Path, text: str) -> Any:
    try:
        loader = Loader(text)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise UserError(
            f"{path}, line {line}: holds the control character {chr(error.character)!r}; take it out"
        ) from error
    loader.name = str(path)
    try:
        return loader.get_single_data()
    except yaml.YAMLError as error:
        raise UserError(_explain(path, error)) from error
    except RecursionError as error:
        raise UserError(f"{path}: is nested more than {DEEPEST} deep; is it a configuration?") from error
    except ValueError as error:
        raise UserError(f"{path}: is malformed YAML ({error})") from error
    finally:
        loader.dispose()


def _check_size(tree: Any, where: str) -> None:
    """Raise for what holds itself or is too large, as anchors and aliases of a short file can make it."""
    left, count = [(tree, 0)], 0
    while left:
        value, depth = left.pop()
        count += 1
        if depth > DEEPEST:
            raise UserError(f"{where}: is nested more than {DEEPEST} deep, or holds itself; is it a configuration?")
        if count > MOST_VALUES:
            raise UserError(f"{where}: holds more than {MOST_VALUES} values; is it a configuration?")
        if isinstance(value, dict | list):
            left += [(inner, depth + 1) for inner in (value.values() if isinstance(value, dict) else value)]


def _explain(path: Path, error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error).split("\n")[0]
    context = getattr(error, "context", None)
    return f"{path}{place}: is malformed YAML: {problem}" + (f" {context}" if context else "")


def save_config(config: Any, path: str | Path) -> None:
    """Write a resolved configuration as block-style YAML, atomically; `load_config` reads it back unchanged.

    Raises:
        UserError: the file cannot be written.
    """
    from utils.files import write_atomic  # imports torch, which reading needs not

    text = write_yaml(to_dict(config))
    write_atomic(path, lambda file: file.write(text.encode("utf-8")))


def write_yaml(tree: dict) -> str:
    """Return plain data as block-style YAML."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)

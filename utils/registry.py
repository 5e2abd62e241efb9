"""Names in YAML files to classes or functions, each with the dataclass of its keys."""

import dataclasses
import importlib.util
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from utils.config.merge import merge
from utils.errors import UserError, suggest


@dataclasses.dataclass(frozen=True)
class Entry:
    """What stands behind a name: how to build it, and the dataclass of its keys."""

    target: Callable
    config: type


class Registry:
    """A register of things that a `NAME` in a configuration can stand for.

    Args:
        kind: what they are, for messages: "model", "data set".
    """

    def __init__(self, kind: str):
        self.kind = kind
        self._entries: dict[str, Entry] = {}
        self._canonical: dict[str, str] = {}  # aliases included

    def register(self, name: str, *, config: type, aliases: Sequence[str] = ()) -> Callable:
        """Decorate a class or function that takes an instance of the dataclass `config`, which has a field `NAME`."""
        if not dataclasses.is_dataclass(config) or "NAME" not in {field.name for field in dataclasses.fields(config)}:
            raise TypeError(f"{self.kind} {name!r}: config must be a dataclass with a field NAME")

        def decorate(target: Callable) -> Callable:
            for known in (name, *aliases):
                if known in self._canonical:
                    first = self._entries[self._canonical[known]].target
                    raise TypeError(
                        f"{self.kind} {known!r} is registered twice, by {_file(first)} and by {_file(target)}; "
                        "choose another NAME in one of them"
                    )
                self._canonical[known] = name
            self._entries[name] = Entry(target, config)
            return target

        return decorate

    def __contains__(self, name: Any) -> bool:
        return isinstance(name, str) and name in self._canonical

    def names(self) -> list[str]:
        """Return the registered names, sorted, without aliases."""
        return sorted(self._entries)

    def entry(self, name: Any, where: str | None = None) -> Entry:
        """Return what is registered under `name` or an alias.

        Raises:
            UserError: the name is unknown; the message gives the close ones.
        """
        if not isinstance(name, str) or name not in self._canonical:
            place = f"{where}: " if where else ""
            raise UserError(f"{place}{self.kind} {name!r} is unknown; {suggest(name, self._canonical)}")
        return self._entries[self._canonical[name]]

    def config(self, mapping: Any, where: str | None = None) -> Any:
        """Merge a mapping over the dataclass declared for its `NAME`, strictly; an instance of it passes as it is.

        Raises:
            UserError: no NAME, an unknown one, an unknown key or a value of the wrong type.
        """
        where = where or f"{self.kind} configuration"
        if dataclasses.is_dataclass(mapping) and not isinstance(mapping, type):
            entry = self.entry(getattr(mapping, "NAME", None), where)
            if not isinstance(mapping, entry.config):
                wanted = entry.config.__name__
                raise UserError(
                    f"{where}: {self.kind} {mapping.NAME!r} takes a {wanted}, not a {type(mapping).__name__}"
                )
            return mapping
        if not isinstance(mapping, Mapping):
            raise UserError(f"{where}: is {mapping!r}; expected keys with values, NAME among them")
        if "NAME" not in mapping:
            raise UserError(f"{where}: has no NAME; choose one of {', '.join(self.names())}")
        return merge(self.entry(mapping["NAME"], where).config, mapping, where)

    def build(self, config: Any, **kwargs: Any) -> Any:
        """Return `target(config, **kwargs)` of what `config`, a mapping or the dataclass of its NAME, stands for."""
        config = self.config(config)
        return self.entry(config.NAME).target(config, **kwargs)

    def targets(self) -> list[Callable]:
        """Return what is registered, in the order of `names()`."""
        return [self._entries[name].target for name in self.names()]


def import_file(path: Path | None, where: str) -> None:
    """Run a Python file that registers NAMEs, once in a process.

    Args:
        path: the file; None where there is none.
        where: what named it, for messages.

    Raises:
        UserError: there is no such file, it raises anything, or it registers a NAME that is taken.
    """
    if path is None or path.suffix != ".py":
        raise UserError(f"{where}: is no Python file; give the path of one that registers models or data sets")
    name = f"imported{path.resolve().with_suffix('')}".replace("/", ".")
    if name in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever the code of a stranger raises
        del sys.modules[name]
        line = next(
            (f", line {frame.lineno}" for frame in reversed(_frames(error)) if Path(frame.filename) == path), ""
        )
        raise UserError(f"{where}: {path}{line} does not import: {type(error).__name__}: {error}") from error


def _frames(error: BaseException) -> traceback.StackSummary:
    return traceback.extract_tb(error.__traceback__)


def _file(target: Callable) -> str:
    """Return the file that defines a target, or its module."""
    module = sys.modules.get(target.__module__)
    return getattr(module, "__file__", None) or target.__module__

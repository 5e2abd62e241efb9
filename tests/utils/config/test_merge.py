"""Strict merging of mappings into dataclasses, and the registry on top of it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from utils.config.merge import merge, to_dict
from utils.errors import UserError
from utils.registry import Registry


class EasyDict(dict):
    """What published code passes: a dict whose keys are attributes too."""

    __getattr__ = dict.__getitem__


@dataclass
class Inner:
    depth: int = 1
    rate: float | None = None


@dataclass
class Outer:
    NAME: str = "Outer"
    width: int = 8
    scale: float = 1.0
    flag: bool = False
    dims: list[int] = field(default_factory=lambda: [1, 2])
    radii: list[float] = field(default_factory=list)
    kind: Literal["first", "second"] = "first"
    legacy: bool | list[str] = False
    inner: Inner = field(default_factory=Inner)
    maybe: Inner | None = None
    table: dict[str, float] = field(default_factory=dict)
    free: Any = None
    derived: int = field(default=0, init=False)

    def __post_init__(self):
        if self.width > 100:
            raise ValueError(f"outer.width: {self.width} is above 100")


@pytest.mark.parametrize(
    ("key", "given", "expected"),
    [
        ("width", 3, 3),
        ("width", 300.0 - 201, 99),
        ("width", np.int64(5), 5),
        ("scale", 2, 2.0),
        ("scale", "1e-3", 1e-3),
        ("scale", np.float32(0.5), 0.5),
        ("flag", True, True),
        ("dims", (4, 5.0), [4, 5]),
        ("dims", [], []),
        ("radii", [1, "2e-1"], [1.0, 0.2]),
        ("kind", "second", "second"),
        ("legacy", True, True),
        ("legacy", ["a"], ["a"]),
        ("inner", {"depth": 2}, Inner(2)),
        ("inner", {"rate": 1}, Inner(1, 1.0)),
        ("inner", {"rate": None}, Inner()),
        ("inner", Inner(7), Inner(7)),
        ("maybe", None, None),
        ("maybe", {"depth": 4}, Inner(4)),
        ("table", {"a": 1}, {"a": 1.0}),
        ("free", {"x": [1]}, {"x": [1]}),
    ],
)
def test_values_that_fit(key, given, expected):
    value = getattr(merge(Outer, {key: given}, "test.yaml"), key)
    assert value == expected and type(value) is type(expected)


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"widht": 3}, r"test.yaml: unknown key 'widht'; did you mean width\?"),
        ({"zzz": 3}, r"unknown key 'zzz'; keys here: NAME, dims"),
        ({"derived": 3}, r"unknown key 'derived'"),
        ({"inner": {"dept": 3}}, r"test.yaml: inner: unknown key 'dept'; did you mean depth\?"),
        ({"inner": {"depth": "many"}}, r"test.yaml: inner.depth: is 'many'; expected a whole number"),
        ({"inner": None}, r"test.yaml: inner: is empty; expected keys with values"),
        ({"inner": [1]}, r"inner: is \[1\]; expected keys"),
        ({"width": True}, r"width: is True; expected a whole number"),
        ({"width": 1.5}, r"width: is 1.5; expected a whole number"),
        ({"width": "3"}, r"width: is '3'; expected a whole number"),
        ({"width": None}, r"width: is empty; expected a whole number"),
        ({"scale": True}, r"scale: is True; expected a number"),
        ({"scale": float("nan")}, r"scale: is nan; expected a number"),
        ({"scale": "fast"}, r"scale: is 'fast'; expected a number"),
        ({"flag": 1}, r"flag: is 1; expected true or false"),
        ({"flag": "true"}, r"flag: is 'true'; expected true or false"),
        ({"NAME": 5}, r"NAME: is 5; expected text"),
        ({"dims": 4}, r"dims: is 4; expected a list such as"),
        ({"dims": "1,2"}, r"dims: is '1,2'; expected a list"),
        ({"dims": [1, "x"]}, r"dims\[1\]: is 'x'; expected a whole number"),
        ({"kind": "secnd"}, r"kind: 'secnd' is unknown; did you mean second\?"),
        ({"kind": True}, r"kind: True is unknown; choose one of: first, second"),
        ({"legacy": "flat"}, r"legacy: is 'flat'; expected true or false or a list of texts"),
        ({3: 1}, r"key 3 is not text"),
        ({"width": 101}, r"^test.yaml: outer.width: 101 is above 100$"),
    ],
)
def test_bad_values_name_place_value_and_remedy(mapping, message):
    with pytest.raises(UserError, match=message):
        merge(Outer, mapping, "test.yaml")


def test_place_is_not_said_twice():
    with pytest.raises(UserError, match=r"^a.yaml: outer.width: 101 is above 100$"):
        merge(Outer, {"width": 101}, "a.yaml: outer")


def test_required_key():
    @dataclass
    class Needs:
        lr: float

    with pytest.raises(UserError, match="key 'lr' is missing"):
        merge(Needs, {}, "a.yaml")


def test_sources():
    expected = Outer(width=9, inner=Inner(3))
    assert merge(Outer, {"width": 9, "inner": {"depth": 3}}, "dict") == expected
    assert merge(Outer, EasyDict(width=9, inner=EasyDict(depth=3)), "EasyDict") == expected
    assert merge(Outer, expected, "dataclass") == expected
    assert merge(Outer, to_dict(expected), "round trip") == expected


def test_to_dict_is_plain():
    plain = to_dict(Outer(free=(np.float32(0.5), Path("a/b"), np.arange(2)), inner=Inner(3)))
    assert plain["free"] == [0.5, "a/b", [0, 1]] and plain["inner"] == {"depth": 3, "rate": None}
    assert type(plain["free"][0]) is float and "derived" not in plain
    with pytest.raises(TypeError, match="Registry"):
        to_dict(Registry("x"))


@pytest.fixture
def registry():
    registry = Registry("thing")

    @registry.register("Outer", config=Outer, aliases=("OldOuter",))
    class Thing:
        def __init__(self, config, extra=0):
            self.config, self.extra = config, extra

    @registry.register("make", config=Inner2)
    def make(config):
        return config.depth

    return registry


@dataclass
class Inner2(Inner):
    NAME: str = "make"


def test_registry_builds_classes_and_functions(registry):
    thing = registry.build({"NAME": "Outer", "width": 4}, extra=2)
    assert thing.config.width == 4 and thing.extra == 2
    assert registry.build(Inner2(depth=6)) == 6
    assert registry.build({"NAME": "OldOuter"}).config.NAME == "OldOuter"
    assert registry.names() == ["Outer", "make"]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"NAME": "Outr"}, r"thing 'Outr' is unknown; did you mean Outer"),
        ({"NAME": None}, r"thing None is unknown"),
        ({"width": 1}, r"has no NAME; choose one of Outer, make"),
        ([1], r"is \[1\]; expected keys"),
        ({"NAME": "Outer", "widthh": 1}, r"unknown key 'widthh'; did you mean width"),
        (Inner2(NAME="Outer"), r"thing 'Outer' takes a Outer, not a Inner2"),
    ],
)
def test_registry_errors(registry, config, message):
    with pytest.raises(UserError, match=message):
        registry.build(config)


def test_registering_wrongly_is_a_programming_error(registry):
    with pytest.raises(TypeError, match="registered twice"):
        registry.register("Other", config=Outer, aliases=("Outer",))(object)
    with pytest.raises(TypeError, match="field NAME"):
        registry.register("New", config=Inner)

"""`run --shims`: what published code takes for granted and newer Python, NumPy, PyTorch, timm and matplotlib took away.

Every shim adds what is missing and changes nothing for code that does without it, `torch.load` excepted.
"""

import argparse
import collections
import collections.abc
import functools
import inspect
import math
import os
from collections.abc import Callable
from types import ModuleType

SHIMS = {
    "collections": "Iterable, Mapping and the other abstract classes, as before Python 3.10",
    "numpy": "float, int, bool, object, str, complex, float_, Inf, NaN and the like, fromstring of bytes, as before 2.0",
    "torch._six": "the module, as before PyTorch 2.0",
    "torch_scatter": "scatter and its kin in plain PyTorch, unless the package is installed",
    "torch.load": "unpickles whatever a file holds, code included, as before PyTorch 2.6: load only files that you trust",
    "timm": "t_mul and decay_rate of the schedulers, as before 0.5",
    "matplotlib": "gca(projection=...) and tostring_rgb, as before 3.7 and 3.10",
    "argparse": "--local_rank, from the environment or from --local-rank, under torch.distributed.run and launch",
}
"""What each shim gives back."""
NUMPY_NAMES = {
    "float": float, "int": int, "bool": bool, "object": object, "str": str, "complex": complex, "long": int, "unicode": str,
    "Inf": math.inf, "Infinity": math.inf, "infty": math.inf, "PINF": math.inf, "NINF": -math.inf, "NaN": math.nan, "NAN": math.nan,
}  # fmt: skip
NUMPY_RENAMED = {
    "float_": "float64", "complex_": "complex128", "singlecomplex": "complex64", "cfloat": "complex128", "string_": "bytes_",
    "unicode_": "str_", "product": "prod", "cumproduct": "cumprod", "sometrue": "any", "alltrue": "all", "round_": "round",
    "row_stack": "vstack", "in1d": "isin", "trapz": "trapezoid",
}  # fmt: skip
SCHEDULERS = {"cosine_lr": "CosineLRScheduler", "tanh_lr": "TanhLRScheduler", "poly_lr": "PolyLRScheduler"}
SCHEDULER_KEYS = {"t_mul": "cycle_mul", "decay_rate": "cycle_decay"}


def apply_shims(after_import: Callable[[str, Callable[[ModuleType], object]], None]) -> None:
    """Apply all of SHIMS that stand in no module of their own.

    Args:
        after_import: calls a function with a module of a name when it has been imported.
    """
    for name in collections.abc.__all__:
        if not hasattr(collections, name):
            setattr(collections, name, getattr(collections.abc, name))
    _read_local_rank()
    after_import("numpy", _complete_numpy)
    after_import("torch", _load_everything)
    for module, name in SCHEDULERS.items():
        after_import(f"timm.scheduler.{module}", functools.partial(_take_old_keys, name=name))
    after_import("matplotlib.figure", _take_projection)
    after_import("matplotlib.pyplot", _take_projection_of_the_figure)
    after_import("matplotlib.backends.backend_agg", _complete_canvas)


def _complete_numpy(numpy: ModuleType) -> None:
    there = vars(numpy)
    for name, value in NUMPY_NAMES.items():
        there.setdefault(name, value)
    for old, new in NUMPY_RENAMED.items():
        if new in there:
            there.setdefault(old, there[new])
    from_text = numpy.fromstring

    @functools.wraps(from_text)
    def fromstring(string, dtype=float, count=-1, *, sep="", **kwargs):
        if sep == "":
            return numpy.frombuffer(string, dtype, count).copy()
        return from_text(string, dtype, count, sep=sep, **kwargs)

    numpy.fromstring = fromstring


def _load_everything(torch: ModuleType) -> None:
    load = torch.load

    @functools.wraps(load)
    def load_everything(*args, weights_only=None, **kwargs):
        return load(*args, weights_only=bool(weights_only), **kwargs)

    torch.load = load_everything


def _take_old_keys(module: ModuleType, name: str) -> None:
    scheduler = getattr(module, name, None)
    if scheduler is None:
        return
    start = scheduler.__init__
    taken = inspect.signature(start).parameters
    renamed = {old: new for old, new in SCHEDULER_KEYS.items() if old not in taken and new in taken}
    if not renamed:
        return

    @functools.wraps(start)
    def start_with_old_keys(self, *args, **kwargs):
        start(self, *args, **{renamed.get(key, key): value for key, value in kwargs.items()})

    scheduler.__init__ = start_with_old_keys


def _take_projection(module: ModuleType) -> None:
    current = module.FigureBase.gca

    @functools.wraps(current)
    def gca(self, **kwargs):
        if not kwargs:
            return current(self)
        axes = self._axstack.current() if self.axes else None
        return (
            axes if axes is not None and axes.name == kwargs.get("projection") else self.add_subplot(1, 1, 1, **kwargs)
        )

    module.FigureBase.gca = gca


def _take_projection_of_the_figure(module: ModuleType) -> None:
    module.gca = lambda **kwargs: module.gcf().gca(**kwargs)


def _complete_canvas(module: ModuleType) -> None:
    import numpy

    canvas = module.FigureCanvasAgg
    if not hasattr(canvas, "tostring_rgb"):
        canvas.tostring_rgb = lambda self: numpy.asarray(self.buffer_rgba())[..., :3].tobytes()


def _read_local_rank() -> None:
    """Give `--local_rank` of a script, where the command line lacks it, the rank that the launcher put into the environment."""
    parse = argparse.ArgumentParser.parse_known_args

    @functools.wraps(parse)
    def parse_with_rank(self, args=None, namespace=None):
        known = self._option_string_actions
        if "--local_rank" in known and "LOCAL_RANK" in os.environ:
            self.set_defaults(local_rank=int(os.environ["LOCAL_RANK"]))
            if "--local-rank" not in known:  # as torch.distributed.launch spells it since PyTorch 2.0
                known["--local-rank"] = known["--local_rank"]
        return parse(self, args, namespace)

    argparse.ArgumentParser.parse_known_args = parse_with_rank

"""What to do about the errors on which published code commonly ends here, said below the traceback."""

import os
import sys

PAGE = "docs/published-code.md"
LAUNCHED = "python -m m2ae_ops.compat run [--device cpu] -m torch.distributed.run --nproc_per_node=1 main.py --launcher pytorch ..."
SIGNS_OF_AGE = (
    "unexpected keyword argument 't_mul'", "unexpected keyword argument 'decay_rate'",
    "unexpected keyword argument 'projection'", "Weights only load failed", "module 'numpy' has no attribute",
    "removed in the NumPy 2.0 release", "module 'collections' has no attribute", "from 'collections'",
    "no attribute 'tostring_rgb'", "binary mode of fromstring", "No module named 'torch._six'", "No module named 'torch_scatter'",
)  # fmt: skip
NO_GROUP = ("process group has not been initialized", "environment variable RANK expected")


def served() -> str:
    """Return the served names as text."""
    from .hook import ALIASES

    return ", ".join(ALIASES)


def advice_on(error: BaseException | None) -> str | None:
    """Return what to do about an error or one that it came from, None where there is nothing to say."""
    from .hook import AGED, ALIASES, VARIABLE

    if error is None:
        return None
    text, shims = str(error), "shims" in os.environ.get(VARIABLE, "").split()
    if any(sign in text for sign in SIGNS_OF_AGE) and not shims:
        return f"only age took this away; `run --shims` gives it back, see {PAGE}"
    if isinstance(error, ImportError):
        name = error.name or ""
        if name in ALIASES and not isinstance(error, ModuleNotFoundError):
            return f"{name} is served, but lacks that name; what is served of each repository is in {PAGE}"
        if isinstance(error, ModuleNotFoundError) and name not in AGED:
            return f"{name} is neither installed nor served. Served are {served()}; what else to install is in {PAGE}"
    missing = isinstance(error, KeyError) and error.args[:1] in (("RANK",), ("LOCAL_RANK",), ("WORLD_SIZE",))
    if missing or any(sign in text for sign in NO_GROUP):
        return f"this needs a process group, which a launcher starts: {LAUNCHED}; see {PAGE}"
    return advice_on(error.__cause__ or error.__context__)


def advise_on_errors() -> None:
    """Let an error that ends this process say what to do about it."""
    report = sys.excepthook

    def report_with_advice(kind, error, trace):
        report(kind, error, trace)
        advice = advice_on(error)
        if advice is not None:
            print(f"m2ae_ops.compat: {advice}", file=sys.stderr)

    sys.excepthook = report_with_advice

"""Serve published module names from `served/`, ahead of what is installed or lies in the working directory.

This file, `shims.py` and `advice.py` import neither PyTorch nor the ops: every process below `python -m m2ae_ops.compat run`
loads them as it starts (`start/sitecustomize.py`), and most of those processes never touch a tensor.
"""

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

PACKAGE = Path(__file__).resolve().parents[1]  # the folder m2ae_ops
VARIABLE = "M2AE_COMPAT"
"""Environment variable of processes below `run`: words, of which "cpu" maps CUDA to the CPU and "shims" turns these on."""
ALIASES = {
    "pointnet2_ops": "pointnet2_ops",
    "pointnet2_ops._ext": "pointnet2_ext",
    "pointnet2_ops._version": "pointnet2_version",
    "pointnet2_ops.pointnet2_utils": "pointnet2_utils",
    "pointnet2_ops.pointnet2_modules": "pointnet2_modules",
    "pointnet2_batch_cuda": "pointnet2_batch",
    "knn_cuda": "knn_cuda",
    "chamfer": "chamfer",
    "chamfer_dist": "chamfer_dist",
    "extensions.chamfer_dist": "chamfer_dist",
    "chamfer_3D": "chamfer_3d",
    "chamfer3D": "chamfer3d",
    "chamfer3D.dist_chamfer_3D": "dist_chamfer_3d",
    "emd": "emd",
    "emd.emd_module": "emd_module",
    "emd_module": "emd_module",
    "emd_cuda": "emd_cuda",
    "extensions.emd": "extensions_emd",
    "extensions.emd.emd": "earth_mover",
    "extensions.emd.emd_module": "emd_module",
}
"""Published name -> module of the folder `served`."""
AGED = {"torch._six": "torch_six", "torch_scatter": "torch_scatter"}
"""The same for names that only `--shims` serves, where nothing else does."""
PARENTS = ("extensions",)
"""Packages that may be missing although published code imports from them."""
OF_THE_MODULE = {
    "__builtins__",
    "__cached__",
    "__doc__",
    "__file__",
    "__loader__",
    "__name__",
    "__package__",
    "__spec__",
}


class AliasFinder(MetaPathFinder):
    """Find published names, and this package itself in processes that do not have it on their path."""

    def __init__(self, aliases: dict[str, str]):
        self.aliases = aliases

    def find_spec(self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None):
        """Find a name that is served here."""
        if fullname == PACKAGE.name:
            return importlib.util.spec_from_file_location(fullname, PACKAGE / "__init__.py")
        if fullname not in self.aliases:
            return None
        spec = ModuleSpec(fullname, AliasLoader(self.aliases[fullname]), is_package=True)
        # Whatever else lies in a folder of this name, such as another repository's own helpers, still imports from there.
        shadowed = PathFinder.find_spec(fullname, path)
        spec.submodule_search_locations = list(getattr(shadowed, "submodule_search_locations", None) or [])
        return spec


class AliasLoader(Loader):
    """Fill a module with the names of ours; the classes are the same objects under every name."""

    def __init__(self, served: str):
        self.served = served

    def create_module(self, spec: ModuleSpec) -> None:
        """Leave it to Python to create the module."""
        return None

    def exec_module(self, module: ModuleType) -> None:
        """Fill the module with the names that are served here."""
        ours = importlib.import_module(f".served.{self.served}", __package__)
        names = {name: value for name, value in vars(ours).items() if name not in OF_THE_MODULE}
        for child in [name for name in ALIASES if name.rpartition(".")[0] == module.__name__]:
            # Now, for a later import would put the module `emd` in the place of the class of that name.
            importlib.import_module(child)
            names.setdefault(child.rpartition(".")[2], sys.modules[child])
        vars(module).update(names, __doc__=ours.__doc__)


class ParentFinder(MetaPathFinder):
    """Stand in for a parent package that nobody else finds."""

    def find_spec(self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None):
        """Find the parent package of a served name."""
        return ModuleSpec(fullname, None, is_package=True) if fullname in PARENTS else None


class AfterImport(MetaPathFinder):
    """Call functions with a module as soon as it has been imported; they outlive a module that is imported anew."""

    def __init__(self):
        self.actions: dict[str, list[Callable[[ModuleType], object]]] = {}

    def find_spec(self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None):
        """Find a module, and patch it once it is imported."""
        actions = self.actions.get(fullname)
        if actions is None:
            return None
        others = (finder for finder in sys.meta_path if finder is not self and hasattr(finder, "find_spec"))
        spec = next(filter(None, (finder.find_spec(fullname, path, target) for finder in others)), None)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_act(module: ModuleType) -> None:
            execute(module)
            for action in actions:
                action(module)

        spec.loader.exec_module = execute_and_act
        return spec

    def add(self, name: str, action: Callable[[ModuleType], object]) -> None:
        """Call `action` with the module `name`: now, if it is here, or when it is imported."""
        self.actions.setdefault(name, []).append(action)
        if name in sys.modules:
            action(sys.modules[name])


def install(*, cpu: bool = False, shims: bool = False) -> None:
    """Let the published names be imported from here, from now on; calling it again changes nothing that is installed.

    Modules of these names that were imported before are forgotten, so that the next import finds ours.

    Args:
        cpu: let CUDA mean the CPU, from when PyTorch is imported.
        shims: give back what only age took away, see `shims.py`.
    """
    if not any(isinstance(finder, AliasFinder) for finder in sys.meta_path):
        for name in ALIASES:
            sys.modules.pop(name, None)
        sys.meta_path[:] = [AliasFinder(ALIASES), AfterImport(), *sys.meta_path, ParentFinder()]
    after = next(finder for finder in sys.meta_path if isinstance(finder, AfterImport))
    if cpu:
        after.add("torch", lambda _: importlib.import_module(".cpu_device", __package__).map_cuda_to_cpu())
    if shims and not any(isinstance(finder, AliasFinder) and finder.aliases is AGED for finder in sys.meta_path):
        sys.meta_path.append(AliasFinder(AGED))
        importlib.import_module(".shims", __package__).apply_shims(after.add)


def install_as_asked() -> None:
    """Install what the variable M2AE_COMPAT asks for: the start of a process below `run`."""
    words = os.environ.get(VARIABLE, "").split()
    if words:
        importlib.import_module(".advice", __package__).advise_on_errors()
        install(cpu="cpu" in words, shims="shims" in words)

"""Serve published module names from this folder, ahead of what is installed or lies in the working directory."""

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

ALIASES = {
    "pointnet2_ops": "pointnet2_ops",
    "pointnet2_ops._ext": "pointnet2_ext",
    "pointnet2_ops.pointnet2_utils": "pointnet2_utils",
    "pointnet2_ops.pointnet2_modules": "pointnet2_modules",
    "knn_cuda": "knn_cuda",
    "chamfer": "chamfer",
    "extensions.chamfer_dist": "chamfer_dist",
    "emd": "emd",
    "emd.emd_module": "emd_module",
    "emd_module": "emd_module",
    "extensions.emd": "emd_module",
    "extensions.emd.emd_module": "emd_module",
}
"""Published name -> module of this folder."""
PARENTS = ("extensions",)
"""Packages that may be missing although published code imports from them."""


class AliasFinder(MetaPathFinder):
    """Find the names of ALIASES."""

    def find_spec(self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None):
        if fullname not in ALIASES:
            return None
        spec = ModuleSpec(fullname, AliasLoader(), is_package=True)
        # Whatever else lies in a folder of this name, such as another repository's own helpers, still imports from there.
        shadowed = PathFinder.find_spec(fullname, path)
        spec.submodule_search_locations = list(getattr(shadowed, "submodule_search_locations", None) or [])
        return spec


class AliasLoader(Loader):
    """Fill a module with the public names of ours; the classes are the same objects under every name."""

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        ours = importlib.import_module(f".{ALIASES[module.__name__]}", __package__)
        names = {name: value for name, value in vars(ours).items() if not name.startswith("__")}
        vars(module).update(names, __doc__=ours.__doc__)


class ParentFinder(MetaPathFinder):
    """Stand in for a parent package that nobody else finds."""

    def find_spec(self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None):
        return ModuleSpec(fullname, None, is_package=True) if fullname in PARENTS else None


def install() -> None:
    """Let the published names be imported from here, from now on; calling it again changes nothing.

    Modules of these names that were imported before are forgotten, so that the next import finds ours.
    """
    if any(isinstance(finder, AliasFinder) for finder in sys.meta_path):
        return
    for name in ALIASES:
        sys.modules.pop(name, None)
    sys.meta_path.insert(0, AliasFinder())
    sys.meta_path.append(ParentFinder())

"""Build the package m2ae_ops with its kernels compiled, where that can be done. The metadata is in pyproject.toml.

The libraries have no Python ABI, so the wheel is py3-none-<platform>; with nothing compiled it is py3-none-any and the
kernels are compiled at first use.
"""

import importlib.util
import shutil
import sys
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.build_py import build_py
from setuptools.command.install import install

try:
    from setuptools.command.bdist_wheel import bdist_wheel
except ImportError:
    try:
        from wheel.bdist_wheel import bdist_wheel  # setuptools below 70.1
    except ImportError:
        bdist_wheel = None  # `python setup.py install` does not need it

PACKAGE = Path(__file__).parent / "m2ae_ops"


def load_building():
    """Return the package m2ae_ops.building without importing m2ae_ops, which would import PyTorch."""
    folder = PACKAGE / "building"
    spec = importlib.util.spec_from_file_location(
        "building", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    sys.modules["building"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["building"])
    from building import cache_folder, installing, torch_files

    # What is compiled here need not be compiled again at run time.
    return installing, torch_files, cache_folder() / "ops-objects"


class BuildWithKernels(build_py):
    """Copy the Python files, then compile into the folder `lib` of the package."""

    def run(self):
        """Build the package with its kernels."""
        package = Path(self.build_lib) / "m2ae_ops"
        shutil.rmtree(package, ignore_errors=True)  # an earlier build may have left files that are no more
        super().run()
        if getattr(self, "editable_mode", False):
            return  # the source folder is used as it is and compiles at first use
        installing, torch_files, objects = load_building()
        torch = torch_files.find_torch()
        if torch is None:
            print(
                "m2ae_ops: no PyTorch in this environment; the kernels will be compiled at first use", file=sys.stderr
            )
            return
        for line in installing.compile_installed(PACKAGE / "csrc", torch, package / "lib", objects):
            print(f"m2ae_ops: {line}", file=sys.stderr, flush=True)


class PlatformDistribution(Distribution):
    """Belong to the platform when there is a PyTorch to compile for."""

    def has_ext_modules(self):
        """Return whether kernels can be compiled, which makes the wheel belong to a platform."""
        return sys.platform == "linux" and load_building()[1].find_torch() is not None


class PlainInstall(install):
    """Let `python setup.py install` put plain files in place, not an egg."""

    def run(self):
        """Install without building an egg."""
        super(install, self).run()


commands = {"build_py": BuildWithKernels, "install": PlainInstall}
if bdist_wheel is not None:

    class PlatformWheel(bdist_wheel):
        """Name the platform, but no Python version or ABI: the libraries have none."""

        def get_tag(self):
            *_, system = super().get_tag()
            return "py3", "none", system

    commands["bdist_wheel"] = PlatformWheel

if __name__ == "__main__":  # setup.py of the repository imports this file
    setup(cmdclass=commands, distclass=PlatformDistribution)

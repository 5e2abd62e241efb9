"""Install a module of a published name together with m2ae_ops, on which it stands."""

import subprocess
import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.install import install

FOLDER = Path(__file__).resolve().parent


class InstallBoth(install):
    """Install m2ae_ops first, with the same options, for `setup.py install` looks after no requirements. pip does."""

    def run(self):
        """Install the package, and with a typed `install` the ops too."""
        if "install" in self.distribution.commands:  # typed, not a step of building a wheel
            subprocess.run([sys.executable, "setup.py", *sys.argv[1:]], cwd=FOLDER, check=True)
        super(install, self).run()  # plain files, not an egg


def install_beside(name: str, version: str) -> None:
    """Set up the module `name` that lies in the working directory."""
    setup(
        name=name,
        version=version,
        description=f"The module {name} of published code, on top of m2ae_ops",
        py_modules=[name],
        install_requires=[f"m2ae-ops @ {FOLDER.as_uri()}"],  # for pip
        cmdclass={"install": InstallBoth},
    )

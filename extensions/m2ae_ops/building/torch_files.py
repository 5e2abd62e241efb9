"""The installed PyTorch as seen from the file system, without importing it.

A build by pip runs in an environment of its own, in which the PyTorch of the target environment cannot be imported and
a second one would be a download of several GB. Its headers, libraries and version are files that can be found.
"""

import importlib.util
import re
import site
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class TorchFiles:
    """A PyTorch installation: its folder, version, CUDA version (None without), ABI of its C++ strings, C++ standard of its headers."""

    folder: Path
    version: str
    cuda: str | None
    cxx11_abi: int
    standard: int

    @property
    def includes(self) -> tuple[Path, ...]:
        """Folders of PyTorch's own headers."""
        return self.folder / "include", self.folder / "include" / "torch" / "csrc" / "api" / "include"

    @property
    def nvidia(self) -> tuple[Path, ...]:
        """Folders that NVIDIA's wheels, on which PyTorch's CUDA wheels depend, install next to it."""
        return tuple(sorted(path for path in (self.folder.parent / "nvidia").glob("*") if path.is_dir()))


def torch_files(folder: Path) -> TorchFiles:
    """Return what the folder of an installed PyTorch says about itself.

    Raises:
        FileNotFoundError: there is no version.py.
    """
    facts = dict(re.findall(r"^(\w+)\b.*= '(.*)'$", (folder / "version.py").read_text(), re.MULTILINE))
    path = folder / "share" / "cmake" / "Torch" / "TorchConfig.cmake"
    text = path.read_text() if path.exists() else ""
    # Wheels up to 2.6 came with either ABI and name it there; later ones have the new one and no longer do.
    abi = re.search(r"_GLIBCXX_USE_CXX11_ABI=([01])", text)
    standard = re.search(r"CXX_STANDARD (\d+)", text)  # 17, and 20 from about PyTorch 2.12 on
    return TorchFiles(
        folder,
        facts["__version__"],
        facts.get("cuda"),
        cxx11_abi=int(abi[1]) if abi else 1,
        standard=int(standard[1]) if standard else 17,
    )


def find_torch() -> TorchFiles | None:
    """Return the PyTorch of the running interpreter's environment, or None."""
    folders = (folder / "torch" for folder in _site_folders())
    found = (folder for folder in folders if (folder / "version.py").exists() and (folder / "include").is_dir())
    return next(map(torch_files, found), None)


def _site_folders() -> Iterator[Path]:
    """Yield the folders that the interpreter would search, also those hidden by a build environment."""
    spec = importlib.util.find_spec("torch")  # looks, does not import
    if spec is not None and spec.origin:
        yield Path(spec.origin).parent.parent
    paths = sysconfig.get_paths()
    folders = [paths["purelib"], paths["platlib"], *site.getsitepackages(), site.getusersitepackages()]
    for folder in map(Path, dict.fromkeys(folders)):
        yield folder
        for file in sorted(folder.glob("*.pth")):
            lines = file.read_text(errors="replace").splitlines()
            yield from (folder / line for line in lines if line and not line.startswith(("#", "import ", "import\t")))

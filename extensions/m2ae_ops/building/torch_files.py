"""The installed PyTorch as seen from the file system, without importing it.

pip builds in an environment of its own, where the target's PyTorch cannot be imported and a second one is a download of several GB.
"""

import importlib.util
import re
import site
import sysconfig
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
    abi = int([*re.findall(r"_GLIBCXX_USE_CXX11_ABI=([01])", text), "1"][0])
    standard = int([*re.findall(r"CXX_STANDARD (\d+)", text), "17"][0])  # 17, and 20 from about PyTorch 2.12 on
    return TorchFiles(folder, facts["__version__"], facts.get("cuda"), abi, standard)


def find_torch() -> TorchFiles | None:
    """Return the PyTorch of the running interpreter's environment, also if a build environment hides it, or None."""
    spec, paths = importlib.util.find_spec("torch"), sysconfig.get_paths()  # finds without importing
    own = [Path(spec.origin).parents[1]] if spec is not None and spec.origin else []
    folders = (*own, paths["purelib"], paths["platlib"], *site.getsitepackages(), site.getusersitepackages())
    for folder in (Path(folder) / "torch" for folder in folders):
        if (folder / "version.py").exists() and (folder / "include").is_dir():
            return torch_files(folder)
    return None

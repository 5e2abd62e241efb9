"""The table of published weights (`table.yaml`), and the small weights that are part of this package."""

from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path

from datasets.cache import cache_folder
from datasets.preparing.sources import Source
from utils import ROOT
from utils.config.yaml import read_yaml
from utils.errors import UserError

FILE = Path(__file__).with_name("table.yaml")
_API = ROOT / "api" if (ROOT / "api").is_dir() else ROOT  # an installation has the content of api/ at its top
PACKAGED = _API / "weights"
# Name -> the method whose pre-training it is of; the first is what `mini` alone stands for.
MINI = {"mini-point-m2ae": "point-m2ae", "mini-point-mae": "point-mae"}


@dataclass(frozen=True)
class Entry:
    """One published file.

    Args:
        name: what users type.
        method: as `--method` calls it, or the name of a method that is not in this repository.
        task: pretrain, modelnet40, scan_obj-bg, scan_obj, scan_pb, shapenet_part, teacher or logs.
        system: who trained it.
        file: its name where it is published.
        via: "https", "hf" (Hugging Face), "drive" (Google Drive), or "page": a person has to fetch it.
        address: link, repository, Drive id or page, by `via`.
        revision: commit of the repository, with "hf".
        size: bytes; 0 = nobody states it.
        sha256: empty where nobody states it; `stated_by` says who does.
        licence: of the weights.
        preprocessing: what its clouds were put through.
        published: the number that its authors or, where said, others report for it.
        recipe: file below cfgs/ that builds its model; empty where no method here reads it.
        note: what else a user must know.
    """

    name: str
    method: str
    task: str
    system: str
    file: str
    via: str
    address: str
    revision: str = ""
    size: int = 0
    sha256: str = ""
    stated_by: str = ""
    licence: str = ""
    preprocessing: str = ""
    published: str = ""
    recipe: str = ""
    note: str = ""

    @property
    def source(self) -> Source:
        """Return how it is fetched."""
        return Source(self.via, self.address, file=self.file, revision=self.revision)

    @property
    def place(self) -> Path:
        """Return where `fetch` puts the file and every command looks for it."""
        return weights_folder() / (self.name + (Path(self.file).suffix or ".pth"))


def weights_folder() -> Path:
    """Return the folder in the cache that keeps published weights."""
    return cache_folder() / "weights"


@cache
def entries() -> dict[str, Entry]:
    """Return the table, by name.

    Raises:
        UserError: the file of the table is damaged.
    """
    tree = read_yaml(FILE)
    known = {field.name for field in fields(Entry)}
    found = {}
    for group in tree.values():
        shared = {key: value for key, value in group.items() if key != "files"}
        for name, keys in group["files"].items():
            values = {**shared, **keys}
            unknown = sorted(set(values) - known)
            if unknown or name in found:
                raise UserError(
                    f"{FILE}: {name}: {f'unknown {unknown[0]}' if unknown else 'stands twice'}; install again"
                )
            found[name] = Entry(name=name, **values)
    return found

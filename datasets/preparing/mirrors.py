"""The places that data sets are fetched from (`mirrors.yaml`). What is not official is taken only when it is asked for by name."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from datasets.preparing.sources import Source
from utils.config.yaml import read_yaml
from utils.errors import UserError, suggest

FILE = Path(__file__).with_name("mirrors.yaml")


@dataclass(frozen=True)
class Mirror:
    """A place that an archive is to be had from.

    Args:
        size: bytes; 0 = nobody states it.
        sha256, md5: empty where nobody states it; `stated_by` says who does.
        official: its publisher maintains it, and its terms allow everybody to fetch it: taken without being asked for.
    """

    name: str
    via: str
    address: str
    file: str = ""
    size: int = 0
    sha256: str = ""
    md5: str = ""
    stated_by: str = ""
    official: bool = False
    note: str = ""

    @property
    def source(self) -> Source:
        """Return how it is fetched."""
        return Source(self.via, self.address, file=self.file, dataset=self.via == "hf")

    @property
    def known_hash(self) -> str | None:
        """Return the stated hash, "sha256:..." or "md5:...", if there is one."""
        return f"sha256:{self.sha256}" if self.sha256 else f"md5:{self.md5}" if self.md5 else None


@cache
def mirrors() -> dict[str, dict[str, Mirror]]:
    """Return data set -> name of the place -> mirror."""
    return {
        name: {place: Mirror(name=place, **keys) for place, keys in places.items()}
        for name, places in read_yaml(FILE).items()
    }


def choose(name: str, place: str | None) -> Mirror | None:
    """Return the mirror of a set that was asked for, else the official one; None where there is no such.

    Raises:
        UserError: no mirror of the set has that name.
    """
    known = mirrors().get(name, {})
    if place is None:
        return next((mirror for mirror in known.values() if mirror.official), None)
    if place not in known:
        raise UserError(f"--mirror {place}: is no mirror of {name}; {suggest(place, known)}")
    return known[place]


def listed(name: str) -> str:
    """Return what mirrors of a set there are, one a line; "" where there are none."""
    lines = [
        f"  --mirror {mirror.name}: {mirror.source.link}" + (f" ({mirror.note})" if mirror.note else "")
        for mirror in mirrors().get(name, {}).values()
    ]
    return "\n".join(lines)

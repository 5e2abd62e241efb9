"""Names of published faults that are fixed by default and can be switched back on."""

from collections.abc import Sequence


def legacy_names(legacy: bool | Sequence[str], known: Sequence[str]) -> frozenset[str]:
    """Resolve a `legacy` key: False = none, True = all names of the component, a list = those.

    Raises:
        ValueError: a listed name is not one of `known`.
    """
    if isinstance(legacy, bool):
        return frozenset(known if legacy else ())
    unknown = sorted(set(legacy) - set(known))
    if unknown:
        raise ValueError(f"legacy: {', '.join(unknown)} is unknown here; choose from {', '.join(known) or 'nothing'}")
    return frozenset(legacy)

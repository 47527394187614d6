"""What a wrong name could have meant."""

import difflib
from collections.abc import Collection, Iterable

MOST_NAMES = 12  # that a hint lists


def nearest(name: str, names: Iterable[str], plural: str, first: Collection[str] = ()) -> str:
    """A hint for a name that is none of `names`: the nearest one that is, or some of them, `first` before others."""
    known = sorted(names, key=lambda other: (other not in first, other))
    near = difflib.get_close_matches(name, known, n=1)
    more = f" and {len(known) - MOST_NAMES} more" if len(known) > MOST_NAMES else ""
    return f"did you mean {near[0]!r}?" if near else f"{plural}: {', '.join(known[:MOST_NAMES])}{more}"

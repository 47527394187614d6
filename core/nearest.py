"""What a wrong name could have meant."""

import difflib
from collections.abc import Iterable

MOST_NAMES = 12  # that a hint lists


def nearest(name: str, names: Iterable[str], plural: str) -> str:
    """A hint for a name that is none of `names`: the nearest one that is, or the first of all."""
    known = sorted(names)
    near = difflib.get_close_matches(name, known, n=1)
    more = f" and {len(known) - MOST_NAMES} more" if len(known) > MOST_NAMES else ""
    return f"did you mean {near[0]!r}?" if near else f"{plural}: {', '.join(known[:MOST_NAMES])}{more}"

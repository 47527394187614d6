"""What time it is, for all that keeps or shows times; a test may give a host another clock."""

import time


class Clock:
    """The machine's own."""

    def time(self) -> float:
        """Seconds since 1970."""
        return time.time()

    def monotonic(self) -> float:
        """Seconds since some moment; never goes back."""
        return time.monotonic()

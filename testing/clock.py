"""A clock that stands still until a test moves it."""

from ..core.clock import Clock

BEGIN = 1_700_000_000.0


class FakeClock(Clock):
    """In place of a host's own clock: `running_host("results", clock=FakeClock())`.

    It stands for what a plugin asks of `host.clock` or `registry.clock`. Waiting itself (`sleep`, time limits) goes on
    as ever.

    Args:
        time: Seconds since 1970.
    """

    def __init__(self, time: float = BEGIN) -> None:
        self._time = time
        self._passed = 0.0

    def time(self) -> float:
        """Seconds since 1970."""
        return self._time + self._passed

    def monotonic(self) -> float:
        """Seconds that were passed with `advance`."""
        return self._passed

    def advance(self, seconds: float) -> None:
        """Let time pass.

        Raises:
            ValueError: it would go back.
        """
        if seconds < 0:
            raise ValueError(f"time does not go back, got {seconds} seconds")
        self._passed += seconds

"""How much of the machine's memory graphs may take while they run."""

from latentwire import OutOfMemory


class Budget:
    """Bytes of what nodes have given, and others of the same runs still wait for; on the event loop."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._taken = 0

    def take(self, count: int) -> None:
        """Raises:
        OutOfMemory: it would be too much."""
        if self._taken + count > self._most:
            raise OutOfMemory(
                f"what graphs hold while they run would be more than {self._most >> 20} MiB, the setting run_mib; use "
                "smaller pictures or batches, or fewer nodes that wait for others"
            )
        self._taken += count

    def give_back(self, count: int) -> None:
        self._taken -= count

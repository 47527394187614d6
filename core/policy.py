"""Who goes next: the whole of the scheduling policy, over plain values.

**Which pictures run.** So many as fill the largest batch, in the order of rank, then of their clients' turns, then of
arrival. Above that bound a client may still have one picture running in each rank, so nobody's first picture waits for
another client's fiftieth.

**Which forward is next**, decided anew after each one:

1. What makes a picture ready for its step (text encoder, ControlNet) goes before the denoiser, so that newcomers are
   level with the others when its next forward starts; at most eight in a row while others are ready, and none of a
   lower rank than theirs.
2. Otherwise the highest rank goes first. Within a rank the clients take turns: first whom a forward served longest ago,
   with one picture each, then their second ones. All others who may share that forward come along in the same order, as
   far as the batch is worth it: up to the knee, the number of rows above which a larger forward gains nothing.
3. Lower ranks come along only while they slow the forward by at most half.
4. Whoever has waited for eight forwards counts as one rank higher, so nobody waits for ever.

How a forward is shared depends on the run's mode. exact: never, so the result is bit-identical to a plain pipeline
call. reproducible: padded to a fixed number of rows, where a row does not depend on its neighbours. fast: with whoever
is there.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from heapq import heapify, heapreplace
from typing import get_args

from .pace import Pace
from .requests import Priority
from .run import Run

RANKS: dict[str, int] = {name: rank for rank, name in enumerate(get_args(Priority))}
PREPARATIONS_IN_A_ROW = 8  # before the runs that are ready have their turn
PATIENCE = 8  # forwards; after so many a waiting run counts as one rank higher
MOST_SLOWDOWN = 1.5  # of a forward, by rows of lower rank that come along
MOST_POSITIONS = 32 * 64 * 64  # latent pixels of one shared forward, for its memory: 32 rows of 512x512


class Policy:
    """The policy of one engine; used on its thread alone.

    Args:
        most_rows: The knee: most rows of one forward in mode fast. A single call may have more.
        reproducible_rows: Rows of every denoiser forward in mode reproducible.
        most_running: How many pictures run at once; None: as many as fill the largest batch.
    """

    def __init__(self, most_rows: int, reproducible_rows: int, most_running: int | None = None) -> None:
        self.most_rows = most_rows
        self.seconds: Callable[[int], float] | None = None  # of a denoiser's forward over so many rows, once measured
        self._bucket = reproducible_rows
        self._most_running = most_running
        self._forwards = 0
        self._preparations = 0
        self._served: dict[str, int] = {}  # client -> the last forward that it had a part in

    def learn(self, pace: Pace, most_rows: int | None) -> None:
        """Go by a measured pace from now on; from any thread.

        Args:
            most_rows: What the settings say; None: the knee.
        """
        self.seconds = pace.seconds
        self.most_rows = most_rows or pace.knee or self.most_rows

    def to_begin(self, queue: Sequence[Run], running: Collection[Run]) -> list[Run]:
        """The queued runs that begin now."""
        active = [run for run in running if not run.paused]
        theirs = Counter((run.client, run.rank) for run in active)
        count, rows = len(active), sum(run.rows for run in active)
        begin = []
        for run in self.in_queue(queue, running):
            has_room = rows < self.most_rows if self._most_running is None else count < self._most_running
            if has_room or not theirs[run.client, run.rank]:
                begin.append(run)
                count += 1
                rows += run.rows
                theirs[run.client, run.rank] += 1
        return begin

    def in_queue(self, queue: Sequence[Run], running: Collection[Run]) -> list[Run]:
        """Queued runs in the order in which they will begin; those that are paused have no place."""
        counts = Counter((run.client, run.rank) for run in running if not run.paused)
        keys = {}
        for place, run in enumerate(queue):
            if not run.paused:
                keys[run] = (run.rank, counts[run.client, run.rank], place)
                counts[run.client, run.rank] += 1
        return sorted(keys, key=keys.__getitem__)

    def next_forward(self, runs: Sequence[Run]) -> list[Run]:
        """The runs whose waiting calls are the next forward; `runs` wait at gates, the longest waiting first."""
        order = self._in_turn(runs)
        first = self._first(order)
        chosen = self._sharing(first, order)
        if not first.prepares:
            self._forwards += 1
            self._served.update({run.client: self._forwards for run in chosen})
            self._forget_old_turns()
        return chosen

    def arrived(self, run: Run) -> None:
        """A run has come to a gate."""
        run.since = self._forwards

    def _rank(self, run: Run) -> int:
        return max(0, run.rank - (self._forwards - run.since) // PATIENCE)

    def _in_turn(self, runs: Iterable[Run]) -> list[Run]:
        """By rank, then the first of each client, the longest unserved client first, then their second ones."""
        counts: Counter[tuple[int, str]] = Counter()
        keys = {}
        for place, run in enumerate(runs):
            rank = self._rank(run)
            keys[run] = (rank, counts[rank, run.client], self._served.get(run.client, 0), place)
            counts[rank, run.client] += 1
        return sorted(keys, key=keys.__getitem__)

    def _first(self, order: Sequence[Run]) -> Run:
        """Whose turn it is."""
        preparing = next((run for run in order if run.prepares), None)
        ready = next((run for run in order if not run.prepares), None)
        if preparing is not None and (
            ready is None or (self._preparations < PREPARATIONS_IN_A_ROW and self._rank(preparing) <= self._rank(ready))
        ):
            self._preparations += 1
            return preparing
        self._preparations = 0
        return ready or order[0]

    def _sharing(self, first: Run, order: Sequence[Run]) -> list[Run]:
        """The first run and all who share its forward."""
        waiting = first.waiting
        if waiting is None or waiting.parts is None or first.mode == "exact":
            return [first]
        if first.mode == "reproducible":
            if not waiting.spec.bucketed:
                return [first]
            limit = self._bucket
        else:
            room = MOST_POSITIONS * waiting.spec.per_latent // max(1, waiting.parts.positions)
            limit = min(self.most_rows, waiting.spec.most_rows, room)
        rank = self._rank(first)
        chosen, group, rows = [first], [waiting.parts], waiting.parts.rows
        riders = False
        for run in order:
            other = run.waiting
            if run is first or other is None or other.gate is not waiting.gate or run.mode != first.mode:
                continue
            if first.mode == "reproducible" and other.compiled(run.adapters) is not waiting.compiled(first.adapters):
                continue  # a row's bits must not depend on whether its neighbours may be compiled
            if first.mode == "fast" and not riders and self._rank(run) > rank:
                riders = True
                limit = min(limit, self._rows_with_riders(rows))
            if other.parts and rows + other.parts.rows <= limit and all(other.parts.fits(parts) for parts in group):
                chosen.append(run)
                group.append(other.parts)
                rows += other.parts.rows
        return chosen

    def _rows_with_riders(self, rows: int) -> int:
        """How many rows a forward may have, counting those of lower rank, if the others have so many."""
        if self.seconds is None:
            return rows
        longest = MOST_SLOWDOWN * self.seconds(rows)
        fitting = [more for more in range(rows, self.most_rows + 1) if self.seconds(more) <= longest]
        return max(fitting, default=rows)

    def _forget_old_turns(self) -> None:
        """Clients come and go for months."""
        if len(self._served) > 1000:
            latest = sorted(self._served, key=self._served.__getitem__)[-100:]
            self._served = {client: self._served[client] for client in latest}


def times_to_begin(running: Sequence[float], queued: Sequence[float], rows_per_second: float, most: int) -> list[float]:
    """Seconds until each queued run begins, if all that run are served alike.

    Args:
        running: Rows left of each run that has begun.
        queued: Rows of each queued run, in the order in which they will begin.
        rows_per_second: What the engine computes.
        most: How many run at once.
    """
    # in rows that each running one has got: whoever has least left makes room first
    ends = list(running) or [0.0]
    heapify(ends)
    share = max(1, min(most, len(ends)))
    begins = []
    for rows in queued:
        begins.append(ends[0])
        heapreplace(ends, ends[0] + rows)
    return [begin * share / rows_per_second for begin in begins]

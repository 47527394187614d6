"""A job with many who watch it, and some who read nothing of what they asked for."""

from dataclasses import dataclass
from typing import Any

from crowd import Crowd, Member
from prompts import PROMPT

TIMEOUT_S = 300.0
GENERATE, WATCH, CLOCK = 1, 2, 3  # ids of messages
LATEST_WINS = {"preview", "latents", "state"}
LARGE_PREVIEWS = {"format": "jpeg", "size": 1024, "quality": 100}  # some 200 KiB each


@dataclass(frozen=True)
class Told:
    """What came of one job.

    Attributes:
        delays: Seconds from the end of each step in the host to its event at each who watches.
        spreads: Seconds from the first one who had a life-cycle event to each of the others.
        previews: How many came, to all together.
        bytes_of_previews: Of all of them.
        messages: How many came, to all together.
        seconds: From the first message of those to the last.
    """

    delays: list[float]
    spreads: list[float]
    previews: int
    bytes_of_previews: int
    messages: int
    seconds: float


class Audience(Crowd):
    """Member 0 makes the job; the next ones watch it, and those beyond them are silent."""

    def job(self, watching: int, silent: int, steps: int, previews: bool, large: bool) -> Told:
        """Run one job to its end.

        Args:
            watching: How many watch it and read.
            silent: How many watch it with large previews, and read nothing from then on.
            previews: Whether those who read get small previews.
            large: Whether member 0 gets large previews, so that they are painted in any case.
        """
        owner, *others = self.members[: watching + 1]
        quiet = self.members[watching + 1 : watching + 1 + silent]
        stream: dict[str, Any] = {"previews": LARGE_PREVIEWS} if large else {}
        owner.send(GENERATE, "generate", prompt=PROMPT, num_inference_steps=steps, mode="fast", stream=stream)
        self.listen([owner], lambda: len(_events(owner, "accepted")) > 0, TIMEOUT_S)
        job = _events(owner, "accepted")[-1][1]["job"]
        for member in quiet:
            member.send(WATCH, "jobs.watch", job=job, stream={"previews": LARGE_PREVIEWS})
        for member in others:
            member.send(WATCH, "jobs.watch", job=job, stream={"previews": {}} if previews else {})
        self.listen(
            [owner, *others],
            lambda: GENERATE in owner.ended and all(WATCH in member.ended for member in others),
            TIMEOUT_S,
        )
        owner.send(CLOCK, "clock.steps", job=job)
        self.listen([owner], lambda: CLOCK in owner.ended, TIMEOUT_S)
        times = _events(owner, "result")[-1][1]["result"]["times"]
        told = _told(others, times)
        for member in [owner, *others]:
            member.heard.clear()
            member.ended.clear()
        return told


def _events(member: Member, name: str) -> list[tuple[float, dict[str, Any]]]:
    return [(at, message) for at, message in member.heard if message["event"] == name]


def _told(members: list[Member], times: list[float]) -> Told:
    """Of what came after a member's first message about the job: that one tells where it is, however late."""
    arrivals: dict[tuple[str, int], list[float]] = {}
    delays = []
    every = [(at, message) for member in members for at, message in member.heard if message["id"] == WATCH]
    for member in members:
        joined = _events(member, "job_state")[0][0]
        for at, message in member.heard:
            name, step = message["event"], message.get("step", 0)
            if message["id"] != WATCH or at <= joined or name in LATEST_WINS:
                continue
            arrivals.setdefault((name, step), []).append(at)
            if name == "step":
                delays.append(at - times[step - 1])
    previews = [message for _, message in every if message["event"] == "preview"]
    return Told(
        delays=delays,
        spreads=[at - min(row) for row in arrivals.values() for at in row if len(row) > 1],
        previews=len(previews),
        bytes_of_previews=sum(len(message["image"]["data"]) for message in previews),
        messages=len(every),
        seconds=max(at for at, _ in every) - min(at for at, _ in every),
    )

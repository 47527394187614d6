"""Random sequences of messages to a real host: whatever the order, each job has one end and nobody else is disturbed.

`make sequences` runs 10,000 steps; LATENTWIRE_FUZZ_STEPS and LATENTWIRE_FUZZ_SEED choose others.
"""

import asyncio
import os
import secrets
from collections import Counter
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from ..test_random_sequences import OUTLINE
from ..wire import SMALL, wire
from .churn import BAD_FRAMES, ODD
from .served import TOKEN, Server, server
from .soak import ALONE, unexpected
from .strict_client import Sent, StrictClient

STEPS = int(os.environ.get("LATENTWIRE_FUZZ_STEPS", "400"))
SEQUENCE = 25  # steps until all must come to its end
WARM_UP = 0.25  # of the sequences
MOST_GROWTH = 20 << 20  # bytes of memory after the warm-up
SHORT = 2000  # steps: in fewer the host's pools and caches are still filling
OTHERS = SMALL | {"mode": "exact", "seed": 5}
SETTINGS = """
[server]
token = "{token}"
resume_grace_s = 30

[engine]
max_batch_rows = 8
reproducible_rows = 2

[limits]
images_mib = 4

[[plugins]]
name = "results"
settings = {{ folder = "results", max_count = 100 }}
"""

Value = TypeVar("Value")

which = st.integers(0, 7)
requests = st.fixed_dictionaries(
    {
        "prompt": st.sampled_from(["red apple", "green fish", ""]),
        "num_inference_steps": st.sampled_from([1, 2, 3, 200]),
        "guidance_scale": st.sampled_from([1.0, 4.0]),
        "stream": st.fixed_dictionaries(
            {"steps": st.booleans()},
            optional={
                "previews": st.fixed_dictionaries({"every": st.integers(1, 3), "size": st.sampled_from([16, 64])}),
                "latents": st.fixed_dictionaries({"every": st.integers(1, 3)}),
            },
        ),
    },
    optional={
        "num_images": st.integers(1, 3),
        "mode": st.sampled_from(["exact", "reproducible", "fast"]),
        "output_type": st.sampled_from(["png", "latent"]),
        "priority": st.sampled_from(["interactive", "normal", "batch"]),
        "scheduler": st.sampled_from(["ddim", "euler", "heun", "pndm", "nonsense"]),
    },
)


class Bench:
    """What all sequences of a run share: the server, the loop that its clients live on, and figures."""

    def __init__(self, running: Server, runner: asyncio.Runner) -> None:
        self.server = running
        self.run = runner.run
        self.steps = 0
        self.memory: list[int] = []
        self.told: Counter[str] = Counter()
        self.accepted = 0
        self.ended: Counter[str] = Counter()
        self.picture: str | None = None  # the id of the other client's, each time the same


class Protocol(RuleBasedStateMachine):
    """One sequence; `bench` is set before it is run."""

    bench: Bench

    def __init__(self) -> None:
        super().__init__()
        self.faults: list[str] = []
        self.jobs: list[Sent] = []
        self.uploads: list[str] = []

    def run(self, work: Coroutine[Any, Any, Value]) -> Value:
        self.bench.steps += 1
        return self.bench.run(work)

    @initialize(key=st.sampled_from(["", "a key of sixteen letters or more"]), request=requests)
    def arrive(self, key: str, request: dict[str, Any]) -> None:
        headers = {"Authorization": f"Bearer {TOKEN}"}
        url, told = self.bench.server.url, self.bench.told
        self.client = StrictClient(url, self.faults, told, **headers, **({"Latentwire_Key": key} if key else {}))
        self.other = StrictClient(url, self.faults, Counter(), **headers)

        async def connect() -> Sent:
            await self.client.connect()
            await self.other.connect()
            return await self.other.send("generate", **OTHERS)

        self.others_job = self.run(connect())
        self.generate(request, 1)

    # what a client may do

    @rule(request=requests, times=st.integers(1, 3))
    def generate(self, request: dict[str, Any], times: int) -> None:
        for _ in range(times):
            self.jobs.append(self.run(self.client.send("generate", **SMALL | request)))

    @rule(request=requests, slot=st.sampled_from("ab"), shown=st.sampled_from([0, 0, 1]), times=st.integers(1, 3))
    def use_slot(self, request: dict[str, Any], slot: str, shown: int, times: int) -> None:
        params = SMALL | request | {"slot": slot, "min_steps_shown": shown}
        for _ in range(times):
            self.jobs.append(self.run(self.client.send("generate", **params)))

    @rule(odd=st.sampled_from(ODD))
    def generate_oddly(self, odd: dict[str, Any]) -> None:
        answer = self.run(self.client.answer("generate", **SMALL | odd))
        assert answer["event"] == "error", (odd, answer)
        assert answer["code"] in ("invalid_params", "unknown_model", "unknown_image", "not_loaded"), (odd, answer)

    @rule(number=which)
    def cancel(self, number: int) -> None:
        self.run(self.client.send("cancel", job=self.job(number)))

    @rule(slot=st.sampled_from("abc"))
    def cancel_slot(self, slot: str) -> None:
        self.run(self.client.send("cancel", slot=slot))

    @rule()
    def cancel_all(self) -> None:
        self.run(self.client.send("cancel", all=True))

    @rule(number=which, previews=st.booleans())
    def watch(self, number: int, previews: bool) -> None:
        self.run(self.client.send("jobs.watch", job=self.job(number), stream={"previews": {}} if previews else {}))

    @rule(number=which)
    def pause(self, number: int) -> None:
        self.run(self.client.send("jobs.pause", job=self.job(number)))

    @rule(number=which)
    def go_on(self, number: int) -> None:
        self.run(self.client.send("jobs.resume", job=self.job(number)))

    @rule(number=which, guidance=st.sampled_from([0.5, 2.0, float("nan")]))
    def update(self, number: int, guidance: float) -> None:
        self.run(self.client.send("jobs.update", job=self.job(number), guidance_scale=guidance))

    @rule(data=st.sampled_from([OUTLINE, OUTLINE[:50], b""]))
    def put_picture(self, data: bytes) -> None:
        answer = self.run(self.client.answer("images.put", data=data))
        assert answer["event"] == ("result" if data == OUTLINE else "error"), answer

    @rule(size=st.sampled_from([0, len(OUTLINE), 1 << 40]))
    def begin_upload(self, size: int) -> None:
        answer = self.run(self.client.answer("uploads.begin", size=size))
        assert answer["event"] == ("result" if size == len(OUTLINE) else "error"), answer
        if size == len(OUTLINE):
            self.uploads.append(answer["result"]["upload"])

    @rule(number=which, begin=st.sampled_from([0, 0, len(OUTLINE) // 2]))
    def append(self, number: int, begin: int) -> None:
        self.run(self.client.send("uploads.append", upload=self.upload(number), data=OUTLINE[begin:]))

    @rule(number=which)
    def finish_upload(self, number: int) -> None:
        self.run(self.client.send("images.put", upload=self.upload(number)))

    @rule(command=st.sampled_from(["pipeline.subscribe", "stats.subscribe"]))
    def subscribe(self, command: str) -> None:
        self.run(self.client.send(command))

    @rule(number=which)
    def unsubscribe(self, number: int) -> None:
        known = [sent.subscription for sent in self.client.open.values() if sent.subscription]
        name = known[number % len(known)] if known else "no such subscription"
        self.run(self.client.send("unsubscribe", subscription=name))

    @rule(command=st.sampled_from(["jobs", "describe", "pipeline.state", "results.list", "lora.list", "stats", "ping"]))
    def ask(self, command: str) -> None:
        assert self.run(self.client.answer(command))["event"] == "result"

    @rule()
    def use_ticket(self) -> None:
        async def use() -> None:
            answer = await self.client.answer("session.ticket")
            async with wire(f"{self.bench.server.url}?ticket={answer['result']['ticket']}") as third:
                await third.ask("jobs")

        self.run(use())

    @rule(command=st.sampled_from(["session.open", "session.resume"]), seq=st.integers(0, 3))
    def open_too_late(self, command: str, seq: int) -> None:
        async def ask() -> dict[str, Any]:
            params = {} if command == "session.open" else {"token": self.client.hello["resume"], "seq": seq}
            return await self.client.end_of(await self.client.send(command, counted=False, **params))

        self.run(self.client.answer("ping"))  # before the first command it would not be too late
        assert self.run(ask())["event"] == "error"

    @rule(pause_s=st.sampled_from([0, 0, 0.05]), without_a_word=st.booleans(), others=st.integers(0, 3))
    def drop_and_resume(self, pause_s: float, without_a_word: bool, others: int) -> None:
        async def come_back() -> None:
            for _ in range(others):
                await self.client.send("ping")  # on its way when the line breaks
            self.client.drop(without_a_word)
            await asyncio.sleep(pause_s)
            assert await self.client.connect(resume=True)

        self.run(self.client.answer("ping"))  # a session without any command is not kept
        self.run(come_back())

    @rule(frame=st.one_of(st.sampled_from(BAD_FRAMES), st.binary(max_size=3).map(lambda tail: b"\xc1" + tail)))
    def send_nonsense(self, frame: bytes | str) -> None:
        self.run(self.client.send_bad(frame))

    @rule(command=st.text(max_size=20), params=st.dictionaries(st.text(max_size=3), st.none() | st.integers(0, 9)))
    def command_nonsense(self, command: str, params: dict[str, Any]) -> None:
        answer = self.run(self.client.answer_to(command, params))
        assert answer["event"] == "result" or answer["code"] in ("unknown_command", "invalid_params"), answer

    @rule(seconds=st.sampled_from([0.0, 0.02, 0.1]))
    def let_time_pass(self, seconds: float) -> None:
        self.run(asyncio.sleep(seconds))

    # what must hold

    @invariant()
    def nobody_is_disturbed(self) -> None:
        if hasattr(self, "other"):
            assert self.bench.run(self.other.answer("ping"))["event"] == "result"
        assert self.faults == []
        assert not hasattr(self, "client") or not self.client.broken.is_set()

    def teardown(self) -> None:
        if not hasattr(self, "others_job"):
            return
        self.bench.run(self.come_to_the_end())
        self.bench.memory.append(self.bench.server.memory)
        assert self.faults == []

    async def come_to_the_end(self) -> None:
        client, bench = self.client, self.bench
        try:
            await client.answer("ping")  # from now on all jobs and subscriptions are known
            for sent in client.of("pipeline.subscribe", "stats.subscribe", "jobs.watch"):
                if sent.subscription is not None:
                    await client.send("unsubscribe", subscription=sent.subscription)
            for sent in client.of("generate", told=lambda sent: sent.job):
                await client.send("jobs.resume", job=sent.job)
            for sent in self.jobs[::2]:
                if not sent.end.done():
                    await client.send("cancel", job=sent.job)
            await client.settled()
            for sent in self.jobs:
                if sent.job is not None:
                    bench.accepted += 1
                    end = sent.end.result()
                    bench.ended[end.get("code", "finished")] += 1
            end = await self.other.end_of(self.others_job)
            picture = self.others_job.pictures[0]["image_id"]
            bench.picture = bench.picture or picture
            assert end["event"] == "result", end
            assert picture == bench.picture, "another client's picture has changed"
        finally:
            await client.close()
            await self.other.close()

    def job(self, number: int) -> str:
        """A job of its own, or one that there is not."""
        known = [sent.job for sent in self.jobs if sent.job]
        return known[number % len(known)] if known else "no such job"

    def upload(self, number: int) -> str:
        return self.uploads[number % len(self.uploads)] if self.uploads else "no such upload"


@contextmanager
def bench_of(folder: Path) -> Iterator[Bench]:
    with server(folder, toml=SETTINGS.format(token=TOKEN), variables=ALONE) as running, asyncio.Runner() as runner:
        yield Bench(running, runner)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_no_sequence_of_messages_loses_a_job_or_disturbs_others(tmp_path: Path) -> None:
    number = int(os.environ.get("LATENTWIRE_FUZZ_SEED", secrets.randbits(32)))
    print(f"LATENTWIRE_FUZZ_SEED={number} LATENTWIRE_FUZZ_STEPS={STEPS}")
    how = settings(
        max_examples=max(STEPS // SEQUENCE, 1),
        stateful_step_count=SEQUENCE,
        deadline=None,
        database=None,
        phases=[Phase.generate],  # a sequence is short, and a host does not do the same twice: nothing to shrink
        suppress_health_check=list(HealthCheck),
        print_blob=True,
    )
    with bench_of(tmp_path) as bench:
        while bench.steps < STEPS:  # the first sequences of a round are short
            machine = seed(number + bench.steps)(type("Protocol", (Protocol,), {"bench": bench}))
            run_state_machine_as_test(machine, settings=how)
        assert bench.server.stop() == 0
        assert unexpected(bench.server) == []
    warm = int(len(bench.memory) * WARM_UP)
    some = max(len(bench.memory) // 10, 1)
    growth = median(bench.memory[-some:]) - median(bench.memory[warm : warm + some])
    figures = {
        "steps": bench.steps,
        "sequences": len(bench.memory),
        "accepted": bench.accepted,
        "ended": dict(bench.ended),
        "growth in MiB": round(growth / 2**20, 1),
        "told": dict(bench.told),
    }
    print(figures)
    assert bench.steps >= STEPS, figures
    assert bench.accepted == bench.ended.total(), figures
    assert min(bench.ended[end] for end in ("finished", "cancelled", "superseded")) > 0, figures
    assert STEPS < SHORT or growth <= MOST_GROWTH, [size >> 20 for size in bench.memory]

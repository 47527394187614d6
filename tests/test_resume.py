"""Sessions that come back: a real server, raw sockets cut at random moments, and what must be complete and unique."""

import asyncio
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import msgpack
import pytest
from websockets.exceptions import ConnectionClosed

from latentwire.core.events import EVENTS
from latentwire.server import outbox as outbox_module
from latentwire.server import session as session_module
from latentwire.server import sessions as sessions_module
from latentwire.server.outbox import Bound

from .conftest import Served, serving, wait_for
from .raw_socket import raw_client
from .wire import LONG, SMALL, Wire, in_loop, wire

LATEST_WINS = {name for name, event in EVENTS.items() if event.latest_wins}


@pytest.fixture(scope="module")
def brief() -> Iterator[Served]:
    """A host that keeps a session for a second."""
    with serving(server={"resume_grace_s": 1}) as served:
        yield served


@asynccontextmanager
async def cut(url: str) -> AsyncIterator[Wire]:
    """A connection that ends without a word."""
    async with wire(url) as client:
        try:
            yield client
        finally:
            client.socket.transport.abort()


@asynccontextmanager
async def resumed(url: str, token: str, seq: int) -> AsyncIterator[tuple[Wire, dict[str, Any]]]:
    """A connection that has taken a session up, and the answer."""
    async with wire(url) as client:
        await client.send("resume", "session.resume", token=token, seq=seq)
        answer = await client.receive()
        yield client, answer


async def refused(url: str, **params: Any) -> dict[str, Any]:
    async with wire(url) as client:
        error = await client.error("resume", "session.resume", **params)
        assert (await client.ask("ping"))["time"]  # the fresh session goes on
        return error


async def no_jobs_left(served: Served) -> None:
    await asyncio.to_thread(wait_for, lambda: not served.host.jobs.all(), "the jobs to be cancelled")


@in_loop
async def test_jobs_go_on_and_nothing_is_missing_when_the_client_comes_back(served: Served) -> None:
    async with cut(served.url) as client:
        await client.send(1, "generate", **SMALL | {"num_inference_steps": 20, "stream": {"previews": {}}})
        await client.until("accepted")
        last = await client.until("step")
    await no_jobs_left(served)  # it has run to its end
    async with resumed(served.url, client.hello["resume"], last["seq"]) as (back, answer):
        assert answer == {
            "id": "resume",
            "event": "result",
            "result": {"session": client.hello["session"], "received": 1},
            "seq": last["seq"],
        }
        messages = await back.all_of(1)
        assert [message["step"] for message in messages if message["event"] == "step"] == list(
            range(last["step"] + 1, 21)
        )
        assert [message["event"] for message in messages[-2:]] == ["image", "result"]
        waited = [message for message in messages if message["event"] == "preview" and message["seq"] > last["seq"] + 3]
        assert len(waited) <= 3  # of those that waited only the latest, besides a few that had been sent before the cut
        assert (await back.ask("jobs"))["jobs"] == []


class Client:
    """One that is cut at random, comes back each time, and remembers what it got."""

    def __init__(self, served: Served, draw: random.Random) -> None:
        self._url = served.url
        self._draw = draw
        self.token = ""
        self.seq = 0
        self.got: list[dict[str, Any]] = []
        self.cuts = 0

    async def run(self, jobs: int) -> None:
        unasked = list(range(jobs))
        taken = 0  # by the host
        ended: set[int] = set()
        while len(ended) < jobs:
            patience = self._draw.choice([0, 1, 2, 3, 5, 10, 50])  # messages until the cut
            async with cut(self._url) as socket:
                self.cuts += 1
                if self.token:
                    await socket.send("resume", "session.resume", token=self.token, seq=self.seq)
                    if not patience:
                        continue  # not even the answer is read
                    answer = await socket.receive()
                    assert answer["event"] == "result", answer
                    assert answer["seq"] == self.seq
                    taken = answer["result"]["received"]
                else:
                    self.token, self.seq = socket.hello["resume"], 1
                for number in unasked[taken : taken + 2]:
                    fields = {"seed": number, "num_inference_steps": 10 + number, "num_images": 2}
                    await socket.send(number, "generate", **SMALL | fields | {"stream": {"previews": {}}})
                    taken += 1
                for _ in range(patience):
                    if len(ended) == jobs:
                        return
                    message = await socket.receive()
                    assert message["seq"] > self.seq
                    self.seq = message["seq"]
                    self.got.append(message)
                    if message["event"] in ("result", "error"):
                        ended.add(message["id"])


@in_loop
async def test_cut_at_random_moments_each_life_cycle_event_comes_exactly_once(served: Served) -> None:
    seed = random.randrange(1 << 32)
    print("seed", seed)
    clients = [Client(served, random.Random(seed + number)) for number in range(4)]
    await asyncio.gather(*(client.run(5) for client in clients))
    print("cuts", [client.cuts for client in clients])
    for client in clients:
        for number in range(5):
            mine = [message for message in client.got if message["id"] == number]
            kept = [message for message in mine if message["event"] not in LATEST_WINS]
            assert [message["event"] for message in kept[:2]] == ["accepted", "started"]
            for index in (0, 1):
                picture = [message for message in mine if message.get("index") == index]
                steps = [message["step"] for message in picture if message["event"] == "step"]
                assert steps == list(range(1, 11 + number))
                assert [message["event"] for message in picture].count("image") == 1
                assert picture[-1]["event"] == "image"
                previews = [message["step"] for message in picture if message["event"] == "preview"]
                assert previews == sorted(set(previews))
            assert mine[-1]["event"] == "result"
            assert [message["event"] for message in mine].count("result") == 1
    await no_jobs_left(served)


@in_loop
async def test_a_command_that_was_on_its_way_may_be_sent_again_by_what_the_host_has_taken(served: Served) -> None:
    async with cut(served.url) as client:
        for number in range(3):
            await client.send(number, "ping")
        await client.until("result", 2)
        await client.send_frame(b"\xc1")  # counts as well
        last = await client.until("error")
    async with resumed(served.url, client.hello["resume"], last["seq"]) as (_, answer):
        assert answer["result"]["received"] == 4


@in_loop
async def test_what_was_seen_is_not_sent_again_and_what_was_not_is_sent_with_its_number(served: Served) -> None:
    async with cut(served.url) as client:
        await client.send(1, "generate", **SMALL)
        first = await client.all_of(1)
    for seen in (1, 2, 5, first[-1]["seq"]):
        async with cut(served.url) as back:
            await back.send("resume", "session.resume", token=client.hello["resume"], seq=seen)
            assert (await back.receive())["seq"] == seen
            again = [await back.receive() for _ in range(first[-1]["seq"] - seen)]
            assert again == first[seen - 1 :]
            assert (await back.ask("ping"))["time"]


@in_loop
async def test_after_the_grace_time_the_jobs_are_cancelled_and_plugins_forget_the_client(
    brief: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    left: list[str] = []
    monkeypatch.setattr(brief.host, "client_left", left.append)
    async with cut(brief.url) as client:
        assert client.hello["limits"]["resume_seconds"] == 1
        await client.send(1, "generate", **LONG)
        await client.until("step")
    assert len(brief.host.jobs.all()) == 1
    await no_jobs_left(brief)
    await asyncio.to_thread(wait_for, lambda: bool(left), "the host to be told")
    assert left == [client.hello["session"]]
    assert (await refused(brief.url, token=client.hello["resume"], seq=1))["code"] == "unknown_session"


@in_loop
async def test_an_orderly_close_ends_the_session_at_once_and_a_page_that_is_reloaded_does_not(served: Served) -> None:
    for code, error in ((1000, "unknown_session"), (1001, None), (4000, None)):
        async with wire(served.url) as client:
            await client.send(1, "generate", **LONG)
            last = await client.until("step")
            await client.socket.close(code)
        if error:
            await no_jobs_left(served)
            refusal = await refused(served.url, token=client.hello["resume"], seq=last["seq"])
            assert refusal["code"] == error
        else:
            async with resumed(served.url, client.hello["resume"], last["seq"]) as (back, _):
                assert (await back.until("step"))["step"] == last["step"] + 1
            await no_jobs_left(served)


@in_loop
async def test_with_no_grace_time_there_is_nothing_to_resume() -> None:
    with serving(server={"resume_grace_s": 0}) as served:
        async with cut(served.url) as client:
            assert client.hello["resume"] is None
            assert client.hello["limits"]["resume_seconds"] == 0
            await client.send(1, "generate", **LONG)
            await client.until("step")
        await no_jobs_left(served)


@in_loop
async def test_a_connection_that_the_session_still_has_is_closed(served: Served) -> None:
    async with wire(served.url) as old:
        await old.send(1, "generate", **LONG)
        last = await old.until("step")
        async with resumed(served.url, old.hello["resume"], last["seq"]) as (back, _):
            with pytest.raises(ConnectionClosed) as closed:
                await old.until("result")
            assert closed.value.rcvd is not None
            assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (4001, "resumed elsewhere")
            assert (await back.until("step"))["step"] == last["step"] + 1
    await no_jobs_left(served)


@in_loop
async def test_so_is_one_that_is_stuck_and_nothing_is_lost_with_it(served: Served) -> None:
    stream = {"previews": {"format": "png", "size": 1024}}
    async with raw_client(served.url) as stuck:
        await stuck.send(1, "generate", **SMALL | {"num_inference_steps": 30, "stream": stream})
        last = await stuck.receive()
        await no_jobs_left(served)
        async with resumed(served.url, stuck.hello["resume"], last["seq"]) as (back, _):
            messages = await back.all_of(1)
    assert [message["step"] for message in messages if message["event"] == "step"] == list(range(1, 31))
    assert [message["event"] for message in messages[-2:]] == ["image", "result"]


@in_loop
async def test_of_two_that_resume_at_once_one_has_the_session_and_both_are_told(served: Served) -> None:
    async with cut(served.url) as client:
        await client.send(1, "generate", **LONG)
        last = await client.until("step")

    async def resume() -> str:
        async with wire(served.url) as back:
            await back.send("resume", "session.resume", token=client.hello["resume"], seq=last["seq"])
            with suppress(ConnectionClosed):
                assert (await back.receive())["event"] == "result"
                for step in range(last["step"] + 1, last["step"] + 50):
                    assert (await back.until("step"))["step"] == step
                return "went on"
            return back.socket.close_reason or ""

    ends = await asyncio.gather(*(resume() for _ in range(5)))
    assert sorted(ends) == [*["resumed elsewhere"] * 4, "went on"]
    await no_jobs_left(served)


@in_loop
@pytest.mark.parametrize(
    ("params", "code"),
    [
        ({"seq": -1}, "invalid_params"),
        ({"seq": 0}, "invalid_params"),
        ({"seq": 10**6}, "invalid_params"),
        ({"seq": 1 << 63}, "invalid_params"),
        ({"seq": "3"}, "invalid_params"),
        ({"seq": 1.5}, "invalid_params"),
        ({"seq": None}, "invalid_params"),
        ({"token": 7}, "invalid_params"),
        ({"token": "x" * 1000}, "invalid_params"),
        ({"token": ""}, "unknown_session"),
        ({"token": "0123456789abcdef.x"}, "unknown_session"),
        ({"token": "kö\ud7ff."}, "unknown_session"),
        ({"more": 1}, "invalid_params"),
    ],
)
async def test_nonsense_is_refused_and_both_sessions_go_on(served: Served, params: dict[str, Any], code: str) -> None:
    async with cut(served.url) as client:
        await client.send(1, "ping")
        last = await client.until("result")
    right = {"token": client.hello["resume"], "seq": last["seq"]}
    assert (await refused(served.url, **right | params))["code"] == code
    async with resumed(served.url, right["token"], right["seq"]) as (back, answer):
        assert answer["event"] == "result"
        assert (await back.ask("ping"))["time"]


@in_loop
async def test_half_a_token_or_a_public_id_opens_nothing(served: Served) -> None:
    async with cut(served.url) as client:
        token = client.hello["resume"]
    session, _, secret = token.partition(".")
    assert session == client.hello["session"]
    assert len(secret) >= 32
    for wrong in (session, f"{session}.", secret, token[:-1], token + "x", f"{session}.{'A' * len(secret)}"):
        assert (await refused(served.url, token=wrong, seq=1))["code"] == "unknown_session"


@in_loop
async def test_only_the_first_command_of_a_connection_may_resume(served: Served) -> None:
    async with cut(served.url) as client:
        pass
    async with wire(served.url) as late:
        await late.ask("ping")
        error = await late.error("resume", "session.resume", token=client.hello["resume"], seq=1)
        assert (error["code"], "must be the first message" in error["message"]) == ("bad_message", True)
        own = await refused(served.url, token=late.hello["resume"], seq=10**6)
        assert own["code"] == "invalid_params"
    async with wire(served.url) as lost:
        error = await lost.error("resume", "session.resume", token=lost.hello["resume"], seq=1)
        assert "this connection's own" in error["message"]


@in_loop
async def test_a_token_of_a_host_before_its_restart_is_unknown(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    with serving() as before:
        async with cut(before.url) as client:
            pass
    error = await refused(served.url, token=client.hello["resume"], seq=1)
    assert error["code"] == "unknown_session"
    secret = client.hello["resume"].partition(".")[2]
    assert secret not in caplog.text
    assert secret not in error["message"]


@in_loop
async def test_beyond_the_bound_there_is_a_gap_and_the_result_is_still_there(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("latentwire.server.session.AWAY", Bound(10, 1 << 30))
    async with cut(served.url) as client:
        await client.send(1, "generate", **SMALL | {"num_inference_steps": 40})
        last = await client.until("started")
    await no_jobs_left(served)
    async with resumed(served.url, client.hello["resume"], last["seq"]) as (back, _):
        messages: list[dict[str, Any]] = []
        while not messages or messages[-1]["event"] != "result":
            messages.append(await back.receive())
    [gap] = [message for message in messages if message["event"] == "gap"]
    assert (gap["id"], gap["seq"]) == (None, gap["to_seq"])
    numbers: list[int] = []
    for message in messages:
        numbers += range(gap["from_seq"], gap["to_seq"] + 1) if message is gap else [message["seq"]]
    assert numbers == list(range(last["seq"] + 1, messages[-1]["seq"] + 1))
    assert [message["event"] for message in messages[-2:]] == ["image", "result"]


@in_loop
async def test_sent_messages_beyond_the_bound_are_a_gap_too(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox_module, "SENT", Bound(10, 1 << 30))
    async with cut(served.url) as client:
        await client.send(1, "generate", **SMALL | {"num_inference_steps": 40})
        messages = await client.all_of(1)
    async with resumed(served.url, client.hello["resume"], 2) as (back, _):
        gap = await back.receive()
        assert (gap["event"], gap["from_seq"], gap["seq"]) == ("gap", 3, gap["to_seq"])
        rest = await back.all_of(1)
        assert rest == messages[gap["to_seq"] - 1 :]


@in_loop
async def test_of_too_many_sessions_the_one_that_is_longest_away_goes_first(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens: list[str] = []
    monkeypatch.setattr(sessions_module, "MAX_AWAY", 2)
    for _ in range(4):
        async with cut(served.url) as client:
            await client.ask("ping")
            tokens.append(client.hello["resume"])
    for token in tokens[:2]:
        assert (await refused(served.url, token=token, seq=1))["code"] == "unknown_session"
    for token in tokens[2:]:
        async with resumed(served.url, token, 1) as (_, answer):
            assert answer["event"] == "result"


@in_loop
async def test_sessions_that_are_away_and_keep_too_much_are_not_kept(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions_module, "MAX_AWAY_SIZE", 10)
    async with cut(served.url) as client:
        await client.send(1, "generate", **SMALL)
        await client.until("result")
    assert (await refused(served.url, token=client.hello["resume"], seq=1))["code"] == "unknown_session"


@in_loop
async def test_whoever_resumes_again_and_again_gets_the_same_again(served: Served) -> None:
    async with cut(served.url) as client:
        await client.send(1, "generate", **SMALL)
        first = await client.all_of(1)
    for _ in range(100):
        async with cut(served.url) as back:
            await back.send("resume", "session.resume", token=client.hello["resume"], seq=1)
    async with resumed(served.url, client.hello["resume"], 1) as (back, _):
        assert await back.all_of(1) == first


@in_loop
async def test_commands_may_follow_the_resume_without_waiting_for_its_answer(served: Served) -> None:
    async with cut(served.url) as client:
        await client.send(1, "generate", **LONG)
        last = await client.until("step")
    async with wire(served.url) as back:
        frames = [
            {"id": "r", "command": "session.resume", "params": {"token": client.hello["resume"], "seq": last["seq"]}},
            {"id": "j", "command": "jobs", "params": {}},
        ]
        for frame in frames:
            await back.send_frame(msgpack.packb(frame))
        assert (await back.receive())["id"] == "r"
        [job] = (await back.until("result", "j"))["result"]["jobs"]
        assert job["prompt"] == "red apple"
    await no_jobs_left(served)


@in_loop
async def test_resuming_over_a_connection_that_lives_loses_nothing(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "AWAY", Bound(5, 1000))
    async with wire(served.url) as client:
        client.socket.transport.pause_reading()
        stream = {"previews": {"format": "png", "size": 512}}
        await client.send(1, "generate", **SMALL | {"num_inference_steps": 40, "stream": stream})
        await asyncio.to_thread(wait_for, lambda: bool(served.host.jobs.all()), "its job")
        await no_jobs_left(served)
        async with resumed(served.url, client.hello["resume"], 1) as (back, answer):
            assert answer["event"] == "result"
            messages = await back.all_of(1)
    assert [message["step"] for message in messages if message["event"] == "step"] == list(range(1, 41))


@in_loop
async def test_connections_that_never_command_push_nobodys_session_out(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions_module, "MAX_AWAY", 3)
    async with cut(served.url) as client:
        await client.send(1, "generate", **LONG)
        await client.until("started")
    for number in range(10):
        async with cut(served.url) as other:
            if number % 2:
                await other.ask("ping")
    async with resumed(served.url, client.hello["resume"], 2) as (back, answer):
        assert answer["event"] == "result"
        await back.until("step", 1)


@in_loop
async def test_all_sessions_together_keep_no_more_unsent_than_the_bound(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions_module, "MAX_WAITING_SIZE", 100_000)
    async with wire(served.url) as client:
        client.socket.transport.pause_reading()
        for number in range(300):
            await client.send(number, "describe")
        await asyncio.sleep(2.5)
        client.socket.transport.resume_reading()
        while (message := await client.receive())["event"] != "gap":
            pass
        assert message["to_seq"] > message["from_seq"]

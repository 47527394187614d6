"""Clients that never rest: they ask for everything, change their minds, break off, come back and send nonsense."""

import asyncio
import io
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import msgpack
from PIL import Image

from ..wire import SMALL
from .plugins.failing import HOOKS
from .served import TOKEN, Server
from .strict_client import Sent, StrictClient

PROMPTS = [f"{color} {thing}" for color in ("red", "green", "blue") for thing in ("apple", "fish", "hat", "tree")]
SCHEDULERS = ["ddim", "euler", "euler_ancestral", "unipc", "dpmpp_2m_karras", "heun", "lcm", "pndm", "nonsense"]
UNDER_WAY = 4  # most jobs of one client
JOBS = ("generate", "results.reproduce")

ODD: list[dict[str, Any]] = [
    {"num_inference_steps": -1},
    {"num_inference_steps": 2.5},
    {"width": 65},
    {"width": 1 << 40},
    {"guidance_scale": float("nan")},
    {"guidance_scale": float("-inf")},
    {"seed": 1 << 63},
    {"seed": []},
    {"prompt": None},
    {"prompt": "x" * 10_001},
    {"prompt": ["red"]},
    {"model": "no such model"},
    {"mode": "quick"},
    {"num_images": 65},
    {"stream": {"previews": {"size": 1}}},
    {"stream": []},
    {"min_steps_shown": 3},
    {"img2img": {"image": b"\x89PNG broken", "strength": 0.5}},
    {"img2img": {"image": "no such picture"}},
    {"lora": [{"name": "no such lora"}]},
    {"unknown": {"a": [1, {"b": None}]}},
]

BAD_FRAMES: list[bytes | str] = [
    "a text",
    b"",
    b"\xc1",
    b"\x80",
    msgpack.packb([1, 2, 3]),
    msgpack.packb({"id": None, "command": "ping"}),
    msgpack.packb({"id": "", "command": "ping"}),
    msgpack.packb({"id": "x" * 65, "command": "ping"}),
    msgpack.packb({"id": True, "command": "ping"}),
    msgpack.packb({"command": "ping"}),
    msgpack.packb({"id": 1, "command": "ping"})[:-3],
    b"\x91" * 50 + b"\x90",
    b"\xdd\xff\xff\xff\xff",
    b"\xc6\x7f\xff\xff\xff" + bytes(100),
    bytes((1 << 20) + 1),
]


@dataclass
class Totals:
    """What all clients together have seen; `ended` counts accepted jobs by their end as their clients saw it."""

    faults: list[str] = field(default_factory=list)
    told: Counter[str] = field(default_factory=Counter)
    done: Counter[str] = field(default_factory=Counter)
    accepted: int = 0
    ended: Counter[str] = field(default_factory=Counter)

    def count(self, job: Sent) -> None:
        """A job of a client has ended, or its session has."""
        if job.job is not None:
            self.accepted += 1
            end = job.end.result() if job.end.done() else None
            self.ended["in a gap" if end is None else end.get("code", "finished")] += 1


def picture(chance: random.Random, size: int = 64) -> bytes:
    """A small PNG of random noise."""
    file = io.BytesIO()
    Image.frombytes("RGB", (size, size), chance.randbytes(size * size * 3)).save(file, "png")
    return file.getvalue()


class Churn:
    """One client after the other, until the time is over."""

    def __init__(self, server: Server, totals: Totals, chance: random.Random, grace_s: float) -> None:
        self._server = server
        self._totals = totals
        self._chance = chance
        self._grace_s = grace_s
        self._client: StrictClient
        self._until = 0.0
        self._jobs: list[Sent] = []
        self._pictures: list[str] = []
        self._results: list[str] = []
        self._uploads: list[tuple[str, bytes]] = []
        self._key = f"a key of its own {chance.getrandbits(64)}"
        self._actions: dict[Callable[[], Awaitable[None]], int] = {
            self.generate: 30,
            self.drag: 6,
            self.generate_oddly: 4,
            self.cancel: 8,
            self.pause: 5,
            self.go_on: 6,
            self.update: 5,
            self.watch: 6,
            self.subscribe: 3,
            self.unsubscribe: 4,
            self.put_picture: 3,
            self.upload: 3,
            self.use_lora: 2,
            self.use_results: 5,
            self.ask: 6,
            self.fail: 4,
            self.send_nonsense: 6,
            self.request: 6,
            self.stall: 2,
            self.drop: 5,
        }

    async def run(self, until: float) -> None:
        """Until `time.monotonic()` says so; every session comes to an end of some kind."""
        self._until = until
        while time.monotonic() < until:
            try:
                await self._session()
            except Exception as error:
                self._totals.faults.append(f"a client failed: {type(error).__name__}: {error}")
                with suppress(Exception):
                    await self._client.close()
                self._forget()

    async def _session(self) -> None:
        await self._arrive()
        for _ in range(self._chance.randint(5, 80)):
            if time.monotonic() > self._until:
                break
            if self._client.broken.is_set() and not await self._come_back():
                return
            (action,) = self._chance.choices(list(self._actions), list(self._actions.values()))
            self._totals.done[action.__name__] += 1
            await action()
            self._look_after_jobs()
            await asyncio.sleep(self._chance.expovariate(5))
        await self._leave()

    async def _arrive(self) -> None:
        how = self._chance.choice(["header", "message", "ticket"])
        headers = {"Latentwire_Key": self._key} if self._chance.random() < 0.5 else {}
        url = self._server.url
        if how == "header":
            headers["Authorization"] = f"Bearer {TOKEN}"
        elif how == "ticket":
            head, body = await self._http("POST", "/ticket", "Authorization: Bearer " + TOKEN)
            assert head.startswith(b"HTTP/1.1 200"), head
            url += "?ticket=" + body.decode().partition('"ticket":"')[2].partition('"')[0]
        self._client = StrictClient(url, self._totals.faults, self._totals.told, **headers)
        await self._client.connect()
        if how == "message":
            await self._client.log_in(TOKEN)
        self._client.url, self._client.headers = self._server.url, {"Authorization": f"Bearer {TOKEN}"}
        self._totals.done[f"session by {how}"] += 1

    async def _come_back(self, later_s: float = 0) -> bool:
        """Whether the session is there still."""
        await asyncio.sleep(later_s)
        if await self._client.connect(resume=True):
            self._totals.done["resumed"] += 1
            return True
        self._give_up("session over")
        await self._client.close()
        return False

    async def _leave(self) -> None:
        way = self._chance.choice(["in order", "in order", "at once", "without a word"])
        if way == "in order":
            if not await self._bring_to_an_end():
                return
            under_way = [sent for sent in await self._client.close() if not sent.in_doubt]
            self._look_after_jobs()
            if under_way:
                self._totals.faults.append(f"left in order, but {len(under_way)} commands had not ended")
        elif way == "at once":
            await self._client.close()
        else:
            self._client.drop()
        self._totals.done[f"left {way}"] += 1
        self._give_up("session over")

    async def _bring_to_an_end(self) -> bool:
        """Until every command of this client has its end, over however many connections; False: the session is over."""
        for _ in range(20):
            if self._client.broken.is_set() and not await self._come_back():
                return False
            if await self._answer("ping") is None:  # from now on all subscriptions and jobs are known
                continue
            for sent in self._client.of(*JOBS, told=lambda sent: sent.job):
                await self._client.send("jobs.resume", job=sent.job)
            for sent in self._client.of("pipeline.subscribe", "stats.subscribe", "jobs.watch"):
                if sent.subscription is not None:
                    await self._client.send("unsubscribe", subscription=sent.subscription)
            if self._chance.random() < 0.3:
                await self._client.send("cancel", all=True)
            await self._client.settled()
            if not self._client.broken.is_set():
                return True
        self._totals.faults.append("a client could not come to an end in 20 connections")
        return True

    def _look_after_jobs(self) -> None:
        """Count those that have ended, and note their pictures."""
        for job in [job for job in self._jobs if job.end.done()]:
            self._jobs.remove(job)
            self._totals.count(job)
            self._pictures += [image["image_id"] for image in job.pictures if image["image_id"]]
            self._results += [image["result"] for image in job.pictures if image["result"]]
        del self._pictures[:-10], self._results[:-10]

    def _give_up(self, why: str) -> None:
        """The session is over: count what has not ended."""
        self._look_after_jobs()
        for job in self._jobs:
            if job.job is not None:
                self._totals.accepted += 1
                self._totals.ended["in a gap" if job.in_doubt else why] += 1
        self._forget()

    def _forget(self) -> None:
        self._jobs, self._pictures, self._results, self._uploads = [], [], [], []

    # what a client does

    async def generate(self) -> None:
        chance = self._chance
        if len(self._jobs) >= UNDER_WAY:
            await asyncio.wait([job.end for job in self._jobs], timeout=1, return_when=asyncio.FIRST_COMPLETED)
            return
        side = chance.choice([64] * 8 + [96, 128])
        params: dict[str, Any] = {
            "prompt": chance.choice(PROMPTS),
            "width": side,
            "height": side,
            "num_inference_steps": chance.choice([1, 2, 2, 3, 4, 12]),
            "guidance_scale": chance.choice([1.0, 1.0, 4.0]),
            "stream": {"steps": chance.random() < 0.9},
        }
        maybe: dict[str, Callable[[], Any]] = {
            "seed": lambda: chance.choice([7, [1, 2, 3]]),
            "scheduler": lambda: chance.choice(SCHEDULERS),
            "mode": lambda: chance.choice(["exact", "reproducible", "fast"]),
            "priority": lambda: chance.choice(["interactive", "normal", "batch"]),
            "output_type": lambda: "latent",
            "clip_skip": lambda: {"layers": 1},
            "slot": lambda: chance.choice("abc"),
            "lora": lambda: [{"name": chance.choice(["pencil", "pixels"]), "weight": 0.5}],
            "img2img": lambda: {"image": self._some_picture(), "strength": 0.6},
        }
        params |= {name: value() for name, value in maybe.items() if chance.random() < 0.2}
        if "seed" not in params and chance.random() < 0.3:
            params["num_images"] = chance.randint(2, 4)
        if chance.random() < 0.5:
            params["stream"]["previews"] = {
                "format": chance.choice(["jpeg", "webp", "png"]),
                "size": chance.choice([32, 64, 256]),
                "every": chance.randint(1, 3),
            }
        if chance.random() < 0.2:
            params["stream"]["latents"] = {
                "dtype": chance.choice(["float16", "float32"]),
                "every": chance.randint(1, 4),
            }
        self._jobs.append(await self._client.send("generate", **params))

    async def drag(self) -> None:
        """A slider: many requests of one slot, each soon after the one before."""
        shown = self._chance.choice([0, 0, 2])
        for seed in range(self._chance.randint(2, 8)):
            params = SMALL | {"num_inference_steps": 8, "seed": seed}
            stream = {"previews": {"size": 32}}
            sent = await self._client.send("generate", **params, slot="drag", min_steps_shown=shown, stream=stream)
            self._jobs.append(sent)
            await asyncio.sleep(self._chance.expovariate(30))

    async def generate_oddly(self) -> None:
        await self._client.send("generate", **SMALL | self._chance.choice(ODD))

    async def cancel(self) -> None:
        job = self._some_job()
        what: list[dict[str, Any]] = [{"job": job or "no such job"}, {"slot": "drag"}, {"all": True}, {}]
        await self._client.send("cancel", **self._chance.choices(what, [12, 3, 2, 1])[0])

    async def pause(self) -> None:
        if job := self._some_job():
            await self._client.send("jobs.pause", job=job)

    async def go_on(self) -> None:
        for sent in self._client.of(*JOBS, told=lambda sent: sent.job):
            await self._client.send("jobs.resume", job=sent.job)

    async def update(self) -> None:
        if job := self._some_job():
            changes: list[dict[str, Any]] = [{"guidance_scale": 5.0}, {"guidance_scale": 0.5}, {"lora": []}, {"x": 1}]
            await self._client.send("jobs.update", job=job, **self._chance.choice(changes))

    async def watch(self) -> None:
        job = self._some_job() or self._chance.choice([sent.job for sent in self._jobs] + ["no such job"])
        if job is not None:
            stream = self._chance.choice([{}, {"previews": {}}, {"previews": {"size": 16}, "latents": {}}])
            await self._client.send("jobs.watch", job=job, stream=stream)

    async def subscribe(self) -> None:
        if len(self._client.of("pipeline.subscribe", "stats.subscribe")) < 3:
            await self._client.send(self._chance.choice(["pipeline.subscribe", "stats.subscribe"]))

    async def unsubscribe(self) -> None:
        running = self._client.of("pipeline.subscribe", "stats.subscribe", "jobs.watch")
        known = [sent.subscription for sent in running if sent.subscription]
        await self._client.send("unsubscribe", subscription=self._chance.choice([*known, "no such subscription"]))

    async def put_picture(self) -> None:
        data = picture(self._chance) if self._chance.random() < 0.8 else self._chance.randbytes(100)
        await self._client.send("images.put", data=data)

    async def upload(self) -> None:
        """A file in parts; some are begun and never finished, some get too much, or are taken too early."""
        if not self._uploads:
            data = picture(self._chance, 200)
            begun = await self._answer("uploads.begin", size=len(data))
            if begun is not None:
                self._uploads.append((begun["upload"], data))
            return
        upload, data = self._uploads.pop()
        for begin in range(0, len(data), 50_000):
            await self._client.send("uploads.append", upload=upload, data=data[begin : begin + 50_000])
        if self._chance.random() < 0.2:
            await self._client.send("uploads.append", upload=upload, data=b"too much")
        answer = await self._answer("images.put", upload=upload)
        if answer is not None:
            self._pictures.append(answer["image_id"])

    async def use_lora(self) -> None:
        name, path = self._chance.choice([("pencil", "loras/emoji-pencil"), ("pixels", "loras/emoji-pixel-art")])
        if self._chance.random() < 0.6:
            await self._client.send("lora.load", path=path, name=name)
        else:
            await self._client.send("lora.unload", name=name, when_free=self._chance.random() < 0.5)

    async def use_results(self) -> None:
        result = self._chance.choice([*self._results, "no such result"])
        match self._chance.randrange(5):
            case 0:
                await self._client.send("results.list", limit=5, search=self._chance.choice(["", "apple", '"(*']))
            case 1:
                await self._client.send("results.get", id=result)
            case 2:
                await self._client.send("results.delete", ids=[result])
            case 3:
                self._jobs.append(await self._client.send("results.reproduce", id=result))
            case 4:
                if ticket := await self._answer("session.ticket"):
                    path = f"/results/{result.replace(' ', '')}.png?ticket={ticket['ticket']}"
                    head, _ = await self._http("GET", path)
                    self._expect(head, 200, 404)

    async def ask(self) -> None:
        for command in self._chance.sample(
            ["describe", "jobs", "pipeline.state", "models.list", "plugins.list", "stats", "ping", "lora.list"], 2
        ):
            await self._client.send(command)

    async def fail(self) -> None:
        match self._chance.randrange(4):
            case 0:
                await self._client.send("failing.run")
            case 1:
                await self._client.send("breaking.run")
            case _:
                params = SMALL | {"prompt": f"fail in {self._chance.choice(HOOKS)}", "num_images": 2}
                self._jobs.append(await self._client.send("generate", **params))

    async def send_nonsense(self) -> None:
        match self._chance.randrange(6):
            case 0:
                await self._client.send("no.such.command", x=1)
            case 1:
                await self._client.send("ping", surplus=[[[[{}]]]])
            case 2:  # too late for these
                await self._client.send("session.resume", counted=False, token="x", seq=1)
            case 3:
                await self._client.send("session.open", counted=False, token="the wrong token")
            case _:
                await self._client.send_bad(self._chance.choice(BAD_FRAMES))

    async def request(self) -> None:
        """Anything over HTTP, also without the token, or only half of it."""
        token = f"Authorization: Bearer {TOKEN}"
        match self._chance.randrange(7):
            case 0:
                self._expect((await self._http("GET", "/healthz"))[0], 200)
            case 1:
                self._expect((await self._http("GET", "/docs/protocol", token))[0], 200)
            case 2:
                self._expect((await self._http("GET", "/metrics", token))[0], 200)
            case 3:
                self._expect((await self._http("GET", "/docs/../../etc/passwd", token))[0], 404)
            case 4:
                self._expect((await self._http("GET", "/", "Authorization: Bearer wrong"))[0], 401)
            case 5:
                self._expect((await self._http("GET", "/readyz"))[0], 200)
            case 6:
                _, writer = await asyncio.open_connection("127.0.0.1", self._server.port)
                writer.write(b"GET /docs/protocol HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthor")
                await writer.drain()
                writer.transport.abort()

    async def stall(self) -> None:
        """Take nothing for a while, with much to take; sometimes for longer than the host puts up with."""
        self._client.may_read.clear()
        for _ in range(self._chance.choice([2, 10, 40])):
            await self._client.send("describe")
        too_long = self._chance.random() < 0.05 and time.monotonic() < self._until - 20
        await asyncio.sleep(18 if too_long else self._chance.choice([0.2, 1, 3]))
        self._client.may_read.set()

    async def drop(self) -> None:
        self._client.drop(without_a_word=self._chance.random() < 0.8)
        await self._come_back(self._chance.choice([0, 0.1, 0.5, self._grace_s / 2, self._grace_s + 2]))

    # how it does it

    def _some_job(self) -> str | None:
        jobs = [sent.job for sent in self._client.of(*JOBS) if sent.job]
        return self._chance.choice(jobs) if jobs else None

    def _some_picture(self) -> Any:
        return self._chance.choice([*self._pictures, picture(self._chance)])

    async def _answer(self, command: str, **params: Any) -> dict[str, Any] | None:
        """A command's result; None for an error, or where the connection breaks before."""
        sent = await self._client.send(command, **params)
        broken: asyncio.Future[Any] = asyncio.ensure_future(self._client.broken.wait())
        ends: list[asyncio.Future[Any]] = [sent.end, broken]
        await asyncio.wait(ends, timeout=90, return_when=asyncio.FIRST_COMPLETED)
        broken.cancel()
        if not sent.end.done():
            if not self._client.broken.is_set():
                self._totals.faults.append(f"no answer to {command}")
            return None
        result: dict[str, Any] | None = sent.end.result().get("result")
        return result

    async def _http(self, method: str, path: str, *headers: str) -> tuple[bytes, bytes]:
        """The head and the body of an answer."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._server.port)
        lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", "Connection: close", "Content-Length: 0", *headers]
        writer.write("\r\n".join([*lines, "", ""]).encode())
        answer = await asyncio.wait_for(reader.read(), 90)
        writer.close()
        head, _, body = answer.partition(b"\r\n\r\n")
        return head, body

    def _expect(self, head: bytes, *statuses: int) -> None:
        line = head.partition(b"\r\n")[0].decode()
        self._totals.told[line] += 1
        if not any(line.startswith(f"HTTP/1.1 {status}") for status in statuses):
            self._totals.faults.append(f"got {line!r}, wanted {statuses}")

"""Do clients that come, go, cancel, resume, fail and talk nonsense leave anything behind in a host?

    python benchmarks/soak.py [--seconds 600] [--warm-up 120] [--seed N]

Each of 32 clients does random things for the whole time; some of its requests fail in a plugin. In the end all is
quiet: every command must have had exactly one terminal event, every accepted job with it, and the host be back at what
it had after a warm-up: memory (at most 20 MiB more), file descriptors, tasks, threads, greenlets. Threads of pools are
not among them: they stay, as many as a pool may have. Prints the seed, and ends with status 1 if something is amiss.
"""

import argparse
import asyncio
import io
import json
import os
import random
import re
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import msgpack
from PIL import Image
from serving import served
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

CLIENTS = 32
GROWTH_MIB = 20
SMALL = {"width": 64, "height": 64, "num_inference_steps": 3, "output_type": "latent"}
TERMINAL = ("result", "error")
ASKED_FOR = "this plugin fails"
JOB_FAILED = re.compile(r"ERROR +job \w+ failed$")  # and then the traceback
RAISED = re.compile(r"[\w.]*(Error|Exception)\b")  # the last line of a traceback


def picture() -> bytes:
    """A small PNG."""
    file = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(file, "png")
    return file.getvalue()


PICTURE = picture()


class Client:
    """One client's random life; what it saw of each of its commands."""

    def __init__(self, url: str, seed: int, met: Counter[str]) -> None:
        self.url = url
        self.chance = random.Random(seed)
        self.met = met
        self.socket: ClientConnection | None = None
        self.token, self.seq, self.next = "", 0, 0
        self.jobs: dict[int, str] = {}  # ids of this session's generates to their jobs
        self.open: set[int] = set()
        self.ends: Counter[int] = Counter()
        self.gap = False

    async def live(self, until: float) -> None:
        """Do random things, then wait for the ends of all that was begun."""
        while time.monotonic() < until:
            try:
                if self.socket is None:
                    await self.come()
                await self.act()
                await self.hear(self.chance.choice([0.0, 0.01, 0.05, 0.3]))
            except ConnectionClosed:
                self.socket = None
        for _ in range(3):
            try:
                if self.socket is None:
                    await self.come()
                for job in self.jobs.values():
                    await self.send("cancel", job=job)
                deadline = time.monotonic() + 60
                while self.open and time.monotonic() < deadline:
                    await self.hear(0.5)
                break
            except ConnectionClosed:
                self.socket = None
        if self.socket is not None:
            await self.socket.close()

    async def come(self) -> None:
        """Connect; take up the old session where there is one, or begin anew."""
        self.socket = await connect(
            self.url, subprotocols=[Subprotocol("latentwire.v1.msgpack")], max_size=None, compression=None, proxy=None
        )
        hello = msgpack.unpackb(await self.socket.recv(decode=False))
        if self.token:
            await self.socket.send(
                msgpack.packb(
                    {"id": "resume", "command": "session.resume", "params": {"token": self.token, "seq": self.seq}}
                )
            )
            answer = msgpack.unpackb(await self.socket.recv(decode=False))
            self.met[f"resume: {answer['event']}"] += 1
            if answer["event"] == "result":
                return
        self.forget()
        self.token, self.seq = hello["resume"], hello["seq"]

    def forget(self) -> None:
        """A session is over: what was under way in it is told to nobody."""
        self.token, self.seq = "", 0
        self.jobs, self.open, self.ends = {}, set(), Counter()

    async def send(self, command: str, **params: Any) -> int:
        assert self.socket is not None
        self.next += 1
        self.open.add(self.next)
        self.met[command] += 1
        await self.socket.send(msgpack.packb({"id": self.next, "command": command, "params": params}))
        return self.next

    async def act(self) -> None:
        assert self.socket is not None
        job = self.chance.choice([*self.jobs.values(), "0" * 16])
        kind = self.chance.random()
        if kind < 0.35 and len(self.open) < 8:
            words = self.chance.choice(["red apple", "red apple", "blue car", "fail"])
            more: dict[str, Any] = {"slot": self.chance.choice("ab")} if self.chance.random() < 0.4 else {}
            if self.chance.random() < 0.2:
                more["img2img"] = {"image": PICTURE}
            if self.chance.random() < 0.3:
                more["stream"] = {"previews": {"format": "jpeg"}}
            steps = self.chance.choice([1, 3, 60])
            await self.send("generate", **SMALL | more | {"prompt": words, "num_inference_steps": steps})
        elif kind < 0.8:
            choices: list[tuple[str, dict[str, Any]]] = [
                ("cancel", {"job": job}), ("jobs.pause", {"job": job}), ("jobs.resume", {"job": job}),
                ("jobs.update", {"job": job, "guidance_scale": 3.0}), ("images.put", {"image": PICTURE}), ("ping", {}),
                ("jobs", {}), ("pipeline.state", {}), ("nonsense", {"a": 1}), ("generate", {"prompt": 5}),
                ("images.put", {"image": PICTURE[:50]}), ("models.list", {}), ("describe", {}),
            ]  # fmt: skip
            command, params = self.chance.choice(choices)
            await self.send(command, **params)
        elif kind < 0.9:
            self.met["bad frame"] += 1
            frames: list[bytes | str] = [b"\xc1", b"\x91" * 5000, b"\xdd\xff\xff\xff\xff", "text", b""]
            await self.socket.send(self.chance.choice(frames))
        elif kind < 0.96:
            self.met["drop"] += 1
            self.socket.transport.abort()
            self.socket = None
        else:
            self.met["goodbye"] += 1
            await self.socket.close()
            self.socket = None
            self.forget()

    async def hear(self, seconds: float) -> None:
        """Take what comes for so long."""
        deadline = time.monotonic() + seconds
        while self.socket is not None:
            try:
                async with asyncio.timeout(max(0.001, deadline - time.monotonic())):
                    frame = await self.socket.recv(decode=False)
            except TimeoutError:
                return
            self.take(msgpack.unpackb(frame))

    def take(self, message: dict[str, Any]) -> None:
        self.seq = message["seq"]
        name, number = message["event"], message["id"]
        if name == "gap":
            self.gap = True
        if name == "accepted":
            self.jobs[number] = message["job"]
            self.met["accepted"] += 1
        if name in TERMINAL and isinstance(number, int):
            self.ends[number] += 1
            self.open.discard(number)
            self.jobs.pop(number, None)
            if name == "error":
                self.met[f"error {message['code']}"] += 1
            if self.ends[number] > 1 or message.get("code") == "internal_error":
                self.met["WRONG"] += 1
                print(message, file=sys.stderr)


async def ask(url: str, command: str) -> Any:
    """The result of one command, over a connection of its own."""
    async with connect(
        url, subprotocols=[Subprotocol("latentwire.v1.msgpack")], max_size=None, compression=None, proxy=None
    ) as socket:
        await socket.recv()
        await socket.send(msgpack.packb({"id": 1, "command": command, "params": {}}))
        return msgpack.unpackb(await socket.recv(decode=False))["result"]


async def at_rest(url: str) -> dict[str, int]:
    """The host's counts, when they have stopped to fall."""
    least: dict[str, int] = {}
    for _ in range(20):
        counts = await ask(url, "soak.counts")
        least = {name: min(count, least.get(name, count)) for name, count in counts.items()}
        await asyncio.sleep(0.5)
    return least


async def soak(url: str, seconds: float, seed: int, met: Counter[str]) -> list[Client]:
    clients = [Client(url, seed + number, met) for number in range(CLIENTS)]
    until = time.monotonic() + seconds
    await asyncio.gather(*(client.live(until) for client in clients))
    return clients


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument(
        "--warm-up", type=float, default=120, help="until its pools of threads are as large as they get"
    )
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    options = parser.parse_args()
    print(f"seed {options.seed}", file=sys.stderr)
    met: Counter[str] = Counter()
    plugin = Path(__file__).parent / "soaking" / "counts.py"
    tables: dict[str, dict[str, Any]] = {
        "engine": {"device": "cpu"},
        "server": {"resume_grace_s": 5},
        "limits": {"images_mib": 1},
    }
    watch = Path(__file__).parents[1] / "tests" / "trust" / "audited"  # no file of elsewhere, no call out
    os.environ["PYTHONPATH"] = os.pathsep.join([str(watch), *filter(None, [os.environ.get("PYTHONPATH")])])
    with served(tables, {"counts": plugin}) as host:

        async def run() -> tuple[dict[str, int], dict[str, int], int, list[Client]]:
            await soak(host.socket, options.warm_up, options.seed + 1000, Counter())
            await asyncio.sleep(7)  # sessions that were left behind end
            before, memory = await at_rest(host.socket), host.memory
            clients = await soak(host.socket, options.seconds, options.seed, met)
            await asyncio.sleep(7)
            return before, await at_rest(host.socket), host.memory - memory, clients

        before, after, grown, clients = asyncio.run(run())
        lines = [line for _, line in host.log]
    log = [line for line in lines if RAISED.match(line) and ASKED_FOR not in line]
    log += [line for line in lines if line.startswith(("ERROR", "CRITICAL", "AUDIT")) and not JOB_FAILED.match(line)]
    unended = sum(len(client.open) for client in clients)
    figures = {
        "seed": options.seed,
        "seconds": options.seconds,
        "steps": sum(count for name, count in met.items() if "error" not in name and name != "accepted"),
        "before": before,
        "after": after,
        "grown_mib": round(grown / (1 << 20), 1),
        "commands_without_an_end": unended,
        "wrong": met["WRONG"],
        "errors_in_the_log": len(log),
        "met": dict(sorted(met.items())),
    }
    print(json.dumps(figures, indent=1))
    print("\n".join(log[:20]), file=sys.stderr)
    same = all(after[name] <= before[name] for name in ("tasks", "threads", "greenlets", "descriptors"))
    return int(not same or grown > GROWTH_MIB << 20 or bool(unended or met["WRONG"] or log))


if __name__ == "__main__":
    sys.exit(main())

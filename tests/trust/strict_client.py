"""A client that holds the host to its protocol: it looks at every message of a session, over all its connections.

What the host may not do becomes a text in `faults`: a hole in the numbers, a second end of a command, an event after
the end, a step that is missing or comes twice, a step of a slot's older revision after the newer one has begun.
"""

import asyncio
from collections import Counter, deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import msgpack
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from ..wire import SUBPROTOCOL

Body = dict[str, Any]

KEPT = 1000  # frames that may have to be sent again
PATIENCE_S = 90.0  # for whatever must come


class Sent:
    """A command of this client's that has not ended yet.

    Attributes:
        job: Its job's id, once it is accepted.
        subscription: The id to unsubscribe by, once it is known.
        end: Becomes its result or error.
        in_doubt: A gap may have taken its end.
    """

    def __init__(self, number: int, name: str, counted: bool) -> None:
        self.id = number
        self.name = name
        self.counted = counted
        self.job: str | None = None
        self.subscription: str | None = None
        self.end: asyncio.Future[Body] = asyncio.get_running_loop().create_future()
        self.in_doubt = False
        self.steps: dict[int, int] = {}  # the last one of each picture
        self.pictures: list[Body] = []  # its image events, without their data


class StrictClient:
    """One session.

    Attributes:
        url: Of the host's WebSocket, a ticket in it perhaps.
        open: Its commands that have not ended, by id.
        told: How often each event came, and each error code.
        faults: What the host did wrong.
        may_read: Clear: it takes nothing.
        broken: Set while there is no connection.
    """

    def __init__(self, url: str, faults: list[str], told: Counter[str], **headers: str) -> None:
        self.url = url
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}
        self.open: dict[int, Sent] = {}
        self.told = told
        self.faults = faults
        self.may_read = asyncio.Event()
        self.may_read.set()
        self.broken = asyncio.Event()
        self.hello: Body = {}
        self.seq = 0
        self._socket: ClientConnection | None = None
        self._left_open: list[ClientConnection] = []  # those that it has turned away from
        self._reader: asyncio.Task[None] | None = None
        self._last_id = 0
        self._frames: deque[bytes | str] = deque(maxlen=KEPT)  # that the host counts, the latest of them
        self._count = 0  # of all of them
        self._nameless_due = 0  # errors without an id
        self._perhaps: set[int] = set()  # commands that may still get an answer
        self._replay_end: int | None = None  # the command whose answer comes after all that comes again
        self._slots: dict[str, int] = {}  # the revision that has begun last

    async def connect(self, resume: bool = False) -> bool:
        """Open a session, or take this one up again; False where the host does not have it any more."""
        self._socket = await connect(
            self.url,
            subprotocols=[SUBPROTOCOL],
            additional_headers=self.headers,
            max_size=None,
            compression=None,
            proxy=None,
            ping_interval=None,
            open_timeout=PATIENCE_S,
        )
        self.may_read.set()
        self.broken.clear()
        first = await self._receive()
        if first["event"] == "login":
            return True  # the caller sends session.open, and calls `greeted`
        if resume:
            return await self._resume()
        self._begin(first)
        return True

    async def log_in(self, token: str) -> None:
        """Show the token by the first message."""
        await self._write(msgpack.packb({"id": "login", "command": "session.open", "params": {"token": token}}))
        hello, answer = await self._receive(), await self._receive()
        self._begin(hello)
        self._check_number(answer)
        if (answer["id"], answer["event"]) != ("login", "result"):
            self._fault(f"session.open was answered with {answer}")

    async def send(self, command: str, counted: bool = True, **params: Any) -> Sent:
        """Send a command; `counted` is false for those that the host does not count as taken."""
        return await self._command(self._new_id(), command, params, counted)

    async def send_bad(self, frame: bytes | str) -> None:
        """Send what gets an error without an id."""
        self._nameless_due += 1
        await self._send(frame, counted=True)

    async def answer(self, command: str, **params: Any) -> Body:
        """The end of a command; the connection must last until then."""
        return await self.answer_to(command, params)

    async def answer_to(self, command: str, params: Body) -> Body:
        """The same, with params of any name."""
        return await self.end_of(await self._command(self._new_id(), command, params))

    async def end_of(self, sent: Sent) -> Body:
        """How a command ended."""
        return await asyncio.wait_for(asyncio.shield(sent.end), PATIENCE_S)

    async def settled(self) -> None:
        """Until all commands have ended; those that do not are faults."""
        while self.open or self._nameless_due:
            doubtful = [sent for sent in self.open.values() if sent.in_doubt]
            if doubtful and len(doubtful) == len(self.open):
                break
            before = (self.seq, len(self.open))
            for _ in range(int(PATIENCE_S * 20)):
                await asyncio.sleep(0.05)
                if (self.seq, len(self.open)) != before or self.broken.is_set() or not self.open:
                    break
            if self.broken.is_set():
                return
            if (self.seq, len(self.open)) == before and (self.open or self._nameless_due):
                for sent in self.open.values():
                    self._fault(f"no end of {sent.name} {sent.id}, job {sent.job}, accepted: {sent.job is not None}")
                if self._nameless_due:
                    self._fault(f"{self._nameless_due} bad messages were not answered")
                return

    def drop(self, without_a_word: bool = True) -> None:
        """Break the connection, or turn away from it and leave it as it is."""
        self._stop_reading()
        if self._socket is not None:
            self._left_open.append(self._socket)
        if without_a_word:
            self._cut()
        self.broken.set()

    async def close(self) -> list[Sent]:
        """Leave for good; the commands that were under way."""
        assert self._socket is not None
        self._stop_reading()
        with suppress(ConnectionClosed):
            await asyncio.wait_for(self._socket.close(), PATIENCE_S)
        self._cut()
        self.broken.set()
        return list(self.open.values())

    def of(self, *names: str, told: Callable[[Sent], Any] = bool) -> list[Sent]:
        """Its unfinished commands of these names of which something is known."""
        return [sent for sent in self.open.values() if sent.name in names and told(sent)]

    async def _resume(self) -> bool:
        """Take the session up on a new connection, and send again what was lost on its way."""
        request = {"token": self.hello["resume"], "seq": self.seq}
        await self._write(msgpack.packb({"id": "resume", "command": "session.resume", "params": request}))
        answer = await self._receive()
        if answer["event"] == "error":
            if answer["code"] != "unknown_session":
                self._fault(f"session.resume was answered with {answer}")
            return False
        if answer["seq"] != self.seq:
            self._fault(f"session.resume has the number {answer['seq']}, wanted {self.seq}")
        uncounted = [sent for sent in self.open.values() if not sent.counted]
        self._perhaps |= {sent.id for sent in uncounted}  # may have got lost, and nobody tells of it
        for sent in uncounted:
            del self.open[sent.id]
        self._replay_end = self._new_id()
        self._start_reading()
        taken = answer["result"]["received"]
        again = list(self._frames)[len(self._frames) - (self._count - taken) :] if self._count > taken else []
        if taken > self._count or len(again) != self._count - taken:
            self._fault(f"the host has taken {taken} messages, {self._count} were sent")
        for frame in again:
            await self._write(frame)
        self.told["sent again"] += len(again)
        await self._command(self._replay_end, "ping", {})
        return True

    def _new_id(self) -> int:
        self._last_id += 1
        return self._last_id

    async def _command(self, message_id: int, command: str, params: Body, counted: bool = True) -> Sent:
        sent = self.open[message_id] = Sent(message_id, command, counted)
        await self._send(msgpack.packb({"id": message_id, "command": command, "params": params}), counted)
        return sent

    def _cut(self) -> None:
        for socket in self._left_open:
            socket.transport.abort()
        self._left_open.clear()

    def _begin(self, hello: Body) -> None:
        self.hello, self.seq = hello, 0
        self._check_number(hello)
        if hello["event"] != "hello":
            self._fault(f"wanted a hello, got {hello}")
        self._start_reading()

    def _start_reading(self) -> None:
        self._reader = asyncio.create_task(self._read())

    def _stop_reading(self) -> None:
        if self._reader is not None:
            self._reader.cancel()
            self._reader = None

    async def _read(self) -> None:
        socket, me = self._socket, asyncio.current_task()
        assert socket is not None
        try:
            while True:
                await self.may_read.wait()
                message = msgpack.unpackb(await socket.recv(decode=False))
                if self._reader is not me:
                    return
                self._look_at(message)
        except ConnectionClosed as error:
            self.told[f"closed {error.rcvd.code if error.rcvd else 1006}"] += 1
        except Exception as error:
            self._fault(f"{type(error).__name__}: {error}")
        if self._reader is me:
            self.broken.set()

    async def _receive(self) -> Body:
        assert self._socket is not None
        message: Body = msgpack.unpackb(await asyncio.wait_for(self._socket.recv(decode=False), PATIENCE_S))
        return message

    async def _send(self, frame: bytes | str, counted: bool) -> None:
        if counted:
            self._frames.append(frame)
            self._count += 1
        await self._write(frame)

    async def _write(self, frame: bytes | str) -> None:
        assert self._socket is not None
        with suppress(ConnectionClosed):  # who resumes sends it again
            await self._socket.send(frame)

    def _look_at(self, message: Body) -> None:
        event, number = message["event"], message["id"]
        self.told[event if event != "error" else f"error {message['code']}"] += 1
        self._check_number(message)
        if event == "gap":
            for sent in self.open.values():
                sent.in_doubt = True
                sent.steps.clear()
            return
        if number is None:
            self._look_at_nameless(message)
            return
        if number in self._perhaps and event == "error":
            self._perhaps.remove(number)
            return
        if number not in self.open:
            self._fault(f"a message of a command that has ended, or never was: {_short(message)}")
            return
        sent = self.open[number]
        if event in ("result", "error"):
            del self.open[number]
            if number == self._replay_end:
                self._replay_end = None
            if sent.job and event == "error" and message.get("job") != sent.job and sent.name == "generate":
                self._fault(f"the error of job {sent.job} is {_short(message)}")
            sent.end.set_result(message)
        else:
            self._look_at_event(sent, message)

    def _look_at_nameless(self, message: Body) -> None:
        if message["event"] != "error" or message["code"] == "internal_error":
            self._fault(f"got {_short(message)}")
        self._nameless_due -= 1
        if self._nameless_due < 0:
            self._fault(f"an error without an id that answers nothing: {_short(message)}")

    def _look_at_event(self, sent: Sent, message: Body) -> None:
        match message["event"]:
            case "accepted":
                if sent.job is not None:
                    self._fault(f"accepted twice: {sent.job} and {message['job']}")
                sent.job = message["job"]
            case "subscribed":
                sent.subscription = message["subscription"]
            case "started":
                if message.get("slot") and sent.name == "generate":
                    self._slots[message["slot"]] = max(message["revision"], self._slots.get(message["slot"], 0))
            case "image":
                sent.pictures.append({key: value for key, value in message.items() if key not in ("image", "latents")})
            case "step":
                last = sent.steps.get(message["index"])
                first = None if sent.name != "generate" or sent.in_doubt else 0
                last = first if last is None else last
                if last is not None and message["step"] != last + 1:
                    self._fault(f"step {message['step']} after {last} of {sent.name} {sent.id}, job {sent.job}")
                sent.steps[message["index"]] = message["step"]
                slot = message.get("slot")
                if slot and sent.name == "generate" and message["revision"] < self._slots.get(slot, 0):
                    self._fault(f"revision {self._slots[slot]} had begun, then came {_short(message)}")

    def _check_number(self, message: Body) -> None:
        seq = message["seq"]
        first = message["from_seq"] if message["event"] == "gap" else seq
        if seq <= self.seq or (first != self.seq + 1 and self._replay_end is None):
            self._fault(f"after {self.seq} came {_short(message)}")
        self.seq = seq

    def _fault(self, text: str) -> None:
        self.faults.append(f"session {self.hello.get('session')}: {text}")


def _short(message: Body) -> str:
    return repr({key: value for key, value in message.items() if key not in ("image", "latents", "result", "state")})

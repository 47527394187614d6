"""Who is let in: tokens, tickets, keys, Host and Origin, on HTTP and WebSocket; against a real server."""

import asyncio
import re
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgpack
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect as connect_sync

from latentwire.server import connection as connection_module
from latentwire.server import tickets as tickets_module
from latentwire.server.tickets import Tickets

from ..conftest import serving
from ..wire import LONG, SMALL, SUBPROTOCOL, Wire, in_loop, wire
from .served import OBSERVER, TOKEN, Server, handshake, json_of, request, server, status

RESULTS = '[[plugins]]\nname = "results"\nsettings = { folder = "results" }\n'
BEARER = f"Bearer {TOKEN}"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A host with a token, and one for observers."""
    settings = (f"server.token={TOKEN}", f"server.observer_token={OBSERVER}")
    with server(tmp_path_factory.mktemp("guarded"), *settings, toml=RESULTS) as started:
        yield started


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A host as it is started without any settings."""
    with server(tmp_path_factory.mktemp("local")) as started:
        yield started


# Host and Origin.

BAD_HOSTS: list[Any] = [
    None,
    "",
    "evil.example",
    "evil.example:{port}",
    "127.0.0.1.evil.example:{port}",
    "localhost.evil.example",
    "localhost.",
    "evil.localhost",
    "127.0.0.2:{port}",
    "127.1",
    "2130706433",
    "0x7f000001",
    "0177.0.0.1",
    "0.0.0.0:{port}",
    "[::]",
    "[::ffff:127.0.0.1]",
    "::1",
    "[::1",
    "user@127.0.0.1:{port}",
    "127.0.0.1:{port}@evil.example",
    "127.0.0.1:port",
    "127.0.0.1:{port}:80",
    "127.0.0.1:999999",
    "127.0.0.1/evil",
    "127.0.0.1,evil.example",
    "http://127.0.0.1",
    "127.0.0.1%00.evil.example",
    "loc\xe1lhost",
    ["127.0.0.1", "evil.example"],
    ["127.0.0.1", "127.0.0.1"],
]
BAD_ORIGINS: list[Any] = [
    "null",
    "",
    "file://",
    "http://evil.example",
    "https://evil.example",
    "http://evil.example:{port}",
    "http://127.0.0.1",
    "http://127.0.0.1:1",
    "https://127.0.0.1:{port}",
    "ws://127.0.0.1:{port}",
    "http://127.0.0.1:{port}.evil.example",
    "http://127.0.0.1:{port}/",
    "http://127.0.0.1:{port}@evil.example",
    "http://user@127.0.0.1:{port}",
    "http://localhost:{port}",
    "http://[::1]:{port}",
    "HTTP://127.0.0.1:{port}",
    "127.0.0.1:{port}",
    "//127.0.0.1:{port}",
    " http://127.0.0.1:{port} evil",
    "http://[broken",
    "http://127.0.0.1:{port}\t",
    "http://\xe1",
    ["http://127.0.0.1:{port}", "http://evil.example"],
    ["http://evil.example", "http://127.0.0.1:{port}"],
]


def at(port: int, value: Any) -> Any:
    if isinstance(value, list):
        return [at(port, one) for one in value]
    return value.replace("{port}", str(port)) if isinstance(value, str) else value


@pytest.mark.parametrize("host", BAD_HOSTS, ids=repr)
def test_a_host_answers_to_its_own_names_alone(local: Server, host: Any) -> None:
    bad = at(local.port, host)
    assert status(local.raw(handshake(Host=bad))) in (400, 403)
    assert status(local.raw(request("GET", "/", Host=bad))) in (400, 403)


@pytest.mark.parametrize("origin", BAD_ORIGINS, ids=repr)
def test_no_page_of_another_origin_gets_through(local: Server, origin: Any) -> None:
    host, bad = f"127.0.0.1:{local.port}", at(local.port, origin)
    if isinstance(bad, str) and bad.strip() == f"http://{host}":
        return  # white space around a header's value is not part of it
    for asked in (handshake(Host=host, Origin=bad), request("GET", "/", Host=host, Origin=bad)):
        assert status(local.raw(asked)) in (400, 403)
    assert status(local.raw(request("POST", "/ticket", Host=host, Origin=bad, Content_Length="0"))) in (400, 403)


@pytest.mark.parametrize("host", ["127.0.0.1:{port}", "localhost:{port}", "[::1]:{port}", "LOCALHOST", "127.0.0.1:9"])
def test_its_own_names_and_its_own_pages_are_let_in(local: Server, host: str) -> None:
    named = at(local.port, host)
    for origin in (None, f"http://{named.lower()}"):
        assert status(local.raw(handshake(Host=named, Origin=origin))) == 101
        assert status(local.raw(request("GET", "/", Host=named, Origin=origin))) == 200


def test_null_is_refused_even_where_it_is_listed_and_listed_pages_and_names_are_taken(tmp_path: Path) -> None:
    toml = '[server]\nallowed_origins = ["null", "https://pictures.example"]\nallowed_hosts = ["gpu.example"]\n'
    with server(tmp_path, toml=toml) as started:
        host = f"gpu.example:{started.port}"
        assert status(started.raw(handshake(Host=host, Origin="https://pictures.example"))) == 101
        assert status(started.raw(handshake(Host=host, Origin="null"))) == 403
        assert status(started.raw(handshake(Host=host, Origin="http://pictures.example"))) == 403
        assert status(started.raw(handshake(Host="gpu.example.evil", Origin="https://pictures.example"))) == 403


# The token.


def test_beyond_loopback_a_token_is_made_unless_anyone_may_connect(tmp_path: Path) -> None:
    with server(tmp_path, listen="0.0.0.0") as started:
        assert len(started.token) >= 24
        assert status(started.raw(request("GET", "/", Host="127.0.0.1"))) == 401
        assert sum(started.token in line for line in started.log) == 0
    with server(tmp_path, "server.anyone_may_connect=true", listen="0.0.0.0") as started:
        assert started.token == "none needed"
        assert status(started.raw(handshake(Host="127.0.0.1"))) == 101
        assert status(started.raw(handshake(Host="evil.example"))) == 403


PATHS = ["/", "/docs/protocol", "/ticket", "/metrics", "/results/x.png", "/pipeline-state/", "/nowhere", "/ws"]
PATHS += ["/web/", "/web/app.js", "/web/AAAAAAAAAAAAAAAAAAAAAA/app.js", "/web/AAAAAAAAAAAAAAAAAAAAAA/"]
AROUND = ["/?token={token}", "/?ticket=x", "/?ticket=", "/healthz/../", "/healthz/", "/Healthz", "/healthz%2f"]
HEADERS: list[dict[str, Any]] = [
    {},
    {"Authorization": "Bearer"},
    {"Authorization": "Bearer wrong"},
    {"Authorization": f"Basic {TOKEN}"},
    {"Authorization": f"Bearer {TOKEN[:-1]}"},
    {"Authorization": f"Bearer {TOKEN} x"},
    {"Authorization": "Bearer t\xf6ken"},
    {"Latentwire_Key": "a key of sixteen letters"},
    {"Cookie": f"token={TOKEN}"},
]


@pytest.mark.parametrize("headers", HEADERS, ids=repr)
def test_an_unauthenticated_request_gets_nothing_but_health(guarded: Server, headers: dict[str, Any]) -> None:
    for path in PATHS:
        for method in ("GET", "POST", "DELETE", "HEAD", "OPTIONS", "PUT"):
            asked = request(method, path, Host="127.0.0.1", Content_Length="0", **headers)
            assert status(guarded.raw(asked)) == 401, (method, path)
    for path in AROUND:
        asked = request("GET", path.format(token=TOKEN.replace(" ", "+")), Host="127.0.0.1", **headers)
        assert status(guarded.raw(asked)) == 401, path
    for path in ("/healthz", "/readyz"):
        assert status(guarded.raw(request("GET", path, Host="probe", **headers))) == 200
    for path in ("/nowhere", "/healthz", "/metrics"):
        assert status(guarded.raw(handshake(path, **headers))) == 401


def test_the_header_opens_everything(guarded: Server) -> None:
    for token in (TOKEN, OBSERVER):
        assert guarded.get("/", Authorization=f"Bearer {token}")[0] == 200
        assert guarded.get("/metrics", Authorization=f"bearer {token}")[0] == 200
        with connect_sync(guarded.url, additional_headers={"Authorization": f"Bearer {token}"}) as socket:
            assert msgpack.unpackb(socket.recv())["event"] == "hello"


def test_the_pages_files_are_for_those_who_have_the_page(guarded: Server) -> None:
    def get(path: str, method: str = "GET", **headers: str) -> int:
        return guarded.get(path, method, **headers)[0]

    page = guarded.get("/", Authorization=BEARER)[1].decode()
    path = re.findall(r'src="(/web/[\w-]{22}/)app.js"', page)[0]
    files = set(re.findall(rf'(?:src|href)="({path}[\w./-]+)"', page))
    assert {"app.js", "style.css", "theme.js", "client/latentwire.js"} <= {file.removeprefix(path) for file in files}
    assert {get(file) for file in files} == {200}
    for other in (path, path + "nothing.js", path + "../page.py", path + "index.html", path + "%2e%2e/page.py"):
        assert get(other) == 404, other
    outside = (path[:-1], path[:-2] + "/app.js", path.swapcase() + "app.js", path + "/../../docs/protocol", f"/x{path}")
    for wrong in outside:
        assert get(wrong) in (401, 404), wrong
    assert get(path + "app.js", Origin="http://evil.example") == 403
    assert get(path + "app.js", Host="evil.example") == 403
    assert get(path + "app.js", "POST") == 405
    assert status(guarded.raw(handshake(path + "app.js"))) == 401
    assert get(path.replace(path[5:9], "AAAA") + "app.js") == 401
    assert get(path.replace(path[5:9], "AAAA") + "app.js", Authorization=BEARER) == 404


@in_loop
async def test_the_first_message_may_bring_the_token(guarded: Server) -> None:
    async with wire(guarded.url) as client:
        assert (client.hello["event"], client.hello["seconds"]) == ("login", 10)
        await client.send(1, "session.open", token=TOKEN)
        hello, opened = await client.receive(), await client.receive()
        assert (hello["event"], hello["seq"]) == ("hello", 1)
        assert (opened["event"], opened["id"], opened["result"]["observer"]) == ("result", 1, False)
        await client.send(2, "generate", **SMALL)
        assert (await client.all_of(2))[-1]["event"] == "result"
        error = await client.error(3, "session.open", token=TOKEN)
        assert error["code"] == "bad_message"


FIRST: list[Any] = [
    ("session.open", {}),
    ("session.open", {"token": "wrong"}),
    ("session.open", {"token": None}),
    ("session.open", {"token": TOKEN, "key": "short"}),
    ("session.open", {"token": [TOKEN]}),
    ("session.open", {"key": "a key of sixteen letters"}),
    ("session.resume", {"token": "x", "seq": 1}),
    ("session.ticket", {}),
    ("describe", {}),
    ("generate", SMALL),
    ("ping", {}),
]


@pytest.mark.parametrize(("command", "params"), FIRST, ids=repr)
@in_loop
async def test_another_first_message_ends_the_connection(guarded: Server, command: str, params: Any) -> None:
    async with wire(guarded.url) as client:
        await client.send(1, command, **params)
        error = await client.receive()
        assert (error["event"], error["id"]) == ("error", 1)
        assert error["code"] in ("unauthorized", "invalid_params")
        assert await end_of(client) == 4401


@pytest.mark.parametrize("frame", [b"", b"\xc1", b"\x80" * 100, "text", b"x" * 5000, msgpack.packb({"id": 1})])
@in_loop
async def test_a_first_message_that_is_none_ends_the_connection(guarded: Server, frame: Any) -> None:
    async with wire(guarded.url) as client:
        await client.send_frame(frame)
        assert await end_of(client) in (4401, 1009)


async def end_of(client: Wire) -> int | None:
    """The close code of a connection; what comes before it is an error."""
    with suppress(ConnectionClosed):
        while True:
            assert (await client.receive())["event"] == "error"
    return client.socket.close_code


@in_loop
async def test_nobody_waits_longer_than_ten_seconds_for_the_token(monkeypatch: pytest.MonkeyPatch) -> None:
    assert connection_module.LOGIN_S == 10
    monkeypatch.setattr(connection_module, "LOGIN_S", 0.2)
    with serving(server={"token": TOKEN}) as served:
        async with wire(served.url) as client:
            assert await end_of(client) == 4401
            assert client.socket.close_reason == "no token came within 0.2 s"


# Tickets.


def test_a_ticket_is_good_once_for_http_and_for_a_socket(guarded: Server) -> None:
    def ticket() -> str:
        return str(json_of(guarded.get("/ticket", "POST", Authorization=BEARER))["ticket"])

    first = ticket()
    assert guarded.get(f"/docs/protocol?ticket={first}")[0] == 200
    assert guarded.get(f"/docs/protocol?ticket={first}")[0] == 401
    second = ticket()
    with connect_sync(f"{guarded.url}?ticket={second}") as socket:
        assert msgpack.unpackb(socket.recv())["event"] == "hello"
    assert status(guarded.raw(handshake(f"/ws?ticket={second}"))) == 401
    assert guarded.get(f"/ticket?ticket={ticket()}", "POST")[0] == 403
    assert status(guarded.raw(handshake(f"/ws?ticket={ticket()}", Origin="http://evil.example"))) == 403
    assert status(guarded.raw(handshake(f"/ws?ticket={ticket()}&ticket=x"))) == 101


@in_loop
async def test_a_ticket_has_the_rights_of_whom_it_was_given_to(guarded: Server) -> None:
    headers = {"Authorization": BEARER, "Latentwire-Key": "a key of sixteen letters"}
    async with connect(guarded.url, subprotocols=[SUBPROTOCOL], additional_headers=headers) as socket:
        mine = Wire(socket, msgpack.unpackb(await socket.recv(decode=False)))
        await mine.send(1, "generate", **SMALL)
        result = next(m["result"] for m in await mine.all_of(1) if m["event"] == "image")
        ticket = (await mine.ask("session.ticket"))["ticket"]
        other = (await asyncio.to_thread(guarded.get, "/ticket", "POST", Authorization=BEARER))[1]
    picture = f"/results/{result}.png?ticket="
    assert (await asyncio.to_thread(guarded.get, picture + ticket))[0] == 200
    assert (await asyncio.to_thread(guarded.get, picture + json_of((200, other))["ticket"]))[0] == 404


def test_tickets_grow_old_and_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    from latentwire import Caller
    from latentwire.core.errors import Unauthorized

    monkeypatch.setattr(tickets_module, "MOST", 10)
    tickets, now = Tickets(), [0.0]
    monkeypatch.setattr(tickets_module, "monotonic", lambda: now[0])
    issued = [tickets.issue(Caller("a", "a")) for _ in range(11)]
    with pytest.raises(Unauthorized, match="wrong, used, or older than 30 s"):
        tickets.redeem(issued[0])
    now[0] = 29.9
    assert tickets.redeem(issued[1]).owner == "a"
    now[0] = 30.1
    with pytest.raises(Unauthorized):
        tickets.redeem(issued[2])


# Whose jobs are whose.


@in_loop
async def test_jobs_are_their_owners_and_observers_see_them(guarded: Server) -> None:
    def bearer(token: str, key: str | None = None) -> Any:
        headers = {"Authorization": f"Bearer {token}"} | ({"Latentwire-Key": key} if key else {})
        return connect(guarded.url, subprotocols=[SUBPROTOCOL], additional_headers=headers)

    key = "a key of sixteen letters"
    async with bearer(TOKEN, key) as one, bearer(TOKEN) as two, bearer(TOKEN, key) as three, bearer(OBSERVER) as four:
        mine, other, again, observer = [Wire(stream, {}) for stream in (one, two, three, four)]
        for client in (mine, other, again, observer):
            await client.until("hello")
        await mine.send(1, "generate", **LONG)
        job = (await mine.until("started"))["job"]
        assert (await other.ask("jobs"))["jobs"] == []
        for command in ("jobs.watch", "jobs.pause", "jobs.resume", "jobs.update", "cancel"):
            assert (await other.error(command, command, job=job))["code"] == "unknown_job"
        assert [row["own"] for row in (await again.ask("jobs"))["jobs"]] == [True]
        assert [(row["job"], row["own"]) for row in (await observer.ask("jobs"))["jobs"]] == [(job, False)]
        for command in ("jobs.pause", "jobs.update", "cancel"):
            assert (await observer.error(command, command, job=job))["code"] == "unknown_job"
        await observer.send(7, "jobs.watch", job=job)
        await observer.until("step", 7)
        assert (await again.ask("cancel", job=job))["cancelled"]
        assert (await observer.until("error", 7))["code"] == "cancelled"


# How many.


@pytest.mark.slow
def test_connections_are_counted_in_all_and_an_address(tmp_path: Path) -> None:
    def connected(port: int, count: int) -> list[socket.socket]:
        return [socket.create_connection(("127.0.0.1", port), timeout=30) for _ in range(count)]

    for setting, reason in (("connections", "this host has 5"), ("connections_per_address", "your address has 5")):
        with server(tmp_path, f"limits.{setting}=5") as started:
            idle = connected(started.port, 5)
            answer = started.raw(handshake())
            assert status(answer) == 503
            for stream in idle[:2]:
                stream.close()
            with connect_sync(started.url) as opened:  # two are free again
                assert msgpack.unpackb(opened.recv())["event"] == "hello"
                assert started.get("/healthz")[0] == 200
            for stream in idle[2:]:
                stream.close()
            assert reason.encode() in answer


# What a review found.


@in_loop
async def test_a_host_that_shuts_down_lets_nobody_in_without_the_token(tmp_path: Path) -> None:
    with server(tmp_path, f"server.token={TOKEN}", "server.shutdown_grace_s=10") as started:
        headers = {"Authorization": BEARER}
        async with (
            connect(started.url, subprotocols=[SUBPROTOCOL], additional_headers=headers) as known,
            wire(started.url) as stranger,
        ):
            client = Wire(known, {})
            await client.send(1, "generate", **LONG)
            await client.until("started")
            ending = asyncio.create_task(asyncio.to_thread(started.stop))
            await client.until("closing")
            await stranger.send(1, "session.open")
            assert (await stranger.receive())["code"] == "unauthorized"  # and nothing before it
            assert await end_of(stranger) == 4401
            await client.send(2, "cancel", all=True)
            await ending


@in_loop
async def test_a_wrong_token_ends_the_connection_wherever_it_comes(local: Server, guarded: Server) -> None:
    async with connect(guarded.url, subprotocols=[SUBPROTOCOL], additional_headers={"Authorization": BEARER}) as known:
        client = Wire(known, {})
        await client.until("hello")
        assert (await client.error(1, "session.open", token=OBSERVER + "?"))["code"] == "unauthorized"
        assert await end_of(client) == 4401
    async with wire(local.url) as client:
        assert (await client.ask("session.open", key="a key of sixteen letters"))["observer"] is False
        assert (await client.error(2, "session.open", key="another key of letters"))["code"] == "bad_message"
        assert (await client.ask("ping"))["time"]


@pytest.mark.parametrize("key", ["short", "x" * 201, "schl\xfcsselschl\xfcssel", " sixteen letters and a space"])
def test_a_key_is_the_same_however_it_is_sent_or_refused(local: Server, key: str) -> None:
    async def opened() -> None:
        async with wire(local.url) as client:
            assert (await client.error(1, "session.open", key=key))["code"] == "invalid_params"

    asyncio.run(opened())
    if key == key.strip():  # white space around a header's value is not part of it
        assert status(local.raw(handshake(Latentwire_Key=key))) == 401


def test_odd_addresses_are_refused_without_a_traceback(guarded: Server) -> None:
    query = "&".join(f"a{number}=1" for number in range(200))
    for asked in (request("GET", f"/?{query}", Host="127.0.0.1"), handshake(f"/ws?{query}")):
        assert status(guarded.raw(asked)) == 401
    for path in ("//evil.example/x", "//evil.example"):
        for bearer in (None, BEARER):
            asked = request("GET", path, Host="127.0.0.1", Authorization=bearer, Accept="text/html")
            assert status(guarded.raw(asked)) == 403
    assert not any("Traceback" in line for line in guarded.log)

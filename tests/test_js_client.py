"""The JavaScript client in a real browser, against a real host."""

import hashlib
import json
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import latentwire
from latentwire.core.events import EVENTS
from latentwire.plugins.stats import Stats
from latentwire.server.outbox import Bound

from .browser import ROOT, forgive
from .browser import browser as browser
from .browser import page as page
from .browser import problems as problems
from .browser import site as site
from .conftest import Served, serving, wait_for
from .pages import blocks
from .relay import Relay, relay_in_thread
from .test_cli import serve
from .wire import LONG, SMALL

if TYPE_CHECKING:
    from playwright.sync_api import Page

FOLDER = ROOT / "client" / "js"
TOKEN = "a token of this test"
NO_LINE = "WebSocket connection to"  # what Chromium's console says of one that it cannot make

Run = Callable[..., Any]
Lay = Callable[[str], AbstractContextManager[tuple[Relay, Callable[[], None]]]]


@pytest.fixture(scope="module")
def hosted(site: str) -> Iterator[Served]:
    """A host that the site's pages may use."""
    with serving(server={"allowed_origins": [site]}) as served:
        yield served


@pytest.fixture(scope="module")
def brief(site: str) -> Iterator[Served]:
    """A host that keeps a session for a second."""
    with serving(server={"allowed_origins": [site], "resume_grace_s": 1}) as served:
        yield served


@pytest.fixture(scope="module")
def guarded(site: str) -> Iterator[Served]:
    """A host that asks for its token."""
    with serving(server={"allowed_origins": [site], "token": TOKEN}) as served:
        yield served


@pytest.fixture
def run(page: "Page", site: str) -> Run:
    """Run the body of an async function with the client's names and the given values, and give what it returns."""
    page.goto(f"{site}/tests/blank.html")

    def run(body: str, **values: Any) -> Any:
        names = {"SMALL": SMALL, "LONG": LONG} | values
        return page.evaluate(f"async ({{{', '.join(names)}}}) => {{{HELPERS}{body}}}", names)

    return run


@pytest.fixture
def lay(page: "Page") -> Lay:
    """Lay a line to a host; it stays for as long as the page does."""

    @contextmanager
    def lay(url: str) -> Iterator[tuple[Relay, Callable[[], None]]]:
        with relay_in_thread(url) as ends:
            yield ends
            page.goto("about:blank")

    return lay


HELPERS = """
const all = async (events) => { const list = []; for await (const event of events) list.push(event); return list; };
const first = async (events) => { for await (const event of events) return event; };
const failure = (promise) => promise.then(() => null, (error) => ({
    kind: error.constructor.name, message: error.message, code: error.code, details: error.details,
    slot: error.slot, revision: error.revision, lost: error instanceof ConnectionLost,
}));
const pause = (milliseconds) => new Promise((wake) => setTimeout(wake, milliseconds));
"""


def no_jobs_left(served: Served) -> None:
    wait_for(lambda: not served.host.jobs.all(), "the jobs to be cancelled")


def names_of(events: list[dict[str, Any]]) -> list[str]:
    return [event["event"] for event in events]


# Jobs.


def test_a_picture_forms_step_by_step(run: Run, hosted: Served) -> None:
    got = run(
        """
        const host = await connect(url);
        const stream = { previews: { format: "png" }, latents: {} };
        const job = host.generate({ ...SMALL, num_inference_steps: 30, stream });
        const events = await all(job);
        const pictures = await Promise.all(events.filter((event) => event.image).map(async ({ image }) => {
            const picture = new Image();
            picture.src = imageUrl(image);
            await picture.decode();
            URL.revokeObjectURL(picture.src);
            return [image.format, picture.naturalWidth, picture.naturalHeight];
        }));
        const plain = events.map(({ event, job, seq, step }) => ({ event, job, seq, step }));
        host.close();
        return { plain, pictures, id: job.id, result: await job.result, last: events.at(-1).result, hello: host.hello };
        """,
        url=hosted.url,
    )
    names = names_of(got["plain"])
    assert names[:2] == ["accepted", "started"]
    assert names[-2:] == ["image", "result"]
    assert [event["step"] for event in got["plain"] if event["event"] == "step"] == list(range(1, 31))
    assert {"preview", "latents"} < set(names)
    seqs = [event["seq"] for event in got["plain"]]
    assert seqs == sorted(set(seqs))
    assert {event.get("job") for event in got["plain"][:-1]} == {got["id"]}
    assert got["pictures"] == [["png", 64, 64]] * len(got["pictures"])
    assert len(got["pictures"]) == 1 + names.count("preview")
    assert got["result"] == got["last"]
    assert got["result"]["seeds"] == [1]
    assert got["hello"]["protocol"] == "latentwire.v1.msgpack"


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_latents_are_the_numbers_that_numpy_reads(run: Run, hosted: Served, dtype: str) -> None:
    got = run(
        """
        const host = await connect(url);
        const tensors = [];
        const job = host.generate({ ...SMALL, output_type: "latent", stream: { latents: { dtype } } });
        job.on("latents", ({ latents }) => tensors.push(latents));
        job.on("image", ({ latents }) => tensors.push(latents));
        await job.result;
        return tensors.map((tensor) => ({ ...tensor, data: [...tensor.data], values: [...toFloat32(tensor)] }));
        """,
        url=hosted.url,
        dtype=dtype,
    )
    assert {tensor["dtype"] for tensor in got} == {dtype, "float32"}
    for tensor in got:
        wanted = np.frombuffer(bytes(tensor["data"]), "<f2" if tensor["dtype"] == "float16" else "<f4")
        assert tensor["values"] == wanted.astype(np.float32).tolist()
        assert tensor["shape"] == [4, 8, 8]
        assert len(tensor["values"]) == 256


def test_every_float16_is_read_as_numpy_reads_it(run: Run) -> None:
    got = run(
        """
        const data = new Uint8Array(Uint16Array.from({ length: 65536 }, (_, bits) => bits).buffer);
        return [...new Uint8Array(toFloat32({ dtype: "float16", shape: [65536], data }).buffer)];
        """
    )
    with np.errstate(invalid="ignore"):
        wanted = np.arange(65536, dtype=np.uint16).view("<f2").astype(np.float32)
    values = np.frombuffer(bytes(got), "<f4")
    np.testing.assert_array_equal(values, wanted)
    assert (np.signbit(values) == np.signbit(wanted))[~np.isnan(wanted)].all()


def test_whole_numbers_arrive_whole_however_large(run: Run, hosted: Served) -> None:
    got = run(
        """
        const host = await connect(url);
        const seed = [7, 2 ** 40 + 1, Number.MAX_SAFE_INTEGER, 2n ** 53n + 1n, 2n ** 63n - 1n];
        const job = host.generate({ ...SMALL, num_inference_steps: 1, seed, min_steps_shown: undefined });
        return (await job.result).seeds.map((seed) => [typeof seed, String(seed)]);
        """,
        url=hosted.url,
    )
    numbers = [7, 2**40 + 1, 2**53 - 1, 2**53 + 1, 2**63 - 1]
    assert got == [["bigint" if number >= 2**53 else "number", str(number)] for number in numbers]


def test_several_jobs_at_once_get_each_its_own(run: Run, hosted: Served) -> None:
    got = run(
        """
        const host = await connect(url);
        const jobs = [1, 2, 3, 4].map((seed) => host.generate({ ...SMALL, seed }));
        const lists = await Promise.all([...jobs.map(all), host.call("ping")]);
        return lists.slice(0, 4).map((events, index) => ({
            names: events.map(({ event }) => event),
            own: events.slice(0, -1).every(({ job }) => job === jobs[index].id),
            seed: events.find(({ event }) => event === "image").seed,
        }));
        """,
        url=hosted.url,
    )
    assert [row["seed"] for row in got] == [1, 2, 3, 4]
    assert all(row["own"] for row in got)
    kept = [[name for name in row["names"] if name != "queued"] for row in got]
    assert kept == [["accepted", "started", "step", "step", "step", "image", "result"]] * 4


def test_a_refused_request_says_what_is_wrong_where(run: Run, hosted: Served) -> None:
    got = run(
        """
        const host = await connect(url);
        const refused = host.generate({ ...SMALL, num_inference_steps: 0 });
        return [
            await failure(all(refused)),
            await failure(refused.result),
            await failure(host.call("nonsense")),
            await failure(host.generate({ ...SMALL, negative_prompt: "x".repeat(2 ** 20) }).result),
            await failure(host.call("ping", { of: () => {} })),
            (await host.call("ping")).time,
        ];
        """,
        url=hosted.url,
    )
    assert got[0] == got[1]
    assert (got[0]["kind"], got[0]["code"]) == ("RemoteError", "invalid_params")
    assert got[0]["details"][0]["path"] == ["num_inference_steps"]
    assert "greater than or equal to 1" in got[0]["message"]
    assert [error["code"] for error in got[2:4]] == ["unknown_command", "message_too_large"]
    assert got[4]["code"] is None
    assert got[5] > 0


def test_a_newer_request_of_a_slot_takes_the_place_of_the_older_one(run: Run, hosted: Served) -> None:
    got = run(
        """
        const host = await connect(url);
        const older = host.generate({ ...LONG, slot: "live" });
        await new Promise((seen) => older.on("step", seen));
        const newer = host.generate({ ...SMALL, slot: "live" });
        return [await failure(older.result), await newer.result];
        """,
        url=hosted.url,
    )
    assert (got[0]["code"], got[0]["slot"], got[0]["revision"]) == ("superseded", "live", 1)
    assert got[1]["revision"] == 2


def test_cancel_stops_a_job_at_once_also_before_it_is_accepted(run: Run, hosted: Served) -> None:
    got = run(
        """
        const host = await connect(url);
        const running = host.generate(LONG);
        const loop = failure(all(running));
        await new Promise((seen) => running.on("step", seen));
        const early = host.generate(LONG);
        return [
            early.id, await early.cancel(), await failure(early.result),
            await running.cancel(), await loop, await running.cancel(),
            await host.generate({ ...SMALL, num_inference_steps: 0 }).cancel(),
        ];
        """,
        url=hosted.url,
    )
    assert (got[0], got[1], got[2]["code"]) == (None, True, "cancelled")
    assert (got[3], got[4]["code"], got[5]) == (True, "cancelled", False)
    assert got[6] is False
    assert hosted.host.jobs.all() == []


@pytest.mark.parametrize("event", ["accepted", "step"])
def test_leaving_the_loop_cancels_the_job(run: Run, hosted: Served, event: str) -> None:
    got = run(
        """
        const host = await connect(url);
        const job = host.generate(LONG);
        for await (const { event } of job) if (event === wanted) break;
        return failure(job.result);
        """,
        url=hosted.url,
        wanted=event,
    )
    assert got["code"] == "cancelled"
    assert hosted.host.jobs.all() == []


def test_a_loop_that_begins_late_gets_every_step_and_the_latest_preview(run: Run, hosted: Served) -> None:
    got = run(
        """
        const host = await connect(url);
        const job = host.generate({ ...SMALL, num_inference_steps: 30, stream: { previews: {} } });
        await job.result;
        return (await all(job)).map(({ event, step, seq }) => ({ event, step, seq }));
        """,
        url=hosted.url,
    )
    assert [event["step"] for event in got if event["event"] == "step"] == list(range(1, 31))
    assert names_of(got).count("preview") == 1
    assert [event["seq"] for event in got] == sorted(event["seq"] for event in got)
    assert names_of(got)[-1] == "result"


def test_what_wins_as_the_latest_is_what_the_host_says_of_its_events(run: Run, hosted: Served) -> None:
    listed = re.search(r"LATEST_WINS = new Set\((.*?)\)", (FOLDER / "command.js").read_text(encoding="utf-8"))
    assert listed
    events = run("return (await (await connect(url)).call('describe')).events;", url=hosted.url)
    assert set(json.loads(listed[1])) == {name for name, event in events.items() if event["latest_wins"]}
    assert Stats.name in events
    assert set(EVENTS) <= set(events) | {"closing"}


def test_a_listener_that_throws_disturbs_nobody(run: Run, hosted: Served, problems: list[str]) -> None:
    got = run(
        """
        const host = await connect(url);
        const job = host.generate(SMALL);
        let heard = 0;
        job.on("step", () => { throw new Error("a fault of the listener"); });
        const leave = job.on("step", () => { if (++heard === 2) leave(); });
        const names = (await all(job)).map(({ event }) => event);
        return [heard, names.at(-1), names.filter((name) => name === "step").length];
        """,
        url=hosted.url,
    )
    assert got == [2, "result", 3]
    assert len(problems) == 3
    forgive(problems, "a fault of the listener")


# Subscriptions and uploads.


def test_a_subscription_goes_on_until_it_is_ended_or_left(run: Run, hosted: Served) -> None:
    got = run(
        """
        const host = await connect(url);
        const ended = host.subscribe("stats.subscribe");
        const names = [];
        for await (const { event } of ended) {
            if (names.push(event) === 2) await ended.end();
        }
        const left = host.subscribe("pipeline.subscribe");
        const { state } = await first(left);
        const refused = await failure(first(host.subscribe("pipeline.subscribe", { nonsense: 1 })));
        const same = (await ended.result).subscription === ended.id;
        return [names, same, await left.result, left.id, state.model, refused];
        """,
        url=hosted.url,
    )
    assert got[0][:2] == ["stats", "stats"]
    assert got[1] is True
    assert got[2] == {"subscription": got[3]}
    assert got[4] == "emoji"
    assert got[5]["code"] == "invalid_params"


def test_whoever_has_the_key_watches_the_job(run: Run, hosted: Served) -> None:
    got = run(
        """
        const options = { key: "a secret of this test" };
        const [mine, other] = [await connect(url, options), await connect(url, options)];
        const job = mine.generate(LONG);
        await new Promise((seen) => job.on("step", seen));
        const names = new Set();
        try {
            for await (const { event, step } of other.subscribe("jobs.watch", { job: job.id })) {
                names.add(event);
                if (event === "step") job.cancel();
            }
        } catch (error) {
            names.add(error.code);
        }
        return [...names];
        """,
        url=hosted.url,
    )
    assert got == ["job_state", "step", "cancelled"]


def test_a_picture_larger_than_a_message_is_sent_in_parts(run: Run, hosted: Served) -> None:
    got = run(
        """
        const host = await connect(url);
        const canvas = new OffscreenCanvas(800, 600);
        const pixels = new ImageData(800, 600);
        for (let at = 0; at < pixels.data.length; at += 65536) {
            crypto.getRandomValues(pixels.data.subarray(at, at + 65536));
        }
        for (let at = 3; at < pixels.data.length; at += 4) pixels.data[at] = 255;
        canvas.getContext("2d").putImageData(pixels, 0, 0);
        const blob = await canvas.convertToBlob({ type: "image/png" });
        const id = await host.upload(blob);
        const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", await blob.arrayBuffer()));
        const image = [...digest].map((byte) => byte.toString(16).padStart(2, "0")).join("").slice(0, 32);
        const made = await host.generate({ ...SMALL, img2img: { image: id, strength: 1 } }).result;
        return [blob.size, host.hello.limits.message_bytes, id === image, made.images];
        """,
        url=hosted.url,
    )
    assert got[0] > got[1]
    assert got[2:] == [True, 1]


def test_a_small_picture_is_sent_at_once_as_bytes_of_any_kind(run: Run, hosted: Served) -> None:
    file = (ROOT / "docs" / "images").glob("*.png")
    data = min(file, key=lambda path: path.stat().st_size).read_bytes()
    got = run(
        """
        const host = await connect(url);
        const data = new Uint8Array(bytes);
        const padded = new Uint8Array([9, ...bytes, 9]).subarray(1, -1);
        return [await host.upload(data), await host.upload(data.buffer), await host.upload(padded),
            await failure(host.upload(new Uint8Array(3)))];
        """,
        url=hosted.url,
        bytes=list(data),
    )
    assert got[:3] == [hashlib.sha256(data).hexdigest()[:32]] * 3
    assert got[3]["code"] == "invalid_params"


# Who comes.


def test_a_wrong_token_or_none_is_unauthorized(run: Run, guarded: Served) -> None:
    got = run(
        """
        const states = [];
        return [
            await failure(connect(url, { token: "a wrong one", onstate: (state) => states.push(state) })),
            await failure(connect(url)),
            states,
            (await (await connect(url, { token })).call("ping")).time,
        ];
        """,
        url=guarded.url,
        token=TOKEN,
    )
    assert [(error["kind"], error["code"]) for error in got[:2]] == [("RemoteError", "unauthorized")] * 2
    assert got[2] == ["connecting", "closed"]
    assert got[3] > 0


def test_each_connection_shows_a_new_ticket(run: Run, lay: Lay, guarded: Served, page: "Page") -> None:
    with lay(guarded.url) as (line, cut):
        page.expose_function("cut", cut)
        got = run(
            """
            const headers = { authorization: `Bearer ${token}` };
            let tickets = 0;
            const ticket = async () => {
                tickets++;
                return (await (await fetch(`${http}/ticket`, { method: "POST", headers })).json()).ticket;
            };
            const host = await connect(url, { ticket });
            const job = host.generate({ ...SMALL, num_inference_steps: 20 });
            const steps = [];
            for await (const { event, step } of job) {
                if (event === "step" && steps.push(step) === 3) await cut();
            }
            return [tickets, steps];
            """,
            url=line.url,
            http=guarded.http,
            token=TOKEN,
        )
    assert got == [2, list(range(1, 21))]


def test_a_wrong_ticket_or_address_is_connection_lost(run: Run, guarded: Served, problems: list[str]) -> None:
    got = run(
        """
        return [
            await failure(connect(url, { ticket: () => "a wrong one" })),
            await failure(connect("ws://127.0.0.1:9/ws")),
            await failure(connect("nonsense:")),
        ];
        """,
        url=guarded.url,
    )
    assert [error["kind"] for error in got] == ["ConnectionLost"] * 3
    assert all("cannot connect to" in error["message"] for error in got)
    forgive(problems, "")


def test_a_token_that_is_not_good_any_more_ends_it(
    run: Run, lay: Lay, page: "Page", site: str, problems: list[str]
) -> None:
    settings = {"allowed_origins": [site]}
    with serving(server=settings | {"token": TOKEN}) as old, lay(old.url) as (line, cut):
        got = run(
            """
            globalThis.states = [];
            globalThis.host = await connect(url, { token, onstate: (state) => states.push(state) });
            return (await host.call("ping")).time;
            """,
            url=line.url,
            token=TOKEN,
        )
        assert got > 0
        with serving(server=settings | {"token": "another token, of 16 letters at least"}) as new:
            line.lead_to(new.url)
            cut()
            page.wait_for_function("states.at(-1) === 'closed'")
            assert run("return failure(host.call('ping'));")["code"] == "unauthorized"
    forgive(problems, NO_LINE)


# Lines that break.


def test_loops_go_on_over_a_line_that_is_cut(
    run: Run, lay: Lay, hosted: Served, page: "Page", problems: list[str]
) -> None:
    made = hosted.host.engine.figures.runs_finished
    with lay(hosted.url) as (line, cut):
        page.expose_function("cut", cut)
        got = run(
            """
            const states = [];
            const host = await connect(url, { onstate: (state) => states.push(state) });
            const session = host.hello.session;
            const fields = { ...SMALL, num_inference_steps: 40, stream: { previews: {} } };
            const draw = (seed) => all(host.generate({ ...fields, seed }));
            const ask = async () => { for (let left = 20; left > 0; left--) await host.call("ping"), await pause(20); };
            const cutting = async () => { for (const at of [80, 150, 300, 70]) await pause(at), await cut(); };
            const [lists] = await Promise.all([Promise.all([1, 2, 3].map(draw)), ask(), ask(), cutting()]);
            const events = lists.map((list) => list.map(({ event, step, seq }) => ({ event, step, seq })));
            return { events, states, same: host.hello.session === session };
            """,
            url=line.url,
        )
        assert line.connections >= 3
    for events in got["events"]:
        kept = [name for name in names_of(events) if name not in ("preview", "queued")]
        assert kept == ["accepted", "started", *["step"] * 40, "image", "result"]
        assert [event["step"] for event in events if event["event"] == "step"] == list(range(1, 41))
        seqs = [event["seq"] for event in events]
        assert seqs == sorted(set(seqs))
    assert hosted.host.engine.figures.runs_finished - made == 3  # no command was taken twice
    assert got["same"] is True
    assert got["states"][:4] == ["connecting", "open", "lost", "open"]
    forgive(problems, NO_LINE)  # one may be cut in its handshake


def test_a_command_given_while_the_line_is_down_runs_when_it_is_up_again(
    run: Run, lay: Lay, hosted: Served, page: "Page", problems: list[str]
) -> None:
    with lay(hosted.url) as (line, cut):
        run(
            """
            globalThis.host = await connect(url);
            await host.call("ping");
            """,
            url=line.url,
        )
        line.down = True
        cut()
        assert (
            run(
                """
            globalThis.job = host.generate(LONG);
            globalThis.left = (async () => { for await (const { event } of host.generate(LONG)) break; })();
            globalThis.asking = host.call("ping");
            return Promise.race([asking, pause(300).then(() => "nothing yet")]);
            """
            )
            == "nothing yet"
        )
        line.down = False
        got = run("await left; return [await asking, await job.cancel(), await failure(job.result)];")
        assert got[0]["time"] > 0
        assert got[1] is True
        assert got[2]["code"] == "cancelled"
    no_jobs_left(hosted)
    forgive(problems, NO_LINE)


@pytest.mark.parametrize("another", ["", "globalThis.asking = host.call('jobs');"])
def test_a_command_that_the_host_has_is_not_sent_again(
    run: Run, lay: Lay, hosted: Served, problems: list[str], another: str
) -> None:
    with lay(hosted.url) as (line, cut):
        run("globalThis.host = await connect(url); await host.call('ping');", url=line.url)
        line.silence()
        run("globalThis.drawing = failure(all(host.generate(LONG)));")
        wait_for(lambda: bool(hosted.host.jobs.all()), "the job")
        line.down = True
        cut()
        run(f"globalThis.asking = null; {another}")
        line.down = False
        got = run(
            """
            const { jobs } = await (asking ?? host.call("jobs"));
            return [jobs, await host.call("cancel", { all: true }), await drawing];
            """
        )
        assert [row["job"] for row in got[0]] == got[1]["jobs"]
        assert len(got[0]) == 1
        assert got[2]["code"] == "cancelled"
    forgive(problems, NO_LINE)


def test_what_cannot_be_resumed_in_time_is_lost_and_later_commands_work(
    run: Run, lay: Lay, brief: Served, page: "Page", problems: list[str]
) -> None:
    with lay(brief.url) as (line, cut):
        run(
            """
            globalThis.host = await connect(url, { onstate: (state) => (globalThis.state = state) });
            globalThis.session = host.hello.session;
            globalThis.loop = failure(all(host.generate(LONG)));
            await host.call("ping");
            """,
            url=line.url,
        )
        line.down = True
        cut()
        got = run("return [await loop, state, await failure(host.call('ping'))];")
        assert [(error["kind"], error["lost"]) for error in (got[0], got[2])] == [("ConnectionLost", True)] * 2
        assert "could not be resumed in time" in got[0]["message"]
        assert got[1] == "lost"
        line.down = False
        page.wait_for_function("state === 'open'")
        got = run("return [(await host.generate(SMALL).result).images, host.hello.session === session];")
        assert got == [1, False]
    no_jobs_left(brief)
    forgive(problems, NO_LINE)


def test_a_session_that_is_gone_is_lost_and_later_commands_work(
    run: Run, lay: Lay, brief: Served, page: "Page", problems: list[str]
) -> None:
    with lay(brief.url) as (line, cut):
        run(
            """
            globalThis.host = await connect(url);
            host.hello.limits.resume_seconds = 60; // it thinks that it has more time than the host gives
            globalThis.loop = failure(all(host.generate(LONG)));
            await host.call("ping");
            """,
            url=line.url,
        )
        line.down = True
        cut()
        no_jobs_left(brief)
        line.down = False
        got = run("return [await loop, (await host.call('ping')).time];")
        assert got[0]["kind"] == "ConnectionLost"
        assert "cannot be resumed: no session has this token" in got[0]["message"]
        assert got[1] > 0
        got = run("return (await host.generate(SMALL).result).images;")  # also after the new one has been resumed
        cut()
        assert run("return (await host.generate(SMALL).result).images;") == 1
    forgive(problems, NO_LINE)


@pytest.mark.slow
def test_a_host_that_is_started_again_is_found_again(
    run: Run, lay: Lay, page: "Page", site: str, problems: list[str], tmp_path: Path
) -> None:
    (tmp_path / "plugins.toml").write_text(f'[server]\nallowed_origins = ["{site}"]\nshutdown_grace_s = 1\n')
    with serve(tmp_path) as server, lay(server.url) as (line, _):
        run(
            """
            globalThis.states = [];
            globalThis.host = await connect(url, { onstate: (state) => states.push(state) });
            host.on("closing", ({ seconds }) => (globalThis.seconds = seconds));
            globalThis.drawing = failure(all(host.generate(LONG)));
            globalThis.watching = failure(all(host.subscribe("pipeline.subscribe")));
            await host.call("ping");
            """,
            url=line.url,
        )
        server.process.send_signal(signal.SIGINT)
        got = run("return [await drawing, await watching, seconds, await failure(host.call('ping')), states];")
        assert server.process.wait(timeout=30) == 0
        assert got[0]["code"] == "host_closing" or got[0]["kind"] == "ConnectionLost"
        assert [error["kind"] for error in (got[1], got[3])] == ["ConnectionLost"] * 2
        assert got[2] == 1
        assert got[4] == ["connecting", "open", "lost"]
        with serving(server={"allowed_origins": [site]}) as again:
            line.lead_to(again.url)
            page.wait_for_function("states.at(-1) === 'open'")
            assert run("return (await host.generate(SMALL).result).images;") == 1
    forgive(problems, NO_LINE)


def test_messages_that_the_host_gave_up_are_messages_lost_and_the_job_goes_on(
    run: Run, lay: Lay, hosted: Served, page: "Page", problems: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("latentwire.server.session.AWAY", Bound(5, 1 << 30))
    with lay(hosted.url) as (line, cut):
        run(
            """
            globalThis.host = await connect(url);
            globalThis.job = host.generate(LONG);
            globalThis.loop = failure(all(job));
            while (job.id === null) await pause(10);
            """,
            url=line.url,
        )
        line.down = True
        cut()
        [job] = hosted.host.jobs.all()
        wait_for(lambda: job.steps_done > 20, "what cannot be kept")
        line.down = False
        got = run("return [await loop, (await host.call('jobs')).jobs, job.id];")
        assert (got[0]["kind"], got[0]["lost"]) == ("MessagesLost", True)
        assert re.search(r"gave up messages \d+ to \d+", got[0]["message"])
        assert [row["job"] for row in got[1]] == [got[2]]
        assert run("return host.call('cancel', { job: job.id });")["cancelled"] is True
    forgive(problems, NO_LINE)


def test_whose_session_is_taken_up_elsewhere_does_not_take_it_back(run: Run, hosted: Served) -> None:
    got = run(
        """
        const states = [];
        const host = await connect(url, { onstate: (state) => states.push(state) });
        const watching = failure(all(host.subscribe("pipeline.subscribe")));
        await host.call("ping");
        const { encode } = await import("@msgpack/msgpack");
        const other = new WebSocket(url, "latentwire.v1.msgpack");
        await new Promise((greeted) => (other.onmessage = greeted));
        other.send(encode({ id: 1, command: "session.resume", params: { token: host.hello.resume, seq: 2 } }));
        return [await watching, await failure(host.call("ping")), states];
        """,
        url=hosted.url,
    )
    assert all(error["kind"] == "ConnectionLost" and "resumed elsewhere" in error["message"] for error in got[:2])
    assert got[2] == ["connecting", "open", "closed"]


def test_a_line_that_falls_silent_is_left_for_another(run: Run, lay: Lay, hosted: Served, page: "Page") -> None:
    page.clock.install()
    page.reload()
    with lay(hosted.url) as (line, _):
        run("globalThis.host = await connect(url); await host.call('ping');", url=line.url)
        page.clock.run_for(70_000)  # the host answers: there is no need of another one
        assert run("return (await host.call('ping')).time;") > 0
        assert line.connections == 1
        line.silence()
        run("host.call('ping').then(() => (globalThis.isAnswered = true));")
        page.clock.run_for(75_000)
        page.wait_for_function("globalThis.isAnswered", timeout=15_000)  # the host gives it up after 40 s
        assert line.connections == 2


def test_close_ends_the_session_and_all_that_is_under_way(run: Run, hosted: Served) -> None:
    got = run(
        """
        const states = [];
        const host = await connect(url, { onstate: (state) => states.push(state) });
        const loop = failure(all(host.generate(LONG)));
        await host.call("ping");
        host.close();
        host.close();
        return [await loop, await failure(host.call("ping")), await failure(host.generate(SMALL).result), states];
        """,
        url=hosted.url,
    )
    assert all(error["kind"] == "ConnectionLost" and "has closed" in error["message"] for error in got[:3])
    assert got[3] == ["connecting", "open", "closed"]
    no_jobs_left(hosted)


# The package.


def test_the_package_is_of_this_version_and_names_all_that_it_needs() -> None:
    package = json.loads((FOLDER / "package.json").read_text(encoding="utf-8"))
    assert package["version"] == latentwire.__version__
    assert (FOLDER / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
    imported = set()
    for module in FOLDER.glob("*.js"):
        imported |= set(re.findall(r'from "([^".][^"]*)"', module.read_text(encoding="utf-8")))
    assert imported == set(package["dependencies"])
    version = package["dependencies"]["@msgpack/msgpack"].removeprefix("^")
    vendored = (FOLDER / "vendor" / "msgpack.js").read_text(encoding="utf-8")
    assert vendored.startswith(f"// @msgpack/msgpack {version},")
    assert len(vendored) < 100_000
    assert "MessagePack Community" in (FOLDER / "vendor" / "msgpack.LICENSE").read_text(encoding="utf-8")
    assert "client/js/vendor/msgpack.LICENSE" in (ROOT / "NOTICE").read_text(encoding="utf-8")


def test_the_types_declare_what_the_module_exports(run: Run) -> None:
    types = (FOLDER / "latentwire.d.ts").read_text(encoding="utf-8")
    declared = re.findall(r"^export (?:function|class) (\w+)", types, re.M)
    assert run('return Object.keys(await import("latentwire"));') == sorted(declared)


@pytest.mark.parametrize("text", ["client/js/README.md", "docs/javascript.md"])
def test_the_examples_of_the_pages_run(page: "Page", site: str, hosted: Served, text: str) -> None:
    code = blocks((ROOT / text).read_text(encoding="utf-8"), "js")
    assert code
    page.goto(f"{site}/tests/blank.html")
    whole = "\n".join(code).replace("ws://127.0.0.1:8000/ws", hosted.url) + "\nglobalThis.isDone = true;\n"
    page.evaluate("document.body.append(document.createElement('img'))")
    page.add_script_tag(content=whole, type="module")
    page.wait_for_function("globalThis.isDone")
    assert page.evaluate("document.querySelector('img').naturalWidth") == 128

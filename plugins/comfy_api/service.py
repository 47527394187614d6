"""What all routes of one host share."""

import asyncio
import json
import secrets
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from starlette.responses import JSONResponse, Response

from latentwire import Caller, Host, InvalidParams, LatentwireError

from .asked import Refused
from .clients import Clients, Outbox, text_of
from .history import Entry, History
from .jobs import IN_PROGRESS, PENDING
from .object_info import Nodes, input_of
from .pictures import Pictures
from .prompt_errors import invalid, refused
from .prompts import Prompts
from .run import OWNER, Prompt, Run
from .settings import Settings
from .socket import CLIENT_ID
from .user_data import UserData

MOST_NUMBER = 1e15
MOST_BYTES = 32 << 20  # of all graphs that run or wait
SECRETS = ("auth_token_comfy_org", "api_key_comfy_org")
"""What the front end sends for another service; it is not kept."""

PREFIX = "filename_prefix"
"""The input of output nodes whose pictures stay."""

NO_NODE: Mapping[str, Any] = {"inputs": (), "output": False}

CALLER = Caller("comfyui", OWNER)

Value = TypeVar("Value")


class Service:
    """Everything of one host."""

    def __init__(
        self,
        host: Host,
        settings: Settings,
        pictures: Pictures,
        history: History,
        user_data: UserData,
        front_end: Path | None,
    ) -> None:
        self.host = host
        self.front_end = front_end
        self.max_upload = settings.max_upload_mib << 20
        self.history = history
        self.pictures = pictures
        self.user_data = user_data
        self.clients = Clients()
        self.prompts = Prompts(settings.max_running, self.clients, self._run, self._keep)
        self._settings = settings
        self._number = history.last_number()
        self._threads = ThreadPoolExecutor(4, "comfy")  # a disk that hangs must not use up everybody's

    async def ask(self, question: Callable[..., Value], *args: Any) -> Value:
        """Ask something of the disk, off the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, lambda: question(*args))

    async def nodes(self) -> Nodes:
        """The nodes that there are just now."""
        nodes: Nodes = (await self.host.dispatch("describe", {}, CALLER, lambda _: None)).get("nodes", {})
        return nodes

    def welcome(self, name: str, outbox: Outbox) -> None:
        """Tell a client that has come how things stand; what it has missed is in the outbox."""
        outbox.put(text_of("status", status=self.prompts.status(), sid=name), "status")
        for kind, data in self.prompts.state_for(name):
            outbox.put(text_of(kind, **data))

    async def find(self, prompt: str) -> tuple[Prompt | Entry, str]:
        """A graph that waits, runs or has run, and its status.

        Raises:
            Refused: there is none.
        """
        if prompt in self.prompts.running:
            return self.prompts.running[prompt], IN_PROGRESS
        waiting = next((other for other in self.prompts.pending if other.id == prompt), None)
        if waiting is not None:
            return waiting, PENDING
        entry = await self.ask(self.history.get, prompt)
        if entry is None:
            raise Refused(404, f"there is no graph {prompt!r:.80}")
        return entry, entry.status

    async def submit(self, asked: Any) -> Response:
        """Take a graph that a client sends, if it is one."""
        graph = asked.get("prompt") if isinstance(asked, dict) else None
        if not isinstance(graph, dict) or not graph:
            return refused("no_prompt", "the body has no graph: a map 'prompt' of nodes")
        problem = _problem(asked)
        if problem:
            return refused("invalid_prompt", problem)
        name = str(asked.get("prompt_id") or secrets.token_hex(16))
        nodes = await self.nodes()
        try:
            targets = _targets(asked, graph, nodes)
            prefixes = self._prefixes(graph, targets, nodes)
            resolved = await self.ask(self._resolve, graph, nodes)
            params = {"graph": resolved, "outputs": targets}
            await self.host.dispatch("graph.check", params, CALLER, lambda _: None)
        except LatentwireError as error:
            return invalid(error, graph, nodes)
        if await self.ask(self.history.has, name) or self.prompts.has(name):
            return refused("invalid_prompt", f"there has been a graph {name!r}; send another prompt_id, or none")
        size = len(json.dumps(asked))
        if len(self.prompts) >= self._settings.max_queued or self.prompts.size + size > MOST_BYTES:
            return refused("too_many_jobs", f"{len(self.prompts)} graphs wait already, the limit", status=429)
        self._number += 1
        number = asked.get("number", -self._number if asked.get("front") else self._number)
        extra = {key: value for key, value in asked.get("extra_data", {}).items() if key not in SECRETS}
        client = asked.get("client_id") or None
        if client is not None:
            extra["client_id"] = client
        watched = self.clients.is_there(client)
        prompt = Prompt(name, number, graph, {**extra, "create_time": 0}, targets, client, prefixes, size, watched)
        prompt.extra["create_time"] = prompt.created
        self.prompts.add(prompt)
        return JSONResponse({"prompt_id": name, "number": number, "node_errors": {}})

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _run(self, prompt: Prompt) -> Run:
        return Run(self.host, prompt, self.clients, self.pictures, self._current)

    async def _current(self, graph: dict[str, Any]) -> dict[str, Any]:
        return await self.ask(self._resolve, graph, await self.nodes())

    def _resolve(self, graph: dict[str, Any], nodes: Nodes) -> dict[str, Any]:
        """A graph with ids in place of the names of its pictures; a name of none stays, and is found wrong."""
        resolved = dict(graph)
        images: dict[str, str] = {}
        for name, node in graph.items():
            inputs = node.get("inputs") if isinstance(node, dict) else None
            for given, value in inputs.items() if isinstance(inputs, dict) else ():
                entry = input_of(_kind(node, nodes), given)
                if entry is None or not entry.get("upload") or not isinstance(value, str):
                    continue
                with suppress(Refused):
                    if value not in images:
                        images[value] = self.host.images.put(self.pictures.find(value, kind="input").read_bytes())
                    resolved[name] = {**node, "inputs": {**resolved[name]["inputs"], given: images[value]}}
        return resolved

    def _prefixes(self, graph: dict[str, Any], targets: Iterable[str], nodes: Nodes) -> dict[str, str | None]:
        """What the files of output nodes are called.

        Raises:
            InvalidParams: no file can be called so.
        """
        prefixes: dict[str, str | None] = {}
        for name in targets:
            node = graph[name] if isinstance(graph.get(name), dict) else {}
            entry = input_of(_kind(node, nodes), PREFIX)
            given = node["inputs"].get(PREFIX) if isinstance(node.get("inputs"), dict) else None
            prefixes[name] = None if entry is None else given if isinstance(given, str) else entry.get("default", "")
            try:
                self.pictures.fitting_prefix(prefixes[name] or "")
            except Refused as error:
                details = [{"node": name, "input": PREFIX, "message": error.message, "got": given}]
                raise InvalidParams(f"node {name}: {PREFIX}: {error.message}", details) from error
        return prefixes

    async def _keep(self, entry: Entry) -> None:
        await self.ask(self.history.add, entry)


def _problem(asked: dict[str, Any]) -> str | None:
    """What is wrong with what comes along with a graph."""
    for name in ("client_id", "prompt_id"):
        given = asked.get(name)
        if given and not (isinstance(given, str) and CLIENT_ID.fullmatch(given)):
            return f"{name} has 1 to 100 letters of ASCII, and no spaces, got {given!r:.80}"
    number = asked.get("number", 0)
    if isinstance(number, bool) or not isinstance(number, int | float) or not abs(number) < MOST_NUMBER:
        return f"number is a number, got {number!r:.80}"
    if not isinstance(asked.get("extra_data", {}), dict):
        return f"extra_data is a map, got {asked['extra_data']!r:.80}"
    targets = asked.get("partial_execution_targets")
    if targets is not None and not (isinstance(targets, list) and all(isinstance(name, str) for name in targets)):
        return f"partial_execution_targets is a list of nodes' ids, got {targets!r:.80}"
    return None


def _targets(asked: dict[str, Any], graph: dict[str, Any], nodes: Nodes) -> list[str]:
    """The output nodes that a graph is run for."""
    wanted = set(asked.get("partial_execution_targets") or ())
    found = [name for name, node in graph.items() if _kind(node, nodes)["output"]]
    return found if not wanted else [name for name in found if name in wanted]


def _kind(node: Any, nodes: Nodes) -> Mapping[str, Any]:
    name = node.get("class_type") if isinstance(node, dict) else None
    return nodes.get(name, NO_NODE) if isinstance(name, str) else NO_NODE

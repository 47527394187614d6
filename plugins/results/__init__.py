"""Results that stay: every finished picture and its request, on disk; listed, found again, remade."""

import asyncio
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any, TypeVar

from pydantic import Field
from starlette.routing import Route

from latentwire import (
    Caller,
    CommandContext,
    EncodedContext,
    Host,
    Mode,
    PluginError,
    PluginRegistry,
    StreamOptions,
    Strict,
    UnloadContext,
    Whole,
    hookimpl,
)

from .routes import make_routes
from .settings import Settings
from .store import Store

MOST = 500  # results in a list, ids in a delete

Value = TypeVar("Value")

ResultId = Annotated[str, Field(max_length=100, description="from an image event, or results.list")]


class ListParams(Strict):
    """Which results to list."""

    limit: Whole = Field(50, ge=1, le=MOST)
    before: Whole | None = Field(None, ge=1, lt=2**63, description="`next` of the last answer, for those that follow")
    search: str | None = Field(None, max_length=1000, description="words that must all be in the prompt")
    job: str | None = Field(None, max_length=100, description="only the pictures of this job")


class GetParams(Strict):
    """Which result to give."""

    id: ResultId


class DeleteParams(Strict):
    """Which results to delete."""

    ids: list[ResultId] = Field(min_length=1, max_length=MOST)


class ReproduceParams(Strict):
    """Which result to make again."""

    id: ResultId
    stream: StreamOptions = Field(StreamOptions(), description="as for generate")
    mode: Mode | None = Field(None, description="in place of the result's own; then the picture may differ a little")


class Plugin:
    """The store of one host, and the commands."""

    def __init__(self, settings: Settings) -> None:
        folder = settings.folder
        self._store = None if folder is None else Store(folder.expanduser().absolute(), settings)
        self._threads = ThreadPoolExecutor(2, "results")  # a disk that hangs must not use up everybody's threads

    @hookimpl
    def register(self, registry: PluginRegistry) -> None:
        registry.add_command("results.list", ListParams, self.list_some)
        registry.add_command("results.get", GetParams, self.get)
        registry.add_command("results.delete", DeleteParams, self.delete)
        registry.add_command("results.reproduce", ReproduceParams, self.reproduce)
        registry.add_routes(self.routes)
        if self._store is not None:
            self._store.clock = registry.clock
            threading.Thread(target=self._store.tidy, name="results-tidy", daemon=True).start()

    @hookimpl
    def image_encoded(self, context: EncodedContext) -> None:
        if self._store is not None:
            context.result = self._store.keep(context.picture, context.made, context.job, context.index, context.owner)
            context.unstored = None if context.result else self._store.trouble

    @hookimpl
    def unload(self, context: UnloadContext) -> None:
        if context.final:  # else commands under way need them; they end with the last of those
            self._threads.shutdown(wait=False, cancel_futures=True)
        if self._store is not None:
            self._store.close()

    async def list_some(self, context: CommandContext, params: ListParams) -> dict[str, Any]:
        """List your own kept pictures and their requests, newest first; an observer's list has everybody's."""
        words = (params.search or "").split()
        results, more = await self._ask(
            lambda store: store.newest(context.caller, params.limit, params.before, words, params.job)
        )
        return {"results": [result.plain() for result in results], "next": more}

    async def get(self, context: CommandContext, params: GetParams) -> dict[str, Any]:
        """Give a kept picture and its request."""
        caller = context.caller
        result, data = await self._ask(lambda store: (store.get(params.id, caller), store.read(params.id, caller)))
        image = {"format": "png", "width": result.width, "height": result.height, "data": data}
        return result.plain() | {"image": image}

    async def delete(self, context: CommandContext, params: DeleteParams) -> dict[str, Any]:
        """Delete kept pictures of your own; tell which there were."""
        return {"deleted": await self._ask(lambda store: store.delete(params.ids, context.caller))}

    async def reproduce(self, context: CommandContext, params: ReproduceParams) -> dict[str, Any]:
        """Make a kept picture again from its request; streams and ends as generate does."""
        result = await self._ask(lambda store: store.get(params.id, context.caller))
        request = result.request | {"stream": params.stream.model_dump()}
        if params.mode is not None:
            request["mode"] = params.mode
        return await context.host.dispatch("generate", request, context.caller, context.emit)

    def routes(self, host: Host) -> list[Route]:
        """`GET /results/ID.png`."""
        return make_routes(self._read)

    async def _read(self, result: str, caller: Caller) -> bytes:
        return await self._ask(lambda store: store.read(result, caller))

    async def _ask(self, question: Callable[[Store], Value]) -> Value:
        """Ask the store, off the event loop."""
        store = self._store
        if store is None:
            message = "this host keeps no results; set a folder for the plugin 'results' in its plugins.toml"
            raise PluginError(message, plugin="results")
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, question, store)
        except (OSError, sqlite3.Error) as error:
            message = f"the results in {store.folder} cannot be read just now: {type(error).__name__}: {error}"
            raise PluginError(message, plugin="results") from error

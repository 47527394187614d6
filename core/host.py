"""A host: settings, plugins, models, one engine and the jobs, with no network in it."""

import asyncio
import functools
import logging
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL.Image import Image as PILImage

from .caller import Caller
from .clock import Clock
from .command_context import CommandContext
from .commands import register_core, validate
from .counters import Counters
from .describe import describe
from .engine import Engine
from .errors import (
    HostClosing,
    InternalError,
    LatentwireError,
    PluginError,
    SettingsError,
    UnknownCommand,
    UnknownImage,
)
from .events import EVENTS, Event, Image
from .faults import is_device, is_memory, typed
from .files import check_inside, find, local_models, lying_in
from .hookspecs import ClientContext
from .image_store import ImageStore
from .job_table import JobTable
from .log_context import noting
from .loop_watch import LoopWatch
from .model_store import ModelStore
from .nearest import nearest
from .pictures import read_picture
from .plugin_guard import PluginGuard
from .plugin_host import PluginHost, PluginReport
from .plugin_registry import PluginRegistry
from .registry import CORE, Registry
from .requests import GenerateRequest, UpdateRequest, with_fields
from .runner import Runner
from .schedulers import diffusers_schedulers
from .settings import Settings
from .slots import Slots
from .subscriptions import Subscriptions, Topic
from .threads import workers
from .uploads import Uploads

log = logging.getLogger(__name__)

Value = TypeVar("Value")

DEFAULT_ROWS = 32  # of a forward, until the knee is known
MOST_ROWS = 64  # that the knee may have
MEASURING_S = 1.0


class Host:
    """Answers commands. Make it, call `warm_up` from a thread if you like, and `close` it.

    Args:
        clock: In place of the machine's own, for tests.

    Raises:
        SettingsError: the device is not there, or the default scheduler is unknown.
    """

    def __init__(self, settings: Settings, clock: Clock | None = None) -> None:
        self.settings = settings
        self.clock = clock or Clock()
        self.device = _device(settings.engine.device)
        self.guard = PluginGuard(settings.engine.plugin_timeout_s)
        self.loop_watch = LoopWatch(self.guard.watchdog, self.guard.strikes)
        self.registry = Registry(guard=self.guard)
        core = PluginRegistry(CORE)
        core.schedulers.update(diffusers_schedulers())
        core.events.update(EVENTS)
        register_core(core, GenerateRequest)
        self.registry.merge(core)
        self.plugins = PluginHost(self.registry, self.guard, self.clock, self._plugins_changed)
        self._switching = asyncio.Lock()
        self.plugins.load(settings.plugins, settings.discover)
        self._take_in_fields()
        if settings.defaults.scheduler not in self.registry.schedulers:
            known = ", ".join(sorted(self.registry.schedulers))
            raise SettingsError(f"defaults.scheduler is {settings.defaults.scheduler!r}; schedulers: {known}")
        self.subscriptions = Subscriptions()
        self.state = Topic()
        self.plugin_state = Topic()
        self.guard.strikes.on_change(self.plugin_state.changed)
        memory = settings.engine.memory_mib
        most_rows = max(settings.engine.max_batch_rows or MOST_ROWS, settings.engine.reproducible_rows)
        models = local_models(settings.models)
        self.store = ModelStore(models, self.device, memory and memory << 20, self.state.changed, most_rows)
        self.counters = Counters()
        self.uploads = Uploads(settings.limits.upload_mib << 20)
        self.images = ImageStore(settings.limits.images_mib << 20)
        engine = settings.engine
        self.engine = Engine(
            engine.max_batch_rows or DEFAULT_ROWS,
            engine.reproducible_rows,
            engine.max_running,
            self.store.make_room,
            self._renew,
            self._renewed,
        )
        self.counters.gauges |= {
            "device_failures": ("How often the device has failed.", lambda: self.engine.generation),
            "disabled_plugins": (
                "Plugins that were disabled after three failures.",
                lambda: sum(self.registry.guard.strikes.reason(row.name) is not None for row in self.plugins.reports),
            ),
        }
        self.jobs = JobTable(settings.limits, self.counters)
        self.slots = Slots()
        self.runner = Runner(self)
        self._pixels = workers(2, "pixels")
        self.closing = False
        self.ready = False

    async def dispatch(
        self, command: str, params: Any, caller: Caller | str, emit: Callable[[Event], None]
    ) -> dict[str, Any]:
        """Run one command to its end.

        Args:
            params: As the client sent them.
            caller: Who gives the command. A text stands for somebody in this process, who sees what came from the same
                text, and may do all that an operator may.
            emit: Is told of the command's events; from any thread, so it must not block.

        Raises:
            LatentwireError: the command failed; whatever else a handler raises becomes PluginError where a
                plugin brought it, otherwise InternalError.
        """
        entry = self.registry.commands.get(command)
        if entry is None:
            hint = nearest(command[:80], self.registry.commands, "commands")
            raise UnknownCommand(f"there is no command {command[:80]!r}; {hint}")
        if self.closing:
            raise HostClosing("the host is shutting down and takes no more commands")
        self.guard.strikes.check(entry.plugin)
        if isinstance(caller, str):
            caller = Caller(caller, caller, operator=True)  # of this process
        context = CommandContext(self, caller, emit)
        try:
            with noting(client=caller.client, command=command), self.loop_watch.handling(entry.plugin, command):
                result = await entry.handler(context, validate(entry.params, params, command))
            self.guard.strikes.forgive(command, entry.plugin)
            return result
        except LatentwireError:
            raise
        except BaseException as error:  # a plugin's SystemExit, or a cancellation of its own, must not pass for ours
            task = asyncio.current_task()
            if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
                raise
            if is_device(error):
                self.engine.report(error)
            if is_device(error) or is_memory(error):
                raise typed(error) from error
            log.exception("command %s failed", command, extra={"client": caller.client, "command": command})
            problem = f"{type(error).__name__}: {error}"
            replaced = self.plugins.is_leaving(entry.plugin) or self.registry.commands.get(command) is not entry
            if replaced and entry.plugin != CORE:
                message = f"plugin {entry.plugin!r} was loaded anew while {command} ran; send it again"
                raise PluginError(message, plugin=entry.plugin) from error  # no fault of the new one
            if entry.plugin != CORE:
                raise self.guard.failed(entry.plugin, f"command {command}", error, kind=command) from error
            raise InternalError(f"{command} failed: {problem}") from error

    def picture(self, image: bytes | str, path: Sequence[str | int] = ()) -> PILImage:
        """The pixels (RGB) of a request's picture: a file's bytes, or the id of one in `images`; in a worker thread.

        Args:
            path: Where in the params it stands, for the error.

        Raises:
            InvalidParams: it is no PNG, JPEG or WebP, broken, or too large.
            UnknownImage: there is no picture with the id.
        """
        try:
            data = self.images.get(image) if isinstance(image, str) else image
            picture = read_picture(data, self.settings.limits.input_pixels)
        except LatentwireError as error:
            got = image[:80] if isinstance(image, str) else f"{len(image)} bytes"
            error.details = [{"path": list(path), "message": error.message, "got": got}]
            raise
        self.images.put(data)  # so that its id, which stands in the PNG's metadata, can be used
        return picture

    def with_data(self, picture: Image) -> Image:
        """The event of a finished picture whose data has been dropped, with it again where the store still has it."""
        if picture.image is None or picture.image_id is None:
            return picture
        try:
            return replace(picture, image=replace(picture.image, data=self.images.get(picture.image_id)))
        except UnknownImage:
            return replace(picture, image=None)

    def find_file(self, name: str, field: str = "path") -> Path:
        """The file or folder of weights that a client means; in a worker thread. See `files.find`."""
        return find(self.settings.files, name, field)

    def weights_in(self, *folders: str) -> dict[str, str]:
        """Weights below roots' folders of these names, each with what `find_file` takes. See `files.lying_in`."""
        return lying_in(self.settings.files, folders)

    def check_inside(self, file: Path) -> None:
        """Refuse a file that a link leads out of where weights may come from. See `files.check_inside`."""
        check_inside(self.settings.files, file)

    async def with_pixels(self, work: Callable[[], Value]) -> Value:
        """Run work on pictures that clients sent, for a command; two at a time, so that they cannot fill memory."""
        return await asyncio.get_running_loop().run_in_executor(self._pixels, work)

    @property
    def is_ready(self) -> bool:
        """Whether a job would begin now: the default model is loaded, the engine runs, and nobody has ended it."""
        return self.ready and self.engine.alive and not self.closing

    @functools.cached_property
    def description(self) -> dict[str, Any]:
        """What `describe` answers, until plugins come or go."""
        return describe(self)

    async def enable_plugin(self, name: str) -> PluginReport:
        """Load a plugin that the settings had disabled, or let one work again. See `PluginHost.put_in`."""

        async def enable() -> PluginReport:
            if self.plugins.is_loaded(name):
                return self.plugins.enable(name)
            return self.plugins.put_in(name, await self._of_plugin(self.plugins.read, name))

        return await self._switch(enable)

    async def disable_plugin(self, name: str) -> PluginReport:
        """Let a plugin rest. See `PluginHost.disable`."""

        async def disable() -> PluginReport:
            return self.plugins.disable(name)

        return await self._switch(disable)

    async def reload_plugin(self, name: str) -> PluginReport:
        """Load a plugin anew, as its code is now. See `PluginHost.put_in`."""

        async def reload() -> PluginReport:
            read = await self._of_plugin(self.plugins.read, name)
            with suppress(PluginError):  # the log has it
                await self._of_plugin(self.plugins.unload, name)
            return self.plugins.put_in(name, read)

        return await self._switch(reload)

    async def _switch(self, work: Callable[[], Coroutine[Any, Any, PluginReport]]) -> PluginReport:
        """Switch plugins one at a time, and to the end: whoever asked may go away meanwhile."""

        async def alone() -> PluginReport:
            async with self._switching:
                return await work()

        switching = asyncio.create_task(alone())
        try:
            return await asyncio.shield(switching)
        except asyncio.CancelledError:
            switching.add_done_callback(lambda task: task.cancelled() or task.exception())  # nobody else looks at it
            raise

    async def _of_plugin(self, work: Callable[[str], Value], name: str) -> Value:
        """Run code of a plugin's in a worker thread, which is left to itself if it does not come back.

        Raises:
            PluginError: it has not.
        """
        timeout_s = self.settings.engine.plugin_timeout_s
        try:
            return await asyncio.wait_for(asyncio.to_thread(work, name), timeout_s)
        except TimeoutError:
            message = f"plugin {name!r} hangs while it is switched: it has not come back for {timeout_s:g} s"
            log.error(message)
            raise PluginError(message, plugin=name) from None

    def _plugins_changed(self) -> None:
        """Plugins have come, gone, or been switched; on the event loop."""
        self._take_in_fields()
        self.__dict__.pop("description", None)
        self.plugin_state.changed()

    def _take_in_fields(self) -> None:
        """Let the host's own commands take what plugins have added to them."""
        commands, registry = self.registry.commands, self.registry
        self.request_model = with_fields(GenerateRequest, registry.fields)
        commands["generate"] = replace(commands["generate"], params=self.request_model)
        commands["jobs.update"] = replace(commands["jobs.update"], params=with_fields(UpdateRequest, registry.updates))

    def client_left(self, client: str) -> None:
        """Let plugins forget a client whose connection has ended; on the event loop."""
        self.slots.forget(client)
        self.uploads.forget(client)
        self.plugins.tell("client_left", ClientContext(client))

    def warm_up(self, measure: bool = True) -> None:
        """Load the default model and run two steps through it, so that the first client waits for nothing.

        Args:
            measure: Whether to find out how many rows share a forward.
        """
        begin = time.monotonic()
        build = self.runner.build_for(GenerateRequest(prompt=""))
        wanted = self.settings.engine.max_batch_rows
        pace = self.runner.rehearse(build, self._log_load, wanted or MOST_ROWS, MEASURING_S if measure else 0.0)
        if pace is not None:
            self.engine.policy.learn(pace, wanted)
            log.info("up to %d rows share a forward", self.engine.policy.most_rows)
        self.ready = True
        log.info("model %s is ready after %.1f s", self.settings.defaults.model, time.monotonic() - begin)

    def _renew(self) -> None:
        """The device has failed: nothing that is loaded can be trusted."""
        self.ready = False
        self.store.renew()

    def _renewed(self) -> None:
        """Be ready again once the default model has been loaded anew and has made two steps."""
        threading.Thread(target=self._recover, name="recover", daemon=True).start()

    def _recover(self) -> None:
        try:
            self.warm_up(measure=False)
        except Exception as error:
            log.error("the host is not ready: the device still fails: %s", error)

    def drain(self) -> None:
        """Take no more jobs; those under way go on, and all else can still be asked for."""
        self.ready = False
        self.jobs.closed = True

    def close(self) -> None:
        """End every job and the engine; takes no more commands."""
        self.closing = True
        self.ready = False
        self._end_jobs()
        self.guard.watchdog.hurry()
        self.engine.close()
        self.runner.close()
        self._pixels.shutdown(cancel_futures=True)
        self.plugins.close()
        self.guard.watchdog.close()
        self._end_jobs()  # those that came in between

    def _end_jobs(self) -> None:
        for job in self.jobs.all():
            job.fail(HostClosing("the host is shutting down"))

    def _log_load(self, component: str, part: int, parts: int) -> None:
        log.info("loading %s (%d of %d)", component, part, parts)


def _device(wanted: str) -> torch.device:
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wanted)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise SettingsError(f"engine.device is {wanted!r}, which this machine does not offer: {error}") from error
    return device

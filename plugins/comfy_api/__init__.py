"""The server side of ComfyUI's protocol: its front end and its client libraries drive this host."""

from collections.abc import Sequence

from starlette.routing import BaseRoute

from latentwire import Host, PluginRegistry, UnloadContext, hookimpl

from .front_end import folder_of
from .history import History
from .pictures import Pictures
from .routes import make_routes
from .service import Service
from .settings import Settings
from .user_data import UserData


class Plugin:
    """The plugin; a service for the host that it is in."""

    def __init__(self, settings: Settings) -> None:
        folder = settings.folder.expanduser().absolute()
        self._settings = settings
        self._front_end = None if settings.front_end is None else folder_of(settings.front_end)
        self._pictures = Pictures(folder, settings.max_input_mib << 20)
        self._user_data = UserData(folder / "user", settings.max_user_mib << 20)
        file, size = folder / "history.sqlite3", settings.max_mib << 20
        self._history = History(file, settings.max_count, size, self._pictures.remove)
        self._service: Service | None = None

    @hookimpl
    def register(self, registry: PluginRegistry) -> None:
        registry.add_routes(self.routes)

    @hookimpl
    def unload(self, context: UnloadContext) -> None:
        if self._service is not None:
            self._service.close()
        self._history.close()

    def routes(self, host: Host) -> Sequence[BaseRoute]:
        """All that ComfyUI's clients ask for."""
        self._pictures.max_pixels = host.settings.limits.input_pixels
        kept = (self._pictures, self._history, self._user_data)
        self._service = Service(host, self._settings, *kept, self._front_end)
        return make_routes(self._service)

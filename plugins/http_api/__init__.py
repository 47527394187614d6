"""HTTP endpoints for programs that know no WebSocket: each asks one of the host's own commands."""

from pydantic import Field

from latentwire import PluginRegistry, Strict, hookimpl

from .app import make_routes


class Settings(Strict):
    """What the endpoints take."""

    max_upload_mib: int = Field(32, ge=1, le=1024, description="a larger request body is refused")


@hookimpl
def register(registry: PluginRegistry) -> None:
    limit = registry.settings.max_upload_mib << 20
    registry.add_routes(lambda host: make_routes(host, limit))

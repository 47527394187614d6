"""Loads plugins anew when their code is saved, for those who write them: `latentwire serve --reload`."""

import logging
from pathlib import Path

from watchfiles import Change, awatch

from ..core.errors import LatentwireError
from ..core.host import Host

log = logging.getLogger(__name__)

DEBOUNCE_MS = 400  # editors save in several strokes


async def reload_on_change(host: Host) -> None:
    """Watch the code of all plugins that did not come with latentwire, until cancelled."""
    roots = {name: [file.resolve() for file in files] for name, files in host.plugins.files().items()}
    folders = {folder for files in roots.values() for file in files for folder in _folders(file)}
    if not folders:
        log.warning("there is no plugin to reload: none is a file or installed, but for those that came along")
        return
    log.info("plugins that are loaded anew when their code changes: %s", ", ".join(sorted(roots)))
    logging.getLogger("watchfiles").setLevel(logging.WARNING)  # it counts changes in the host's log
    async for changes in awatch(*folders, watch_filter=_is_code, debounce=DEBOUNCE_MS, step=50, recursive=False):
        changed = [Path(file) for _, file in changes]
        for name, files in roots.items():
            if any(path.is_relative_to(file) for path in changed for file in files):
                try:
                    await host.reload_plugin(name)
                except LatentwireError:
                    pass  # the log has it, and so has the plugin's row
                except Exception:  # the next change has its chance
                    log.exception("plugin %s could not be loaded anew", name)


def _is_code(_: Change, file: str) -> bool:
    return file.endswith(".py")


def _folders(file: Path) -> list[Path]:
    """What has to be watched: editors put a new file in the old one's place, so it is not the file itself."""
    if file.is_dir():
        return [file, *(folder for folder in file.rglob("*") if folder.is_dir() and folder.name != "__pycache__")]
    return [file.parent] if file.parent.is_dir() else []

"""The page at `/`: the template of `web/`, with what only this host knows."""

import base64
import hashlib
import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from string import Template

from .. import __version__
from ..core.plugin_host import PluginReport
from .web_files import WebFiles

MODULES = {"latentwire": "client/latentwire.js", "@msgpack/msgpack": "client/vendor/msgpack.js"}


class Page:
    """The page of one host."""

    def __init__(self, files: WebFiles) -> None:
        self._files = files
        self._template = Template((Path(__file__).with_name("web") / "index.html").read_text(encoding="utf-8"))
        self._modules = json.dumps({"imports": {name: files.path + file for name, file in MODULES.items()}})

    def html(self, docs: Sequence[str], plugins: Sequence[PluginReport]) -> str:
        """It needs the files, and nothing of elsewhere."""
        scripts = [name for name in self._files.names if name.endswith(".js") and name != "theme.js"]
        return self._template.substitute(
            web=self._files.path,
            version=__version__,
            modules=self._modules,
            preloads="\n".join(f'<link rel="modulepreload" href="{self._files.path}{name}">' for name in scripts),
            docs="\n".join(f'<li><a href="/docs/{escape(name)}">{escape(name)}</a></li>' for name in docs),
            plugins="\n".join(f"<li>{_plugin(report)}</li>" for report in plugins),
        )

    def headers(self, host: str) -> dict[str, str]:
        """What a browser may do with the page; older ones do not take `'self'` for the WebSocket.

        Args:
            host: What the request calls this host, a name that the door has let through.
        """
        policy = {
            "default-src": "'none'",
            "script-src": f"'self' {digest(self._modules)}",
            "style-src": "'self'",
            "img-src": "'self' blob: data:",
            "connect-src": f"'self' ws://{host} wss://{host}",
            "form-action": "'none'",
            "base-uri": "'none'",
            "frame-ancestors": "'none'",
            "require-trusted-types-for": "'script'",
        }
        return {"Content-Security-Policy": "; ".join(map(" ".join, policy.items())), "Cache-Control": "no-store"}


def digest(text: str) -> str:
    """A script or style as a policy names it."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _plugin(report: PluginReport) -> str:
    what = f"<code>{escape(report.name)}</code> {escape(report.version or '')} {report.state}"
    return f"{what}: {escape(report.error)}" if report.error else what

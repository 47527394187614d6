"""What the page at `/` is made of: files below an address that only the page itself tells.

Browsers can send no token with a script or a style, and a ticket is good for one file. So the files lie below a key
that is made when the host starts; whoever was given the page knows it, and nobody else.
"""

import hmac
import secrets
from pathlib import Path

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

ROOT = Path(__file__).parents[1]
PLACES = {"": ROOT / "server" / "web", "client/": ROOT / "client" / "js"}
TYPES = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
FOR_GOOD = {"Cache-Control": "private, max-age=31536000, immutable"}  # the next start of the host has another key


class WebFiles:
    """The files of one host, read when it starts.

    Attributes:
        path: Where they are, such as `/web/KEY/`.
        names: What there is, such as `app.js` and `client/latentwire.js`.
    """

    def __init__(self) -> None:
        self.path = f"/web/{secrets.token_urlsafe(16)}/"
        self._files = {
            prefix + str(file.relative_to(folder)): (file.read_bytes(), TYPES[file.suffix])
            for prefix, folder in PLACES.items()
            for file in sorted(folder.rglob("*"))
            if file.suffix in TYPES
        }
        self.names = list(self._files)

    def has_key(self, path: str) -> bool:
        """Whether who asks for a path has been given the page."""
        return hmac.compare_digest(path[: len(self.path)].encode(), self.path.encode())

    async def answer(self, request: Request) -> Response:
        """One file."""
        path = request.scope["path"]
        content, kind = self._files.get(path.removeprefix(self.path), (None, ""))
        if content is None or not self.has_key(path):
            return PlainTextResponse("no such file\n", 404)
        return Response(content, headers=FOR_GOOD, media_type=f"{kind}; charset=utf-8")

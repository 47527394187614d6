"""Files that clients send in parts, because a message may not hold them whole."""

import secrets
from dataclasses import dataclass, field
from time import monotonic

from .errors import InvalidParams, TooManyJobs

PATIENCE_S = 60.0  # between two parts
LIFE_S = 600.0  # for the whole file
TOGETHER = 8  # as much as one client may have, for all of them
MOST = 64  # of one client


@dataclass
class Upload:
    """One file on its way."""

    client: str
    size: int
    data: bytearray = field(default_factory=bytearray)
    begun_at: float = field(default_factory=monotonic)
    heard_at: float = field(default_factory=monotonic)


class Uploads:
    """The unfinished uploads of a host; used on the event loop alone.

    Args:
        quota: Bytes that one client's may have together.
    """

    def __init__(self, quota: int) -> None:
        self._quota = quota
        self._uploads: dict[str, Upload] = {}

    def begin(self, client: str, size: int) -> str:
        """Make room for a file of so many bytes; the upload's id.

        Raises:
            InvalidParams: the client's uploads would be too large, or too many.
        """
        now = monotonic()
        for name, upload in list(self._uploads.items()):
            if now - upload.heard_at > PATIENCE_S or now - upload.begun_at > LIFE_S:
                del self._uploads[name]
        mine = [upload.size for upload in self._uploads.values() if upload.client == client]
        if len(mine) >= MOST:
            raise _refused("size", f"you have {MOST} unfinished uploads, the limit; finish one first", size)
        if sum(mine) + size > self._quota:
            message = f"your unfinished uploads would have {sum(mine) + size} bytes, the limit is {self._quota}"
            raise _refused("size", message, size)
        name = secrets.token_hex(8)
        self._uploads[name] = Upload(client, size)
        return name

    def append(self, name: str, client: str, data: bytes) -> int:
        """Add a part; how many bytes there are now.

        Raises:
            InvalidParams: the client has no such upload, or it would be longer than it was said to be.
            TooManyJobs: the host has as much of all clients' as it takes.
        """
        upload = self._get(name, client)
        if len(upload.data) + len(data) > upload.size:
            message = f"the upload would have {len(upload.data) + len(data)} bytes, it was to have {upload.size}"
            raise _refused("data", message, len(data))
        if sum(len(other.data) for other in self._uploads.values()) + len(data) > TOGETHER * self._quota:
            raise TooManyJobs("the host has as many unfinished uploads as it takes; try this part again later")
        upload.data += data
        upload.heard_at = monotonic()
        return len(upload.data)

    def take(self, name: str, client: str) -> bytes:
        """The whole file; the upload is over.

        Raises:
            InvalidParams: the client has no such upload, or parts are missing.
        """
        upload = self._get(name, client)
        if len(upload.data) < upload.size:
            raise _refused("upload", f"{upload.size - len(upload.data)} bytes of the upload are still missing", name)
        del self._uploads[name]
        return bytes(upload.data)

    def forget(self, client: str) -> None:
        """Drop what a client that has left did not finish."""
        for name, upload in list(self._uploads.items()):
            if upload.client == client:
                del self._uploads[name]

    def _get(self, name: str, client: str) -> Upload:
        upload = self._uploads.get(name)
        if upload is None or upload.client != client:
            raise _refused("upload", f"you have no unfinished upload {name!r:.80}, or no longer", name)
        return upload


def _refused(field_name: str, message: str, got: object) -> InvalidParams:
    return InvalidParams(message, [{"path": [field_name], "message": message, "got": f"{got!r:.80}"}])

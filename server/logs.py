"""The host's log on standard error: lines for people, or JSON for machines; each with whom and what it is about."""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Literal

from ..core.log_context import about
from ..core.secret_settings import struck_out


def quiet_libraries() -> None:
    """Keep to itself what transformers shows: its bars and hints are for notebooks."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


class TextFormatter(logging.Formatter):
    """`INFO     job finished  [client=..., job=...]`."""

    def __init__(self) -> None:
        super().__init__("%(levelname)-8s %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        return struck_out(super().format(record))

    def formatMessage(self, record: logging.LogRecord) -> str:
        ids = ", ".join(f"{name}={value}" for name, value in about(record).items())
        return super().formatMessage(record) + (f"  [{ids}]" if ids else "")


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, the ids, and the traceback of an error."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": struck_out(record.getMessage()),
            **about(record),
        }
        if record.exc_info:
            line["traceback"] = struck_out(self.formatException(record.exc_info))
        return json.dumps(line)


def set_up(kind: Literal["text", "json"]) -> None:
    """Log to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if kind == "json" else TextFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    for noisy in ("uvicorn.error", "uvicorn.asgi"):
        logging.getLogger(noisy).setLevel(logging.ERROR)  # it warns of each request that is none, whoever sends it

"""Where the plugin keeps what it keeps, and how much."""

from pathlib import Path

from pydantic import Field

from latentwire import Strict, Whole


class Settings(Strict):
    """The plugin's settings."""

    folder: Path = Field(
        Path("comfyui"),
        strict=False,
        description="of pictures, history and user data; from where the host is started",
    )
    front_end: str | None = Field(
        None,
        min_length=1,
        description="`package`: serve the front end of comfyui-frontend-package at /comfyui/; or its folder",
    )
    max_running: Whole = Field(4, ge=1, le=64, description="graphs that run at once; others wait")
    max_queued: Whole = Field(256, ge=1, le=10_000, description="graphs that run or wait; more are refused")
    max_count: Whole = Field(1000, ge=1, description="graphs in the history; the oldest go, with their pictures")
    max_mib: Whole = Field(4096, ge=1, description="of the history's pictures together; the oldest graphs go")
    max_input_mib: Whole = Field(1024, ge=1, description="of uploaded pictures together; more are refused")
    max_user_mib: Whole = Field(64, ge=1, description="of the front end's settings and workflows together")
    max_upload_mib: Whole = Field(32, ge=1, le=1024, description="a larger request body is refused")

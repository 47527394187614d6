"""Where results are kept, and how many."""

from pathlib import Path

from pydantic import Field

from latentwire import Strict


class Settings(Strict):
    """The plugin's settings; where several bounds are set, all of them hold."""

    folder: Path | None = Field(
        None, strict=False, description="relative to where the host is started; None: nothing is kept"
    )
    max_mib: int | None = Field(None, ge=1, description="of all pictures together; None: no bound")
    max_age_days: float | None = Field(None, gt=0, description="None: no bound")
    max_count: int | None = Field(None, ge=1, description="pictures; None: no bound")

"""One thing that `latentwire plugins check` has found."""

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, order=True)
class Finding:
    """What is wrong, where, and what to do. A hint is no fault: a plugin that has only hints is well."""

    file: Path
    line: int
    wrong: str
    todo: str
    hint: bool = False

    def __str__(self) -> str:
        file = Path(os.path.relpath(self.file))
        shown = self.file if ".." in file.parts else file
        return f"{shown}:{self.line}: {'hint: ' if self.hint else ''}{self.wrong}; {self.todo}"

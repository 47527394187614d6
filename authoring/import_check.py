"""Imports a plugin in another process (`probe.py`) and judges what was seen there."""

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .finding import Finding
from .source import Source
from .target import Target

SLOW_S = 1.0
"""Of a processor's time; a plugin's import is part of every start of its host."""

TIMEOUT_S = 60.0

LATER = "do it later: in a hook, or in a worker thread of a command"


@dataclass
class Imported:
    """What a plugin's import has shown. `hooks` are those that a host finds: attribute, file and first line; None if
    the import did not come to its end."""

    findings: list[Finding] = field(default_factory=list)
    hooks: list[tuple[str, Path | None, int]] | None = None
    has_class: bool = False
    api: object = None


def import_plugin(target: Target, source: Source, names: list[str]) -> Imported:
    """Import a plugin elsewhere, and see what it does.

    Args:
        source: The module's own file.
        names: The public names of latentwire that it uses; they are loaded before.
    """
    request = {
        "file": str(target.file),
        "folder": str(target.top if target.module else target.file),
        "module": target.module,
        "root": str(target.root) if target.root else None,
        "attribute": target.attribute,
        "names": names,
    }
    command = [sys.executable, "-B", "-m", f"{__package__}.probe", json.dumps(request)]
    with tempfile.TemporaryFile() as errors:  # no pipe, which a process that the plugin starts would hold open
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, timeout=TIMEOUT_S
            )
            output, ended = done.stdout, f"ended the process, with status {done.returncode}"
        except subprocess.TimeoutExpired as error:
            output, ended = error.stdout or b"", f"took more than {TIMEOUT_S:g} s"
    seen = [json.loads(line) for line in output.splitlines()]
    imported = Imported()
    for row in seen:
        _take(imported, source, row)
    if not {"failed", "done"} & {row["kind"] for row in seen}:
        imported.findings.append(Finding(target.file, 1, f"its import {ended}", "let the module only define things"))
    imported.findings = list(dict.fromkeys(imported.findings))
    return imported


def _take(imported: Imported, source: Source, row: dict[str, Any]) -> None:
    def found(wrong: str, todo: str, file: str | None = None, line: int = 1) -> None:
        imported.findings.append(Finding(Path(file).resolve() if file else source.file, line, wrong, todo))

    match row["kind"]:
        case "blocks":
            found(f"its import {row['what']}, and the host's start waits for it", LATER, row["file"], row["line"])
        case "heavy":
            todo = "import it in the function that needs it, and for types under `if TYPE_CHECKING`"
            found(f"{row['what']} is imported at load", todo, row["file"], row["line"])
        case "failed":
            found(f"it cannot be imported: {row['what']}", "mend or install what it names", row["file"], row["line"])
        case "imported" if row["seconds"] > SLOW_S and not any("at load" in one.wrong for one in imported.findings):
            (file, line, name), seconds = row["slowest"] or ((None, 1, ""), 0.0)
            wrong = f"importing it takes {row['seconds']:.1f} s of processor time"
            if seconds > row["seconds"] / 2:
                found(f"{wrong}, {seconds:.1f} s of it for {name}", LATER, file, line)
            else:
                found(wrong, LATER)
        case "settings":
            found(f"its Settings {row['what']}", "use a pydantic model of plain types", line=source.line_of("Settings"))
        case "plugin":
            wrong = f"class Plugin is called with {row['wanted']}, which fails: {row['what']}"
            todo = "let __init__ take the settings if there is a model Settings, else nothing"
            found(wrong, todo, line=source.line_of("Plugin"))
        case "done":
            imported.hooks = [(name, Path(file).resolve() if file else None, line) for name, file, line in row["hooks"]]
            imported.has_class, imported.api = row["has_class"], row["api"]

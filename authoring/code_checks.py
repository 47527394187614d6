"""What can be said of a plugin's imports and async functions without running it."""

import ast
from collections.abc import Iterator
from pathlib import Path

from ..core.nearest import nearest
from .finding import Finding
from .source import Source

PUBLIC_MODULES = {"client", "testing"}
"""Of latentwire, beside its own public names."""

THREAD = "put it into asyncio.to_thread"
VERBS = ("get", "post", "put", "patch", "delete", "head", "options", "request")

BLOCKING = {
    "time.sleep": "use await asyncio.sleep",
    "socket.create_connection": "use asyncio.open_connection",
    "urllib.request.urlopen": THREAD,
    "urllib.request.urlretrieve": THREAD,
    **{f"os.{name}": THREAD for name in ("system", "popen")},
    **{f"subprocess.{name}": THREAD for name in ("run", "call", "check_call", "check_output", "getoutput")},
    **{f"{library}.{verb}": THREAD for library in ("requests", "httpx") for verb in VERBS},
}
"""Functions that block, and what to do in place of calling them."""


def check_async(source: Source) -> Iterator[Finding]:
    """Calls that block, within async functions: the whole host waits for them."""
    for node, scopes in source.scoped:
        if isinstance(node, ast.Call) and scopes and isinstance(scopes[-1], ast.AsyncFunctionDef):
            name = source.dotted(node.func) or ""
            if name in BLOCKING:
                wrong = f"{name} blocks, in async {scopes[-1].name!r}: every client of the host waits for it"
                yield Finding(source.file, node.lineno, wrong, BLOCKING[name])


def check_imports(source: Source, top: Path, public: frozenset[str]) -> Iterator[Finding]:
    """Imports of what is not public, which any release of latentwire may change.

    Args:
        top: The folder of the plugin's outermost package.
    """
    for node, _ in source.scoped:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _check_module(source, node, alias.name)
        elif isinstance(node, ast.ImportFrom) and node.level:
            beyond = source.file.parent.parents[node.level - 2] if node.level > 1 else source.file.parent
            if beyond != top and top not in beyond.parents:
                wrong = f"`from {'.' * node.level}{node.module or ''} import ...` leaves the plugin's own folder"
                yield Finding(source.file, node.lineno, wrong, "import public names, from latentwire")
        elif isinstance(node, ast.ImportFrom) and node.module == "latentwire":
            for alias in node.names:
                yield from _check_name(source, node, alias.name, public)
        elif isinstance(node, ast.ImportFrom):
            private = [alias.name for alias in node.names if alias.name.startswith("_")]
            names = [f"{node.module}.{name}" for name in private] or [node.module or ""]
            for name in names:
                yield from _check_module(source, node, name)
        elif isinstance(node, ast.Attribute) and source.dotted(node.value) == "latentwire":
            yield from _check_name(source, node, node.attr, public)


def _check_module(source: Source, node: ast.stmt, name: str) -> Iterator[Finding]:
    root, *rest = name.split(".")
    if root == "latentwire" and rest and not (len(rest) == 1 and rest[0] in PUBLIC_MODULES):
        yield Finding(source.file, node.lineno, f"{name} is private", "import public names, from latentwire")


def _check_name(source: Source, node: ast.stmt | ast.expr, name: str, public: frozenset[str]) -> Iterator[Finding]:
    if name in public | PUBLIC_MODULES | {"*"} or (name.startswith("__") and name.endswith("__")):
        return
    todo = "do without: any release may change it" if name.startswith("_") else nearest(name, public, "public names")
    yield Finding(source.file, node.lineno, f"latentwire.{name} is not public", todo)

"""One file of a plugin, parsed: what its names stand for, and the functions that are hooks."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

Function = ast.FunctionDef | ast.AsyncFunctionDef
Scope = ast.ClassDef | Function | ast.Lambda

HOOKIMPL = "latentwire.hookimpl"


@dataclass(frozen=True)
class Hook:
    """A function with the decorator `hookimpl`, what the decorator was given, and what the function stands in."""

    node: Function
    options: dict[str, object]
    scopes: tuple[Scope, ...]

    @property
    def name(self) -> str:
        """The hook that it is for."""
        return str(self.options.get("specname") or self.node.name)

    @property
    def first_line(self) -> int:
        """Where Python says that it begins: at its first decorator."""
        return min(decorator.lineno for decorator in self.node.decorator_list)

    @property
    def positional(self) -> list[str]:
        """The arguments that it takes by position, without a method's `self`."""
        names = [argument.arg for argument in (*self.node.args.posonlyargs, *self.node.args.args)]
        static = any(isinstance(part, ast.Name) and part.id == "staticmethod" for part in self.node.decorator_list)
        return names[1:] if self.scopes and isinstance(self.scopes[-1], ast.ClassDef) and not static else names


class Source:
    """One file of a plugin.

    Args:
        public: The public names of latentwire, which `from latentwire import *` brings.

    Raises:
        SyntaxError: it is no Python.
        OSError: it cannot be read.
    """

    def __init__(self, file: Path, public: frozenset[str] = frozenset()) -> None:
        self.file = file
        self.tree = ast.parse(file.read_bytes(), filename=str(file))
        self.names: dict[str, str] = {}
        """What each imported name stands for, as a dotted path; in whatever scope it was imported."""
        for node in ast.walk(self.tree):
            self._learn(node, public)

    def dotted(self, node: ast.AST) -> str | None:
        """What a name or attribute that was imported stands for: `time.sleep` for `sleep`, say."""
        if isinstance(node, ast.Name):
            return self.names.get(node.id)
        if isinstance(node, ast.Attribute):
            base = self.dotted(node.value)
            return None if base is None else f"{base}.{node.attr}"
        return None

    def line_of(self, name: str) -> int:
        """Where the module gives a name its value."""
        for node in self.tree.body:
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            if getattr(node, "name", None) == name or any(isinstance(t, ast.Name) and t.id == name for t in targets):
                return node.lineno
        return 1

    @cached_property
    def scoped(self) -> list[tuple[ast.AST, tuple[Scope, ...]]]:
        """All nodes in order, each with the classes and functions that it stands in."""
        return list(_walk(self.tree, ()))

    @cached_property
    def hooks(self) -> list[Hook]:
        """The functions with the decorator `hookimpl`."""
        found = []
        for node, scopes in self.scoped:
            if isinstance(node, Function):
                for decorator in node.decorator_list:
                    call = decorator if isinstance(decorator, ast.Call) else None
                    if self._is_hookimpl(call.func if call else decorator):
                        found.append(Hook(node, _options(call), scopes))
        return found

    def _is_hookimpl(self, node: ast.AST) -> bool:
        name = self.dotted(node) or ""
        return name == HOOKIMPL or (name.startswith("latentwire.") and name.endswith(".hookimpl"))

    def _learn(self, node: ast.AST, public: frozenset[str]) -> None:
        if isinstance(node, ast.Import):
            for alias in node.names:
                root = alias.name.partition(".")[0]
                self.names[alias.asname or root] = alias.name if alias.asname else root
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            for alias in node.names:
                self.names[alias.asname or alias.name] = f"{module}.{alias.name}"
            if module == "latentwire" and node.names[0].name == "*":
                self.names |= {name: f"latentwire.{name}" for name in public}
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
            made = self.dotted(node.value.func)
            project = [argument.value for argument in node.value.args if isinstance(argument, ast.Constant)]
            if made == "pluggy.HookimplMarker" and project == ["latentwire"]:
                self.names |= {target.id: HOOKIMPL for target in node.targets if isinstance(target, ast.Name)}


def _walk(node: ast.AST, scopes: tuple[Scope, ...]) -> Iterator[tuple[ast.AST, tuple[Scope, ...]]]:
    inner = (*scopes, node) if isinstance(node, Scope) else scopes
    for child in ast.iter_child_nodes(node):
        yield child, inner
        yield from _walk(child, inner)


def _options(call: ast.Call | None) -> dict[str, object]:
    """The decorator's arguments that are plain values."""
    keywords = call.keywords if call else []
    return {
        keyword.arg: keyword.value.value
        for keyword in keywords
        if keyword.arg and isinstance(keyword.value, ast.Constant)
    }

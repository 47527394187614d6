"""`latentwire plugins check PATH`: everything that is wrong with a plugin before a host has to say so."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import latentwire

from ..core.api_version import API_VERSION, ATTRIBUTE, why_unsuitable
from .code_checks import check_async, check_imports
from .finding import Finding
from .hook_checks import check_handlers, check_hooks, check_undecorated
from .import_check import Imported, import_plugin
from .names import PACKAGE, hooks
from .source import Hook, Source
from .target import Target, find

PUBLIC = frozenset(latentwire.__all__)


@dataclass(frozen=True)
class Report:
    """What was found, and the hooks of each plugin that was imported."""

    findings: list[Finding]
    hooks: dict[str, list[str]]

    @property
    def ok(self) -> bool:
        """Whether there is nothing but hints."""
        return all(finding.hint for finding in self.findings)


def check(path: Path) -> Report:
    """Look a plugin, or all plugins of a package, over. Nothing of it runs in this process.

    Raises:
        AuthoringError: there is nothing that could be a plugin.
    """
    targets, findings = find(path)
    hooks_of: dict[str, list[str]] = {}
    for target in targets:
        sources, faults = _read(target)
        findings += faults
        for source in sources:
            findings += [*check_hooks(source), *check_undecorated(source), *check_async(source)]
            findings += check_imports(source, target.top, PUBLIC)
        findings += check_handlers(sources)
        if not faults:
            own = next(source for source in sources if source.file == target.file)
            imported = import_plugin(target, own, _public_names(sources))
            findings += [*imported.findings, *_check_found(imported, own, sources), *_check_api(imported, own)]
            hooks_of[target.module or target.file.stem] = sorted(name for name, _, _ in imported.hooks or ())
    return Report(sorted(set(findings)), hooks_of)


def _read(target: Target) -> tuple[list[Source], list[Finding]]:
    sources, faults = [], []
    for file in target.files:
        try:
            sources.append(Source(file, PUBLIC))
        except SyntaxError as error:
            faults.append(Finding(file, error.lineno or 1, f"it is no Python: {error.msg}", "mend it"))
        except (OSError, ValueError) as error:  # ValueError: a null byte, or letters of no encoding
            faults.append(Finding(file, 1, f"it cannot be read: {error}", "mend it"))
    return sources, faults


def _public_names(sources: list[Source]) -> list[str]:
    """What the plugin takes from latentwire."""
    found = {name.removeprefix("latentwire.") for source in sources for name in source.names.values()}
    found |= {node.attr for source in sources for node in ast.walk(source.tree) if isinstance(node, ast.Attribute)}
    return sorted(found & PUBLIC)


def _check_found(imported: Imported, own: Source, sources: list[Source]) -> Iterator[Finding]:
    """Hooks that a host does not come across, however right they look."""
    if imported.hooks is None:
        return
    written = [(source, hook) for source in sources for hook in source.hooks]
    if not written and not imported.hooks:
        yield Finding(own.file, 1, "it has no hooks", "write one, with `@hookimpl` above it: register, say")
    lines = {(source.file, line) for source, hook in written for line in (hook.first_line, hook.node.lineno)}
    found = {(file, line) for _, file, line in imported.hooks}
    elsewhere = {name for name, file, line in imported.hooks if (file, line) not in lines}  # behind another decorator
    for source, hook in written:
        seen = found & {(source.file, hook.first_line), (source.file, hook.node.lineno)}
        if hook.name in hooks() and not seen and hook.node.name not in elsewhere:
            wrong, todo = _why_not_found(hook, source, own, imported.has_class)
            yield Finding(source.file, hook.node.lineno, f"hook {hook.name!r} is never called: {wrong}", todo)


def _why_not_found(hook: Hook, source: Source, own: Source, has_class: bool) -> tuple[str, str]:
    scope = hook.scopes[-1] if hook.scopes else None
    if isinstance(scope, ast.ClassDef) and scope.name != "Plugin":
        return f"a host makes an instance of the class Plugin only, not of {scope.name}", "call the class Plugin"
    if scope is not None and not isinstance(scope, ast.ClassDef):
        return "it is inside of a function", "move it to the module, or into class Plugin"
    if scope is None and has_class:
        return "the module has a class Plugin, whose methods alone are hooks then", "make it a method of that"
    if source is not own:
        return f"the plugin's module, {own.file.name}, does not have it", "import it there"
    return "another definition takes its place", "give each hook one function"


def _check_api(imported: Imported, own: Source) -> Iterator[Finding]:
    """The plugin API's version that it was written for, against this one's."""
    if imported.hooks is None:
        return
    write = f'write {ATTRIBUTE} = "{API_VERSION}" at its top'
    unsuitable = why_unsuitable(imported.api)
    if unsuitable is not None:
        wrong, _, todo = unsuitable.partition("; ")
        yield Finding(own.file, own.line_of(ATTRIBUTE), wrong, todo or write)
    elif imported.api is None and not own.file.is_relative_to(PACKAGE / "plugins"):  # those are of the host's own
        wrong = "it does not say for which version of the plugin API it was written"
        yield Finding(own.file, 1, wrong, write, hint=True)

"""What can be said of a plugin's hooks and commands without running it."""

import ast
from collections.abc import Iterable, Iterator
from typing import TypeGuard

from ..core.nearest import nearest
from .finding import Finding
from .names import hooks
from .source import Function, Hook, Scope, Source


def check_hooks(source: Source) -> Iterator[Finding]:
    """Hooks that a host would refuse, or that would never do anything."""
    specs = hooks()
    for hook in source.hooks:
        name = hook.name
        if name not in specs:
            if hook.options.get("optionalhook"):  # of another API version
                continue
            yield _at(source, hook, f"{name!r} is no hook", nearest(name, specs, "hooks"))
            continue
        form = f"def {name}({', '.join(specs[name])})"
        if isinstance(hook.node, ast.AsyncFunctionDef):
            yield _at(source, hook, f"hook {name!r} is async", f"write `{form}`; a command may be async")
        elif hook.options.get("wrapper") or hook.options.get("hookwrapper"):
            yield _at(source, hook, f"hook {name!r} is a wrapper", f"write it without, as `{form}`")
        elif _yields(hook.node):
            yield _at(source, hook, f"hook {name!r} yields, so nothing of it would run", "do without yield")
        yield from _check_arguments(source, hook, specs[name], form)


def _check_arguments(source: Source, hook: Hook, wanted: list[str], form: str) -> Iterator[Finding]:
    """pluggy fills what a hook takes by position and without a default, and nothing else."""
    given, by_position = hook.node.args, hook.positional
    filled = by_position[: len(by_position) - len(given.defaults)]
    never = dict.fromkeys(by_position[len(filled) :], "has a default")
    never |= {argument.arg: "is taken by name only" for argument in given.kwonlyargs}
    never |= {f"*{part.arg}": "takes any number" for part in (given.vararg, given.kwarg) if part}
    for name in filled:
        if name not in wanted:
            wrong = f"hook {hook.name!r} has no argument {name!r}"
            yield _at(source, hook, wrong, f"write `{form}`")
    for name, why in never.items():
        wrong = f"argument {name!r} of hook {hook.name!r} {why}, so a host never fills it"
        todo = "take it away: a plugin's numbers belong into its Settings" if name not in wanted else f"write `{form}`"
        yield _at(source, hook, wrong, todo)
    if not filled and not never:
        yield _at(source, hook, f"hook {hook.name!r} takes nothing", f"write `{form}`")


def check_undecorated(source: Source) -> Iterator[Finding]:
    """Functions that have a hook's name and argument, but not its decorator."""
    specs, decorated = hooks(), {id(hook.node) for hook in source.hooks}
    for node, scopes in source.scoped:
        if not isinstance(node, Function) or node.name not in specs or id(node) in decorated:
            continue
        if not scopes or (len(scopes) == 1 and isinstance(scopes[0], ast.ClassDef) and scopes[0].name == "Plugin"):
            names = [argument.arg for argument in node.args.args if argument.arg != "self"]
            if names == specs[node.name]:
                wrong = f"{node.name!r} is called as a hook is, but no host calls it"
                yield Finding(source.file, node.lineno, wrong, "put `@hookimpl` above it, or rename it", hint=True)


def check_handlers(sources: Iterable[Source]) -> Iterator[Finding]:
    """Handlers of commands that are not async."""
    sources = list(sources)
    for source in sources:
        for node, scopes in source.scoped:
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "add_command":
                given = [*node.args[2:], *(word.value for word in node.keywords if word.arg == "handler")]
                command = ast.unparse(node.args[0]) if node.args else "a command"
                for handler in given[:1]:
                    wrong = f"the handler of command {command} is not async"
                    if isinstance(handler, ast.Lambda):
                        yield Finding(source.file, handler.lineno, wrong, "write an async function")
                    for found, function in _defined(handler, scopes, source, sources):
                        if isinstance(function, ast.FunctionDef):
                            todo = f"write `async def {function.name}`"
                            yield Finding(found.file, function.lineno, wrong, todo)


def _defined(
    handler: ast.expr, scopes: tuple[Scope, ...], source: Source, sources: list[Source]
) -> list[tuple[Source, Function]]:
    """The functions that a handler may be, as far as the plugin's own files tell."""
    if isinstance(handler, ast.Attribute) and isinstance(handler.value, ast.Name):
        classes = [scope for scope in scopes if isinstance(scope, ast.ClassDef)]
        if handler.value.id == "self" and classes:
            return [(source, part) for part in classes[-1].body if _is_function(part, handler.attr)]
    if isinstance(handler, ast.Name):
        here = [(source, node) for node, within in source.scoped if _is_function(node, handler.id) and _seen(within)]
        if here:
            return here
        origin = source.names.get(handler.id, "").rpartition(".")
        if origin[0]:  # imported from another file of the plugin, perhaps
            files = [other for other in sources if other.file.stem == origin[0].rpartition(".")[2]]
            return [(other, node) for other in files for node in other.tree.body if _is_function(node, origin[2])]
    return []


def _is_function(node: ast.AST, name: str) -> TypeGuard[Function]:
    return isinstance(node, Function) and node.name == name


def _seen(scopes: tuple[Scope, ...]) -> bool:
    return not scopes or not isinstance(scopes[-1], ast.ClassDef)


def _yields(function: Function) -> bool:
    pending: list[ast.AST] = list(function.body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Yield | ast.YieldFrom):
            return True
        if not isinstance(node, Scope):
            pending += ast.iter_child_nodes(node)
    return False


def _at(source: Source, hook: Hook, wrong: str, todo: str) -> Finding:
    return Finding(source.file, hook.node.lineno, wrong, todo)

"""`latentwire new-plugin NAME`: a small, complete package to begin with, made of the files in template/."""

import keyword
import re
import sys
from importlib.util import find_spec
from pathlib import Path
from string import Template

from ..core.requests import GenerateRequest
from . import AuthoringError
from .names import PACKAGE, PLUGIN_NAME, built_in, installed

TEMPLATE = Path(__file__).parent / "template"
SUFFIX = ".tmpl"  # so that no tool takes the templates for what they are to become
GUIDE = PACKAGE / "docs" / "plugins" / "first.md"
LONGEST = 40  # letters of a name; the lines that it is put into have room for so many


def new_plugin(name: str, into: Path) -> Path:
    """Write the package `my-plugin`, with the plugin and module `my_plugin`, into a new folder of `into`.

    Raises:
        AuthoringError: the name is taken or cannot be one, there is such a folder, or it cannot be written.
    """
    plugin = plugin_name(name)
    folder = into / plugin.replace("_", "-")
    try:
        folder.mkdir(parents=True)
        for path, text in rendered(plugin).items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text, encoding="utf-8")
    except FileExistsError as error:
        raise AuthoringError(f"there is a {error.filename} already; choose another name, or another --into") from error
    except OSError as error:
        raise AuthoringError(f"cannot write {error.filename}: {error.strerror}; see --into") from error
    return folder


def rendered(plugin: str) -> dict[str, str]:
    """The package's files: their paths within its folder, and their text."""
    values = {"plugin": plugin, "package": plugin.replace("_", "-")}
    return {
        Template(str(file.relative_to(TEMPLATE))).substitute(values).removesuffix(SUFFIX): Template(
            file.read_text(encoding="utf-8")
        ).substitute(values)
        for file in sorted(TEMPLATE.rglob(f"*{SUFFIX}"))
    }


def plugin_name(name: str) -> str:
    """The plugin's name, `my_plugin`, for what was typed, `my-plugin` say.

    Raises:
        AuthoringError: it cannot be one; says why.
    """
    plugin = name.replace("-", "_")
    if not PLUGIN_NAME.fullmatch(plugin) or re.search("__|_$", plugin) or len(plugin) > LONGEST:
        raise AuthoringError(
            f"a plugin cannot be called {name!r}; wanted up to {LONGEST} small letters, digits and single dashes, "
            "beginning with a letter, such as my-plugin"
        )
    owner = _owner(plugin)
    if owner is not None:
        raise AuthoringError(f"the name {plugin!r} is taken by {owner}; choose another")
    return plugin


def _owner(name: str) -> str | None:
    """Who has a name already that would be the module's, the plugin's and the request field's."""
    if keyword.iskeyword(name) or keyword.issoftkeyword(name):
        return "the language Python"
    if name in built_in():
        return "a built-in plugin"
    if name in installed():
        return "an installed plugin"
    if name in sys.stdlib_module_names:
        return "Python's own library"
    spec = find_spec(name)
    if spec is not None and spec.origin is not None:  # without an origin it is any folder of that name
        return f"an installed Python package, {spec.origin}"
    if name in GenerateRequest.model_fields or hasattr(GenerateRequest, name):
        return "the request of the command generate"
    return None

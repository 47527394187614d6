"""A host's settings: plugins.toml, then the environment, then the command line; the later one wins.

The environment speaks as `LATENTWIRE_SERVER_PORT=9000`, the command line as `--set server.port=9000`.
An unknown key is refused with the nearest right one. Models and plugins are set in plugins.toml alone.
"""

import difflib
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Self, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from .errors import SettingsError
from .requests import Mode

CLIENT_VARIABLES = {"LATENTWIRE_URL", "LATENTWIRE_TOKEN", "LATENTWIRE_KEY"}
"""What the command line's client commands read; a host may run in the same environment."""

PRINTABLE = r"^[!-~]([ -~]*[!-~])?$"
"""Of a secret: headers have no other letters that all programs send alike."""

TOKENS = ("server.token", "server.observer_token", "server.operator_token")  # see ServerSettings.tokens

PLUGIN_NAME = r"^[a-z][a-z0-9_]*$"

MODELS_FOLDER = Path(__file__).parents[1] / "models"
EMBEDDED_MODEL = MODELS_FOLDER / "emoji"

Model = TypeVar("Model", bound=BaseModel)


class Section(BaseModel):
    """A part of the settings; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ServerSettings(Section):
    """Where the host listens, and what it takes from a connection."""

    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535, description="0: any free port")
    token: str | None = Field(
        None,
        min_length=16,
        pattern=PRINTABLE,
        description="asked of every client; off loopback one is made if none is set",
    )
    observer_token: str | None = Field(
        None,
        min_length=16,
        pattern=PRINTABLE,
        description="who has it in place of the token also sees everybody's jobs and results",
    )
    operator_token: str | None = Field(
        None,
        min_length=16,
        pattern=PRINTABLE,
        description="who has it is an observer, and may also switch plugins on and off and load them anew",
    )
    anyone_may_connect: bool = Field(False, description="whether a host beyond loopback may do without a token")
    allowed_origins: list[str] = Field(
        [], description="pages of other sites that may connect, such as https://example.org; they get CORS headers"
    )
    allowed_hosts: list[str] = Field(
        [], description="further names and addresses by which clients reach the host, such as gpu.example.org"
    )
    max_message_bytes: int = Field(1 << 20, ge=1024, le=4 << 20, description="a larger frame is refused")
    resume_grace_s: int = Field(
        120, ge=0, le=86_400, description="so long a session is kept once its connection is lost; 0: not at all"
    )
    log: Literal["text", "json"] = Field("text", description="how lines of the log on standard error look")
    shutdown_grace_s: int = Field(
        20, ge=0, le=86_400, description="so long running jobs may take to finish once the host is told to stop"
    )

    @property
    def tokens(self) -> tuple[str | None, str | None, str | None]:
        """A user's, an observer's and an operator's."""
        return self.token, self.observer_token, self.operator_token

    @model_validator(mode="after")
    def _tokens_differ(self) -> Self:
        tokens = [token for token in self.tokens if token is not None]
        if len(set(tokens)) < len(tokens):
            raise ValueError("token, observer_token and operator_token must differ: each gives other rights")
        return self


class EngineSettings(Section):
    """The device and how many rows share a forward (with guidance, one picture has two rows)."""

    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    max_batch_rows: int | None = Field(
        None, ge=1, le=512, description="most rows of one forward in mode fast; None: measured at start"
    )
    reproducible_rows: int = Field(8, ge=2, le=512, description="rows of every forward in mode reproducible")
    max_running: int | None = Field(
        None, ge=1, description="pictures that run at once, the others wait. None: as many as fill the largest batch"
    )
    memory_mib: int | None = Field(
        None, ge=1, description="loaded weights may take so much; what no job uses makes room. None: no bound"
    )
    plugin_timeout_s: float = Field(
        30.0, gt=0, le=3600, description="so long a plugin may take in a hook; then its job fails, and it has a strike"
    )


class DefaultSettings(Section):
    """What a request gets that does not say."""

    model: str = "emoji"
    scheduler: str = "ddim"
    mode: Mode = "fast"


class LimitSettings(Section):
    """What one host takes on."""

    jobs: int = Field(256, ge=1, description="unfinished jobs in all")
    jobs_per_client: int = Field(32, ge=1, description="unfinished jobs of one connection")
    pixels: int = Field(2048 * 2048, ge=64 * 64, description="width times height of one picture")
    input_pixels: int = Field(1 << 24, ge=64 * 64, description="width times height of a picture that a client sends")
    images_mib: int = Field(256, ge=1, description="files of uploaded and made pictures, kept for requests to name")
    upload_mib: int = Field(64, ge=1, description="unfinished uploads of one client")
    connections: int = Field(2048, ge=1, description="open connections in all, WebSockets and others")
    connections_per_address: int = Field(256, ge=1, description="the same from one address (of IPv6, from one /64)")


class FileSettings(Section):
    """Where ControlNets and LoRAs that clients name may come from."""

    roots: list[Path] = Field([], description="folders, besides the one of the models that come along")
    hub: bool = Field(False, description="whether names may be hub ids, which are downloaded")


class ModelSettings(Section):
    """A model: a folder in diffusers' format, or one checkpoint file of Stable Diffusion 1.x, 2.x or SDXL."""

    path: Path | None = None
    hub: str | None = Field(None, description="in place of path: a hub id, downloaded when the host starts")
    config: Path | None = Field(
        None, description="for a checkpoint file of unusual shape: a folder with configs in diffusers' format"
    )
    prediction_type: Literal["epsilon", "v_prediction", "sample"] | None = Field(
        None, description="for a checkpoint file that does not say it: what the UNet predicts"
    )
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = Field(
        "auto", description="auto: float32 on a CPU, float16 on a GPU"
    )
    channels_last: bool = Field(
        False, description="denoiser, autoencoder and ControlNets in that memory format: faster or slower, other bits"
    )
    compile: bool = Field(
        False, description="compile the denoiser when it is loaded, for modes fast and reproducible; takes a minute"
    )
    vae_slicing: bool = Field(False, description="decode the pictures of a batch one by one, for less memory")
    cpu_offload: bool = Field(False, description="keep components in main memory, on the GPU only while they work")
    vae_tiling: bool = Field(False, description="encode and decode large pictures in tiles, for less memory")

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.path is None) == (self.hub is None):
            raise ValueError("wanted either path, a folder or file, or hub, a hub id")
        if self.compile and self.cpu_offload:
            raise ValueError("wanted either compile or cpu_offload: what is compiled stays on its device")
        return self


class PluginSettings(Section):
    """One plugin: built in, installed (entry point group `latentwire`), or a local file."""

    name: str = Field(pattern=PLUGIN_NAME)
    path: Path | None = Field(None, description="a Python file, relative to plugins.toml")
    enabled: bool = True
    settings: dict[str, Any] = {}


class Settings(Section):
    """All of plugins.toml. The order of `plugins` is the order in which their hooks run."""

    server: ServerSettings = ServerSettings()
    engine: EngineSettings = EngineSettings()
    defaults: DefaultSettings = DefaultSettings()
    limits: LimitSettings = LimitSettings()
    files: FileSettings = FileSettings()
    models: dict[str, ModelSettings] = {}
    plugins: list[PluginSettings] = []
    discover: bool = Field(True, description="also load installed plugins that `plugins` does not name")

    @model_validator(mode="after")
    def _names_resolve(self) -> Self:
        self.models.setdefault("emoji", ModelSettings(path=EMBEDDED_MODEL))
        if self.defaults.model not in self.models:
            raise ValueError(f"defaults.model is {self.defaults.model!r}; models has {sorted(self.models)}")
        names = [plugin.name for plugin in self.plugins]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"plugins names {', '.join(twice)} twice")
        return self


def load_settings(
    file: Path | None = None, environment: Mapping[str, str] = {}, overrides: Iterable[str] = ()
) -> Settings:
    """Read the settings from all three places.

    Args:
        file: plugins.toml; None for the defaults. Paths in it are relative to its folder.
        environment: Usually `os.environ`; only names that start with `LATENTWIRE_` count.
        overrides: `section.key=value`, as the command line gives them. Lists are written as in TOML: `["one", "two"]`.

    Raises:
        SettingsError: a file that is no TOML, an unknown key, or a value that does not fit.
    """
    values: dict[str, Any] = {}
    if file is not None:
        try:
            values = tomllib.loads(file.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise SettingsError(f"cannot read {file}: {error}") from error
        _resolve_paths(values, file.parent)
    for name, value in environment.items():
        if name.startswith("LATENTWIRE_") and name not in CLIENT_VARIABLES:
            target = name.removeprefix("LATENTWIRE_").lower().replace("_", ".", 1)
            _set(values, target, value, origin=name)
    for override in overrides:
        target, equals, value = override.partition("=")
        if not equals:
            raise SettingsError(f"--set takes section.key=value, got {override!r}")
        _set(values, target, value, origin=f"--set {target}")
    return parse(Settings, values, origin=str(file) if file else "settings")


def parse(model: type[Model], values: Mapping[str, Any], origin: str) -> Model:
    """Validate `values`, with errors that name the key, and for an unknown one the nearest right key.

    Raises:
        SettingsError: the first line of its message names `origin`.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        lines = [_explain(model, problem) for problem in error.errors()]
        raise SettingsError(f"{origin}: " + "; ".join(lines)) from error


def _explain(model: type[BaseModel], problem: Any) -> str:
    path = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return f"unknown key {path!r}, {nearest_key(model, problem['loc'])}"
    message = problem["msg"].removeprefix("Value error, ")
    if not path:
        return str(message)
    # a plugin's values may be secrets, and clients can read why a plugin failed
    shown = model is Settings and path not in TOKENS and problem["type"] != "missing"
    return f"{path}: {message}" + (f", got {problem['input']!r:.80}" if shown else "")


def nearest_key(model: type[BaseModel], path: Sequence[Any]) -> str:
    """A hint for the unknown key at the end of `path`: the nearest right one, or all of them."""
    known = _keys_at(model, path[:-1])
    near = difflib.get_close_matches(str(path[-1])[:80], known, n=1, cutoff=0.4)
    return f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(sorted(known)) or 'none'}"


def _keys_at(model: Any, path: Iterable[Any]) -> list[str]:
    """The keys that the section at `path` knows."""
    for part in path:
        model = _section(model)
        if isinstance(model, type) and issubclass(model, BaseModel):
            model = model.model_fields[part].annotation if part in model.model_fields else None
        elif get_origin(model) in (dict, list):  # its items
            model = get_args(model)[-1]
    model = _section(model)
    return list(model.model_fields) if isinstance(model, type) and issubclass(model, BaseModel) else []


def _section(annotation: Any) -> Any:
    """`X` where the annotation is `X | None`."""
    wanted = [kind for kind in get_args(annotation) if kind is not type(None)]
    return wanted[0] if get_origin(annotation) in (Union, UnionType) else annotation


def _set(values: dict[str, Any], target: str, value: str, origin: str) -> None:
    """Set `section.key`, or a key of the top level, to a text that validation turns into the right type."""
    known: dict[str, Any] = {}
    for name, field in Settings.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            known |= {f"{name}.{key}": inner.annotation for key, inner in field.annotation.model_fields.items()}
        elif field.annotation is bool:
            known[name] = bool
    if target not in known:
        near = difflib.get_close_matches(target[:80], known, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
        raise SettingsError(f"{origin}: unknown setting {target}, {hint}")
    section, dot, key = target.rpartition(".")
    table = values.setdefault(section, {}) if dot else values
    if isinstance(table, dict):  # else validation says what is wrong with the file
        table[key] = _list(value, origin) if get_origin(known[target]) is list else value


def _list(value: str, origin: str) -> Any:
    try:
        return tomllib.loads(f"list = {value}")["list"]
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f'{origin}: wanted a list as in TOML, ["one", "two"], got {value[:80]}: {error}') from error


def _resolve_paths(values: dict[str, Any], folder: Path) -> None:
    """Make the paths of models and plugins absolute; what is misshapen is left for validation to name."""
    files = values.get("files")
    if isinstance(files, dict) and isinstance(files.get("roots"), list):
        files["roots"] = [_absolute(folder, root) if isinstance(root, str) else root for root in files["roots"]]
    models = values.get("models")
    plugins = values.get("plugins")
    entries = [*(models.values() if isinstance(models, dict) else []), *(plugins if isinstance(plugins, list) else [])]
    for entry in entries:
        if not isinstance(entry, dict):
            continue
        for key in ("path", "config"):
            if isinstance(entry.get(key), str):
                entry[key] = _absolute(folder, entry[key])
        settings = entry.get("settings")
        for value in settings.values() if isinstance(settings, dict) else ():
            if isinstance(value, dict) and set(value) == {"file"} and isinstance(value["file"], str):  # of a secret
                value["file"] = str(_absolute(folder, value["file"]))


def _absolute(folder: Path, path: str) -> Path:
    try:
        return (folder / Path(path).expanduser()).resolve()
    except (RuntimeError, ValueError) as error:  # ~nobody, or a NUL
        raise SettingsError(f"path {path!r} cannot be used: {error}") from error

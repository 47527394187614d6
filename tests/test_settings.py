"""Settings: three places, one order, and errors that say what to write instead."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from latentwire import Settings, load_settings
from latentwire.core.errors import SettingsError
from latentwire.core.settings import EMBEDDED_MODEL, parse


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def write(text: str) -> Path:
        file = tmp_path / "plugins.toml"
        file.write_text(text, encoding="utf-8")
        return file

    return write


def refused(*args: Any, **kwargs: Any) -> str:
    with pytest.raises(SettingsError) as error:
        load_settings(*args, **kwargs)
    assert error.value.code == "bad_settings"
    return error.value.message


def test_without_anything_the_embedded_model_is_served_on_loopback() -> None:
    settings = load_settings()
    assert settings == Settings()
    assert (settings.server.host, settings.server.port, settings.server.token) == ("127.0.0.1", 8000, None)
    assert settings.models[settings.defaults.model].path == EMBEDDED_MODEL


def test_a_whole_file_is_read(write: Any, tmp_path: Path) -> None:
    settings = load_settings(
        write(
            """
            discover = false
            [server]
            port = 9000
            [defaults]
            model = "sd"
            mode = "exact"
            [models.sd]
            path = "models/sd"
            dtype = "bfloat16"
            [[plugins]]
            name = "tint"
            path = "../tint.py"
            settings = {colour = "red"}
            [[plugins]]
            name = "clip_skip"
            enabled = false
            """
        )
    )
    assert (settings.server.port, settings.defaults.mode, settings.discover) == (9000, "exact", False)
    assert settings.models["sd"].path == (tmp_path / "models/sd").resolve()
    assert "emoji" in settings.models
    tint, clip_skip = settings.plugins
    assert (tint.name, tint.path, tint.settings) == ("tint", (tmp_path / "../tint.py").resolve(), {"colour": "red"})
    assert (clip_skip.name, clip_skip.path, clip_skip.enabled) == ("clip_skip", None, False)


def test_paths_are_relative_to_the_file_absolute_or_from_home(
    write: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.chdir("/")
    models = load_settings(
        write(
            """
            [models]
            near = {path = "near"}
            far = {path = "/far/away"}
            home = {path = "~/models"}
            """
        )
    ).models
    assert models["near"].path == (tmp_path / "near").resolve()
    assert models["far"].path == Path("/far/away")
    assert models["home"].path == Path("/home/someone/models")


def test_the_environment_wins_over_the_file_and_the_command_line_over_both(write: Any) -> None:
    file = write("[server]\nport = 1\n[limits]\njobs = 1\npixels = 4096\n")
    environment = {"LATENTWIRE_LIMITS_JOBS": "2", "LATENTWIRE_LIMITS_PIXELS": "5000", "PATH": "/bin"}
    settings = load_settings(file, environment, ["limits.pixels=6000", "discover=false"])
    assert (settings.server.port, settings.limits.jobs, settings.limits.pixels) == (1, 2, 6000)
    assert settings.discover is False


def test_names_with_underscores_can_be_set_from_both(write: Any) -> None:
    settings = load_settings(None, {"LATENTWIRE_ENGINE_MAX_BATCH_ROWS": "4"}, ["limits.jobs_per_client=3"])
    assert (settings.engine.max_batch_rows, settings.limits.jobs_per_client) == (4, 3)


def test_a_value_may_hold_an_equals_sign() -> None:
    assert load_settings(overrides=["server.token=abc=def=0123456789"]).server.token == "abc=def=0123456789"
    assert load_settings(overrides=["server.host=[::1]"]).server.host == "[::1]"  # no list, for it wants a text


def test_lists_are_written_as_in_toml() -> None:
    settings = load_settings(
        None, {"LATENTWIRE_FILES_ROOTS": '["/one"]'}, ['server.allowed_hosts=["a.example", "b.example"]']
    )
    assert settings.files.roots == [Path("/one")]
    assert settings.server.allowed_hosts == ["a.example", "b.example"]


def test_the_clients_own_variables_do_not_stop_a_host() -> None:
    environment = {"LATENTWIRE_URL": "ws://elsewhere/ws", "LATENTWIRE_TOKEN": "x"}
    assert load_settings(None, environment) == Settings()


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("[servr]\nport = 1", "unknown key 'servr', did you mean 'server'?"),
        ("[server]\nprot = 1", "unknown key 'server.prot', did you mean 'port'?"),
        ("[engine]\nmax_rows = 1", "unknown key 'engine.max_rows', did you mean 'max_batch_rows'?"),
        ('[models.sd]\npath = "x"\ndtyp = "auto"', "unknown key 'models.sd.dtyp', did you mean 'dtype'?"),
        ('plugins = [{name = "a"}, {name = "b", enable = false}]', "'plugins.1.enable', did you mean 'enabled'?"),
        ("[limits]\nxyzzy = 1", "unknown key 'limits.xyzzy', known keys: connections, connections_per_address, "
         "images_mib, input_pixels, jobs, jobs_per_client, pixels, upload_mib"),
    ],
)  # fmt: skip
def test_an_unknown_key_names_the_nearest_right_one(write: Any, text: str, hint: str) -> None:
    assert hint in refused(write(text))


@pytest.mark.parametrize(
    ("environment", "overrides", "hint"),
    [
        ({"LATENTWIRE_SERVER_PROT": "1"}, [], "_PROT: unknown setting server.prot, did you mean server.port?"),
        ({"LATENTWIRE_DISCOVR": "no"}, [], "unknown setting discovr, did you mean discover?"),
        ({}, ["engine.devise=cpu"], "--set engine.devise: unknown setting engine.devise, did you mean engine.device?"),
        ({}, ["zzz=1"], "unknown setting zzz, known: server.host,"),
        ({}, ["models.sd.path=x"], "unknown setting models.sd.path"),
        ({}, ["=1"], "unknown setting"),
        ({}, ["server.port"], "--set takes section.key=value, got 'server.port'"),
        ({}, ["files.roots=one"], '--set files.roots: wanted a list as in TOML, ["one", "two"], got one'),
    ],
)  # fmt: skip
def test_so_do_the_environment_and_the_command_line(
    environment: dict[str, str], overrides: list[str], hint: str
) -> None:
    assert hint in refused(None, environment, overrides)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('[server]\nport = "many"', "server.port: Input should be a valid integer"),
        ("[server]\nport = 70000", "server.port: Input should be less than or equal to 65535, got 70000"),
        ('[server]\nhost = ["a"]', "server.host: Input should be a valid string, got ['a']"),
        ("server = 5", "server: "),
        ("models = 5", "models: "),
        ("models = {sd = 5}", "models.sd: "),
        ("plugins = 5", "plugins: "),
        ("plugins = [5]", "plugins.0: "),
        ("[[plugins]]\nenabled = true", "plugins.0.name: Field required"),
        ('[[plugins]]\nname = "Not A Name"', "plugins.0.name: "),
        ('[[plugins]]\nname = "a"\n[[plugins]]\nname = "a"', "plugins names a twice"),
        ('[defaults]\nmode = "fastest"', "defaults.mode: Input should be 'exact', 'reproducible' or 'fast'"),
        ('[defaults]\nmodel = "sdxl"', "defaults.model is 'sdxl'; models has ['emoji']"),
        ("[limits]\njobs = 0", "limits.jobs: Input should be greater than or equal to 1, got 0"),
        ('[models.sd]\ndtype = "auto"', "models.sd: wanted either path, a folder or file, or hub, a hub id"),
        ('[models.sd]\npath = "x\\u0000"', "cannot be used"),
        ('[models.sd]\npath = "~nobody-of-this-name/x"', "cannot be used"),
        ("[server", "cannot read"),
        ("x = 1\nx = 2", "cannot read"),
    ],
)
def test_a_bad_value_is_named_with_its_place(write: Any, text: str, problem: str) -> None:
    message = refused(write(text))
    assert problem in message
    assert "plugins.toml" in message or "path" in message
    assert "Value error" not in message


def test_several_problems_are_named_at_once(write: Any) -> None:
    message = refused(write("[server]\nport = -1\nprot = 1\n[limits]\njobs = 0"))
    assert "server.port" in message
    assert "server.prot" in message
    assert "limits.jobs" in message


def test_a_misshapen_section_is_named_even_when_the_environment_sets_a_key_of_it(write: Any) -> None:
    assert "server: " in refused(write("server = 5"), {"LATENTWIRE_SERVER_PORT": "1"})


def test_a_short_token_is_refused_without_being_shown(write: Any) -> None:
    message = refused(write('[server]\ntoken = "hunter2"'))
    assert "server.token: String should have at least 16 characters" in message
    assert "hunter2" not in message


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "other.toml"
    if content is not None:
        file.write_bytes(content)
    assert f"cannot read {file}" in refused(file)


def test_hints_reach_into_a_plugins_nested_settings_and_its_values_are_not_shown() -> None:
    class Inner(BaseModel, extra="forbid"):
        strength: float = 1.0

    class Outer(BaseModel, extra="forbid"):
        inner: Inner | None = None
        many: list[Inner] = []
        key: int = 0

    def message(values: dict[str, Any]) -> str:
        with pytest.raises(SettingsError) as error:
            parse(Outer, values, origin="settings of plugin 'x'")
        return error.value.message

    assert "unknown key 'inner.strenght', did you mean 'strength'?" in message({"inner": {"strenght": 1}})
    assert "unknown key 'many.0.strenght', did you mean 'strength'?" in message({"many": [{"strenght": 1}]})
    assert "secret" not in message({"key": "secret"})


def test_tokens_that_give_different_rights_must_differ() -> None:
    with pytest.raises(SettingsError, match="must differ"):
        load_settings(overrides=["server.token=0123456789abcdef", "server.operator_token=0123456789abcdef"])

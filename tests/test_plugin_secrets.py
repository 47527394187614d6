"""Secrets in plugins' settings: from the environment or a file, never shown."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from latentwire import Host, LatentwireError, PluginError, RemoteError, connect_sync, load_settings
from latentwire.core import secret_settings
from latentwire.server.logs import JsonFormatter, TextFormatter
from latentwire.testing import call, generate, plugin, serving

from .conftest import running_host

SECRET = "s3cr3t-of-the-test"

SOURCE = """
from pydantic import BaseModel, SecretStr, field_validator
from latentwire import *

class Service(BaseModel):
    password: SecretStr

class Settings(Strict):
    api_key: SecretStr
    maybe: SecretStr | None = None
    where: str = "here"
    services: list[Service] = []

    @field_validator("api_key")
    @classmethod
    def check(cls, key: SecretStr) -> SecretStr:
        if "wrong" in key.get_secret_value():
            raise ValueError("this is no key: " + key.get_secret_value())
        return key

class Plugin:
    def __init__(self, settings):
        self.settings = settings
        if settings.where == "init":
            raise ValueError("cannot use " + settings.api_key.get_secret_value())

    @hookimpl
    def register(self, registry):
        registry.add_command("keys.length", NoParams, self.length)
        registry.add_command("keys.tell", NoParams, self.tell)

    @hookimpl
    def modify_call(self, context):
        raise ValueError("the service refused " + self.settings.api_key.get_secret_value())

    async def tell(self, context, params):
        key = self.settings.api_key.get_secret_value()
        raise InvalidParams("on purpose: " + key, [{"path": ["key"], "message": "no " + key, "got": key}])

    async def length(self, context, params):
        return {"length": len(self.settings.api_key.get_secret_value()), "shown": repr(self.settings)}
"""


@pytest.fixture(autouse=True)
def nothing_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secret_settings, "_hidden", ())


def start(folder: Path, settings: dict[str, Any]) -> Any:
    (folder / "keys.py").write_text(SOURCE)
    return running_host(plugins=[{"name": "keys", "path": folder / "keys.py", "settings": settings}])


def row(host: Host) -> dict[str, Any]:
    (found,) = [row for row in call(host, "plugins.list")["plugins"] if row["name"] == "keys"]
    return dict(found)


def test_a_secret_comes_from_the_environment_a_file_or_the_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_API_KEY", SECRET)
    (tmp_path / "key.txt").write_text(f"{SECRET}\n")
    for given in ({"env": "TEST_API_KEY"}, {"file": str(tmp_path / "key.txt")}, SECRET):
        with start(tmp_path, {"api_key": given, "maybe": given}) as host:
            answer = call(host, "keys.length")
            assert answer["length"] == len(SECRET)
            assert SECRET not in answer["shown"]


def test_a_secrets_file_is_found_beside_plugins_toml(tmp_path: Path) -> None:
    (tmp_path / "plugins.toml").write_text(
        '[[plugins]]\nname = "keys"\npath = "keys.py"\nsettings = { api_key = { file = "key.txt" } }\n'
    )
    (entry,) = load_settings(tmp_path / "plugins.toml").plugins
    assert entry.settings == {"api_key": {"file": str(tmp_path / "key.txt")}}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"env": "TEST_NO_SUCH_KEY"}, "TEST_NO_SUCH_KEY is not set"),
        ({"file": "no-such-file"}, "from the file 'no-such-file': No such file"),
        ({"environment": "TEST_API_KEY"}, "is a secret: wanted"),
        ({"env": "A", "file": "b"}, "is a secret: wanted"),
        ([SECRET], "api_key"),
        (7, "api_key"),
    ],
)
def test_a_secret_that_cannot_be_had_is_told_of_and_never_shown(tmp_path: Path, given: Any, said: str) -> None:
    if isinstance(given, dict) and "file" in given:
        given = given | {"file": str(tmp_path / given["file"])}
    with start(tmp_path, {"api_key": given}) as host:
        assert row(host)["state"] == "failed"
        assert said in row(host)["error"]
        assert SECRET not in row(host)["error"]


def test_whoever_lets_a_secret_slip_it_is_struck_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with start(tmp_path, {"api_key": SECRET}) as host:
        with pytest.raises(PluginError) as caught:
            generate(host)
        assert "the service refused [secret]" in caught.value.message
    with start(tmp_path, {"api_key": SECRET, "where": "init"}) as host:
        assert row(host)["error"] == "ValueError: cannot use [secret]"
        (report,) = [report for report in host.plugins.reports if report.name == "keys"]
        assert SECRET not in str(report.trace)
        with pytest.raises(LatentwireError) as refused:
            call(host, "plugins.reload", {"name": "keys"})
        assert SECRET not in refused.value.message
    for formatter in (TextFormatter(), JsonFormatter()):
        try:
            raise ValueError(f"with {SECRET}")
        except ValueError as error:
            record = logging.LogRecord(
                "x", logging.ERROR, "", 1, "%s", (SECRET,), (ValueError, error, error.__traceback__)
            )
        line = formatter.format(record)
        assert SECRET not in line
        assert line.count("[secret]") >= 2


def test_short_and_empty_secrets_are_not_looked_for_in_every_text(tmp_path: Path) -> None:
    with start(tmp_path, {"api_key": "e", "maybe": ""}) as host:
        assert call(host, "keys.length")["length"] == 1
        assert secret_settings.struck_out("every text") == "every text"


def test_a_secret_that_validation_refuses_is_not_told(tmp_path: Path) -> None:
    wrong = "a wrong key, and all can read why"
    with start(tmp_path, {"api_key": wrong}) as host:
        assert row(host)["error"] == "settings: api_key: this is no key: [secret]"
        (report,) = [report for report in host.plugins.reports if report.name == "keys"]
        assert wrong not in str(report.trace)


def test_a_secret_of_several_lines_and_one_that_another_begins_with_are_struck_out(tmp_path: Path) -> None:
    lines = '-----BEGIN-----\nof it\'s "key"\n-----END-----'
    with start(tmp_path, {"api_key": lines, "maybe": "-----BEGIN-----"}) as host:
        with pytest.raises(PluginError) as caught:  # in one line
            generate(host)
        assert "the service refused [secret]" in caught.value.message
        assert "END" not in caught.value.message
    for shown in (lines, repr(lines), json.dumps(lines)):
        assert secret_settings.struck_out(shown).strip("\"'") == "[secret]"


def test_a_secret_within_other_settings_is_struck_out(tmp_path: Path) -> None:
    with start(tmp_path, {"api_key": "", "services": [{"password": SECRET}]}):
        assert secret_settings.struck_out(f"as {SECRET}") == "as [secret]"


def test_a_plugins_own_error_tells_clients_no_secret(tmp_path: Path) -> None:
    (tmp_path / "keys.py").write_text(SOURCE)
    with (
        serving(plugin(tmp_path / "keys.py", api_key=SECRET)) as running,
        connect_sync(running.url) as client,
        pytest.raises(RemoteError, match="on purpose") as caught,
    ):
        client.call("keys.tell")
    assert SECRET not in f"{caught.value.message} {caught.value.details}"
    assert caught.value.details[0]["path"] == ["key"]

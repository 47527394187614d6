"""Where weights may come from: the roots and nothing else, and the hub where it is allowed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from latentwire import InvalidParams
from latentwire.core.files import check_inside, find
from latentwire.core.settings import EMBEDDED_MODEL, MODELS_FOLDER, FileSettings


@pytest.fixture
def files(tmp_path: Path) -> FileSettings:
    for name in ("inside/style.safetensors", "inside/nets/one/config.json", "outside/secret.safetensors"):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"{}")
    return FileSettings(roots=[tmp_path / "inside"])


def test_a_path_is_found_below_any_root_relative_or_absolute(files: FileSettings) -> None:
    (root,) = files.roots
    assert find(files, "style.safetensors") == root / "style.safetensors"
    assert find(files, "nets/one") == root / "nets" / "one"
    assert find(files, str(root / "nets" / "one")) == root / "nets" / "one"
    assert find(files, "loras/emoji-pencil") == MODELS_FOLDER / "loras" / "emoji-pencil"


@pytest.mark.parametrize("name", ["../outside/secret.safetensors", "nets/../../outside", "/etc/passwd", "..", "~", "/"])
def test_a_path_that_leads_out_is_refused(files: FileSettings, name: str) -> None:
    with pytest.raises(InvalidParams, match=r"leads out of the host's folders|there is no '~'") as caught:
        find(files, name)
    assert caught.value.details[0]["path"] == ["path"]


def test_a_link_that_leads_out_is_refused(files: FileSettings, tmp_path: Path) -> None:
    (tmp_path / "inside" / "link").symlink_to(tmp_path / "outside")
    with pytest.raises(InvalidParams, match="leads out"):
        find(files, "link/secret.safetensors")
    (tmp_path / "inside" / "loop").symlink_to(tmp_path / "inside" / "loop")
    with pytest.raises(InvalidParams):
        find(files, "loop")


def test_a_link_that_leads_out_is_refused_behind_one_that_runs_in_a_circle(files: FileSettings, tmp_path: Path) -> None:
    """pathlib stops to follow links at the first such one."""
    (tmp_path / "inside" / "link").symlink_to(tmp_path / "outside")
    (tmp_path / "inside" / "loop").symlink_to("loop")
    for name in ("loop/../link", "loop/../link/secret.safetensors"):
        with pytest.raises(InvalidParams):
            find(files, name)
        with pytest.raises(InvalidParams):
            check_inside(files, tmp_path / "inside" / name)


@pytest.mark.parametrize("name", ["", "a\0b", "x" * 5000])
def test_what_is_no_path_is_refused(files: FileSettings, name: str) -> None:
    with pytest.raises(InvalidParams):
        find(files, name)


def test_a_missing_file_names_the_nearest_and_none_of_the_hosts_own_paths(files: FileSettings, tmp_path: Path) -> None:
    with pytest.raises(InvalidParams, match="did you mean 'loras/emoji-pencil'") as caught:
        find(files, "loras/emoji-pensil")
    assert str(tmp_path) not in caught.value.message
    with pytest.raises(InvalidParams, match=r"there are .*controlnets/emoji-outline") as caught:
        find(files, "?")
    assert "emoji/unet" not in caught.value.message


def test_a_hub_id_needs_the_owners_leave(files: FileSettings) -> None:
    with pytest.raises(InvalidParams, match="there is no 'someone/some-lora'"):
        find(files, "someone/some-lora")


HUB = """
import sys
from pathlib import Path
from latentwire import Host, Settings, InvalidParams
from latentwire.core.files import check_inside, find
from latentwire.core.settings import FileSettings
print(find(FileSettings(hub=True), "someone/some-lora").name)
try:
    find(FileSettings(hub=True), "someone/nothing")
except InvalidParams as error:
    print(error.message[:40])
host = Host(Settings.model_validate({"discover": False, "models": {"theirs": {"hub": "someone/model"}}}))
print(host.store.card("theirs").family, host.store.card("theirs").size)
host.close()
"""


def test_what_was_downloaded_is_used_where_the_hub_is_allowed(tmp_path: Path) -> None:
    """There is no hub here, so its cache holds what an earlier download would have left."""
    revision = "0123456789abcdef0123456789abcdef01234567"
    for name in ("some-lora", "model"):
        repository = tmp_path / "hub" / f"models--someone--{name}"
        (repository / "refs").mkdir(parents=True)
        (repository / "refs" / "main").write_text(revision)
        (repository / "snapshots").mkdir()
    (tmp_path / "hub/models--someone--some-lora/snapshots" / revision).mkdir()
    (tmp_path / "hub/models--someone--model/snapshots" / revision).symlink_to(EMBEDDED_MODEL)
    environment = os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", HUB], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        revision,
        "the hub gives no 'someone/nothing': Loca",
        "StableDiffusionPipeline 128",
    ]


def test_the_embedded_model_is_where_the_roots_say() -> None:
    assert json.loads((EMBEDDED_MODEL / "model_index.json").read_text())["_class_name"] == "StableDiffusionPipeline"

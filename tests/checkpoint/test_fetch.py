"""Downloading a checkpoint, with a hub that is not there: what is asked for, and every refusal in one line."""

from __future__ import annotations

import json
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import errors

from dgemma_jax.checkpoint import hub
from tools import convert

SHA = "0f28bc42f588fbd8f71e08102b1c3960298a1358"
FILES = {
    "config.json": b"{}",
    "tokenizer.json": b"tokenizer",
    "chat_template.jinja": b"template",
    "model-00001-of-00001.safetensors": b"weights",
    "model.safetensors.index.json": b"index",
    "README.md": b"not needed",
    "original/model.safetensors": b"not needed",
    "pytorch_model.bin": b"not needed",
}
Usage = namedtuple("Usage", "total used free")


class FakeHub:
    """Serves `FILES`; notes what was asked."""

    def __init__(self) -> None:
        self.asked: list[str | None] = []
        self.downloads: list[dict[str, Any]] = []
        self.error: Exception | None = None
        self.files = FILES

    def model_info(self, _: Any, repository: str, *, revision: str | None, files_metadata: bool) -> SimpleNamespace:
        self.asked.append(revision)
        if self.error:
            raise self.error
        siblings = [SimpleNamespace(rfilename=name, size=len(data)) for name, data in self.files.items()]
        return SimpleNamespace(sha=SHA, siblings=siblings)

    def snapshot_download(self, repository: str, **options: Any) -> str:
        self.downloads.append({"repository": repository, **options})
        (options["local_dir"] / ".cache" / "huggingface").mkdir(parents=True, exist_ok=True)
        for name in options["allow_patterns"]:
            (options["local_dir"] / name).write_bytes(self.files[name])
        return str(options["local_dir"])


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeHub:
    fake = FakeHub()
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *args, **kwargs: fake.model_info(*args, **kwargs))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake.snapshot_download)
    monkeypatch.setenv(hub.CHECKPOINTS_VARIABLE, str(tmp_path / "checkpoints"))
    return fake


def http_error(kind: type[errors.HfHubHTTPError], text: str) -> Exception:
    """As the client raises it; its initialiser wants a response, which differs from version to version."""
    error = kind.__new__(kind)
    error.args = (text,)
    return error


def test_only_what_is_needed_comes_and_at_one_commit(fake: FakeHub, tmp_path: Path) -> None:
    folder = hub.fetch("org/name", "main")
    assert folder == tmp_path / "checkpoints" / "name"
    assert {path.name for path in folder.iterdir() if path.is_file()} == {
        "config.json",
        "tokenizer.json",
        "chat_template.jinja",
        "model-00001-of-00001.safetensors",
        "model.safetensors.index.json",
        "fetched.json",
    }
    assert fake.asked == ["main"]
    assert fake.downloads[0]["revision"] == SHA


def test_what_is_there_needs_no_hub(fake: FakeHub) -> None:
    folder = hub.resolve_checkpoint("org/name")
    fake.error = errors.OfflineModeIsEnabled("offline")
    assert hub.resolve_checkpoint("org/name") == folder == hub.fetch("org/name", SHA)
    assert len(fake.downloads) == 1


def test_what_was_stopped_goes_on(fake: FakeHub, tmp_path: Path) -> None:
    fake.files = {name: data for name, data in FILES.items() if "tokenizer" not in name}
    folder = hub.fetch("org/name")
    (folder / hub.FETCHED_FILE).unlink()  # written last
    fake.files = FILES
    assert (hub.fetch("org/name") / "tokenizer.json").is_file()


def test_a_folder_is_itself(fake: FakeHub, tmp_path: Path) -> None:
    assert hub.resolve_checkpoint(str(tmp_path)) == tmp_path
    assert not fake.asked


@pytest.mark.parametrize("text", ["nothing", "./org/name", "/org/name", "org/name/more", "org/..", "org\\name", ""])
def test_what_is_neither_a_folder_nor_a_name_is_said(text: str, fake: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "is_dir", lambda _: False)
    with pytest.raises(hub.FetchError, match="is not a folder, and not a name on the Hugging Face Hub"):
        hub.resolve_checkpoint(text)
    assert not fake.asked


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (http_error(errors.RepositoryNotFoundError, "404\nRequest id"), "the Hub has no org/name, or it is private"),
        (http_error(errors.GatedRepoError, "403"), "open https://huggingface.co/org/name"),
        (http_error(errors.RevisionNotFoundError, "404"), "org/name has no revision v9"),
        (http_error(errors.HfHubHTTPError, "500 down\nRequest id"), "the Hub refused org/name at v9: 500 down"),
        (errors.OfflineModeIsEnabled("offline"), "HF_HUB_OFFLINE forbids to download it"),
        (errors.HTTPError("no route\nto host"), "cannot download org/name at v9: no route"),
        (errors.LocalEntryNotFoundError("no connection"), "cannot download org/name at v9: no connection"),
    ],
)
def test_every_refusal_is_one_line(
    error: Exception, said: str, fake: FakeHub, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.error = error
    assert convert.main(["fetch", "org/name", "--revision", "v9"]) == 2
    printed = capsys.readouterr()
    assert said in printed.err and printed.err.count("\n") == 1 and not printed.out


def test_the_client_itself_is_offline_where_it_must_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(hub.CHECKPOINTS_VARIABLE, str(tmp_path))
    with pytest.raises(hub.FetchError, match="HF_HUB_OFFLINE forbids"):
        hub.fetch("org/name")


def test_a_full_disk_is_said_before_the_download(fake: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub.shutil, "disk_usage", lambda _: Usage(10**9, 10**9, 5 * 10**8))
    with pytest.raises(hub.FetchError, match=r"has 0\.5 GB free"):
        hub.fetch("org/name")
    assert not fake.downloads


def test_a_repository_without_a_checkpoint_is_refused(fake: FakeHub) -> None:
    fake.files = {"config.json": b"{}", "model.gguf": b"weights"}
    with pytest.raises(hub.FetchError, match="it lacks config"):
        hub.fetch("org/name")


def test_another_checkpoint_is_not_overwritten(fake: FakeHub, tmp_path: Path) -> None:
    hub.fetch("org/name", out=tmp_path / "here")
    with pytest.raises(hub.FetchError, match="holds org/name at 0f28"):
        hub.fetch("org/other", out=tmp_path / "here")
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "config.json").write_text("{}")
    with pytest.raises(hub.FetchError, match="holds a checkpoint that was not downloaded"):
        hub.fetch("org/name", out=mine)


def test_the_command_says_where_and_which(fake: FakeHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert convert.main(["fetch", "org/name", "--out", str(tmp_path / "here"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["out"], found["repository"], found["revision"]) == (str(tmp_path / "here"), "org/name", SHA)

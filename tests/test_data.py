from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from nnrepair.domains import files as data
from nnrepair.domains.files import Resource
from nnrepair.errors import DataUnavailable, InvalidInput

CONTENT = b"0123456789" * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()
MD5 = hashlib.md5(CONTENT, usedforsecurity=False).hexdigest()
OFFLINE = "http://127.0.0.1:9/file.bin"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/missing":
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(CONTENT[:100] if self.path == "/cut" else CONTENT)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()
        thread.join()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("NNREPAIR_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return tmp_path / "cache" / "nnrepair"


def files_under(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


@pytest.mark.parametrize("pin", [{"sha256": SHA256}, {"md5": MD5}, {"sha256": SHA256.upper(), "md5": MD5}])
def test_a_download_lands_in_the_cache_and_is_used_again(cache: Path, server: str, pin: dict[str, str]) -> None:
    path = data.locate(Resource("set/file.bin", f"{server}/whole", **pin))
    assert path == cache / "set/file.bin"
    assert path.read_bytes() == CONTENT
    assert files_under(cache) == ["set/file.bin"]
    assert data.locate(Resource("set/file.bin", OFFLINE, **pin)) == path


def test_the_named_folder_comes_before_the_cache(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "own"
    for folder, content in ((own, b"mine"), (cache, CONTENT)):
        folder.mkdir(parents=True)
        (folder / "file.bin").write_bytes(content)
    resource = Resource("file.bin", OFFLINE, sha256=SHA256)
    assert data.locate(resource) == cache / "file.bin"
    monkeypatch.setenv("NNREPAIR_DATA", str(own))
    assert data.locate(resource) == own / "file.bin"
    assert data.find("file.bin") == own / "file.bin"
    assert data.find("other.bin") is None


def test_offline_names_the_two_ways_out(cache: Path) -> None:
    with pytest.raises(DataUnavailable) as caught:
        data.locate(Resource("set/file.bin", OFFLINE, sha256=SHA256))
    message = str(caught.value)
    assert "export NNREPAIR_DATA=" in message and "$NNREPAIR_DATA/set/file.bin" in message
    assert f"curl -L -o '{cache / 'set/file.bin'}' '{OFFLINE}'" in message
    assert files_under(cache) == []


def test_a_missing_page_is_unavailable_data(cache: Path, server: str) -> None:
    with pytest.raises(DataUnavailable, match="404"):
        data.locate(Resource("file.bin", f"{server}/missing", sha256=SHA256))
    assert files_under(cache) == []


def test_a_download_cut_short_is_not_kept(cache: Path, server: str) -> None:
    with pytest.raises(DataUnavailable, match=f"sha256 is [0-9a-f]{{64}}, expected {SHA256} .100 bytes"):
        data.locate(Resource("file.bin", f"{server}/cut", sha256=SHA256))
    assert files_under(cache) == []


def test_another_file_under_the_same_name_is_not_kept(cache: Path, server: str) -> None:
    with pytest.raises(DataUnavailable, match="md5 is"):
        data.locate(Resource("file.bin", f"{server}/whole", md5="0" * 32))
    assert files_under(cache) == []


def test_a_damaged_file_in_the_cache_is_named(cache: Path) -> None:
    cache.mkdir(parents=True)
    (cache / "file.bin").write_bytes(CONTENT[:-1])
    with pytest.raises(InvalidInput, match=r"file\.bin is damaged.*Delete it"):
        data.locate(Resource("file.bin", OFFLINE, sha256=SHA256))


def test_a_file_in_the_cache_is_read_once_while_it_stays_as_it_is(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.mkdir(parents=True)
    (cache / "file.bin").write_bytes(CONTENT)
    resource, looks = Resource("file.bin", OFFLINE, sha256=SHA256), []
    own = data._mismatch
    monkeypatch.setattr(data, "_mismatch", lambda *args: looks.append(1) or own(*args))
    for _ in range(3):
        data.locate(resource)
    assert len(looks) == 1
    (cache / "file.bin").write_bytes(CONTENT[::-1])
    with pytest.raises(InvalidInput, match="is damaged"):
        data.locate(resource)


def test_a_file_without_source_says_where_to_put_it(cache: Path) -> None:
    with pytest.raises(DataUnavailable, match="has no download source"):
        data.locate(Resource("set/only-here.npz"))


def test_a_wrong_data_folder_is_named(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NNREPAIR_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(InvalidInput, match="NNREPAIR_DATA is .*nowhere"):
        data.find("file.bin")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"path": "../file"}, "inside the data folder"),
        ({"path": "/etc/file"}, "inside the data folder"),
        ({"path": ""}, "inside the data folder"),
        ({"path": "file", "url": "ftp://x/file", "md5": MD5}, "https://"),
        ({"path": "file", "url": "https://x/file"}, "pin its sha256"),
    ],
)
def test_resources_are_checked_at_the_door(arguments: dict[str, str], complaint: str) -> None:
    with pytest.raises(InvalidInput, match=complaint):
        Resource(**arguments)


def test_the_cache_defaults_to_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert data.cache_folder() == Path.home() / ".cache" / "nnrepair"

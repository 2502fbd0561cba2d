"""Downloads from a server that cuts connections, refuses, or sends wrong bytes; bad archives."""

import hashlib
import http.server
import io
import os
import shutil
import stat
import threading
import time
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest

from vqlib import DataError
from vqlib.lesions import download as download_data
from vqlib.lesions.download import BASE_URLS, FILES, RemoteFile

MB = 2**20


def archive(**members):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as zip_file:
        for name, content in members.items():
            zip_file.writestr(name, content)
    return file.getvalue()


GOOD = archive(**{"image.bin": np.random.default_rng(0).bytes(4 * MB)})


class Handler(http.server.BaseHTTPRequestHandler):
    """Sends `server.content`, or the range that was asked for."""

    def do_GET(self):
        server, asked = self.server, self.headers.get("Range")
        server.ranges.append(asked)
        start = int(asked[6:-1]) if asked and server.knows_ranges else 0
        body = server.content[start:]
        if asked and server.knows_ranges:
            self.send_response(server.status or (206 if body else 416))
        else:
            self.send_response(server.status or 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: server.cut_after])

    def log_message(self, *args):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as web_server:
        vars(web_server).update(
            content=GOOD, status=None, cut_after=None, knows_ranges=True, ranges=[]
        )
        threading.Thread(target=web_server.serve_forever, args=(0.02,), daemon=True).start()
        monkeypatch.setitem(BASE_URLS, "isic2018", f"http://127.0.0.1:{web_server.server_port}/")
        publish(monkeypatch, GOOD)
        yield web_server
        web_server.shutdown()


def publish(monkeypatch, content):
    file = RemoteFile("data.zip", "data.zip", hashlib.md5(content).hexdigest(), len(content))
    monkeypatch.setitem(FILES, "isic2018", [file])


def fetch(folder, message=None):
    if message is None:
        return download_data("isic2018", folder)
    with pytest.raises(DataError, match=message):
        download_data("isic2018", folder)
    assert not (folder / "data.zip").exists() and not list(folder.rglob("image.bin"))


def test_a_download_that_was_cut_is_continued(server, tmp_path):
    server.cut_after = MB + 1000
    for _ in range(2):
        fetch(tmp_path, r"data.zip could not be downloaded .*: call again")
    server.cut_after = None
    fetch(tmp_path)
    assert server.ranges == [None, f"bytes={MB}-", f"bytes={2 * MB}-"]
    assert (tmp_path / "data/image.bin").stat().st_size == 4 * MB
    assert not list(tmp_path.glob(".*"))  # neither partial files nor folders
    fetch(tmp_path)
    assert len(server.ranges) == 3  # verified and kept


@pytest.mark.parametrize("status", [403, 404, 503])
def test_an_error_of_the_server_is_named_and_loses_nothing(server, tmp_path, status):
    server.cut_after = MB
    fetch(tmp_path, "call again")
    server.cut_after, server.status = None, status
    fetch(tmp_path, rf"data.zip could not be downloaded .*{status}.*: call again, or save it in")
    server.status = None
    fetch(tmp_path)
    assert server.ranges[-1] == f"bytes={MB}-"


def test_wrong_bytes_are_deleted_and_never_unpacked(server, tmp_path):
    server.content = archive(**{"image.bin": b"an attack"})
    fetch(tmp_path, r"another MD5 and was deleted")
    assert list(tmp_path.iterdir()) == []
    server.content = GOOD
    (tmp_path / ".data.zip.part").write_bytes(b"of another version")
    fetch(tmp_path, r"another MD5 and was deleted")
    fetch(tmp_path)


def test_a_server_without_ranges_and_a_file_that_is_already_complete(server, tmp_path):
    (tmp_path / ".data.zip.part").write_bytes(GOOD)  # killed before it was renamed
    fetch(tmp_path)
    (tmp_path / "data.zip").unlink()
    (tmp_path / ".data.zip.part").write_bytes(GOOD[:MB])
    server.knows_ranges = False
    fetch(tmp_path)


@pytest.mark.parametrize("name", ["../evil", "images/../../evil", "/evil"])
def test_an_archive_can_not_write_elsewhere(server, tmp_path, monkeypatch, name):
    server.content = archive(**{"image.bin": b"good", name: b"evil"})
    publish(monkeypatch, server.content)
    folder = tmp_path / "to"
    with pytest.raises(DataError, match=r"data.zip would write to .*evil: do not use"):
        download_data("isic2018", folder)
    assert [path.name for path in tmp_path.rglob("*")] == ["to", "data.zip"]


def test_a_link_in_an_archive_becomes_a_file(server, tmp_path, monkeypatch):
    link = zipfile.ZipInfo("link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as zip_file:
        zip_file.writestr(link, "/etc/passwd")
    server.content = file.getvalue()
    publish(monkeypatch, server.content)
    fetch(tmp_path)
    path = tmp_path / "data" / "link"
    assert not path.is_symlink() and path.read_text() == "/etc/passwd"


def test_an_archive_larger_than_the_disk_is_not_unpacked(server, tmp_path, monkeypatch):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as zip_file:
        zip_file.writestr("zeros", bytes(20 * MB))
    server.content = file.getvalue()
    publish(monkeypatch, server.content)
    free = SimpleNamespace(free=10 * MB)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    with pytest.raises(DataError, match=r"data.zip needs 0\.0 GB, 0\.0 GB are free: make room"):
        download_data("isic2018", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["data.zip"]


def test_what_a_killed_process_was_unpacking_is_removed(server, tmp_path):
    left = tmp_path / ".unpacking-abc"
    left.mkdir()
    (left / "half").touch()
    for path in (left / "half", left):
        os.utime(path, (0, time.time() - 10_000))
    fetch(tmp_path)
    assert not left.exists()

"""Files by content: complete or absent, never outside the root."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from store.artifacts import ArtifactStore, CorruptArtifact

PUT_FOR_EVER = """
import sys
from pathlib import Path
from store.artifacts import ArtifactStore
store = ArtifactStore(Path(sys.argv[1]))
print("ready", flush=True)
for i in range(10**9):
    store.put_bytes(bytes([i % 256]) * 300_000)
"""


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "artifacts")


def files(store: ArtifactStore) -> list[str]:
    return sorted(str(path.relative_to(store.root)) for path in store.root.rglob("*") if path.is_file())


def test_what_is_put_is_found_by_its_hash(store: ArtifactStore, tmp_path: Path) -> None:
    content = os.urandom(3_000_000)
    (tmp_path / "source").write_bytes(content)
    sha256, size = store.put(tmp_path / "source")
    assert (sha256, size) == (hashlib.sha256(content).hexdigest(), len(content))
    assert store.path(sha256) == store.root / sha256[:2] / sha256
    with store.open(sha256) as source:
        assert source.read() == content
    assert store.put_bytes(content) == (sha256, size)
    assert files(store) == [f"{sha256[:2]}/{sha256}"], "the same content is kept once, and nothing else is left"
    store.remove(sha256)
    store.remove(sha256)
    with pytest.raises(FileNotFoundError, match=f"no artifact {sha256}"):
        store.path(sha256)


def test_the_empty_file_is_a_file(store: ArtifactStore) -> None:
    sha256, size = store.put_bytes(b"")
    assert size == 0
    store.verify(sha256)


@pytest.mark.parametrize("damage", ["flipped", "cut short", "emptied"])
def test_damage_is_found_and_mended_by_putting_again(store: ArtifactStore, damage: str) -> None:
    content = bytes(range(256)) * 100
    sha256, _ = store.put_bytes(content)
    damaged = {"flipped": b"\xff" + content[1:], "cut short": content[:-1], "emptied": b""}[damage]
    store.path(sha256).write_bytes(damaged)
    for read in (store.verify, store.open):
        with pytest.raises(CorruptArtifact, match=sha256):
            read(sha256)
    store.put_bytes(content)
    store.verify(sha256)


@pytest.mark.parametrize(
    "name", ["", "..", "../../etc/passwd", "/etc/passwd", "a" * 63, "A" * 64, "a" * 64 + "\n", "g" * 64, "\0" * 64, "ab/" + "a" * 61]
)
def test_only_hashes_are_names(store: ArtifactStore, name: str) -> None:
    for ask in (store.path, store.open, store.verify, store.remove):
        with pytest.raises(ValueError, match="64 lower-case hexadecimal digits"):
            ask(name)


def test_a_full_disk_leaves_no_partial_file(store: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept, _ = store.put_bytes(b"kept")

    class FullDisk(io.BufferedWriter):
        def write(self, data: object) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("store.artifacts.os.fdopen", lambda fd, mode: FullDisk(io.FileIO(fd, "w")))
        (tmp_path / "source").write_bytes(b"x" * 100)
        for put in (lambda: store.put(tmp_path / "source"), lambda: store.put_bytes(b"more")):
            with pytest.raises(OSError, match="No space left"):
                put()
    assert files(store) == [f"{kept[:2]}/{kept}"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failure_at_the_end_leaves_no_partial_file(store: ArtifactStore, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    store.root.mkdir()

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os if step == "fsync" else Path, step, fail)
        with pytest.raises(OSError, match="Input/output"):
            store.put_bytes(b"content")
    assert files(store) == []


def test_writers_of_one_content_at_once(store: ArtifactStore) -> None:
    content = os.urandom(500_000)
    hashes: list[str] = []
    threads = [threading.Thread(target=lambda: hashes.append(store.put_bytes(content)[0])) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(hashes) == 8
    assert len(set(hashes)) == 1
    store.verify(hashes[0])
    assert len(files(store)) == 1


def test_a_killed_writer_leaves_only_whole_files(store: ArtifactStore) -> None:
    for _ in range(3):
        writer = subprocess.Popen([sys.executable, "-c", PUT_FOR_EVER, str(store.root)], stdout=subprocess.PIPE)
        assert writer.stdout
        writer.stdout.readline()
        threading.Event().wait(0.15)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
    names = [path.name for path in store.root.rglob("*") if path.is_file()]
    whole = [name for name in names if not name.startswith("incoming-")]
    assert whole
    for name in whole:
        store.verify(name)

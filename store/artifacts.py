"""Files by content: ``ROOT/ab/<sha256>``.  A file under its name is complete and has that hash; there is no half-written one."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

_CHUNK_BYTES = 1 << 20
_HASH = re.compile(r"[0-9a-f]{64}")


class CorruptArtifact(RuntimeError):  # noqa: N818 - named for what it says
    """The file's content does not have the hash of its name."""


class ArtifactStore:
    """One folder of content-addressed files.  Writers on several processes don't disturb each other."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, sha256: str) -> Path:
        """Where content of this hash lies.  ValueError for anything that is not a hash, FileNotFoundError if it is not here."""
        path = self._place(sha256)
        if not path.is_file():
            raise FileNotFoundError(f"no artifact {sha256} in {self.root}; it was removed, or it lies on another machine's disk")
        return path

    def open(self, sha256: str) -> BinaryIO:
        """The content, verified before the first byte is handed out.  CorruptArtifact if it changed on disk."""
        self.verify(sha256)
        return self.path(sha256).open("rb")

    def verify(self, sha256: str) -> None:
        """CorruptArtifact if the content does not have this hash, FileNotFoundError if it is not here."""
        with self.path(sha256).open("rb") as source:
            found = hashlib.file_digest(source, "sha256").hexdigest()
        if found != sha256:
            raise CorruptArtifact(f"artifact {sha256} has hash {found} on disk; it was changed or damaged: run the job again")

    def put(self, path: Path) -> tuple[str, int]:
        """Copy a file in; returns its sha256 and size in bytes.  On any error, a full disk included, nothing of it stays behind."""
        with path.open("rb") as source, self._incoming() as (target, temporary):
            digest = hashlib.sha256()
            while chunk := source.read(_CHUNK_BYTES):
                digest.update(chunk)
                target.write(chunk)
            return self._keep(target, temporary, digest.hexdigest())

    def put_bytes(self, content: bytes) -> tuple[str, int]:
        """Keep these bytes; returns their sha256 and size."""
        with self._incoming() as (target, temporary):
            target.write(content)
            return self._keep(target, temporary, hashlib.sha256(content).hexdigest())

    def remove(self, sha256: str) -> None:
        """Delete content; no error if it is not here.  Only for a store that one job has to itself: others may share a hash."""
        self._place(sha256).unlink(missing_ok=True)

    def _place(self, sha256: str) -> Path:
        if not _HASH.fullmatch(sha256):
            raise ValueError(f"artifact hash is {sha256!r}; it must be 64 lower-case hexadecimal digits")
        return self.root / sha256[:2] / sha256

    @contextmanager
    def _incoming(self) -> Iterator[tuple[BinaryIO, Path]]:
        self.root.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix="incoming-", dir=self.root)  # same file system as the target: rename is atomic
        temporary = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as target:
                yield target, temporary
        finally:
            temporary.unlink(missing_ok=True)

    def _keep(self, target: BinaryIO, temporary: Path, sha256: str) -> tuple[str, int]:
        target.flush()
        os.fsync(target.fileno())
        size = target.tell()
        place = self._place(sha256)
        place.parent.mkdir(exist_ok=True)
        temporary.replace(place)  # over an old copy of the same content: also mends one that was damaged
        for folder in (place.parent, self.root):
            _sync_folder(folder)
        return sha256, size


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""The only place that touches storage: a local folder or a prefix of an S3 bucket, with create-if-absent.

Paths are relative to the library's root, with `/` between parts; no part is empty or begins with a dot, so none
leaves the root. Names that begin with `.tmp-` are unfinished writes and are never listed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Protocol
from urllib.parse import urlsplit

from pydantic import ValidationError

from ensemble_core.api.common import CredentialsSecretRef, S3Storage, Storage
from ensemble_core.errors import OutageError, UserError

TEMPORARY = ".tmp-"
LOCK = ".lock"
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
REFUSED = (errno.EROFS, errno.EACCES, errno.EPERM)
LOCK_SECONDS = 60.0  # a lock is held for two small file operations
_CREDENTIALS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_SESSION_TOKEN": "token"}
_RELATIVE = re.compile(r"[A-Za-z0-9_][-A-Za-z0-9_.]*(/[A-Za-z0-9_][-A-Za-z0-9_.]*)*")


@dataclass(frozen=True)
class Entry:
    """A stored file: its size in bytes and when it was written, Unix seconds."""

    bytes: int
    modified: float


class Store(Protocol):
    """Files under one root. Reading what is not there raises FileNotFoundError."""

    @property
    def url(self) -> str:
        """The root for messages, never with credentials."""

    def read(self, path: str) -> bytes:
        """The whole file."""

    def read_many(self, paths: Iterable[str]) -> dict[str, bytes]:
        """Several files, read concurrently where that pays; those that are gone are left out."""

    def write(self, path: str, data: bytes) -> None:
        """Write or replace a file atomically and durably: readers see the old or the new content."""

    def check_writable(self) -> None:
        """UserError if files cannot be written here; to be asked before work whose result is to be stored."""

    def create(self, path: str, data: bytes) -> bool:
        """Write a file only if its name is free; True for exactly one of any number of concurrent callers."""

    def replace(self, path: str, old: bytes, new: bytes) -> bool:
        """Write `new` only if the file's content is `old`; False, and no effect, otherwise."""

    def entries(self, prefix: str) -> dict[str, Entry]:
        """All files whose path begins with `prefix`, by path."""

    def list(self, prefix: str) -> tuple[str, ...]:
        """The sorted paths of all files whose path begins with `prefix`."""

    def delete(self, path: str) -> None:
        """Remove a file; one that is missing is fine."""

    def upload(self, path: str, source: Path) -> None:
        """As `write`, from a local file of any size."""

    def download(self, path: str, target: Path) -> None:
        """Copy to a local file; the caller makes that atomic."""

    def local(self, path: str) -> Path | None:
        """The file itself where the store is a local folder, else None."""

    def leftovers(self, older_than_seconds: float) -> dict[str, Entry]:
        """Unfinished writes that are at least this old, by path."""


def open_store(storage: Storage, where: str = "storage") -> Store:
    """The store behind a `storage` field, which messages call `where`; nothing is read or written yet.

    Credentials come from the environment: those of the Secret that the storage names (`credentials`), else the plain
    `AWS_*`. A store that cannot create-if-absent is refused with a UserError by its
    first `create`, before anything was written: every writer begins with one.

    Its methods raise UserError for what the user must set right, OutageError for what may be over the next time.
    """
    if storage.path is not None:
        if Path(storage.path).exists() and not Path(storage.path).is_dir():
            raise UserError(storage.path, "is a file; a library is a folder")
        return LocalStore(Path(storage.path))
    if storage.s3 is not None:
        return S3Store(storage.s3, credentials(storage.credentials_secret_ref, os.environ))
    raise UserError(f"{where}.persistentVolumeClaim", "is only reachable in a cluster; give `path` or `s3` here")


def credentials(secret: CredentialsSecretRef | None, environment: Mapping[str, str]) -> dict[str, str]:
    """What `s3fs` needs to log in with the keys of a Secret; empty if there are none, for then the plain `AWS_*` count.

    A pod has each key as the variable `ENSEMBLE_S3_<NAME OF THE SECRET>_<KEY>`, in capitals with `_` for all that is
    neither letter nor digit; so storages with different credentials are read by one process.
    """
    if secret is None:
        return {}
    prefix = f"ENSEMBLE_S3_{re.sub('[^A-Z0-9]', '_', secret.name.upper())}_"
    # Who encodes a Secret by hand easily encodes a newline too.
    given = {argument: environment.get(prefix + key, "").strip() for key, argument in _CREDENTIALS.items()}
    return {argument: value for argument, value in given.items() if value}


def storage_at(location: str) -> Storage:
    """The storage that a command line argument names: `s3://bucket/prefix` or a folder."""
    if location.startswith("s3://"):
        parts = urlsplit(location)
        if not parts.netloc or "@" in parts.netloc:
            raise UserError(location.rpartition("@")[2], "must be s3://bucket/prefix, without credentials")
        try:
            return Storage(s3=S3Storage(bucket=parts.netloc, prefix=parts.path.strip("/")))
        except ValidationError as error:
            raise UserError(location, "; ".join(f"{e['loc'][-1]}: {e['msg']}" for e in error.errors())) from None
    if "://" in location or not location:
        raise UserError(location or "LIBRARY", "is no library; give a folder or s3://bucket/prefix")
    return Storage(path=str(Path(location).absolute()))


def checked(path: str) -> str:
    """The path itself; ValueError if it could leave the root or name a hidden file."""
    if not _RELATIVE.fullmatch(path):
        raise ValueError(f"{path!r} is no relative path of plain names")
    return path


class LocalStore:
    """A folder of a POSIX file system with hard links and locks (local disks, NFS, most cluster file systems)."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()

    @property
    def url(self) -> str:
        return str(self.root)

    def local(self, path: str) -> Path:
        """The file's place; UserError if a symbolic link on the way leaves the root."""
        place = self.root / checked(path)
        real, root = os.path.realpath(place), os.path.realpath(self.root)
        if os.path.commonpath([real, root]) != root:
            raise UserError(str(place), "leaves the library through a symbolic link")
        return place

    def read(self, path: str) -> bytes:
        return self.local(path).read_bytes()

    def read_many(self, paths: Iterable[str]) -> dict[str, bytes]:
        found = {}
        for path in paths:
            with contextlib.suppress(FileNotFoundError):
                found[path] = self.read(path)
        return found

    def write(self, path: str, data: bytes) -> None:
        self._put(path, lambda file: file.write(data))

    def upload(self, path: str, source: Path) -> None:
        with source.open("rb") as content:
            self._put(path, lambda file: shutil.copyfileobj(content, file, 2**20))

    def download(self, path: str, target: Path) -> None:
        shutil.copyfile(self.local(path), target)

    def check_writable(self) -> None:
        if not self.root.is_dir():
            return  # who makes it will see
        try:
            file, temporary = _open_temporary(self.root / "any")
            file.close()
            temporary.unlink()
        except OSError as error:
            if error.errno in REFUSED:  # that there is no room may be over by then
                raise UserError(self.url, f"cannot be written: {error.strerror}") from error

    def create(self, path: str, data: bytes) -> bool:
        place = self.local(path)
        with self._complete(place, lambda file: file.write(data)) as temporary:
            try:
                os.link(temporary, place)
            except FileExistsError:
                # NFS may repeat a request whose answer got lost: then the second link is ours.
                if not (place.exists() and os.path.samefile(temporary, place)):
                    return False
            except OSError as error:
                if error.errno in (errno.EPERM, errno.ENOTSUP, errno.EMLINK):
                    raise UserError(self.url, "the file system has no hard links: it cannot create-if-absent") from None
                raise
        _sync_folder(place.parent)
        return True

    def replace(self, path: str, old: bytes, new: bytes) -> bool:
        try:
            with self._locked():
                if self.read(path) != old:
                    return False
                self.write(path, new)
                return True
        except FileNotFoundError:
            return False

    def entries(self, prefix: str) -> dict[str, Entry]:
        found = {}
        for place in self._walk(prefix):
            with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
                found[self._relative(place)] = _entry(place)
        return dict(sorted(found.items()))

    def list(self, prefix: str) -> tuple[str, ...]:
        return tuple(sorted(self._relative(place) for place in self._walk(prefix)))

    def delete(self, path: str) -> None:
        place = self.root / path if Path(path).name.startswith(TEMPORARY) else self.local(path)
        place.unlink(missing_ok=True)
        # A folder without files is nothing in a library; whoever writes there next makes it again.
        for folder in (f for f in place.parents if self.root in f.parents):
            try:
                folder.rmdir()
            except OSError:
                break

    def leftovers(self, older_than_seconds: float) -> dict[str, Entry]:
        latest = time.time() - older_than_seconds
        found = {}
        for place in self.root.rglob(f"{TEMPORARY}*"):
            with contextlib.suppress(FileNotFoundError):
                if (entry := _entry(place)).modified <= latest:
                    found[self._relative(place)] = entry
        return found

    def _relative(self, place: Path) -> str:
        return place.relative_to(self.root).as_posix()

    def _walk(self, prefix: str) -> Iterator[Path]:
        start = self.root / prefix.rpartition("/")[0]
        for folder, folders, files in os.walk(start, onerror=_unless_gone):
            at = Path(folder)
            if at == start:
                begins = prefix.rpartition("/")[2]
                folders[:] = [name for name in folders if name.startswith(begins)]
                files = [name for name in files if name.startswith(begins)]
            folders[:] = [name for name in folders if not name.startswith(".")]
            yield from (at / name for name in files if not name.startswith("."))

    def _put(self, path: str, fill: Callable[[BinaryIO], object]) -> None:
        place = self.local(path)
        with self._complete(place, fill) as temporary:
            temporary.replace(place)
        _sync_folder(place.parent)

    @contextlib.contextmanager
    def _complete(self, place: Path, fill: Callable[[BinaryIO], object]) -> Iterator[Path]:
        """A temporary file beside `place` whose content is complete and on disk; removed in the end."""
        with self._if_room():
            file, temporary = _open_temporary(place)
            try:
                with file:
                    fill(file)
                    file.flush()
                    os.fsync(file.fileno())
                yield temporary
            finally:
                temporary.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _if_room(self) -> Iterator[None]:
        """A file system that is full is an outage: work goes on once there is room."""
        try:
            yield
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            raise OutageError(f"{self.url}: is full ({error.strerror}); make room there") from error

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Exclusive lock that every `replace` in this folder takes; it dies with its process."""
        # A file of its own, open for writing: NFS locks nothing else.
        with (self.root / LOCK).open("ab") as file:
            deadline = time.monotonic() + LOCK_SECONDS
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        problem = f"is locked for more than {LOCK_SECONDS:.0f} s: end the process that stopped there"
                        raise UserError(file.name, problem) from None
                    time.sleep(0.01)
            yield


def _open_temporary(place: Path) -> tuple[BinaryIO, Path]:
    for _ in range(100):  # a deletion may take empty folders away between any two calls
        temporary = place.parent / f"{TEMPORARY}{uuid.uuid4().hex}"
        with contextlib.suppress(FileNotFoundError):
            _make_folder(place.parent)
            return temporary.open("xb"), temporary
    raise FileNotFoundError(str(place.parent))


def _make_folder(folder: Path) -> None:
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    try:
        folder.mkdir(exist_ok=True)
    except (PermissionError, FileExistsError, NotADirectoryError) as error:
        raise UserError(str(folder), f"cannot be made: {error.strerror}") from error
    _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    with contextlib.suppress(FileNotFoundError):  # deleted meanwhile, with what was in it
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _unless_gone(error: OSError) -> None:
    """A folder that cannot be listed is not an empty one: the fence would let an older attempt pass."""
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error


def _entry(place: Path) -> Entry:
    status = place.stat()
    return Entry(status.st_size, status.st_mtime)


class S3Store:
    """A prefix of a bucket, through s3fs. Objects appear whole; `create` is a PUT with `If-None-Match: *`."""

    def __init__(self, storage: S3Storage, credentials: Mapping[str, str]) -> None:
        self._storage = storage
        self._credentials = credentials
        self._answered = False
        self._root = f"{storage.bucket}/{storage.prefix.strip('/')}".rstrip("/")
        self._creates: bool | None = None

    @property
    def url(self) -> str:
        return f"s3://{self._root}"

    @cached_property
    def _files(self) -> Any:
        import s3fs  # takes a second to import, which local libraries need not spend

        region = {"region_name": self._storage.region} if self._storage.region else {}
        return s3fs.S3FileSystem(
            **self._credentials,
            endpoint_url=self._storage.endpoint,
            client_kwargs=region,
            config_kwargs={"max_pool_connections": 64, "connect_timeout": 10, "read_timeout": 60},
            use_listings_cache=False,  # other processes write
            max_concurrency=8,
        )

    @contextlib.contextmanager
    def _reached(self) -> Iterator[None]:
        """Turns errors of the store into ones that name the field to set right, or tell that it is out of order."""
        from botocore.exceptions import BotoCoreError, ConnectionError, HTTPClientError

        try:
            yield
        except (ConnectionError, HTTPClientError) as error:
            if self._answered:
                raise OutageError(f"{self.url}: does not answer any more: {error}") from error
            raise UserError(f"{self.url}: s3.endpoint", f"cannot be used: {error}") from error
        except BotoCoreError as error:
            raise UserError(f"{self.url}: credentialsSecretRef", f"cannot be used: {error}") from error
        except PermissionError as error:
            raise UserError(f"{self.url}: credentialsSecretRef", f"access is denied: {error}") from error
        except FileNotFoundError as error:
            if "bucket does not exist" in str(error):
                raise UserError(f"{self.url}: s3.bucket", "the bucket does not exist") from error
            self._answered = True
            raise
        except OSError as error:
            if _failed(error):
                raise OutageError(f"{self.url}: is out of order: {error}") from error
            raise
        self._answered = True

    def _at(self, path: str) -> str:
        return f"{self._root}/{checked(path)}"

    def local(self, path: str) -> None:
        return None

    def read(self, path: str) -> bytes:
        with self._reached():
            content: bytes = self._files.cat_file(self._at(path))
            return content

    def read_many(self, paths: Iterable[str]) -> dict[str, bytes]:
        keys = {self._at(path): path for path in paths}
        if not keys:
            return {}
        with self._reached():
            # Without concurrency inside a file it is one request a file, and the files go concurrently.
            found = self._files.cat(list(keys), recursive=False, on_error="return", max_concurrency=1, batch_size=64)
            answers = found if isinstance(found, dict) else dict.fromkeys(keys, found)
            for answer in answers.values():
                if isinstance(answer, BaseException) and not isinstance(answer, FileNotFoundError):
                    raise answer
        return {keys[key]: answer for key, answer in answers.items() if isinstance(answer, bytes)}

    def write(self, path: str, data: bytes) -> None:
        with self._reached():
            self._files.pipe_file(self._at(path), data)

    def upload(self, path: str, source: Path) -> None:
        with self._reached():
            self._files.put_file(str(source), self._at(path))

    def download(self, path: str, target: Path) -> None:
        with self._reached():
            self._files.get_file(self._at(path), str(target))

    def check_writable(self) -> None:
        if self._creates is None:
            self._creates = self._can_create()
        if not self._creates:
            raise UserError(self.url, "the store ignores If-None-Match: it cannot create-if-absent")

    def create(self, path: str, data: bytes) -> bool:
        self.check_writable()
        return self._create(self._at(path), data)

    def _can_create(self) -> bool:
        """Whether a second creation of one name is refused."""
        key = f"{self._root}/{TEMPORARY}{uuid.uuid4().hex}"
        try:
            return self._create(key, b"1") and not self._create(key, b"2")
        finally:
            with self._reached():
                self._files.rm_file(key)

    def _create(self, key: str, data: bytes) -> bool:
        writer = uuid.uuid4().hex

        def put() -> None:
            self._files.pipe_file(key, data, mode="create", Metadata={"writer": writer})

        if self._put_if(put):
            return True
        # The client repeats a request whose answer got lost; then the object that was in the way is our own.
        with self._reached():
            try:
                return bool(self._files.metadata(key).get("writer") == writer)
            except FileNotFoundError:
                return False

    def replace(self, path: str, old: bytes, new: bytes) -> bool:
        key = self._at(path)
        with self._reached():
            try:
                tag = self._files.info(key)["ETag"]
                if self._files.cat_file(key) != old:
                    return False
            except FileNotFoundError:
                return False
        writer = uuid.uuid4().hex
        if self._put_if(lambda: self._files.pipe_file(key, new, IfMatch=tag, Metadata={"writer": writer})):
            return True
        with self._reached():
            return bool(self._files.metadata(key).get("writer") == writer)

    def _put_if(self, put: Callable[[], None]) -> bool:
        """Whether a conditional PUT took effect; one that lost against a concurrent one is tried again."""
        for attempt in range(8):
            with self._reached():
                try:
                    put()
                    return True
                except FileExistsError:
                    return False
                except FileNotFoundError as error:
                    if "bucket does not exist" in str(error):
                        raise
                    return False  # what was to be replaced is gone
                except OSError as error:
                    code = _code(error)
                    if code == "PreconditionFailed":
                        return False
                    if code not in ("ConditionalRequestConflict", "OperationAborted"):
                        raise
            time.sleep(0.05 * 2**attempt)
        raise UserError(self.url, "keeps answering ConditionalRequestConflict")

    def entries(self, prefix: str) -> dict[str, Entry]:
        with self._reached():
            found = self._files.find(self._root, prefix=prefix, detail=True, refresh=True)
        start = len(self._root) + 1
        entries = {name[start:]: Entry(int(i["size"]), i["LastModified"].timestamp()) for name, i in found.items()}
        return {path: entry for path, entry in sorted(entries.items()) if _RELATIVE.fullmatch(path)}

    def list(self, prefix: str) -> tuple[str, ...]:
        return tuple(self.entries(prefix))

    def delete(self, path: str) -> None:
        with self._reached():
            self._files.rm_file(self._at(path))

    def leftovers(self, older_than_seconds: float) -> dict[str, Entry]:
        """None: unfinished uploads are no objects; a lifecycle rule of the bucket ends them."""
        return {}


def _response(error: OSError) -> Any:
    """What S3 answered, of an error that s3fs translated."""
    return getattr(error.__cause__, "response", None) or {}


def _code(error: OSError) -> str:
    return str(_response(error).get("Error", {}).get("Code", ""))


def _failed(error: OSError) -> bool:
    """Whether it is the server's failure, and not a refusal; 501 means that it will never do that."""
    status = int(_response(error).get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    return isinstance(error, TimeoutError) or (status >= 500 and status != 501)


def sha256_of(path: Path) -> str:
    """SHA-256 of a local file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

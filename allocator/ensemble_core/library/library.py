"""A model library, format 1: models of one task and one data set, in a folder or a bucket."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, ParamSpec, Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic.alias_generators import to_camel

from ensemble_core.errors import UserError
from ensemble_core.frozen import digest
from ensemble_core.library import names
from ensemble_core.library.cache import Verifier
from ensemble_core.library.checkpoints import Checkpoints
from ensemble_core.library.inputs import Inputs
from ensemble_core.library.parsing import load_array_bytes, load_probabilities, parse, parse_object
from ensemble_core.library.records import FORMAT, SPLITS, FileDigest, Header, ModelRecord, Split
from ensemble_core.library.results import ResultCheck, ResultKind, Results
from ensemble_core.library.searches import Fenced, Searches, all_newest_claims
from ensemble_core.library.splits import LabelledIds, check_split, fingerprint, split_digest
from ensemble_core.library.store import Store, sha256_of

SERVABLE = "model.onnx"  # the key of the file that can be served
_PREDICTIONS = {f"predictions-{split}.npy" for split in SPLITS}

P = ParamSpec("P")
T = TypeVar("T")


class Library(Searches, Checkpoints, Results, Inputs):
    """An open library. Safe to share among threads and to open in any number of processes.

    What is read is checked: a file that is truncated, corrupt, tampered with, or of another format or data set raises
    a UserError that names it.
    """

    def __init__(self, store: Store, header: Header) -> None:
        self.store = store
        self.header = header
        self._verifier = Verifier(store)
        self._splits: dict[Split, LabelledIds] = {}

    @classmethod
    def create(cls, store: Store, header: Header, labels: Mapping[Split, LabelledIds]) -> Self:
        """Make a library, or open the one that is there if it has the same header.

        Raises UserError, and writes nothing, if what is there has another task, signature or fingerprint.
        """
        for split in SPLITS:
            if split_digest(labels[split]) != header.splits.get(split):
                raise UserError(store.url, f"the header describes other {split} samples")
        store.create(names.LIBRARY, header.model_dump_json(by_alias=True, indent=1).encode())
        library = cls.open(store)
        same_data(library.header, store.url, header, "the data set given")
        # The header comes first: only who agrees with it writes the splits, and whoever comes next completes them.
        present = set(store.list("splits/"))
        for path, data in _split_files(labels).items():
            if path not in present:
                store.write(path, data)
        return library

    @classmethod
    def open(cls, store: Store) -> Self:
        """Open a library; UserError if there is none, or it has a newer format, another task, or is corrupt."""
        where = f"{store.url}/{names.LIBRARY}"
        try:
            data = store.read(names.LIBRARY)
        except FileNotFoundError:
            raise UserError(store.url, f"is no model library: it has no {names.LIBRARY}") from None
        found = parse_object(data, where).get("format")
        if isinstance(found, int) and found > FORMAT:
            raise UserError(where, f"format {found} is newer than this version reads (up to {FORMAT})")
        header = parse(Header, data, where)
        if fingerprint(header.class_names, header.splits) != header.fingerprint:
            raise UserError(where, "fingerprint: does not belong to its classes and splits")
        if set(header.splits) != set(SPLITS) or set(header.samples) != set(SPLITS):
            raise UserError(where, f"splits and samples: must be of {' and '.join(SPLITS)}")
        return cls(store, header)

    def labels(self, split: Split) -> NDArray[np.int64]:
        """True classes of a split's samples, shape (N,)."""
        return self._split(split).labels

    def ids(self, split: Split) -> NDArray[np.str_]:
        """Ids of a split's samples, shape (N,)."""
        return self._split(split).ids

    def splits(self) -> dict[Split, LabelledIds]:
        """Ids and labels of all splits."""
        return {split: self._split(split) for split in SPLITS}

    def models(self) -> tuple[ModelRecord, ...]:
        """All models, by id. Records of attempts that were taken over are not among them.

        Two listings and one concurrent read; a record that cannot be used raises a UserError that names it.
        """
        claims = all_newest_claims(self.store.list("trials/"))
        records = (self._parse(model_id, data) for model_id, data in self._records().items())
        return tuple(record for record in records if _counts(record, claims))

    def model(self, model_id: str) -> ModelRecord:
        """One model; UserError if the library does not have it."""
        try:
            record = self._parse(model_id, self.store.read(names.record(model_id)))
        except (FileNotFoundError, ValueError):
            raise UserError(self.store.url, f"has no model {model_id!r}") from None
        if self._overtaken(record):
            raise UserError(self.store.url, f"has no model {model_id!r}")
        return record

    def predictions(self, record: ModelRecord, split: Split) -> NDArray[np.float32]:
        """A model's probabilities for a split, float32 of shape (N, C), memory-mapped from a verified file."""
        key = f"predictions-{split}.npy"
        shape = (self.header.samples[split], self.header.signature.classes)
        return load_probabilities(self.file(record, key), shape, self._where(record, key))

    def file(self, record: ModelRecord, key: str) -> Path:
        """A verified local copy of one of a model's files, for example `model.onnx`; read-only."""
        if key not in record.files:
            raise UserError(self._at(names.record(record.id)), f"files: has no {key}")
        return self._verifier.file(record.files[key])

    def publish(self, record: ModelRecord, files: Mapping[str, Path]) -> ModelRecord:
        """Add a model: its files, then its record, which makes it one. `record.files` is ignored.

        Returns the stored record; if this attempt published the model before, that one. Raises Fenced if a newer
        attempt has claimed the trial.
        """
        self._check_fence(record)
        present = self._published(record)
        if present is not None:
            return present
        digests = {key: (sha256_of(source), source.stat().st_size) for key, source in sorted(files.items())}
        # Imports have no attempts: two of one id that differ must not write the same paths.
        folder = str(record.origin.attempt) if record.origin.search else digest(digests)[:16]
        stored = {
            key: FileDigest(path=f"models/{record.id}/{folder}/{key}", sha256=sha256, bytes=size)
            for key, (sha256, size) in digests.items()
        }
        complete = record.model_copy(update={"files": stored, "fingerprint": self.header.fingerprint})
        complete = self._parse(record.id, _encode(complete))  # what readers would refuse is not written
        for key, source in files.items():
            self.store.upload(stored[key].path, source)
        return self._commit(complete)

    def digest(self) -> str:
        """Changes when a model comes, goes or changes."""
        return digest({record.id: digest(record.document()) for record in self.models()})

    def verify(self, results: Mapping[ResultKind, ResultCheck] = MappingProxyType({})) -> list[str]:
        """Everything that is wrong with the library, each with the file's name; reads and digests all files.

        Args:
            results: What reads a result, for each kind of results that are to be read too.
        """
        found: list[str] = []
        for split in SPLITS:
            _collect(found, self._split, split)
        kept = _collect(found, self.inputs)
        if kept is not None:
            _collect(found, self.samples, kept)
        for model_id, data in self._records().items():
            record = _collect(found, self._parse, model_id, data)
            if record is not None:
                found += self._file_problems(record)
        for search in filter(None, map(names.spec_of, self.store.list("searches/"))):
            _collect(found, self.start, search)
        for search in sorted({search for search, _ in all_newest_claims(self.store.list("trials/"))}):
            for files in self._trial_files(search).values():
                _collect(found, self._state, *files)
        for path, data in sorted(self.store.read_many(self.store.list("profiles/")).items()):
            _collect(found, self._profile, path, data)
        for kind, check in results.items():
            for path, data in sorted(self.store.read_many(self.store.list(f"{kind}/")).items()):
                content = _collect(found, parse_object, data, self._at(path))
                if content is not None:
                    key = path.removeprefix(f"{kind}/").removesuffix(".json")
                    _collect(found, check, key, content, self._at(path))
        return found

    def _file_problems(self, record: ModelRecord) -> list[str]:
        found: list[str] = []
        for split in SPLITS:
            _collect(found, self.predictions, record, split)
        for key in sorted(set(record.files) - _PREDICTIONS):
            _collect(found, self.file, record, key)
        return found

    def _commit(self, record: ModelRecord) -> ModelRecord:
        """Write the record unless a newer attempt is before us; every step is atomic against other writers."""
        path, data = names.record(record.id), _encode(record)
        while True:
            self._check_fence(record)
            if self.store.create(path, data):
                return record
            old = self.store.read(path)
            present = self._parse(record.id, old)
            if present.origin.attempt > record.origin.attempt:
                raise Fenced(f"{self._at(path)}: attempt {present.origin.attempt} has published before")
            if present.origin.attempt == record.origin.attempt or self.store.replace(path, old, data):
                return self.model(record.id)

    def _published(self, record: ModelRecord) -> ModelRecord | None:
        """The record that the same attempt has published before."""
        try:
            present = self._parse(record.id, self.store.read(names.record(record.id)))
        except FileNotFoundError:
            return None
        return present if present.origin.attempt == record.origin.attempt else None

    def _check_fence(self, record: ModelRecord) -> None:
        if self._overtaken(record):
            raise Fenced(f"{self.store.url}: a newer attempt than {record.origin.attempt} has claimed {record.id}")

    def _overtaken(self, record: ModelRecord) -> bool:
        """Whether a later attempt than the record's has claimed its trial."""
        origin = record.origin
        if origin.search is None or origin.trial is None:
            return False
        paths = self.store.list(f"trials/{names.trial_id(origin.search, origin.trial)}/")
        return not _counts(record, all_newest_claims(paths))

    def _records(self) -> dict[str, bytes]:
        paths = {path: model for path in self.store.list("models/") if (model := names.model_of(path))}
        found = self.store.read_many(paths)
        return {paths[path]: found[path] for path in sorted(found)}

    def _parse(self, model_id: str, data: bytes) -> ModelRecord:
        where = self._at(names.record(model_id))
        record = parse(ModelRecord, data, where)
        if record.id != model_id:
            raise UserError(where, f"id: is {record.id!r}, the folder says {model_id!r}")
        if record.fingerprint not in (None, self.header.fingerprint):
            raise UserError(where, "fingerprint: is of another library, with other samples or classes")
        for key, file in record.files.items():
            if not file.path.startswith(f"models/{model_id}/"):
                raise UserError(where, f"files.{key}.path: {file.path} is outside the model's folder")
        missing = _PREDICTIONS - set(record.files)
        if missing or (record.servable and not {SERVABLE, "model.safetensors"} & set(record.files)):
            raise UserError(where, f"files: lacks {', '.join(sorted(missing)) or SERVABLE}")
        return record

    def _split(self, split: Split) -> LabelledIds:
        if split not in self._splits:
            self._splits[split] = self._load_split(split)
        return self._splits[split]

    def _load_split(self, split: Split) -> LabelledIds:
        arrays: dict[str, NDArray[Any]] = {}
        for name in ("ids", "labels"):
            path = f"splits/{split}/{name}.npy"
            try:
                arrays[name] = load_array_bytes(self.store.read(path), self._at(path))
            except FileNotFoundError:
                raise UserError(self._at(path), "is missing: the library is incomplete") from None
        loaded = LabelledIds(ids=arrays["ids"], labels=arrays["labels"])
        where = self._at(f"splits/{split}")
        check_split(loaded, self.header.signature.classes, where)
        if split_digest(loaded) != self.header.splits[split]:
            raise UserError(where, f"does not have the digest that {names.LIBRARY} says")
        return loaded

    def _at(self, path: str) -> str:
        return f"{self.store.url}/{path}"

    def _where(self, record: ModelRecord, key: str) -> str:
        return self._at(record.files[key].path)


def same_data(one: Header, where: str, other: Header, other_where: str) -> None:
    """Raise a UserError that names both unless models of the two can be combined."""
    for field in ("task", "signature", "class_names", "fingerprint"):
        first, second = one.document()[to_camel(field)], other.document()[to_camel(field)]
        if first != second:
            problem = f"{to_camel(field)} is {first}, that of {other_where} is {second}"
            raise UserError(where, f"{problem}; a library is of one data set and one split, take another for another")


def _counts(record: ModelRecord, newest: Mapping[tuple[str, int], int]) -> bool:
    """Whether no attempt after the record's claimed its trial."""
    origin = record.origin
    if origin.search is None or origin.trial is None:
        return True
    return newest.get((origin.search, origin.trial), 0) <= origin.attempt


def _split_files(splits: Mapping[Split, LabelledIds]) -> dict[str, bytes]:
    """The files of the splits by path."""
    files = {}
    for split in SPLITS:
        for name, array in (("ids", splits[split].ids), ("labels", splits[split].labels)):
            buffer = io.BytesIO()
            np.save(buffer, array, allow_pickle=False)
            files[f"splits/{split}/{name}.npy"] = buffer.getvalue()
    return files


def _encode(record: ModelRecord) -> bytes:
    return record.model_dump_json(by_alias=True, indent=1).encode()


def _collect(problems: list[str], check: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T | None:
    """The check's result; None, and its complaint added to the problems, if it refuses."""
    try:
        return check(*arguments, **options)
    except UserError as error:
        problems.append(str(error))
        return None

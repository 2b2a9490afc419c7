"""Documents in YAML files: read, checked as a whole, and looked up by name. The first thing that every verb does."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from ensemble_core.api.common import API_VERSION, NAME, Storage
from ensemble_core.api.ensembledeployment import EnsembleDeployment
from ensemble_core.api.ensembleselection import BEST_SINGLE, EnsembleSelection
from ensemble_core.api.hposearch import HPOSearch
from ensemble_core.errors import UserError

Document = HPOSearch | EnsembleSelection | EnsembleDeployment
AnyDocument = TypeVar("AnyDocument", HPOSearch, EnsembleSelection, EnsembleDeployment)

KINDS: dict[str, type[Document]] = {
    "HPOSearch": HPOSearch,
    "EnsembleSelection": EnsembleSelection,
    "EnsembleDeployment": EnsembleDeployment,
}
NAME_IN_WORDS = "be of lower-case letters, digits, and dashes between them"
MAX_BYTES = 1 << 20  # as etcd's limit for an object, give or take
MAX_NODES = 100_000  # after aliases are expanded: a few lines of YAML can stand for billions


@dataclass(frozen=True)
class Documents:
    """The valid documents of a file by kind and name; local paths in them are absolute."""

    file: str
    searches: dict[str, HPOSearch] = field(default_factory=dict)
    selections: dict[str, EnsembleSelection] = field(default_factory=dict)
    deployments: dict[str, EnsembleDeployment] = field(default_factory=dict)

    def search(self, name: str | None = None) -> HPOSearch:
        """The search of that name, or the only one; UserError if there is none or, without a name, several."""
        return self._pick("HPOSearch", self.searches, name)

    def selection(self, name: str | None = None) -> EnsembleSelection:
        """The selection of that name, or the only one; UserError as for `search`."""
        return self._pick("EnsembleSelection", self.selections, name)

    def deployment(self, name: str | None = None) -> EnsembleDeployment:
        """The deployment of that name, or the only one; UserError as for `search`."""
        return self._pick("EnsembleDeployment", self.deployments, name)

    def source_storages(self, selection: EnsembleSelection) -> tuple[Storage, ...]:
        """Where the libraries of `spec.sources` are, in that order; UserError for a search that is not in the file."""
        return tuple(
            source.storage or self.search(source.hpo_search_name).spec.library.storage
            for source in selection.spec.sources
        )

    def source_searches(self, selection: EnsembleSelection) -> dict[str, HPOSearch]:
        """The searches that `spec.sources` name, in that order; UserError for one that is not in the file."""
        names = [source.hpo_search_name for source in selection.spec.sources if source.hpo_search_name]
        return {name: self.search(name) for name in names}

    def result_storage(self, selection: EnsembleSelection) -> Storage:
        """The library that keeps the selection's results: `spec.library`, or the first source's."""
        return selection.spec.library or self.source_storages(selection)[0]

    def _pick(self, kind: str, documents: Mapping[str, AnyDocument], name: str | None) -> AnyDocument:
        if name is None and len(documents) == 1:
            return next(iter(documents.values()))
        if name is None:
            problem = f"has several: {', '.join(documents)}; give a name" if documents else "has none"
            raise UserError(self.file, f"needs one {kind}, but {problem}")
        if name not in documents:
            raise UserError(self.file, f"has no {kind} named {name}{_instead(name, documents)}")
        return documents[name]


def load_documents(file: str | Path) -> Documents:
    """Read the documents of a YAML file.

    Raises:
        UserError: the file cannot be read, or is not YAML, or something in it is not allowed. Every wrong field of
            every document has a line: file, document, path, value and what is allowed.
    """
    documents = Documents(str(file))
    problems: list[_Problem] = []
    folder = Path(file).resolve().parent
    for index, content in _read(Path(file), problems):
        where = f"{file}: document {index}"
        try:
            _put(documents, _parse(where, content, folder), where, problems)
        except _InvalidError as invalid:
            problems += invalid.problems
    _raise(problems)
    if not (documents.searches or documents.selections or documents.deployments):
        raise UserError(str(file), f"holds no document; allowed kinds are {', '.join(KINDS)}")
    return documents


def check_references(documents: Documents, complete: bool = False) -> None:
    """Check the names by which documents refer to each other.

    Args:
        documents: What a file holds.
        complete: Whether the file must hold everything it refers to; otherwise a reference is checked only if the
            file has any document of that kind.

    Raises:
        UserError: with one line for every name that leads nowhere.
    """
    problems = []
    for name, selection in documents.selections.items():
        for index, source in enumerate(selection.spec.sources):
            if source.hpo_search_name and (complete or documents.searches):
                where = f"{documents.file}: EnsembleSelection {name}: spec.sources[{index}].hpoSearchName"
                problems += _unknown(where, "HPOSearch", source.hpo_search_name, documents.searches)
    for name, deployment in documents.deployments.items():
        reference, where = deployment.spec.selection_ref, f"{documents.file}: EnsembleDeployment {name}: spec"
        if complete or documents.selections:
            problems += _unknown(
                f"{where}.selectionRef.name", "EnsembleSelection", reference.name, documents.selections
            )
        if reference.name in documents.selections:
            budgets = [budget.name for budget in documents.selections[reference.name].spec.budgets]
            budgets.append(BEST_SINGLE)
            problems += _unknown(f"{where}.selectionRef.budgetName", "budget", reference.budget_name, budgets)
    _raise(problems)


@dataclass(frozen=True)
class _Problem:
    where: str
    text: str


@dataclass(eq=False)
class _InvalidError(Exception):
    problems: tuple[_Problem, ...]


def _raise(problems: list[_Problem]) -> None:
    if len(problems) == 1:
        raise UserError(problems[0].where, problems[0].text)
    if problems:
        raise UserError("", "\n".join(f"{problem.where}: {problem.text}" for problem in problems))


# ---------------------------------------------------------------- YAML


class _Loader(yaml.SafeLoader):
    """YAML as Kubernetes' clients read it: `1e-3` is a number, a date is text; a key that is given twice is noted."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.repeated: list[yaml.Node] = []

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in seen:
                    self.repeated.append(key)
                seen.add((key.tag, key.value))
        return node


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def _read(file: Path, problems: list[_Problem]) -> Iterator[tuple[int, Any]]:
    """The non-empty documents of a file with their positions from 1; keys given twice become problems."""
    try:
        if file.stat().st_size > MAX_BYTES:
            raise UserError(str(file), f"is larger than {MAX_BYTES} bytes")
        loader = _Loader(file.read_bytes().decode())
    except UnicodeDecodeError as error:
        raise UserError(str(file), f"is not UTF-8 text (byte {error.start})") from error
    except yaml.YAMLError as error:
        raise UserError(str(file), f"is not YAML: {_single_line(error)}") from error
    except OSError as error:
        raise UserError(str(file), f"cannot be read: {error.strerror}") from error
    index = 1
    try:
        while loader.check_node():
            node = loader.get_node()
            assert node is not None  # check_node has looked
            _refuse_large(node, file)
            content = loader.construct_document(node)
            for key in loader.repeated:
                where = f"{file}: document {index}: line {key.start_mark.line + 1}"
                problems.append(_Problem(where, f"the key {key.value} is given twice"))
            loader.repeated.clear()
            if content is not None:
                yield index, content
            index += 1
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{file}: document {index}", f"is not YAML: {_single_line(error)}") from error
    except RecursionError as error:
        raise UserError(f"{file}: document {index}", "is nested too deeply") from error


def _refuse_large(root: yaml.Node, file: Path) -> None:
    """UserError if a document is too large once its aliases are expanded, or contains itself."""
    sizes: dict[int, float] = {}

    def size(node: yaml.Node) -> float:
        if id(node) not in sizes:
            sizes[id(node)] = float("inf")  # what is met again before it is known contains itself
            children = node.value if isinstance(node, yaml.CollectionNode) else []
            flat = [part for child in children for part in (child if isinstance(child, tuple) else (child,))]
            sizes[id(node)] = 1 + sum(map(size, flat))
        return sizes[id(node)]

    if size(root) > MAX_NODES:
        raise UserError(str(file), f"has more than {MAX_NODES} values, or one that contains itself")


def _single_line(error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        told = ", ".join(part for part in (error.context, error.problem) if part)
        return f"{told} (line {error.problem_mark.line + 1}, column {error.problem_mark.column + 1})"
    return " ".join(str(error).replace('in "<unicode string>", ', "").split())


# ---------------------------------------------------------------- models


def _parse(where: str, content: Any, folder: Path) -> Document:
    """One document as its model, or _InvalidError."""
    if not isinstance(content, dict):
        raise _InvalidError(
            (_Problem(where, f"{_shown(content)} must be an object with apiVersion, kind, metadata, spec"),)
        )
    kind = str(content.get("kind"))
    model = KINDS.get(kind)
    if model is None:
        shown = _shown(content["kind"]) if "kind" in content else "is missing;"
        text = f"{shown} must be one of {', '.join(KINDS)}{_close(kind, KINDS)}"
        raise _InvalidError((_Problem(f"{where}: kind", text),))
    where = f"{where} ({_title(kind, content)})"
    missing = [] if "apiVersion" in content else [_Problem(f"{where}: apiVersion", f"is missing; it is {API_VERSION}")]
    given = {key: value for key, value in content.items() if key != "status"}  # written by the operator
    try:
        # As JSON, because strict JSON refuses what the API server refuses: "5" or true for a number.
        parsed = model.model_validate_json(json.dumps(given), strict=True, context={"folder": folder})
    except ValidationError as error:
        raise _InvalidError((*missing, *_problems(where, model, error.errors(include_url=False)))) from None
    except (TypeError, ValueError) as error:
        raise _InvalidError((_Problem(where, f"cannot be written as JSON: {error}"),)) from None
    if missing:
        raise _InvalidError(tuple(missing))
    return parsed


def _title(kind: str, content: dict[str, Any]) -> str:
    metadata = content.get("metadata")
    name = metadata.get("name") if isinstance(metadata, dict) else None
    return f"{kind} {name}" if isinstance(name, str) and name else kind


def _put(documents: Documents, document: Document, where: str, problems: list[_Problem]) -> None:
    groups: dict[str, dict[str, Any]] = {
        "HPOSearch": documents.searches,
        "EnsembleSelection": documents.selections,
        "EnsembleDeployment": documents.deployments,
    }
    group = groups[document.kind]
    name = document.metadata.name
    if name in group:
        where = f"{where} ({document.kind} {name}): metadata.name"
        problems.append(_Problem(where, f"{_shown(name)} is the name of an earlier {document.kind} of this file"))
    group[name] = document


def _problems(where: str, model: type[BaseModel], errors: Iterable[ErrorDetails]) -> Iterator[_Problem]:
    for error in errors:
        if error["type"] == "too_short" and error["ctx"]["actual_length"] < len(error["input"]):
            continue  # pydantic does not count items that are wrong; those have lines of their own
        path = "".join(map(_step, error["loc"])).lstrip(".")
        yield _Problem(f"{where}: {path}" if path else where, _text(model, error))


def _step(part: int | str) -> str:
    if isinstance(part, int):
        return f"[{part}]"
    return f".{part}" if re.fullmatch(r"\w+", part) else f"[{json.dumps(part)}]"


def _text(model: type[BaseModel], error: ErrorDetails) -> str:
    """What is wrong with a value, and what is allowed."""
    value = error["input"]
    special: dict[str, Callable[[], str]] = {
        "missing": lambda: "is missing",
        "extra_forbidden": lambda: f"unknown field{_unknown_field(model, error['loc'])}",
        "literal_error": lambda: f"{_shown(value)} {_one_of(error)}",
    }
    if error["type"] in special:
        return special[error["type"]]()
    message = re.sub(r"^(Input|String|Tuple|List|Dictionary|Value|Object) should ", "must ", error["msg"])
    message = message.replace("must be a valid integer", "must be a whole number").removeprefix("Value error, ")
    message = message.replace(" after validation, not 0", "").replace(f"match pattern '{NAME}'", NAME_IN_WORDS)
    return message if isinstance(value, dict | list) else f"{_shown(value)} {message}"


def _one_of(error: ErrorDetails) -> str:
    expected = str(error.get("ctx", {}).get("expected", ""))
    allowed = re.findall(r"'([^']*)'", expected)
    return f"must be {'one of ' if len(allowed) > 1 else ''}{', '.join(allowed)}{_close(str(error['input']), allowed)}"


def _unknown_field(model: type[BaseModel], loc: tuple[int | str, ...]) -> str:
    """The fields that the object has, the closest first."""
    parent = _model_at(model, loc[:-1])
    names = [info.alias or name for name, info in parent.model_fields.items()] if parent else []
    return f"{_close(str(loc[-1]), names)}; allowed are {', '.join(names)}" if names else ""


def _model_at(model: type[BaseModel], loc: tuple[int | str, ...]) -> type[BaseModel] | None:
    current: type[BaseModel] | None = model
    for part in loc:
        if isinstance(part, str) and current is not None:
            infos = [info for name, info in current.model_fields.items() if part in (info.alias, name)]
            current = _inner_model(infos[0].annotation) if infos else None
    return current


def _inner_model(annotation: Any) -> type[BaseModel] | None:
    """The model in `Model`, `Model | None` or `tuple[Model, ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for inner in get_args(annotation) if (found := _inner_model(inner))), None)


def _unknown(where: str, kind: str, name: str, known: Iterable[str]) -> list[_Problem]:
    return (
        [] if name in known else [_Problem(where, f"{_shown(name)} is no {kind} of this file{_instead(name, known)}")]
    )


def _instead(name: str, known: Iterable[str]) -> str:
    known = list(known)
    return f"{_close(name, known)}; there is {', '.join(known)}" if known else "; there is none"


def _close(name: str, known: Iterable[str]) -> str:
    matches = get_close_matches(name, list(known), n=1)
    return f"; did you mean {matches[0]}?" if matches and matches[0] != name else ""


def _shown(value: Any) -> str:
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        value = int(value)  # a whole number where a fraction was allowed, as the user wrote it
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else f"{text[:77]}…"

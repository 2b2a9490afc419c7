"""List, check, extend and clean a model library."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from ensemble_core.allocation.stored import benchmarked, checked_allocation
from ensemble_core.api.documents import load_documents
from ensemble_core.errors import UserError
from ensemble_core.library import Fenced, Library, Store, collect, imports, make_header, open_store, storage_at
from ensemble_core.library.parsing import load_array
from ensemble_core.library.records import SPLITS, ModelRecord, Profile, Signature, Split
from ensemble_core.report import Report, add_report_arguments, run_reported
from ensemble_core.selection.run import checked_result

_CREATES = ("labels_validation", "labels_heldout", "input_type", "input_shape")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(required=True, metavar="ls|show|verify|add|inputs|export|gc|delete")

    def verb(name: str, action: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        sub = verbs.add_parser(name, help=text, description=text)
        sub.add_argument("library", metavar="LIBRARY", help="a folder or s3://bucket/prefix")
        sub.set_defaults(action=action)
        return sub

    ls = verb("ls", _ls, "list the models, best validation cross-entropy first")
    ls.add_argument("--json", action="store_true", help="print the records as a JSON list")
    show = verb("show", _show, "print a model's record and profiles as JSON")
    show.add_argument("model", metavar="MODEL")
    verb("verify", _verify, "digest every file and check all content; exit code 1 if anything is wrong")
    _add_options(verb("add", _add, "import a model from an ONNX file and its predictions, or from predictions alone"))
    inputs = verb(
        "inputs",
        _inputs,
        "keep samples of the validation split, for engines of half precision to be judged by, or none",
    )
    which = inputs.add_mutually_exclusive_group(required=True)
    which.add_argument(
        "samples", type=Path, nargs="?", metavar="NPY", help="all of them as models take them, in the labels' order"
    )
    which.add_argument(
        "--remove", action="store_true", help="delete those that the library keeps; `ensemble train` keeps no others"
    )
    export = verb(
        "export",
        _export,
        "copy models with their profiles, and the validation samples that the library keeps, into another library of "
        "the same data",
    )
    export.add_argument("models", metavar="MODEL", nargs="+")
    export.add_argument("--to", required=True, metavar="LIBRARY", help="created if it is not there")
    export.add_argument("--without-inputs", action="store_true", help="leave the validation samples where they are")
    gc = verb("gc", _gc, "remove what no record, selection, allocation or running search refers to")
    gc.add_argument("--dry-run", action="store_true", help="only print what would be removed")
    gc.add_argument("--unreferenced", action="store_true", help="also models that nothing picked, of ended searches")
    text = "delete the library of an HPOSearch, nothing else in its folder; of one that it shares, the search's own"
    delete = verbs.add_parser("delete", help=text, description=text)
    add_report_arguments(delete)
    delete.set_defaults(action=_delete)


def run(arguments: argparse.Namespace) -> int:
    action: Callable[[argparse.Namespace], int] = arguments.action
    return action(arguments)


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--predictions-validation", type=Path, required=True, metavar="NPY", help="float32 (N, C)")
    parser.add_argument("--predictions-heldout", type=Path, required=True, metavar="NPY", help="float32 (N, C)")
    parser.add_argument(
        "--onnx", type=Path, metavar="FILE", help="input INPUT, output PROBABILITIES; servable only with it"
    )
    parser.add_argument("--family", default="imported", help="a word for the table (default: %(default)s)")
    create = parser.add_argument_group("for a library that is not there yet")
    create.add_argument("--create", action="store_true", help="make the library; needs the options below")
    create.add_argument("--labels-validation", type=Path, metavar="NPY", help="true classes, integers (N,)")
    create.add_argument("--labels-heldout", type=Path, metavar="NPY", help="true classes, integers (N,)")
    create.add_argument("--class-names", metavar="A,B,…", help="default: 0,1,…")
    create.add_argument("--input-type", choices=("uint8", "float32"), help="type of the raw samples")
    create.add_argument("--input-shape", metavar="H,W,C", help="shape of one raw sample")


def _open(location: str) -> Library:
    return Library.open(_store(location))


def _store(location: str) -> Store:
    return open_store(storage_at(location))


def _ls(arguments: argparse.Namespace) -> int:
    models = sorted(_open(arguments.library).models(), key=lambda m: (m.validation.cross_entropy, m.id))
    if arguments.json:
        print(json.dumps([model.document() for model in models], indent=1))
        return 0
    rows = [("MODEL", "FAMILY", "CROSS-ENTROPY", "ERROR", "PARAMETERS", "EPOCHS", "SERVABLE"), *map(_row, models)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())
    return 0


def _row(model: ModelRecord) -> tuple[str, ...]:
    quality = model.validation
    parameters = "-" if model.parameters is None else f"{model.parameters:,}"
    servable = "yes" if model.servable else "no"
    figures = (f"{quality.cross_entropy:.4f}", f"{quality.error:.2%}", parameters, f"{model.epochs:g}")
    return (model.id, model.family, *figures, servable)


def _show(arguments: argparse.Namespace) -> int:
    library = _open(arguments.library)
    record = library.model(arguments.model)
    profiles = [profile.document() for profile in _profiles(library, record.id)]
    print(json.dumps({"record": record.document(), "profiles": profiles}, indent=1))
    return 0


def _profiles(library: Library, model_id: str) -> list[Profile]:
    """A model's profiles on all device types and engines."""
    places = [path.split("/")[1:] for path in library.store.list("profiles/") if path.endswith(f"/{model_id}.json")]
    found = (library.profile(place[0], place[1], model_id) for place in places if len(place) == 3)
    return [profile for profile in found if profile]


def _verify(arguments: argparse.Namespace) -> int:
    library = _open(arguments.library)
    selected = partial(checked_result, fingerprint=library.header.fingerprint)
    problems = library.verify({"selections": selected, "allocations": checked_allocation, "benchmarks": benchmarked})
    for problem in problems:
        print(problem, file=sys.stderr)
    if problems:
        return 1
    print(f"{library.store.url}: {len(library.models())} models, all files are what their records say")
    return 0


def _add(arguments: argparse.Namespace) -> int:
    predictions: dict[Split, Path] = {
        "validation": arguments.predictions_validation,
        "heldout": arguments.predictions_heldout,
    }
    model = imports.Import(predictions, arguments.onnx, arguments.family)
    library = _created(arguments, model) if arguments.create else _open(arguments.library)
    imports.check_import(model, library.header)
    record = imports.add(library, model)
    print(f"{record.id}  cross-entropy {record.validation.cross_entropy:.4f}, error {record.validation.error:.2%}")
    return 0


def _created(arguments: argparse.Namespace, model: imports.Import) -> Library:
    """The library that the options describe, made only after the model was found to fit."""
    missing = [f"--{name.replace('_', '-')}" for name in _CREATES if getattr(arguments, name) is None]
    if missing:
        raise UserError("--create", f"needs {', '.join(missing)} too")
    first = model.predictions["validation"]
    names = arguments.class_names.split(",") if arguments.class_names else _numbers(first)
    signature = Signature(
        input_type=arguments.input_type, input_shape=_shape(arguments.input_shape), classes=len(names)
    )
    files = {split: getattr(arguments, f"labels_{split}") for split in SPLITS}
    splits = {split: imports.numbered(imports.load_labels(files[split], len(names))) for split in SPLITS}
    header = make_header(signature, names, splits)
    imports.check_import(model, header)
    return Library.create(_store(arguments.library), header, splits)


def _numbers(predictions: Path) -> list[str]:
    """Names 0, 1, … for the columns of a predictions file."""
    if not predictions.is_file():
        raise UserError(str(predictions), "is missing")
    shape = load_array(predictions, str(predictions)).shape
    if len(shape) != 2 or shape[1] < 2:
        raise UserError(str(predictions), f"is of shape {shape}; it must be (N, C), C ≥ 2")
    return [str(index) for index in range(shape[1])]


def _shape(text: str) -> tuple[int, ...]:
    try:
        shape = tuple(int(size) for size in text.split(","))
    except ValueError:
        shape = ()
    if not 1 <= len(shape) <= 4 or min(shape) < 1:
        raise UserError("--input-shape", f"must be 1 to 4 positive integers like 8,8,1, not {text!r}")
    return shape


def _inputs(arguments: argparse.Namespace) -> int:
    library = _open(arguments.library)
    if arguments.remove:
        library.remove_inputs()
        print(f"{library.store.url}: keeps no validation samples any more")
        return 0
    kept = imports.add_inputs(library, arguments.samples)
    total = library.header.samples["validation"]
    print(f"{library.store.url}: keeps {len(kept.rows)} of {total} validation samples, {_mib(kept.file.bytes)}")
    return 0


def _export(arguments: argparse.Namespace) -> int:
    source = _open(arguments.library)
    records = [source.model(model_id) for model_id in arguments.models]
    files = [{key: source.file(record, key) for key in record.files} for record in records]
    target = Library.create(_store(arguments.to), source.header, source.splits())
    if not arguments.without_inputs:
        target.copy_inputs(source)
    for record, own in zip(records, files, strict=True):
        try:
            imports.publish_same(target, record, own)
        except Fenced as fenced:
            raise UserError(target.store.url, f"cannot take {record.id}: {fenced}") from None
        for profile in _profiles(source, record.id):
            target.write_profile(profile)
        print(f"{record.id}  copied to {target.store.url}")
    return 0


def _gc(arguments: argparse.Namespace) -> int:
    library = _open(arguments.library)
    removals = collect.plan(library, arguments.unreferenced)
    for removal in removals:
        print(f"{_mib(removal.bytes):>12}  {len(removal.paths):>5} files  {removal.reason}")
    total = f"{_mib(sum(r.bytes for r in removals))} in {sum(len(r.paths) for r in removals)} files"
    if arguments.dry_run:
        print(f"would remove {total}")
        return 0
    collect.remove(library, removals)
    print(f"removed {total}")
    return 0


def _delete(arguments: argparse.Namespace) -> int:
    return run_reported(arguments, "delete", lambda report: _deleted(arguments, report))


def _deleted(arguments: argparse.Namespace, report: Report) -> dict[str, Any]:
    search = load_documents(arguments.spec).search(arguments.name)
    store = open_store(search.spec.library.storage, "spec.library.storage")
    report.progress(stage="delete", done=0, total=0, note=f"lists {store.url}")
    files = size = 0

    def tell(gone: int) -> None:
        note = f"{_mib(planned.bytes)} in {store.url}"
        report.progress(stage="delete", done=files + gone, total=files + planned.files, note=note)

    # Of two searches of one library that are deleted at the same time, one is the last.
    while (planned := collect.deletion(store, search.metadata.name)).files:
        collect.delete(store, planned, tell)
        files, size = files + planned.files, size + planned.bytes
    shared = sorted(planned.others)
    kept = f"; kept what is of {', '.join(shared[:5])}" if shared else ""
    print(f"{store.url}: {_mib(size)} in {files} files deleted{kept}")
    return {"digest": None, "summary": {"files": files, "bytes": size, "sharedWith": shared[:100]}}


def _mib(size: int) -> str:
    return f"{size / 2**20:,.2f} MiB"

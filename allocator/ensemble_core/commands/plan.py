"""Plan an allocation on paper: expected throughput, matrix and bound on devices that need not be here."""

from __future__ import annotations

import argparse

from ensemble_core.allocation.paper import Case, calibrated_case, lines, parse_devices, plan, traced_case
from ensemble_core.allocation.prepare import find_ensemble, overridden, stored_figures
from ensemble_core.api.documents import load_documents
from ensemble_core.api.ensembledeployment import Optimization
from ensemble_core.api.options import check_option
from ensemble_core.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    devices = "devices as NUMBERxTYPE[:MIB], separated by commas, such as 16xV100-16GB,1xCPU"
    parser.add_argument("--devices", required=True, metavar="DEVICES", help=devices)
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--ensemble", default="IMN12", metavar="NAME", help="of the thesis: IMN1, IMN4 or IMN12 (default)"
    )
    what.add_argument("--spec", metavar="FILE", help="documents: the selected members by their stored profiles")
    parser.add_argument("--name", metavar="NAME", help="the EnsembleDeployment in FILE, if there are several")
    parser.add_argument("--budget", metavar="NAME", help="the ensemble of another budget than the document's")
    required = "plan the fewest of the devices that give so many"
    parser.add_argument("--required", type=float, metavar="SAMPLES/S", help=required)
    parser.add_argument("--max-benchmarks", type=int, default=12, metavar="N", help="simulated in all (default 12)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the draws (default 0)")


def run(arguments: argparse.Namespace) -> int:
    check_option("--max-benchmarks", Optimization, "max_benchmarks", arguments.max_benchmarks)
    check_option("--required", Optimization, "required_samples_per_second", arguments.required)
    check_option("--seed", Optimization, "seed", arguments.seed)
    for option, value in (("--name", arguments.name), ("--budget", arguments.budget)):
        if value is not None and arguments.spec is None:
            raise UserError(option, "needs --spec: the thesis's ensembles have neither deployments nor budgets")
    case = _case(arguments)
    found = plan(case, arguments.max_benchmarks, arguments.seed, arguments.required)
    print("\n".join(lines(case, found)))
    return 0


def _case(arguments: argparse.Namespace) -> Case:
    groups = parse_devices(arguments.devices)
    if arguments.spec is None:
        return calibrated_case(arguments.ensemble, groups)
    documents = load_documents(arguments.spec)
    ensemble = find_ensemble(documents, overridden(documents.deployment(arguments.name), arguments.budget, None))
    figures = [stored_figures(ensemble, index) for index in range(len(ensemble.members))]
    names = [member.model_id for member in ensemble.members]
    spec = ensemble.deployment.spec
    return traced_case(names, figures, groups, spec.batch_sizes, spec.serving.routing, spec.largest_batch)

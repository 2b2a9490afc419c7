"""The order of a run: one command after another, then the endpoint's check, the table and the page."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ensemble_core.allocation.prepare import check_quorum, load_allocation, overridden
from ensemble_core.allocation.result import AllocationResult
from ensemble_core.api.documents import Documents
from ensemble_core.api.ensembledeployment import EnsembleDeployment
from ensemble_core.api.ensembleselection import BEST_SINGLE
from ensemble_core.library.library import Library
from ensemble_core.library.store import open_store
from ensemble_core.profiling.half import words
from ensemble_core.report import CommandError
from ensemble_core.runner.check import ask_heldout, in_words
from ensemble_core.runner.facts import Endpoint, RunFacts
from ensemble_core.runner.gather import Made, different_members, run_facts
from ensemble_core.runner.page import render_page
from ensemble_core.runner.relocate import dump
from ensemble_core.runner.show import Show
from ensemble_core.runner.stages import Running, Stage, StageFailed, follow, problem_of, read_report, start
from ensemble_core.runner.table import notes, summary_table
from ensemble_core.selection.result import SelectionResult
from ensemble_core.selection.run import find_result
from ensemble_core.serving.errors import ServingError

SERVE_SECONDS = 300.0  # until the endpoint must answer
ENDING_SECONDS = 2.0  # for a stage whose endpoint is gone to be seen to have ended
LOOK_SECONDS = 0.5  # between looks at the endpoint while it is kept


@dataclass(frozen=True)
class Workspace:
    """The files of a run, all below one folder, which is there."""

    output: Path

    @property
    def documents(self) -> Path:
        return self.output / "documents.yaml"

    @property
    def heldout(self) -> Path:
        return self.output / "heldout"

    @property
    def page(self) -> Path:
        return self.output / "report.html"

    def report(self, name: str) -> Path:
        return self.output / "reports" / f"{name}.json"


@dataclass(frozen=True)
class Served:
    """The stage that serves."""

    stage: Stage
    running: Running

    def address(self) -> dict[str, str]:
        """Where its endpoints listen, empty until they do."""
        addresses: dict[str, str] = read_report(self.stage).get("progress", {})
        return addresses

    def check(self) -> None:
        """StageFailed if it has ended."""
        if (code := self.running.code()) is not None:
            raise StageFailed(self.stage, code, problem_of(read_report(self.stage)))


class Run:
    """One run of a deployment with its selection and searches.

    Args:
        documents: With the libraries at their places below the workspace.
        workspace: Where files go.
        show: Where progress goes.
    """

    def __init__(self, documents: Documents, workspace: Workspace, show: Show) -> None:
        self.documents, self.workspace, self.show = documents, workspace, show
        self.deployment: EnsembleDeployment = documents.deployment()
        self.selection = documents.selection(self.deployment.spec.selection_ref.name)
        self._began = time.time()

    def execute(self, keep_serving: bool) -> RunFacts:
        """Run all stages; with `keep_serving` the endpoint stays up until Ctrl-C.

        Raises:
            StageFailed: A command failed.
            CommandError: The endpoint does not answer what the members' predictions give, or all budgets have the same
                members.
            UserError: The ensemble that is to be served has fewer members than the quorum.
        """
        replace_text(self.workspace.documents, dump(self.documents, self.workspace.output))
        occupancy = self._train()
        self._stage("profile", "profile", "--name", self.selection.metadata.name)
        self._stage("select", "select", "--name", self.selection.metadata.name)
        result = find_result(self.documents, self.selection)
        assert result is not None
        self._check_deployed(result)
        allocations = self._allocate(result)
        self._stage(
            "held-out samples", "dataset", "--name", self._search_name(), "--output", str(self.workspace.heldout)
        )
        with self._served(keep_serving) as served:
            endpoint = self._ask(result, served, allocations)
            made = Made(self.documents, result, allocations, endpoint, occupancy, self._began, self.workspace.output)
            facts = run_facts(made)
            self._tell(facts)
            _judge_answers(endpoint)
            if keep_serving:
                self._keep(served)
        _judge_budgets(result)
        return facts

    def _stage(self, title: str, verb: str, *arguments: str) -> dict[str, Any]:
        """Run one command to its end and return its result's summary."""
        shown = self.show.stage(title)
        report = self.workspace.report(title.replace(" ", "-"))
        stage = Stage(title, verb, ("--spec", str(self.workspace.documents), *arguments), report)
        last = follow(stage, shown.seen, self.show.say)
        shown.end()
        summary: dict[str, Any] = last["result"]["summary"]
        return summary

    def _train(self) -> float | None:
        """Run the searches that the selection's sources name; occupancy of the last."""
        occupancy = None
        for name in self.documents.source_searches(self.selection):
            occupancy = self._stage(f"train {name}", "train", "--name", name).get("occupancy")
        return occupancy

    def _search_name(self) -> str:
        """The search whose data set the libraries are of."""
        return next(iter(self.documents.source_searches(self.selection)))

    def _check_deployed(self, result: SelectionResult) -> None:
        """Refuse an ensemble that cannot be served, before any is allocated."""
        name = self.deployment.spec.selection_ref.budget_name
        members = result.members(name)
        if not members:
            budget = result.budget(name)
            raise CommandError(
                f"the budget {name}, which spec.selectionRef.budgetName deploys, has no ensemble: "
                f"{budget.reason if budget else 'there is no such budget'}"
            )
        where = f"{self.documents.file}: EnsembleDeployment {self.deployment.metadata.name}"
        check_quorum(where, self.deployment.spec.serving.quorum, len(members))

    def _allocate(self, result: SelectionResult) -> dict[str, AllocationResult]:
        """Allocate the best single model and each budget's ensemble, all under the deployment's settings."""
        found = {}
        for name in [BEST_SINGLE, *(budget.name for budget in result.budgets if budget.members)]:
            self._stage(f"allocate {name}", "allocate", "--name", self.deployment.metadata.name, "--budget", name)
            found[name] = load_allocation(self.documents, overridden(self.deployment, name, None))
        return found

    @contextmanager
    def _served(self, keep: bool) -> Iterator[Served]:
        """The served deployment, once it answers; `keep` if it stays up for the user."""
        arguments = ("--spec", str(self.workspace.documents), "--name", self.deployment.metadata.name)
        stage = Stage("serve", "serve", arguments, self.workspace.report("serve"))
        # What `serve` says, how to call the endpoint, holds only if it stays up; its errors come through its report.
        served = Served(stage, start(stage, self.show.say if keep else lambda line: None))
        try:
            deadline = time.monotonic() + SERVE_SECONDS
            while not served.address().get("grpc"):
                served.check()
                if time.monotonic() > deadline:
                    raise CommandError(f"serve: did not answer within {SERVE_SECONDS:.0f} s")
                time.sleep(0.1)
            yield served
        finally:
            served.running.stop()

    def _keep(self, served: Served) -> None:
        """Wait for Ctrl-C; StageFailed if the endpoint is gone before."""
        self.show.say("The endpoint stays up until Ctrl-C.")
        with suppress(KeyboardInterrupt):
            while True:
                served.check()
                time.sleep(LOOK_SECONDS)

    def _ask(self, result: SelectionResult, served: Served, allocations: Mapping[str, AllocationResult]) -> Endpoint:
        budget = self.deployment.spec.selection_ref.budget_name
        libraries = [Library.open(open_store(source.storage)) for source in result.sources]
        members = result.members(budget)
        model, header, address = self.deployment.metadata.name, libraries[0].header, served.address()
        serving = self.deployment.spec.serving
        in_half = allocations[budget].in_half
        try:
            answers = ask_heldout(address["grpc"], model, self.workspace.heldout, libraries, members, serving, in_half)
        except ServingError as error:
            served.running.ended_within(ENDING_SECONDS)  # a killed stage's server dies a moment before the stage has
            served.check()
            raise CommandError(f"the endpoint does not answer: {error}") from error
        return Endpoint(
            model=model,
            http=address["http"],
            grpc=address["grpc"],
            input_type={"uint8": "UINT8", "float32": "FP32"}[header.signature.input_type],
            input_shape=header.signature.input_shape,
            classes=header.class_names,
            largest_difference=answers.largest_difference,
            samples=answers.samples,
            problem=answers.problem,
            accuracy=answers.accuracy,
            combined=in_words(serving),
            heldout=answers.heldout,
        )

    def _tell(self, facts: RunFacts) -> None:
        replace_text(self.workspace.page, render_page(facts))
        self.show.table(summary_table(facts))
        endpoint = facts.endpoint
        self.show.say(notes(facts))
        self.show.say(
            f"The endpoint's answers for {endpoint.samples} held-out samples differ from {endpoint.combined} by at "
            f"most {endpoint.largest_difference:.1e}."
        )
        if endpoint.accuracy is not None:
            self.show.say(f"In half precision: {words(endpoint.accuracy, 'held-out')}.")
        self.show.say(f"Report: {self.workspace.page}")


def replace_text(path: Path, text: str) -> None:
    """Write a file whole: a reader sees the old text or the new one."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.write_text(text)
    scratch.replace(path)


def _judge_answers(endpoint: Endpoint) -> None:
    if endpoint.problem is not None:
        raise CommandError(f"the endpoint's answers are not those of the members: {endpoint.problem}")


def _judge_budgets(result: SelectionResult) -> None:
    """A run of several budgets is to show what a budget changes."""
    found = [budget for budget in result.budgets if budget.members]
    if len(found) > 1 and different_members(result) < 2:
        raise CommandError(
            "everything is done, but all budgets have the same members; choose budgets that are further apart"
        )

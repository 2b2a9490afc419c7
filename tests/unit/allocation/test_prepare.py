from __future__ import annotations

from collections.abc import Callable

from ensemble_core.allocation.prepare import overridden
from ensemble_core.allocation.result import Subject
from ensemble_core.api.ensembledeployment import EnsembleDeployment, Serving
from ensemble_core.api.ensembleselection import BEST_SINGLE


def test_a_quorum_is_of_the_ensemble_that_the_document_names(make_subject: Callable[..., Subject]) -> None:
    deployment = make_subject().deployment
    spec = deployment.spec.model_copy(update={"serving": Serving(quorum=2, retries=1)})
    deployment = deployment.model_copy(update={"spec": spec})

    def serving(found: EnsembleDeployment) -> Serving:
        return found.spec.serving

    assert serving(overridden(deployment, None, 7)) == serving(overridden(deployment, "large", None)) == spec.serving
    other = overridden(deployment, BEST_SINGLE, None)
    assert other.spec.selection_ref.budget_name == BEST_SINGLE
    assert serving(other) == Serving(retries=1)

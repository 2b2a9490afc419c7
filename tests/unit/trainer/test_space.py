from __future__ import annotations

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from ensemble_core.errors import UserError
from ensemble_trainer.space import TABLE_5, search_space


def entry(name, kind, condition=None, **space):
    document = {"name": name, "parameterType": kind, "feasibleSpace": space}
    return document | ({"condition": condition} if condition else {})


def test_the_default_space_is_table_5(spec):
    blocks = {f"blocksStage{i}": IntDistribution(1, 11) for i in range(1, 5)}
    assert search_space(spec()).distributions() == {
        "learningRate": FloatDistribution(0.001, 0.01),
        "batchSize": IntDistribution(8, 48),
        "l2": FloatDistribution(0, 0.1),
        "convolution": CategoricalDistribution(("v1", "v2", "next")),
        "activation": CategoricalDistribution(("tanh", "relu", "elu")),
        "stemFilters": IntDistribution(32, 128),
        "stageFilters": IntDistribution(32, 128),
        **blocks,
        "maxZoom": FloatDistribution(0, 0.6),
        "maxTranslation": FloatDistribution(0, 0.6),
        "maxShear": FloatDistribution(0, 0.3),
        "maxChannelShift": FloatDistribution(0, 0.3),
        "maxRotationDegrees": IntDistribution(0, 90),
    }


@pytest.mark.parametrize(
    ("parameter", "expected"),
    [
        (entry("l2", "double", min=1e-5, max=0.01, distribution="logUniform"), FloatDistribution(1e-5, 0.01, log=True)),
        (entry("learningRate", "double", max=0.005), FloatDistribution(0.001, 0.005)),
        (entry("batchSize", "int", min=16, max=50, step=16), IntDistribution(16, 48, step=16)),
        (entry("stageFilters", "int", min=4, max=64, distribution="logUniform"), IntDistribution(4, 64, log=True)),
        (entry("stemFilters", "discrete", list=[8, 16]), CategoricalDistribution((8, 16))),
        (entry("maxZoom", "discrete", list=["0.1", 0]), CategoricalDistribution((0.1, 0.0))),
        (entry("convolution", "categorical", list=["v2"]), CategoricalDistribution(("v2",))),
    ],
)
def test_a_given_space_replaces_the_default(spec, parameter, expected):
    distributions = search_space(spec(parameter)).distributions()
    assert distributions[parameter["name"]] == expected
    assert len(distributions) == len(TABLE_5)


@pytest.mark.parametrize(
    ("parameter", "where", "problem"),
    [
        (entry("dropout", "double", min=0, max=1), "name", "'dropout' is unknown; allowed: learningRate"),
        (entry("l2", "int", min=0, max=1), "parameterType", "it must be double or discrete"),
        (entry("batchSize", "double", min=8, max=9), "parameterType", "it must be int or discrete"),
        (entry("activation", "discrete", list=[1]), "parameterType", "it must be categorical"),
        (entry("activation", "categorical", list=["relu", "gelu"]), "feasibleSpace.list[1]", "allowed: tanh, relu"),
        (entry("learningRate", "double", min=0, max=0.01), "feasibleSpace.min", "from 1e-08"),
        (entry("l2", "double", min=-0.1), "feasibleSpace.min", "from 0"),
        (entry("batchSize", "int", min=1), "feasibleSpace.min", "from 2"),
        (entry("batchSize", "int", min=49), "feasibleSpace.min", "max 48 (the default) is below min 49"),
        (entry("l2", "double", distribution="logUniform"), "feasibleSpace.min", "above 0"),
        (entry("batchSize", "discrete", list=["8.5"]), "feasibleSpace.list[0]", "whole number"),
    ],
)
def test_what_the_trainer_cannot_do_is_refused_with_its_path(spec, parameter, where, problem):
    with pytest.raises(UserError) as error:
        search_space(spec(parameter))
    assert error.value.where == f"spec.parameters[0].{where}"
    assert problem in error.value.problem


def test_a_parameter_whose_condition_fails_takes_the_default_and_is_not_proposed(spec):
    space = search_space(
        spec(
            entry("blocksStage1", "int", {"parameter": "convolution", "in": ["v1"]}, min=3, max=5),
            entry("convolution", "categorical", list=["v1", "next"]),
        )
    )
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    seen = set()
    for _ in range(20):
        trial = study.ask()
        parameters = space.suggest(trial)
        counts = parameters["convolution"] == "v1"
        seen.add(counts)
        assert set(parameters) == set(TABLE_5)
        assert trial.params == {name: parameters[name] for name in space.active(parameters)}
        assert ("blocksStage1" in trial.params) == counts
        assert parameters["blocksStage1"] in ((3, 4, 5) if counts else (TABLE_5["blocksStage1"].default,))
    assert seen == {True, False}
    assert "blocksStage1" not in space.distributions()


def test_asking_ahead_with_the_distributions_gives_the_same_values(spec):
    space = search_space(spec())
    trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)).ask(space.distributions())
    assert space.suggest(trial) == trial.params

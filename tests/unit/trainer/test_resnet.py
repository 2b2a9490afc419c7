from __future__ import annotations

import numpy as np
import pytest
import torch

from ensemble_trainer.export import load_network, open_session, predict, to_onnx
from ensemble_trainer.resnet import Architecture, bottleneck, build, count_flops


@pytest.fixture
def architecture(parameters):
    def describe(stem="auto", input_shape=(8, 8, 1), input_type="uint8", **changes):
        channels = input_shape[2]
        return Architecture.of(
            parameters(**changes),
            stem,
            input_shape=input_shape,
            input_type=input_type,
            classes=5,
            mean=(5.0,) * channels,
            std=(4.0,) * channels,
        )

    return describe


def settle(network, shape):
    """Give the normalisation layers statistics other than their initial ones, as training does."""
    network.train()
    with torch.no_grad():
        for _ in range(3):
            network.logits(torch.randn(16, shape[2], *shape[:2]))
    return network.eval()


@pytest.mark.parametrize("convolution", ["v1", "v2", "next"])
@pytest.mark.parametrize("activation", ["tanh", "relu", "elu"])
def test_onnx_runtime_agrees_with_torch(tmp_path, architecture, convolution, activation):
    described = architecture(convolution=convolution, activation=activation, stemFilters=5, stageFilters=18)
    network = settle(build(described, seed=3), (8, 8, 1))
    to_onnx(network, described, tmp_path / "model.onnx")
    raw = np.random.default_rng(0).integers(0, 17, (300, 8, 8, 1), dtype=np.uint8)
    answers = predict(open_session(tmp_path / "model.onnx", 1), raw)
    with torch.inference_mode():
        expected = network(torch.from_numpy(raw)).numpy()
    assert answers.dtype == np.float32
    assert np.abs(answers - expected).max() < 1e-5
    assert np.allclose(answers.sum(axis=1), 1, atol=1e-5)
    assert answers.std(axis=0).max() > 1e-3  # samples differ: the comparison means something


def test_the_graph_takes_raw_samples_of_any_number(tmp_path, architecture):
    described = architecture(input_shape=(9, 7, 3), input_type="float32")
    to_onnx(build(described).eval(), described, tmp_path / "model.onnx")
    session = open_session(tmp_path / "model.onnx", 1)
    (given,), (answer,) = session.get_inputs(), session.get_outputs()
    assert (given.name, given.type, given.shape) == ("INPUT", "tensor(float)", ["samples", 9, 7, 3])
    assert (answer.name, answer.type, answer.shape) == ("PROBABILITIES", "tensor(float)", ["samples", 5])
    for count in (1, 2, 7):
        assert predict(session, np.zeros((count, 9, 7, 3), np.float32)).shape == (count, 5)


def maps(network, shape):
    """Shapes that leave the blocks, in order."""
    seen = []
    for module in network.modules():
        if type(module).__name__ in ("PostActivation", "PreActivation"):
            module.register_forward_hook(lambda _, __, output: seen.append(tuple(output.shape[1:])))
    with torch.inference_mode():
        network.eval()(torch.zeros((1, *shape), dtype=torch.uint8))
    return seen


@pytest.mark.parametrize("convolution", ["v1", "v2", "next"])
def test_stages_double_filters_and_halve_maps(architecture, convolution):
    blocks = {"blocksStage1": 2, "blocksStage3": 3}
    network = build(architecture(convolution=convolution, input_shape=(17, 16, 3), **blocks))
    assert maps(network, (17, 16, 3)) == [
        *[(4, 17, 16)] * 2,
        (8, 9, 8),
        *[(16, 5, 4)] * 3,
        (32, 3, 2),
    ]


def test_the_map_never_vanishes(architecture):
    network = build(architecture(input_shape=(1, 5, 2)))
    assert maps(network, (1, 5, 2)) == [(4, 1, 5), (8, 1, 5), (16, 1, 5), (32, 1, 5)]
    assert maps(build(architecture(input_shape=(3, 3, 1))), (3, 3, 1))[-1] == (32, 1, 1)


def test_the_stem_follows_the_size_of_the_images(architecture):
    assert architecture(input_shape=(63, 63, 3)).stem == "small"
    assert architecture(input_shape=(64, 40, 3)).stem == "large"
    assert architecture("large", input_shape=(8, 8, 3)).stem == "large"
    large = build(architecture(input_shape=(64, 64, 3)))
    assert maps(large, (64, 64, 3))[0] == (4, 16, 16)
    small = build(architecture("small", input_shape=(64, 64, 3)))
    assert maps(small, (64, 64, 3))[0] == (4, 64, 64)


@pytest.mark.parametrize("filters", [1, 2, 4, 9, 32, 33, 64, 127, 128, 256, 300])
def test_groups_divide_the_bottleneck(filters):
    width, groups = bottleneck(filters)
    assert width % groups == 0
    assert max(1, filters // 2) - groups < width <= max(1, filters // 2)
    assert 1 <= groups <= 32
    if filters == 256:
        assert (width, groups) == (128, 32)  # the paper's ResNeXt-50 32×4d


def test_the_initial_weights_depend_on_the_seed_alone(architecture):
    state = torch.random.get_rng_state()
    first, again, other = (build(architecture(), seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["logits.0.weight"], other["logits.0.weight"])


def test_flops_are_two_per_multiply_add(architecture):
    described = architecture(stageFilters=2, stemFilters=3)
    stem = 8 * 8 * 9 * 1 * 3
    first = 8 * 8 * (9 * 3 * 2 + 9 * 2 * 2 + 3 * 2)  # two convolutions and a projection
    later = sum(s * s * (9 * c * 2 * c + 9 * 2 * c * 2 * c + c * 2 * c) for s, c in ((4, 2), (2, 4), (1, 8)))
    assert count_flops(build(described), described) == 2 * (stem + first + later + 16 * 5)


def test_weights_and_architecture_rebuild_the_network(tmp_path, architecture, digits, parameters):
    from ensemble_trainer.training import TrialRun, TrialSettings

    run = TrialRun(parameters(convolution="next"), digits, TrialSettings(seed=1))
    run.advance(1)
    run.export(tmp_path)
    raw = torch.from_numpy(digits.heldout.images)
    with torch.inference_mode():
        answers = load_network(tmp_path)(raw).numpy()
    assert np.allclose(answers, np.load(tmp_path / "predictions-heldout.npy"), atol=1e-5)

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from ensemble_core.metrics import metrics
from ensemble_trainer.training import Diverged, TrialRun, TrialSettings

SETTINGS = TrialSettings(seed=5)
AUGMENTED = {"maxZoom": 0.2, "maxChannelShift": 0.1, "maxRotationDegrees": 10, "l2": 1e-4}


@pytest.fixture(autouse=True)
def _threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def weights(run):
    return {name: tensor.clone() for name, tensor in run.network.state_dict().items()}


def same(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("convolution", ["v1", "v2", "next"])
def test_digits_are_learnt(digits, parameters, convolution):
    run = TrialRun(parameters(convolution=convolution, stageFilters=8), digits, SETTINGS)
    assert run.evaluate().error > 0.6
    assert run.advance(4).error < 0.3


def test_a_restored_trial_ends_as_an_uninterrupted_one(tmp_path, noise, parameters):
    dataset = noise()
    whole = TrialRun(parameters(**AUGMENTED), dataset, SETTINGS)
    whole.advance(4)
    first = TrialRun(parameters(**AUGMENTED), dataset, SETTINGS)
    first.advance(2)
    first.save(tmp_path)
    torch.rand(3)  # nobody else's draws matter
    second = TrialRun(parameters(**AUGMENTED), dataset, SETTINGS)
    second.restore(tmp_path)
    assert second.epoch == 2
    assert same(weights(first), weights(second))
    assert second.advance(4) == whole.advance(4)
    assert same(weights(whole), weights(second))
    assert [f.name for f in tmp_path.iterdir()] == ["checkpoint.safetensors"]


def test_a_checkpoint_before_training_and_one_of_another_trial(tmp_path, noise, parameters):
    dataset = noise()
    TrialRun(parameters(), dataset, SETTINGS).save(tmp_path)
    run = TrialRun(parameters(), dataset, SETTINGS)
    run.restore(tmp_path)
    run.advance(1)
    whole = TrialRun(parameters(), dataset, SETTINGS)
    whole.advance(1)
    assert same(weights(run), weights(whole))
    for other in (parameters(l2=0.1), parameters(stageFilters=5)):
        with pytest.raises(ValueError, match="belongs to another trial"):
            TrialRun(other, dataset, SETTINGS).restore(tmp_path)


def test_the_seed_decides(noise, parameters):
    dataset = noise()
    first, again, other = (TrialRun(parameters(**AUGMENTED), dataset, TrialSettings(seed=seed)) for seed in (1, 1, 2))
    for run in (first, again, other):
        run.advance(2)
    assert same(weights(first), weights(again))
    assert not same(weights(first), weights(other))


def test_more_threads_prepare_ahead_and_train_too(noise, parameters):
    run = TrialRun(parameters(**AUGMENTED), noise(), TrialSettings(seed=1, threads=2))
    assert run.batches.overlap
    run.advance(1)
    assert run.epoch == 1


def test_l2_shrinks_weights(noise, parameters):
    dataset = noise()

    def norm(l2):
        run = TrialRun(parameters(l2=l2), dataset, SETTINGS)
        run.advance(6)
        kernels = [w for name, w in weights(run).items() if w.ndim == 4 and name.endswith("weight")]
        return sum(float(w.square().sum()) for w in kernels)

    assert norm(0.1) < 0.9 * norm(0.0)


@pytest.mark.parametrize("l2", [0.0, 0.03])
def test_adam_is_torchs_own(noise, parameters, l2):
    run = TrialRun(parameters(l2=l2), noise(), SETTINGS)
    twin = copy.deepcopy(run.network)
    decayed = [p for p in twin.parameters() if p.ndim in (2, 4)]
    others = [p for p in twin.parameters() if p.ndim == 1]
    assert len(decayed) + len(others) == len(run.optimizer.parameters)
    reference = torch.optim.Adam([{"params": decayed, "weight_decay": l2}, {"params": others}], lr=0.005)
    raw = torch.from_numpy(run.dataset.train.images)
    for _ in range(3):
        for network, optimizer in ((run.network, run.optimizer), (twin, reference)):
            network.zero_grad()
            network(raw).square().sum().backward()
            optimizer.step()
    for mine, other in zip(run.network.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(mine, other, atol=1e-5)


@pytest.mark.parametrize(("size", "train"), [((1, 1), 33), ((2, 3), 2), ((8, 8), 3)])
def test_tiny_maps_and_batches_train_and_export(tmp_path, noise, parameters, size, train):
    run = TrialRun(parameters(batchSize=2), noise(*size, train=train, kind="float32"), SETTINGS)
    assert np.isfinite(run.advance(2).cross_entropy)
    assert run.export(tmp_path).flops > 0


def test_the_export_is_measured_as_it_will_be_served(tmp_path, digits, parameters):
    run = TrialRun(parameters(), digits, SETTINGS)
    trained = run.advance(1)
    exported = run.export(tmp_path / "model")
    assert set(exported.files) == {
        "model.onnx",
        "model.safetensors",
        "architecture.json",
        "predictions-validation.npy",
        "predictions-heldout.npy",
    }
    for split in ("validation", "heldout"):
        predictions = np.load(exported.files[f"predictions-{split}.npy"], allow_pickle=False)
        assert predictions.dtype == np.float32
        assert predictions.shape == (len(getattr(digits, split)), 10)
    stored = np.load(exported.files["predictions-validation.npy"])
    assert exported.validation == metrics(stored, digits.validation.labels)
    assert exported.validation.cross_entropy == pytest.approx(trained.cross_entropy, abs=1e-5)
    assert exported.parameters == sum(p.numel() for p in run.network.parameters())
    run.advance(2)  # the export left the trial as it was


def test_a_diverging_trial_says_so(noise, parameters):
    run = TrialRun(parameters(learningRate=10.0), noise(), SETTINGS)
    with torch.no_grad():
        run.network.logits[0].weight.fill_(float("inf"))
    with pytest.raises(Diverged, match="predictions are not finite after epoch 0"):
        run.advance(0)
    with pytest.raises(Diverged, match="training loss is nan in epoch 1"):
        run.advance(1)

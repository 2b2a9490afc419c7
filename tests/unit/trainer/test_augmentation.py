from __future__ import annotations

import pytest
import torch

from ensemble_trainer.augmentation import Augmentation, _warp
from ensemble_trainer.batches import Batches, cuts

SPAN = torch.tensor([[-1.0, -2.0], [1.0, 2.0]])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def images(count=16):
    return torch.rand(count, 2, 6, 9, generator=generator(9)) * 2 - 1


def test_without_maxima_the_very_tensor_comes_back():
    batch = images()
    assert Augmentation()(batch, SPAN, generator()) is batch


def test_an_identity_map_keeps_every_pixel():
    maps = Augmentation().affine(16, 6 / 9, generator())
    assert torch.allclose(_warp(images(), maps), images(), atol=1e-5)


def test_a_shift_moves_by_its_share_of_the_side():
    maps = torch.tensor([[[1.0, 0, 2 / 9], [0, 1, 0]]]).repeat(16, 1, 1)
    assert torch.allclose(_warp(images(), maps)[..., :-1], images()[..., 1:], atol=1e-5)


def test_a_quarter_turn_keeps_right_angles_on_wide_images():
    turn = Augmentation(rotation_degrees=90).affine(4000, 0.5, generator())
    in_pixels = torch.stack((turn[:, :, 0], turn[:, :, 1]), dim=2) * torch.tensor([[1, 1 / 0.5], [0.5, 1]])
    assert torch.allclose(in_pixels @ in_pixels.transpose(1, 2), torch.eye(2), atol=1e-5)
    angles = torch.rad2deg(torch.atan2(in_pixels[:, 1, 0], in_pixels[:, 0, 0]))
    assert -90 <= angles.min() < -85
    assert 85 < angles.max() <= 90


@pytest.mark.parametrize(
    ("changes", "row", "column", "low", "high"),
    [
        ({"zoom": 0.5}, 0, 0, 1 / 1.5, 2.0),
        ({"translation": 0.3}, 1, 2, -0.6, 0.6),
        ({"shear": 0.2}, 0, 1, -0.2, 0.2),
    ],
)
def test_draws_fill_their_bounds(changes, row, column, low, high):
    values = Augmentation(**changes).affine(4000, 1.0, generator())[:, row, column]
    assert low <= values.min() < low + 0.05 * (high - low)
    assert high - 0.05 * (high - low) < values.max() <= high


def test_channel_shifts_are_whole_bounded_and_clipped():
    batch = images()
    changed = Augmentation(channel_shift=0.25)(batch, SPAN, generator())
    difference = changed - batch
    assert difference[:, 0].abs().max() <= 0.25 * 2 + 1e-6
    assert changed[:, 0].abs().max() <= 1
    inner = difference[:, 1]  # this channel never reaches its bounds
    assert torch.allclose(inner, inner[:, :1, :1].expand_as(inner), atol=1e-6)
    assert len(inner[:, 0, 0].unique()) == len(batch)


def test_values_stay_within_the_images_range_and_depend_on_the_seed():
    strong = Augmentation(0.6, 0.6, 0.3, 0.3, 90)
    first, again, other = (strong(images(), SPAN, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first[:, 0].abs().max() <= 1


@pytest.mark.parametrize(("samples", "size"), [(33, 8), (32, 8), (2, 8), (3, 2), (9, 8), (100, 48)])
def test_batches_cover_all_and_none_has_one_sample(samples, size):
    lengths = [rows.stop - rows.start for rows in cuts(samples, size)]
    assert sum(lengths) == samples
    assert all(2 <= length <= size + 1 for length in lengths)


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("chunk_bytes", [1, 4 * 18 * 10, 1 << 20])
@pytest.mark.parametrize("samples", [33, 40, 41])
def test_an_epoch_has_every_sample_once_whatever_the_chunks(monkeypatch, overlap, chunk_bytes, samples):
    monkeypatch.setattr("ensemble_trainer.batches.CHUNK_BYTES", chunk_bytes)
    raw = torch.arange(samples, dtype=torch.float32).reshape(-1, 1, 1, 1).repeat(1, 3, 3, 2)
    batches = Batches(raw, torch.arange(samples), lambda x: x.permute(0, 3, 1, 2), Augmentation(), overlap)
    seen = []
    for pictures, labels in batches.epoch(4, seed=3):
        assert torch.equal(pictures[:, 0, 0, 0], labels.float())
        assert 2 <= len(labels) <= 5
        seen += labels.tolist()
    assert sorted(seen) == list(range(samples))
    assert seen == [label for _, labels in batches.epoch(4, seed=3) for label in labels.tolist()]
    assert seen != [label for _, labels in batches.epoch(4, seed=4) for label in labels.tolist()]


def test_a_failure_of_the_preprocessor_reaches_the_trainer():
    def fail(_):
        raise MemoryError("too much")

    batches = Batches(torch.zeros(8, 3, 3, 1), torch.zeros(8), fail, Augmentation(), overlap=True)
    with pytest.raises(MemoryError, match="too much"):
        list(batches.epoch(4, seed=0))

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from ensemble_core.api.hposearch import Dataset as DatasetSpec
from ensemble_core.errors import UserError
from ensemble_trainer import sources
from ensemble_trainer.datasets import load_dataset


def load(cache=None, **spec):
    return load_dataset(DatasetSpec.model_validate({k: str(v) if k in PATHS else v for k, v in spec.items()}), cache)


PATHS = ("arrays", "imageFolder")


def ids(dataset):
    return [set(part.ids.tolist()) for part in (dataset.train, dataset.validation, dataset.heldout)]


def test_digits_are_raw_and_divided(digits):
    assert digits.train.images.shape[1:] == (8, 8, 1)
    assert digits.train.images.dtype == np.uint8
    assert digits.train.images.max() == 16
    train, validation, heldout = ids(digits)
    assert len(train | validation | heldout) == len(train) + len(validation) + len(heldout) == 1797
    assert len(validation) == pytest.approx(359, abs=10)
    header = digits.header()
    assert header.signature.input_shape == (8, 8, 1)
    assert header.samples == {"validation": len(validation), "heldout": len(heldout)}
    assert header.fingerprint != load(builtin="digits", split={"seed": 1}).header().fingerprint


def test_the_cache_is_made_once_mapped_and_equal(tmp_path, monkeypatch, archive):
    path = archive()
    plain, first = load(arrays=path), load(tmp_path / "cache", arrays=path)
    monkeypatch.setattr(sources, "arrays", lambda _: pytest.fail("read again"))
    again = load(tmp_path / "cache", arrays=path)
    assert isinstance(again.train.images, np.memmap)
    assert plain.header() == first.header() == again.header()
    for name in ("train", "validation", "heldout"):
        for field in ("images", "labels", "ids"):
            expected, found = (getattr(getattr(d, name), field) for d in (plain, again))
            assert np.array_equal(expected, found)


def test_a_changed_file_is_read_again(tmp_path, archive):
    first = load(tmp_path / "cache", arrays=archive())
    changed = load(tmp_path / "cache", arrays=archive(images=np.ones((60, 9, 9, 3), np.uint8)))
    assert first.input_shape == (5, 4, 1)
    assert changed.input_shape == (9, 9, 3)


def test_a_stored_set_is_fetched(tmp_path, archive):
    root = archive().parent
    spec = {"arrays": "data.npz", "storage": {"path": str(root)}}
    assert ids(load(tmp_path / "cache", **spec)) == ids(load(arrays=root / "data.npz")) == ids(load(**spec))
    with pytest.raises(UserError, match=r"spec.dataset.arrays: .* has nothing at other.npz"):
        load(tmp_path / "cache", **(spec | {"arrays": "other.npz"}))


def test_a_folder_of_arrays_with_names_and_ids(tmp_path):
    np.save(tmp_path / "images.npy", np.zeros((20, 4, 4, 3), np.float64))
    np.save(tmp_path / "labels.npy", np.arange(20) % 2)
    np.save(tmp_path / "ids.npy", np.array([f"x{i}" for i in range(20)]))
    (tmp_path / "classNames.json").write_text(json.dumps(["cat", "dog", "owl"]))
    dataset = load(arrays=tmp_path)
    assert dataset.class_names == ("cat", "dog", "owl")
    assert dataset.input_type == "float32"
    assert set.union(*ids(dataset)) == {f"x{i}" for i in range(20)}


def test_given_splits_are_used_as_they_are(archive):
    images, labels = np.full((6, 5, 4), 7, np.uint8), np.array([2, 1, 0, 0, 1, 2])
    given = {"images_validation": images, "labels_validation": labels}
    half = load(arrays=archive(**given))
    assert half.validation.labels.tolist() == labels.tolist()
    assert len(half.train) + len(half.heldout) == 60
    whole = load(arrays=archive(**given, images_heldout=images, labels_heldout=labels))
    assert (len(whole.train), len(whole.validation), len(whole.heldout)) == (60, 6, 6)


@pytest.mark.parametrize(
    ("changes", "where", "problem"),
    [
        ({"labels": None}, "labels", "is missing; there are: images"),
        ({"images": None}, "images", "is missing"),
        ({"images": np.zeros((60, 5), np.uint8)}, "images", "has shape [60, 5]"),
        ({"images": np.zeros((60, 0, 4), np.uint8)}, "images", "has shape [60, 0, 4]"),
        ({"images": np.zeros((60, 5, 4), np.int32)}, "images", "has type int32"),
        ({"images": np.full((60, 5, 4), np.nan)}, "images", "sample 0 contains NaN"),
        ({"images": np.full((60, 5, 4), 1e300)}, "images", "sample 0 contains NaN, or values beyond float32"),
        ({"labels": np.arange(59) % 3}, "labels", "has shape [59]; 60 images need [60]"),
        ({"labels": np.zeros(60)}, "labels", "has type float64"),
        ({"labels": np.arange(60) % 3 - 1}, "labels", "sample 0 has label -1, outside the 2 classes"),
        ({"classNames": np.array(["a", "b"])}, "labels", "sample 2 has label 2, outside the 2 classes"),
        ({"labels": np.arange(60) % 2 * 5}, "labels", "has no sample of class 1"),
        ({"labels": np.zeros(60, int)}, None, "has 1 class; classification needs at least 2"),
        ({"classNames": np.array(["a", "a", "b"])}, "classNames", "different names"),
        ({"classNames": np.array(["a", {}, "b"], object)}, "classNames", "holds Python objects"),
        ({"ids": np.array(["x"] * 60)}, "ids", "60 different ids"),
        ({"images_validation": np.zeros((2, 5, 4), np.uint8)}, "labels_validation", "is missing"),
        (
            {"images_heldout": np.zeros((2, 5, 5), np.uint8), "labels_heldout": np.array([0, 1])},
            "images",
            "differ in shape",
        ),
        (
            {"images_heldout": np.zeros((0, 5, 4), np.uint8), "labels_heldout": np.zeros(0, int)},
            None,
            "the heldout split has 0 samples",
        ),
        ({"images": np.zeros((3, 5, 4), np.uint8), "labels": np.arange(3)}, None, "split has"),
    ],
)
def test_bad_arrays_are_refused_by_file_and_field(archive, tmp_path, changes, where, problem):
    path = archive(**changes)
    with pytest.raises(UserError) as error:
        load(tmp_path / "cache", arrays=path)
    assert error.value.where == (f"{path}: {where}" if where else str(path))
    assert problem in error.value.problem
    assert not [f for f in (tmp_path / "cache").iterdir() if f.is_dir()]


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 broken", b"text", b"\x93NUMPY\x01\x00"])
def test_what_is_no_archive_is_refused(tmp_path, content):
    (tmp_path / "data.npz").write_bytes(content)
    with pytest.raises(UserError, match=r"data.npz: is neither an .npz file"):
        load(arrays=tmp_path / "data.npz")
    with pytest.raises(UserError, match=r"spec.dataset.arrays: .*absent.npz does not exist"):
        load(arrays=tmp_path / "absent.npz")


def test_a_truncated_archive_is_refused(archive):
    path = archive()
    np.savez(path, images=np.zeros((60, 50, 40), np.uint8), labels=np.arange(60) % 3)
    content = bytearray(path.read_bytes())
    content[2000:3000] = b"\x01" * 1000
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"images: cannot be read"):
        load(arrays=path)


@pytest.fixture
def pictures(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("owl", "cat"):
        (tmp_path / "pictures" / name / "deep").mkdir(parents=True)
        for index in range(10):
            image = Image.fromarray(rng.integers(0, 256, (6, 7), dtype=np.uint8))
            image.save(tmp_path / "pictures" / name / ("deep" if index % 2 else ".") / f"{index}.png")
    (tmp_path / "pictures" / "cat" / ".hidden").write_text("no image")
    return tmp_path / "pictures"


def test_an_image_folder(pictures):
    dataset = load(imageFolder=pictures)
    assert dataset.class_names == ("cat", "owl")
    assert dataset.input_shape == (6, 7, 3)
    assert "owl/deep/1.png" in set.union(*ids(dataset))
    assert load(imageFolder=pictures, imageSize=5).input_shape == (5, 5, 3)


def test_bad_image_folders_are_refused(pictures):
    Image.new("RGB", (3, 3)).save(pictures / "owl" / "small.png")
    with pytest.raises(UserError, match=r"small.png: has 3×3 pixels, others 7×6; set spec.dataset.imageSize"):
        load(imageFolder=pictures)
    (pictures / "cat" / "notes.txt").write_text("no image")
    with pytest.raises(UserError, match=r"notes.txt: is not an image"):
        load(imageFolder=pictures, imageSize=5)
    with pytest.raises(UserError, match=r"spec.dataset.imageFolder: .*absent is not a folder"):
        load(imageFolder=pictures / "absent")
    with pytest.raises(UserError, match=r"deep: has no folders with images"):
        load(imageFolder=pictures / "owl" / "deep")


def test_normalisation_is_of_the_training_samples(noise, monkeypatch):
    dataset = noise(train=700)
    monkeypatch.setattr("ensemble_trainer.datasets.BLOCK", 1000)
    mean, std = dataset.normalisation
    assert mean == pytest.approx(dataset.train.images.mean(axis=(0, 1, 2)))
    assert std == pytest.approx(dataset.train.images.std(axis=(0, 1, 2)))
    constant = noise()
    constant.train.images[..., 1] = 7
    assert constant.normalisation[1][1] == 1

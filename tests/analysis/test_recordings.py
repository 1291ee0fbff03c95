"""Files of recordings: reading valid files, and one-line errors for invalid ones."""

import os
import pickle

import h5py
import numpy as np
import pytest

from neural_alignment.data.recordings import load_images, load_recordings
from neural_alignment.errors import DataError


def content(rng, repeats=()):
    return {
        "responses": rng.normal(size=(6, 3, *repeats)),
        "categories": np.array(["cat", "car"] * 3),
        "areas": np.array(["V4", "IT", "IT"]),
        "images": rng.integers(0, 255, (6, 4, 4, 1), np.uint8),
    }


def write(path, arrays):
    if path.suffix == ".npz":
        np.savez_compressed(path, **arrays)
        return path
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file[name] = array.astype(h5py.string_dtype()) if array.dtype.kind == "U" else array
    return path


@pytest.fixture(params=[".npz", ".h5", ".hdf5"])
def path(request, tmp_path):
    return tmp_path / f"recordings{request.param}"


@pytest.mark.parametrize("repeats", [(), (4,)])
def test_a_file_is_read_as_it_was_written(path, rng, repeats):
    arrays = content(rng, repeats)
    found = load_recordings(str(write(path, arrays)))
    for name in ("responses", "categories", "areas"):
        assert np.array_equal(getattr(found, name), arrays[name])
        assert getattr(found, name).dtype.kind == arrays[name].dtype.kind
    assert np.array_equal(load_images(str(path)), arrays["images"])


def test_bytes_and_numbers_are_labels_too(path, rng):
    arrays = content(rng) | {"areas": np.array([b"V4", b"IT", b"IT"]), "categories": np.array([4, 7] * 3)}
    found = load_recordings(str(write(path, arrays)))
    assert found.areas.tolist() == ["V4", "IT", "IT"]
    assert found.categories.tolist() == [4, 7] * 3


def test_missing_repeats_may_stay_missing(path, rng):
    arrays = content(rng, (4,))
    arrays["responses"][2, 1, 2:] = np.nan
    assert np.isnan(load_recordings(str(write(path, arrays))).responses).sum() == 2


def spoiled(arrays, name, place, value):
    array = arrays[name].copy()
    array[place] = value
    return arrays | {name: array}


FAULTS = {
    "no responses": (
        lambda a: {k: v for k, v in a.items() if k != "responses"},
        "has no array `responses`; found areas",
    ),
    "misspelt": (lambda a: {**{k: v for k, v in a.items() if k != "areas"}, "area": a["areas"]}, "did you mean 'area'"),
    "one axis": (lambda a: a | {"responses": a["responses"][:, 0]}, r"`responses` must be real .* found shape \(6,\)"),
    "no units": (lambda a: a | {"responses": a["responses"][:, :0]}, r"found shape \(6, 0\)"),
    "complex": (lambda a: a | {"responses": a["responses"] * 1j}, "of complex128"),
    "words": (lambda a: a | {"responses": np.full((6, 3), "x")}, "`responses` must be real"),
    "NaN": (lambda a: spoiled(a, "responses", (4, 2), np.nan), "of image 4, unit 2 must be a finite number"),
    "infinity": (lambda a: spoiled(a, "responses", (0, 1), np.inf), "of image 0, unit 1 must be a finite number"),
    "few categories": (lambda a: a | {"categories": a["categories"][:5]}, r"one per image .* found shape \(5,\)"),
    "real categories": (lambda a: a | {"categories": np.arange(6) / 2}, "`categories` must be integers or strings"),
    "lone category": (lambda a: spoiled(a, "categories", 0, "dog"), "found one of 'dog'"),
    "many areas": (lambda a: a | {"areas": np.array(["IT"] * 6)}, r"one per unit of `responses`, \(3,\)"),
    "numbered areas": (lambda a: a | {"areas": np.arange(3)}, "`areas` must be strings"),
}


@pytest.mark.parametrize(("fault", "message"), FAULTS.values(), ids=FAULTS)
def test_each_malformed_file_is_one_line(path, rng, fault, message):
    write(path, fault(content(rng)))
    with pytest.raises(DataError, match=message) as error:
        load_recordings(str(path))
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(str(path))


@pytest.mark.parametrize(("shown", "value"), [(1, np.nan), (0, np.nan), (3, np.inf)])
def test_two_repeats_of_each_are_needed(path, rng, shown, value):
    arrays = content(rng, (4,))
    arrays["responses"][3, 2, shown:] = value
    write(path, arrays)
    with pytest.raises(DataError, match=r"image 3, unit 2"):
        load_recordings(str(path))


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((6, 4, 4), np.uint8),
        np.zeros((6, 4, 4, 1), np.int64),
        np.full((6, 4, 4, 1), np.nan),
        np.zeros((0, 4, 4, 1)),
    ],
    ids=["three axes", "int64", "NaN", "none"],
)
def test_malformed_images_are_one_line(path, rng, images):
    write(path, content(rng) | {"images": images})
    with pytest.raises(DataError, match=r"`images` must be"):
        load_images(str(path))


def test_a_missing_file_tells_how_to_obtain_the_public_recordings(path):
    with pytest.raises(DataError, match=r"no such file; .*docs/neural_fit.md .* Majaj et al. 2015") as error:
        load_recordings(str(path))
    assert "\n" not in str(error.value)


def test_other_files_are_refused(tmp_path, path, rng):
    whole = write(path, content(rng)).read_bytes()
    with pytest.raises(DataError, match=r"must be a .npz, .h5 or .hdf5 file"):
        load_recordings(str(tmp_path / "recordings.mat"))
    for damaged in (b"", b"something else", whole[: len(whole) // 2], whole[:-200]):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"is damaged") as error:
            load_recordings(str(path))
        assert "\n" not in str(error.value)
    path.unlink()
    path.mkdir()
    with pytest.raises(DataError, match=r"is a directory"):
        load_recordings(str(path))


def test_flipped_bytes_of_an_npz_are_found(tmp_path, rng):
    path = write(tmp_path / "recordings.npz", content(rng))
    whole = bytearray(path.read_bytes())
    whole[150:170] = bytes(20)
    path.write_bytes(whole)
    with pytest.raises(DataError, match=r"is damaged"):
        load_recordings(str(path))


def test_a_single_array_is_not_an_npz_file(tmp_path):
    path = tmp_path / "recordings.npz"
    with path.open("wb") as file:
        np.save(file, np.zeros((6, 3)))
    with pytest.raises(DataError, match=r"is not a .npz file of named arrays"):
        load_recordings(str(path))


class Exploit:
    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


def test_nothing_is_unpickled(tmp_path, rng):
    trace = tmp_path / "pwned"
    hostile = write(tmp_path / "hostile.npz", content(rng) | {"areas": np.array([Exploit(trace)] * 3, object)})
    with pytest.raises(DataError, match=r"`areas` must hold numbers or strings; found Python objects"):
        load_recordings(str(hostile))
    pickled = tmp_path / "pickled.npz"
    pickled.write_bytes(pickle.dumps(Exploit(trace)))
    with pytest.raises(DataError, match=r"is damaged"):
        load_recordings(str(pickled))
    assert not trace.exists()
    with np.load(hostile, allow_pickle=True) as file:
        file["areas"]
    assert trace.exists(), "the exploit is live"


@pytest.mark.parametrize("kind", ["external", "soft", "group", "virtual", "elsewhere"])
def test_hdf5_links_are_rejected(tmp_path, rng, kind):
    secret = write(tmp_path / "secret.h5", {"responses": rng.normal(size=(6, 3))})
    path = write(tmp_path / "recordings.h5", {k: v for k, v in content(rng).items() if k != "responses"})
    with h5py.File(path, "a") as file:
        if kind == "external":
            file["responses"] = h5py.ExternalLink(str(secret), "responses")
        elif kind == "soft":
            file["responses"] = h5py.SoftLink("/areas")
        elif kind == "group":
            file.create_group("responses")
        elif kind == "elsewhere":
            outside = [(str(tmp_path / "raw"), 0, h5py.h5f.UNLIMITED)]
            file.create_dataset("responses", (6, 3), "f8", external=outside)
        else:
            layout = h5py.VirtualLayout((6, 3), "f8")
            layout[:] = h5py.VirtualSource(str(secret), "responses", (6, 3))
            file.create_virtual_dataset("responses", layout)
    with pytest.raises(DataError, match=r"whose values are in this file"):
        load_recordings(str(path))


def test_a_remote_file_is_read_from_a_copy(path, rng):
    arrays = content(rng)
    write(path, arrays)
    found = load_recordings(f"file://{path}")
    assert np.array_equal(found.responses, arrays["responses"])

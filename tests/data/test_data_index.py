"""The index of TFRecord files, compared with TensorFlow's reader, and the validation of index files."""

import io
import pathlib
import zipfile

import numpy as np
import pytest
import tensorflow as tf

from neural_alignment import data
from neural_alignment.data import index
from neural_alignment.errors import DataError


def offsets_of(path):
    """Computes the offsets of the records of an intact file from the records that TensorFlow reads."""
    return np.cumsum([0, *(len(record.numpy()) + 16 for record in tf.data.TFRecordDataset(str(path)))])


@pytest.fixture
def paths(files):
    files.imagenet(shards=3, per_shard=11)
    return [str(path) for path in sorted(files.directory.iterdir())]


@pytest.fixture
def walked(monkeypatch):
    """The paths of the files that are indexed."""
    seen, walk = [], index.walk
    monkeypatch.setattr(index, "walk", lambda path: seen.append(path) or walk(path))
    return seen


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_offsets_are_those_of_tensorflow(paths, scheme):
    found = index.index_files([scheme + path for path in paths])
    for path in paths:
        np.testing.assert_array_equal(found[scheme + path].offsets, offsets_of(path))
        assert found[scheme + path].fault is None


def test_a_wrong_header_ends_the_file_there(paths, files):
    path, offsets = files.directory / "train-00001-of-00003", offsets_of(paths[1])
    content = bytearray(path.read_bytes())
    content[offsets[4] + 2] ^= 1  # the length of record 4
    path.write_bytes(content)
    found = index.walk(str(path))
    np.testing.assert_array_equal(found.offsets, offsets[:5])
    assert f"checksum of the length at byte {offsets[4]}, record 4" in found.fault


@pytest.mark.parametrize("cut", [1, 5, 15])
def test_a_file_that_ends_within_a_record(paths, files, cut):
    path, offsets = files.directory / "train-00002-of-00003", offsets_of(paths[2])
    path.write_bytes(path.read_bytes()[: offsets[6] + cut])
    found = index.walk(str(path))
    np.testing.assert_array_equal(found.offsets, offsets[:7])
    assert "end within record 6" in found.fault


def test_an_index_file_avoids_indexing_again(paths, tmp_path, walked):
    kept = str(tmp_path / "kept" / "index.npz")
    first = index.index_files(paths, kept)
    assert sorted(walked) == paths
    again = index.index_files(paths, kept)
    assert len(walked) == 3
    for path in paths:
        np.testing.assert_array_equal(first[path].offsets, again[path].offsets)
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["index.npz"]


@pytest.mark.parametrize(
    ("scheme", "kept", "warns"), [("file://", "", True), ("file://", "index.npz", False), ("", "", False)]
)
def test_only_remote_files_whose_index_is_not_stored_cause_a_warning(paths, tmp_path, caplog, scheme, kept, warns):
    index.index_files([scheme + path for path in paths], str(tmp_path / kept) if kept else None)
    assert caplog.text.count("the positions of the records in 3 remote files are not stored") == warns


def test_a_file_of_another_size_is_indexed_again(paths, files, tmp_path, walked):
    kept = str(tmp_path / "index.npz")
    index.index_files(paths, kept)
    files.imagenet("train", shards=3, per_shard=12)
    found = index.index_files(paths, kept)
    assert [found[path].records for path in paths] == [12, 12, 12]
    assert len(walked) == 6
    index.index_files(paths, kept)
    assert len(walked) == 6


DIRECTORY_BITS = {"encrypted": (8, 1), "compression": (10, 64)}
"""Flipped bit in the first entry of the directory of a zip file -> its offset and its value."""


@pytest.mark.parametrize("damage", ["bytes", "encrypted", "compression", "pickle", "lengths", "types", "format"])
def test_a_wrong_index_file_is_rewritten(paths, tmp_path, walked, damage):
    kept = tmp_path / "index.npz"
    expected = index.index_files(paths, str(kept))
    arrays = dict(np.load(kept))
    if damage == "bytes":
        content = bytearray(kept.read_bytes())
        with zipfile.ZipFile(kept) as archive:
            place = archive.getinfo("lengths.npy").header_offset
        content[place + 60 : place + 80] = bytes(20)
        kept.write_bytes(content)
    elif damage in DIRECTORY_BITS:
        offset, bit = DIRECTORY_BITS[damage]
        content = bytearray(kept.read_bytes())
        content[content.index(b"PK\x01\x02") + offset] ^= bit
        kept.write_bytes(content)
    else:
        changed = {
            "pickle": {"paths": np.array([Exploit()], object)},
            "lengths": {"lengths": arrays["lengths"] + 1},
            "types": {"records": arrays["records"].astype(float)},
            "format": {"format": np.array(99)},
        }[damage]
        buffer = io.BytesIO()
        np.savez(buffer, **(arrays | changed))
        kept.write_bytes(buffer.getvalue())
    found = index.index_files(paths, str(kept))
    assert len(walked) == 6
    assert not Exploit.ran
    for path in paths:
        np.testing.assert_array_equal(found[path].offsets, expected[path].offsets)
    index.index_files(paths, str(kept))
    assert len(walked) == 6  # it was written anew


@pytest.mark.parametrize("kind", ["text", "empty", "truncated", "arrays", "more", "model", "shard"])
def test_a_file_that_is_not_an_index_is_not_overwritten(paths, tmp_path, kind):
    kept = tmp_path / "index.npz"
    index.index_files(paths, str(kept))
    arrays = dict(np.load(kept))
    buffer = io.BytesIO()
    if kind == "model":
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("config.json", "{}")
    else:
        np.savez(buffer, **({"x_train": arrays["lengths"]} if kind == "arrays" else {**arrays, "mine": 1}))
    content = {"text": b"notes", "empty": b"", "truncated": kept.read_bytes()[:-40]}.get(kind, buffer.getvalue())
    path = paths[1] if kind == "shard" else str(kept)
    if kind != "shard":
        kept.write_bytes(content)
    else:
        content = pathlib.Path(path).read_bytes()
    for place in (path, f"file://{path}"):
        with pytest.raises(DataError) as raised:
            index.index_files(paths, place)
        requirement = "must be an index file or the path of a new file, because no other file is overwritten"
        assert str(raised.value) == f"data.index_file: {requirement}; found {place!r}"
    assert pathlib.Path(path).read_bytes() == content


class Exploit:
    """Runs code when it is unpickled."""

    ran = False

    def __reduce__(self):
        return exec, ("import sys; sys.modules[__name__]; Exploit.ran = True", {"Exploit": Exploit, "__name__": "sys"})


def test_a_damaged_file_is_not_kept(paths, files, tmp_path, walked):
    path = files.directory / "train-00001-of-00003"
    path.write_bytes(path.read_bytes()[:-3])
    for count in (3, 4):
        assert index.index_files(paths, str(tmp_path / "index.npz"))[str(path)].fault
        assert len(walked) == count


def test_an_index_file_that_cannot_be_written_is_one_line(files, tmp_path):
    (tmp_path / "taken").write_text("a file")
    pattern = files.imagenet()
    options = {"train_files": pattern, "validation_files": pattern, "batch_size": 4, "seed": 0}
    with pytest.raises(DataError) as raised:
        data.load("imagenet", index_file=str(tmp_path / "taken" / "index.npz"), **options)
    assert str(raised.value).startswith(f"data.index_file: must be a path in a writable directory; found '{tmp_path}")
    assert "\n" not in str(raised.value)
    with pytest.raises(DataError, match=r"data\.index_file: input should be a valid string or null; found 3"):
        data.load("imagenet", index_file=3, **options)


def test_both_splits_share_an_index_file(files, tmp_path, walked):
    options = {"train_files": files.imagenet(), "validation_files": files.imagenet("validation"), "seed": 0}
    for _ in range(2):
        data.load("imagenet", index_file=str(tmp_path / "index.npz"), batch_size=4, **options)
    assert len(walked) == 6

"""Fixtures for real data, if available, and for small files of every kind."""

import io
import json
import os
import pathlib

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image


@pytest.fixture(scope="session")
def imagenet_sample():
    default = pathlib.Path(__file__).resolve().parents[2].parent / "shared" / "data" / "imagenet_sample"
    directory = pathlib.Path(os.environ.get("IMAGENET_SAMPLE_DIR") or default)
    if not directory.is_dir():
        pytest.skip(f"no ImageNet sample in {directory}; set IMAGENET_SAMPLE_DIR")
    return directory


@pytest.fixture
def prepared():
    """Skips the test unless a TFDS data set is on disk."""

    def check(name):
        directory = pathlib.Path(os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")).expanduser()
        if not (directory / name).is_dir():
            pytest.skip(f"no {name} in {directory}; set TFDS_DATA_DIR")
        return name

    return check


def encode(image, kind="PNG", mode=None, **options):
    buffer = io.BytesIO()
    image = Image.fromarray(np.asarray(image, np.uint8).squeeze())
    (image.convert(mode) if mode else image).save(buffer, kind, **options)
    return buffer.getvalue()


def animated_webp(mode, side=6):
    """An animation of two frames. Without the guard in `imagenet.decode_image`, TensorFlow 2.21 crashes with "RGB"."""
    first, second = (Image.new(mode, (side, side), colour) for colour in ("red", "blue"))
    return encode(first, "WEBP", save_all=True, append_images=[second], duration=50)


def example(image_key, encoded, label_key, label):
    features = {}
    if image_key:
        features[image_key] = tf.train.Feature(bytes_list=tf.train.BytesList(value=[encoded]))
    if label_key:
        features[label_key] = tf.train.Feature(int64_list=tf.train.Int64List(value=[label]))
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


def write_records(path, records):
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in records:
            writer.write(record)
    return str(path)


def identity_image(number, side=8):
    """An image that encodes its number: both bytes, in every pixel."""
    return np.broadcast_to(np.array([number // 256, number % 256, 7], np.uint8), (side, side, 3))


def numbers_of(images):
    """Returns the numbers encoded in a batch of such images scaled to [-1, 1]."""
    pixels = np.rint((np.asarray(images)[:, 0, 0] + 1) * 127.5).astype(int)
    return pixels[:, 0] * 256 + pixels[:, 1]


class Files:
    """Writes data sets below a directory."""

    def __init__(self, directory):
        self.directory = directory

    def imagenet(self, name="train", shards=3, per_shard=11, label=lambda number: number % 10 + 1, side=8):
        """Writes TFRecords in the layout of ImageNet; image n encodes n. Returns the pattern."""
        for shard in range(shards):
            numbers = range(shard * per_shard, (shard + 1) * per_shard)
            records = [
                example("image/encoded", encode(identity_image(n, side)), "image/class/label", label(n))
                for n in numbers
            ]
            write_records(self.directory / f"{name}-{shard:05d}-of-{shards:05d}", records)
        return str(self.directory / f"{name}-*")

    def folder(self, files, name="train"):
        """Writes files, given by their paths within a folder, and returns the folder."""
        for path, content in files.items():
            target = self.directory / name / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
        return str(self.directory / name)

    def tfds(self, images, labels, name="toy", *, dimensions, classes=10, splits=("train", "test"), feature="image"):
        """Writes a prepared TFDS set with the same images in every split, in two files. Returns the data directory."""
        directory = self.directory / "tfds" / name / "1.0.0"
        directory.mkdir(parents=True)
        half = len(labels) // 2
        for split in splits:
            for shard, part in enumerate((slice(0, half), slice(half, None))):
                write_records(
                    directory / f"{name}-{split}.tfrecord-{shard:05d}-of-00002",
                    [example("image", i, "label", y) for i, y in zip(images[part], labels[part], strict=True)],
                )
        template = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
        lengths = [str(half), str(len(labels) - half)]
        info = {"name": name, "version": "1.0.0", "fileFormat": "tfrecord", "moduleName": "toy"}
        info["splits"] = [{"filepathTemplate": template, "name": s, "shardLengths": lengths} for s in splits]
        shape = [str(size) for size in dimensions]
        package = "tensorflow_datasets.core.features."
        features = {
            feature: {
                "image": {"dtype": "uint8", "shape": {"dimensions": shape}},
                "pythonClassName": package + "image_feature.Image",
            },
            "label": {
                "classLabel": {"numClasses": str(classes)},
                "pythonClassName": package + "class_label_feature.ClassLabel",
            },
        }
        tree = {"featuresDict": {"features": features}, "pythonClassName": package + "features_dict.FeaturesDict"}
        (directory / "dataset_info.json").write_text(json.dumps(info))
        (directory / "features.json").write_text(json.dumps(tree))
        return str(self.directory / "tfds")


@pytest.fixture
def files(tmp_path):
    return Files(tmp_path)


@pytest.fixture(scope="session")
def tools():
    """The functions above, for tests that cannot import this file."""
    return type(
        "Tools",
        (),
        {
            "encode": staticmethod(encode),
            "animated_webp": staticmethod(animated_webp),
            "example": staticmethod(example),
            "write_records": staticmethod(write_records),
            "Files": Files,
            "numbers_of": staticmethod(numbers_of),
            "identity_image": staticmethod(identity_image),
        },
    )

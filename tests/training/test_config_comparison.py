"""Which keys of a configuration affect the result, and the checksums of earlier versions."""

import pytest
from helpers import SMALL_RUN, for_each

from neural_alignment import config as configuration
from neural_alignment.training import config_comparison

IMAGENET = "{source: imagenet, train_files: /a/train-*, validation_files: /a/val-*}"
FOLDERS = "{source: image_folder, train_folder: /a/train, validation_folder: /a/val}"
FREE = {
    "imagenet": (
        IMAGENET,
        ["data.train_files=[/b/0, /b/1]", "data.validation_files=gs://b/val-*", "data.index_file=/b/index.npz"],
    ),
    "image_folder": (FOLDERS, ["data.train_folder=/b/train", "data.validation_folder=/c", "data.tolerate_corrupt=1"]),
    "npz": ("{source: npz, file: /a/images.npz}", ["data.file=/b/images.npz"]),
    "tfds": ("{source: tfds, dataset: mnist}", ["data.data_dir=/b", "data.download=false"]),
    "digits": ("{source: digits}", ["runtime={strategy: mirrored, replicas: 2, jit_compile: true}"]),
}
"""Source -> its options, and overrides that do not affect the result."""
DECISIVE = [
    ("{source: digits}", "runtime.precision=mixed_bfloat16", "runtime was not set, is now {'precision': 'mixed_bf"),
    ("{source: digits}", "runtime.synchronize_batch_norm=true", "runtime was not set, is now {'synchronize_batch"),
    (FOLDERS, "data.validation_folder=null", "data.validation_folder was 'given', is now not set"),
    (IMAGENET, "data.classes=10", "data.classes was 1000, is now 10"),
    ("{source: npz, file: /a/images.npz}", "data.classes=10", "data.classes was None, is now 10"),
]
"""Options of a source, an override that affects the result, and the reported difference."""


def loaded(tmp_path, data, *overrides):
    (tmp_path / "run.yaml").write_text(SMALL_RUN)
    return configuration.load(tmp_path / "run.yaml", [f"data={data}", *overrides])


def stored(tmp_path, config):
    """Writes a configuration as a run does. Returns its path."""
    path = tmp_path / "config.yaml"
    path.write_text(configuration.dump(config))
    return str(path)


@for_each("name", FREE)
def test_paths_and_devices_do_not_affect_the_result(name, tmp_path):
    data, overrides = FREE[name]
    was, now = loaded(tmp_path, data), loaded(tmp_path, data, *overrides)
    assert now != was
    assert config_comparison.first_difference(was, now) is None
    assert config_comparison.digest(was) == config_comparison.digest(now)
    assert config_comparison.file_fits(config_comparison.digest(was), stored(tmp_path, now))


@for_each("data,override,difference", DECISIVE)
def test_other_keys_affect_the_result(data, override, difference, tmp_path):
    was, now = loaded(tmp_path, data), loaded(tmp_path, data, override)
    assert config_comparison.first_difference(was, now).startswith(difference)
    assert not config_comparison.fits(config_comparison.digest(now), was)
    assert not config_comparison.file_fits(config_comparison.digest(now), stored(tmp_path, was))


EARLIER = {
    "imagenet": "ef566d00750a9924d8e244387fd3e58620b784ed2596a6e24c7c000fc801f013",
    "image_folder": "7fcfee0fbe0f8b44537ebdea289ac17902d7010eafb86c79c95277a7903b24b8",
    "npz": "975c996c0fab2468d38cbda26643f97a9e5b7edfb156cde6c93fe6f498bed1fe",
    "tfds": "04794a691bec11f2c963467e3713d74f4890fff574103f7fbb9e4989ba007ec5",
    "digits": "7c38f01e27f0b4b8e8c08225ce7e1ee591d80881b5f1afae702e567b788886db",
}
"""Source -> the checksum of its configuration in earlier versions, which contained the paths of the data."""


@pytest.mark.parametrize("name", EARLIER)
def test_checksums_of_earlier_versions_are_valid(name, tmp_path):
    data, overrides = FREE[name]
    config, known = loaded(tmp_path, data), EARLIER[name]
    assert config_comparison.fits(known, config)
    assert config_comparison.file_fits(known, stored(tmp_path, config))
    assert not config_comparison.fits(known, loaded(tmp_path, data, "seed=1"))
    has_paths = name in ("imagenet", "image_folder", "npz")
    assert config_comparison.fits(known, loaded(tmp_path, data, *overrides)) != has_paths
    # Runs of these versions could have any precision.
    assert config_comparison.fits(known, loaded(tmp_path, data, "runtime.precision=mixed_bfloat16"))

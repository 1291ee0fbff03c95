"""Which keys of a configuration affect the result."""

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
    assert config_comparison.digest(now) != config_comparison.digest(was)
    assert not config_comparison.file_fits(config_comparison.digest(now), stored(tmp_path, was))

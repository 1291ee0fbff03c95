"""A data source, a model, a loss and a rule from outside of the package work in a configuration at once."""

import contextlib
from typing import ClassVar, Literal

import jsonschema
import keras
import numpy as np
import pytest
import tensorflow as tf
from pydantic import PositiveInt

from neural_alignment import config as configuration
from neural_alignment import data, models
from neural_alignment.alignments import RULES, Alignment
from neural_alignment.config import ConfigError, yaml_files, yaml_reader
from neural_alignment.errors import DataError
from neural_alignment.losses import LOSSES, LossOptions
from neural_alignment.models import ModelOptions
from neural_alignment.serialization import serializable
from neural_alignment.training import describe, run, setup
from neural_alignment.training.metrics import MetricsFile

PLAN = """
epochs: 1
batch_size: 4
data: {source: stripes, images: 12}
model: {name: single, width: 3}
loss: {kind: absolute_error}
alignment: {rule: halved}
optimization: {forward: {name: sgd, learning_rate: 0.1}}
evaluation: {probe_examples: 4}
logging: {tensorboard: false}
"""


class Stripes(data.SourceOptions):
    """Images with one bright row, whose number is the class."""

    source: Literal["stripes"]
    images: PositiveInt = 8

    def load(self, batching):
        labels = np.arange(self.images) % 4
        images = np.zeros((self.images, 4, 4, 1), np.uint8)
        images[np.arange(self.images), labels] = 255
        arrays = data.Examples(images, labels)
        return data.InMemory(batching, arrays, arrays, classes=4, scale=255.0)


def single(classes, input_shape, alignment, weight_decay, width):
    return models.fc([width], classes, input_shape, alignment, weight_decay=weight_decay)


class Single(ModelOptions):
    """A network of one hidden layer."""

    builder = staticmethod(single)

    name: Literal["single"]
    width: PositiveInt

    def check_run(self, config):
        if self.width > config.batch_size:
            raise ValueError(f"model.width must not exceed batch_size; found {self.width}")


class AbsoluteError(LossOptions):
    """Absolute difference to the one-hot code."""

    kind: Literal["absolute_error"]

    def make(self, classes, batch_size, seed):
        return absolute_difference, [keras.metrics.SparseCategoricalAccuracy(name="top1")]


@serializable
def absolute_difference(labels, outputs):
    return tf.reduce_mean(tf.abs(outputs - tf.one_hot(tf.cast(labels, tf.int32), outputs.shape[-1])), axis=-1)


@serializable
class Halved(Alignment):
    """Feedback alignment by half of B."""

    rule: Literal["halved"] = "halved"
    learns: ClassVar[bool] = False

    def __call__(self, view):
        return tf.zeros([], view.backward_kernel.dtype)

    def carried_kernel(self, kernels):
        return kernels.backward_kernel / 2


ADDED = (
    (data.SOURCES, "stripes", Stripes),
    (models.MODELS, "single", Single),
    (LOSSES, "absolute_error", AbsoluteError),
    (RULES, "halved", Halved),
)


class Unnamed(data.SourceOptions):
    """Does not declare its name."""


class UnnamedRule(Alignment):
    """Does not declare its name."""


class AnyName(ModelOptions):
    name: str = "any"


class TwoNames(LossOptions):
    kind: Literal["one", "other"]


@pytest.mark.parametrize(
    ("registry", "options", "key"),
    [
        (RULES, UnnamedRule, "rule"),
        (data.SOURCES, Unnamed, "source"),
        (models.MODELS, AnyName, "name"),
        (LOSSES, TwoNames, "kind"),
    ],
)
def test_a_class_that_does_not_declare_one_name_is_refused(registry, options, key):
    before, name = dict(registry), options.__name__
    example = rf'Example: {key}: Literal\["{name.lower()}"\] = '
    with pytest.raises(
        ValueError, match=rf"^`{key}` of {name} must be a `Literal` with one name\. Received .*{example}"
    ):
        registry.register(options)
    assert dict(registry) == before


@pytest.fixture
def plan(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(PLAN)
    return path


@pytest.fixture
def registered(monkeypatch):
    for registry, name, options in ADDED:
        monkeypatch.setitem(registry, name, options)


def schema_mistakes(path):
    return [*jsonschema.Draft202012Validator(configuration.json_schema()).iter_errors(yaml_files.read(str(path)))]


@pytest.mark.usefixtures("registered")
def test_a_run_is_loaded_described_and_trained_with_them(plan, tmp_path):
    config = configuration.load(plan)
    assert (type(config.data), type(config.model), type(config.loss)) == (Stripes, Single, AbsoluteError)
    assert configuration.parse(yaml_reader.parse(configuration.dump(config), "dumped")) == config
    assert not schema_mistakes(plan)
    assert "halved" in describe.describe(config)
    run.train(config, tmp_path / "run")
    assert run.evaluate(tmp_path / "run")["top1"] >= 0
    assert [row["step"] for row in MetricsFile(str(tmp_path / "run" / "metrics.csv")).rows()] == [0, 3]


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize(
    ("override", "message"),
    {
        "data.imges=3": r"data\.imges: unknown key; allowed: images, shuffle, source; did you mean 'images'",
        "data.images=0": r"data\.images: input should be greater than 0; found 0",
        "data.source=stripe": r"data\.source: must be one of .*stripes.*; did you mean 'stripes'",
        "model.name=singel": r"model\.name: must be one of .*single.*; did you mean 'single'",
        "model.width=5": r"model\.width must not exceed batch_size; found 5",
    }.items(),
)
def test_their_mistakes_are_one_line(plan, override, message):
    with pytest.raises(ConfigError, match=message) as error:
        configuration.load(plan, [override])
    assert "\n" not in str(error.value)
    assert data.load("stripes", batch_size=4, seed=0).steps_per_epoch == 2


def build_by_position(number, shape, alignment, width):
    return single(number, shape, alignment, 0.0, width)


WRONG = {
    "a builder with other arguments": (
        "single",
        {"builder": staticmethod(build_by_position)},
        r"model\.name: must be a model whose `builder` takes width, classes, input_shape, alignment, weight_decay, by "
        r"name \(.*'number'\); found 'single'",
    ),
    "no builder": ("single", {"builder": None}, r"model\.name: must be a model whose .* \(it is missing\); found"),
    "a loss without metrics": (
        "absolute_error",
        {"make": lambda self, classes, batch_size, seed: absolute_difference},
        r"loss\.kind: must be a loss whose .* \(it returns function\); found 'absolute_error'",
    ),
    "a metric without a list": (
        "absolute_error",
        {"make": lambda self, *arguments: (absolute_difference, "accuracy")},
        r"loss\.kind: must be a loss whose .* \(it returns tuple\); found 'absolute_error'",
    ),
    "a loss with other arguments": (
        "absolute_error",
        {"make": lambda self, classes: None},
        r"loss\.kind: must be a loss whose .* \(too many positional arguments\); found 'absolute_error'",
    ),
    "no loss": ("absolute_error", {"make": LossOptions.make}, r"loss\.kind: must be a loss whose .* \(it is missing\)"),
    "batches of TensorFlow": (
        "stripes",
        {"load": lambda self, batching: tf.data.Dataset.range(3).batch(1)},
        r"data\.source: must be a source whose .* `InMemory` \(it returns _BatchDataset\); found 'stripes'",
    ),
    "a source with other arguments": (
        "stripes",
        {"load": lambda self: None},
        r"data\.source: must be a source whose .* \(too many positional arguments\); found 'stripes'",
    ),
    "no source": (
        "stripes",
        {"load": data.SourceOptions.load},
        r"data\.source: must be a source whose .* \(it is missing\); found 'stripes'",
    ),
}


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("case", WRONG)
def test_their_functions_are_checked_in_one_line(plan, monkeypatch, case):
    name, attributes, message = WRONG[case]
    kind = {added: options for _, added, options in ADDED}[name]
    for attribute, value in attributes.items():
        monkeypatch.setattr(kind, attribute, value)
    config = configuration.load(plan)
    with pytest.raises((ConfigError, DataError), match=message) as error:
        setup.compiled_model(config, setup.data_facts(config), contextlib.nullcontext())
    assert "\n" not in str(error.value)


def test_an_error_within_their_functions_is_not_hidden(monkeypatch):
    """It has a traceback to the line of the user."""

    def failing(**options):
        return len(None)

    monkeypatch.setattr(Single, "builder", staticmethod(failing))
    with pytest.raises(TypeError, match="has no len"):
        Single(name="single", width=2).build(3, (4, 4, 1))


def test_without_them_the_file_is_refused(plan):
    """The fixture above leaves nothing behind."""
    with pytest.raises(ConfigError, match="must be one of"):
        configuration.load(plan)
    assert schema_mistakes(plan)

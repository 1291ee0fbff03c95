"""One description of a wrong value gives three sentences to Python callers and one line to the reader of a file."""

import ast
import re
from pathlib import Path

import keras
import pytest
import tensorflow as tf

from neural_alignment import config as configuration
from neural_alignment.alignments import InputPath, Symmetric, WeightMirror, from_config
from neural_alignment.config import Runtime
from neural_alignment.errors import ArgumentError, ConfigError, Words, WrongValue, nearest, one_line, shortened

ROOT = Path(__file__).parent.parent
QUICKSTART = ROOT / "configs" / "quickstart.yaml"
WRONG = WrongValue("model.strides", "must be one or two positive integers", (2, 2, 2), "strides=(2, 2)")


def test_both_forms_have_the_same_parts():
    sentences = "`model.strides` must be one or two positive integers. Received (2, 2, 2). Example: strides=(2, 2)."
    assert WRONG.sentences == sentences
    assert WRONG.line == "model.strides: must be one or two positive integers; found (2, 2, 2)"
    assert str(ConfigError(WRONG)) == WRONG.line
    inner = ArgumentError("strides", WRONG.requirement, WRONG.found, WRONG.example)
    assert str(inner) == sentences.replace("model.", "")
    assert inner.within("model").value == WRONG


@pytest.mark.parametrize(
    ("found", "written"),
    [
        (None, "null"),
        (True, "true"),
        (1, "1"),
        ("x", "'x'"),
        ([0, None, [False]], "[0, null, [false]]"),
        ({"a": True, "b": {"c": "d"}}, "{a: true, b: {c: 'd'}}"),
        ((2, True), "(2, True)"),
    ],
)
def test_a_line_has_the_values_of_yaml(found, written):
    assert WrongValue("key", "must be left out", found).line == f"key: must be left out; found {written}"


@pytest.mark.parametrize(
    ("word", "allowed", "hint"),
    [
        ("adm", ["sgd", "adam"], "; did you mean 'adam'?"),
        ("x_val", ["x_train", "x_validation"], "; did you mean 'x_validation'?"),
        ("vgg16", ["VGG16", "VGG19"], "; did you mean 'VGG16'?"),
        ("X_train", ["y_train", "x_train"], "; did you mean 'x_train'?"),
        ("bfloat16", ["float32", "float64", "mixed_bfloat16", "mixed_float16"], "; did you mean 'mixed_bfloat16'?"),
        ("decay", ["delays", "weight_decay_of_the_bias", "weight_decay"], "; did you mean 'weight_decay'?"),
        ("float", ["bfloat16", "float32"], "; did you mean 'float32'?"),
        ("re", ["resnet"], ""),
        ("et", ["resnet"], ""),
        ("", ["resnet"], ""),
        ("picture", ["resnet"], ""),
    ],
)
def test_the_nearest_name_is_suggested(word, allowed, hint):
    assert nearest(word, allowed) == hint


def test_words_about_a_value_have_no_quotes():
    wrong = WrongValue(
        "model", "must be built", Words("'mine', whose input shape is unknown"), "model.build((None, 3))"
    )
    assert wrong.line == "model: must be built; found 'mine', whose input shape is unknown"
    assert wrong.sentences.endswith(" Received 'mine', whose input shape is unknown. Example: model.build((None, 3)).")
    assert shortened(repr(Words("x" * 300))).endswith("x...")


def test_an_error_in_the_call_of_a_layer_of_keras_keeps_its_class_and_its_message():
    class Refusing(keras.layers.Layer):
        def call(self, inputs):
            raise ArgumentError("inputs", "must be positive", inputs.shape[0], "inputs=1")

    with pytest.raises(
        ArgumentError, match=r"(?s)`inputs` must be positive\. Received 2\..*Arguments received"
    ) as error:
        Refusing()(tf.ones(2))
    assert error.value.value is None


INDEPENDENT = ("analysis", "__init__")
"""Modules that import nothing of the package, so that they write the sentences themselves."""

PARTS = re.compile(r"\bReceived\b|; allowed\b|\ballowed: ")
"""The words between the parts of both forms."""


def test_no_other_module_writes_the_parts_of_a_message():
    for path in sorted((ROOT / "neural_alignment").rglob("*.py")):
        place = path.relative_to(ROOT / "neural_alignment").with_suffix("").parts
        if place[0] in ("errors", "mistakes", *INDEPENDENT):
            continue
        tree = ast.parse(path.read_text())
        prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        texts = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
        found = [node.value for node in texts if id(node) not in prose and PARTS.search(node.value)]
        assert found == [], path


def test_long_values_are_shortened():
    line = WrongValue("key", "must be short", "x" * 1000).line
    assert line.endswith("xxx...")
    assert len(line) < 250
    assert shortened("x" * 200) == "x" * 200


def test_a_check_of_options_reads_naturally_in_both_forms():
    with pytest.raises(
        ValueError, match=r"`input.stddev` must be left out without `noise`\. Received 2\.0\. Example: "
    ):
        WeightMirror(amp=1.0, decay=1.0, input={"stddev": 2.0})
    line = r"^alignment\.input\.stddev: must be left out without `noise`; found 2\.0$"
    with pytest.raises(ConfigError, match=line):
        from_config({"rule": "weight_mirror", "amp": 1.0, "decay": 1.0, "input": {"stddev": 2.0}})


def test_a_check_between_options_names_the_key_to_change():
    with pytest.raises(ValueError, match=r"`replicas` needs strategy 'mirrored', not 'auto'\. Received 2\."):
        Runtime(replicas=2)
    with pytest.raises(ConfigError, match=r"runtime\.replicas: needs strategy 'mirrored', not 'auto'; found 2$"):
        configuration.load(QUICKSTART, ["runtime.replicas=2"])
    rules = "alignment=[{rule: symmetric, self_: 1, decay: 1, layers: c*}, {rule: kolen_pollack, decay: 1}]"
    with pytest.raises(ConfigError, match=r"alignment\.1\.decay: must equal weight_decay"):
        configuration.load(QUICKSTART, [rules, "optimization.backward=null"])


def test_a_message_of_several_lines_becomes_one_that_shows_where_it_was_cut():
    assert one_line(ValueError("a\n  b\tc")) == "a b c"
    assert one_line(ValueError("x" * 11), 10) == "xxxxxxx..."
    assert one_line(ValueError("x" * 10), 10) == "x" * 10
    assert one_line(ValueError("x " * 300), None) == "x " * 299 + "x"
    assert one_line(EOFError()) == "EOFError"
    assert one_line(" a\nb ") == "a b"


def test_a_message_of_tensorflow_is_that_without_its_operation():
    with tf.Graph().as_default():
        error = tf.errors.InvalidArgumentError(None, tf.constant(1.0, name="where").op, "too\nsmall")
    assert "where" in str(error)
    assert one_line(error) == "too small"


# Rules and other options that are made in Python.


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Symmetric(self=0.1, decay=0.1),
            "Symmetric: self: unknown key; allowed: decay, every, layers, rule, self_, steps_per_epoch, update_forward"
            "; did you mean 'self_'? (1 more). Example: Symmetric(self_=..., decay=...).",
        ),
        (
            lambda: Symmetric(self_="x", decay=0.1),
            "Symmetric: self_: input should be a valid number; found 'x'. Example: Symmetric(self_=..., decay=...).",
        ),
        (
            lambda: InputPath(nois="normal"),
            "InputPath: nois: unknown key; allowed: batch_center, feature_center, feature_normalize, noise, stddev; "
            "did you mean 'noise'? Example: InputPath().",
        ),
        (
            lambda: Symmetric(self_={"kind": "constant", "value": 1.0, "start": 5, "stop": 5}, decay=1.0),
            "`self_.stop` must be after `start` (5.0). Received 5.0. Example: stop: 10.",
        ),
        (
            lambda: Symmetric(0.1, 0.1),
            "`Symmetric` takes its options by name. Received 2 without a name. "
            "Example: Symmetric(self_=..., decay=...).",
        ),
    ],
)
def test_a_wrong_argument_in_python_is_one_line(make, message):
    with pytest.raises((ValueError, TypeError)) as error:
        make()
    assert str(error.value) == message


def test_a_key_of_inner_options_is_suggested_with_its_path():
    with pytest.raises(ValueError, match=r"noise: unknown key; .*; did you mean 'input\.noise'\? Example"):
        WeightMirror(amp=0.1, decay=0.1, noise="normal")
    line = "alignment.relu: unknown key; .*; did you mean 'backward_output.relu' or 'forward_output.relu'?"
    with pytest.raises(ConfigError, match=line):
        from_config({"rule": "weight_mirror", "amp": 0.1, "decay": 0.1, "relu": True})


def test_in_a_file_the_message_is_that_of_files():
    """pydantic does not call constructors for plain data, whose paths it would lose."""
    with pytest.raises(ConfigError, match=r"^alignment\.input\.stddev: input should be greater than 0; found 0$"):
        from_config({"rule": "weight_mirror", "amp": 0.1, "decay": 0.1, "input": {"stddev": 0}})

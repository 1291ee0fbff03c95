"""Rules from configurations, and which layer gets which rule."""

import numpy as np
import pytest
from helpers import RULE_CONFIGS, TABLE_5

from neural_alignment import errors
from neural_alignment.alignments import (
    Assignment,
    Feedback,
    Information,
    InputPath,
    Symmetric,
    WeightMirror,
    from_config,
    layerwise_rules,
)


@pytest.mark.parametrize("rule", RULE_CONFIGS)
def test_a_configuration_and_a_constructor_give_the_same_rule(rule):
    config = RULE_CONFIGS[rule]
    weights = {key: value for key, value in config.items() if key != "rule"}
    assert from_config(config) == layerwise_rules()[rule](**weights)
    assert type(from_config(config)) is layerwise_rules()[rule]


def test_every_option_arrives():
    rule = from_config({**RULE_CONFIGS["information"], **TABLE_5["IA"], "compare_reconstruction": True, "layers": "a*"})
    assert rule.input == InputPath(noise="normal", stddev=0.8176)
    assert rule.forward_output.model_dump() == {
        "bias": True, "relu": True, "batch_center": True, "feature_center": True, "feature_normalize": False,
    }  # fmt: skip
    assert rule.backward_output.model_dump() == {
        "bias": True, "relu": False, "feature_center": True, "feature_normalize": True,
    }  # fmt: skip
    assert (rule.compare_reconstruction, rule.sparse_decay, rule.layers) == (True, False, "a*")


def test_yaml_s_null_is_the_null_primitive():
    assert from_config({"rule": "information", "amp": 1.0, "decay": 2.0, None: 3.0}).null == 3.0


def test_seed_and_epoch_are_defaults_and_what_the_mapping_says_stays():
    config = RULE_CONFIGS["weight_mirror"]
    assert from_config(config, seed=4, steps_per_epoch=9).seed == 4
    assert from_config({**config, "seed": 1}, seed=4).seed == 1
    assert from_config({**config, "steps_per_epoch": 2}, steps_per_epoch=9).steps_per_epoch == 2
    assert from_config(RULE_CONFIGS["symmetric"], seed=4, steps_per_epoch=9).steps_per_epoch == 9


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"rule": "symetric", "self_": 1.0, "decay": 1.0}, ["alignment", "'symetric'", "did you mean 'symmetric'"]),
        ({"self_": 1.0}, ["alignment", "rule"]),
        ({"rule": "symmetric", "self_": 1.0}, ["alignment.decay", "required"]),
        ({"rule": "symmetric", "self_": 1.0, "dekay": 1.0}, ["alignment.dekay", "unknown", "did you mean 'decay'"]),
        ({"rule": "symmetric", "self_": "1e-3", "decay": 1.0}, ["alignment.self_", "'1e-3'"]),
        ({"rule": "symmetric", "self_": -1.0, "decay": 1.0}, ["alignment.self_", "-1.0"]),
        (
            {**RULE_CONFIGS["activation"], "input": {"noise": "gaussian"}},
            ["alignment.input.noise", "'gaussian'", "normal"],
        ),
        ({**RULE_CONFIGS["activation"], "input": {"stddev": 0.5}}, ["alignment.input", "`noise`"]),
        ({**RULE_CONFIGS["activation"], "input": {"noise": "normal", "stddev": 0}}, ["alignment.input.stddev", "0"]),
        ({**RULE_CONFIGS["activation"], "forward_output": {"rilu": True}}, ["forward_output.rilu", "'relu'"]),
        ({**RULE_CONFIGS["activation"], "backward_output": {"batch_center": True}}, ["backward_output.batch_center"]),
        ({**RULE_CONFIGS["activation"], "forward_output": {"relu": 1}}, ["forward_output.relu", "1"]),
        ({"rule": "feedback", "amp": 1.0}, ["alignment.amp", "unknown"]),
        ("symmetric", ["alignment", "'symmetric'", "example"]),
    ],
)
def test_a_wrong_configuration_is_one_line_that_says_where_and_what(config, words):
    with pytest.raises(errors.ConfigError) as caught:
        from_config(config)
    message = str(caught.value)
    assert "\n" not in message
    assert not [word for word in words if word not in message], message


def test_a_rule_cannot_be_changed():
    rule = Symmetric(self_=1.0, decay=1.0)
    with pytest.raises(ValueError, match="frozen"):
        rule.decay = 2.0


def test_binding_to_a_run_sets_seed_and_epoch_in_a_copy():
    rule = Information(amp=1.0, decay=1.0, null=1.0)
    bound = rule.bind(seed=5, steps_per_epoch=7)
    assert (bound.seed, bound.steps_per_epoch) == (5, 7)
    assert (rule.seed, rule.steps_per_epoch) == (0, 1)
    assert Feedback().bind(5, 7).steps_per_epoch == 7


def test_one_rule_takes_all_layers_and_none_takes_none():
    rule = Feedback()
    assert [Assignment(rule)(name) for name in ("a", "b")] == [rule, rule]
    assert Assignment(None)("a") is None


def test_the_first_pattern_that_fits_takes_the_layer():
    convs, head, rest = Feedback(layers="conv*"), Symmetric(self_=1.0, decay=1.0, layers="head"), Feedback(layers="c*")
    assignment = Assignment([convs, head, rest])
    names = ["conv1", "head", "convolution", "Conv", "cell", "other"]
    assert [assignment(name) for name in names] == [convs, head, convs, None, rest, None]
    assignment.check()


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (["heads"], "alignment.layers: must match at least one layer; the layers are conv1, head; found 'heads'"),
        (
            ["*", "heads"],
            "alignment.1.layers: must match at least one layer that no earlier rule matches; the",
        ),
        (["*", None], "alignment.1.layers: must match at least one layer that no earlier .* conv1, head; found none"),
    ],
)
def test_a_pattern_that_takes_no_layer_is_an_error_that_names_it_and_the_layers(rules, message):
    assignment = Assignment([Feedback(layers=pattern) for pattern in rules])
    for name in ("conv1", "head"):
        assignment(name)
    with pytest.raises(errors.ConfigError, match=f"^{message}"):
        assignment.check()


def test_what_is_no_rule_is_an_error():
    with pytest.raises(ValueError, match=r"`alignment`.*'symmetric'.*Example"):
        Assignment(["symmetric"])


def test_a_run_gives_its_seed_and_epochs_to_a_rule_that_has_none_of_its_own():
    config = {"rule": "weight_mirror", "amp": 1, "decay": 1}
    assert from_config(config).bind(seed=5, steps_per_epoch=7).model_dump(include={"seed", "steps_per_epoch"}) == {
        "seed": 5,
        "steps_per_epoch": 7,
    }
    own = from_config({**config, "seed": 2, "steps_per_epoch": 3}).bind(seed=5, steps_per_epoch=7)
    assert (own.seed, own.steps_per_epoch) == (2, 3)
    assert from_config({"rule": "feedback"}).bind(seed=5) == Feedback()


def test_options_may_be_numbers_of_numpy():
    """They are stored as numbers of Python, so that a model with the rule can be saved."""
    rule = WeightMirror(amp=np.float64(1.0), decay=np.int64(2), every=np.int64(3), examples=np.float32(0.5))
    assert (rule.amp, rule.decay, rule.every, rule.examples) == (1.0, 2.0, 3, 0.5)
    assert type(rule.every) is int
    for wrong in (np.float64(2.0), np.bool_(True)):
        with pytest.raises(ValueError, match="WeightMirror: every: input should be a valid integer"):
            WeightMirror(amp=1.0, decay=1.0, every=wrong)

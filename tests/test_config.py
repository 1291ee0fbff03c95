"""Reading configurations: valid files give typed objects, and an error is one line."""

import json
from pathlib import Path

import jsonschema
import pytest
from helpers import RULE_TABLE, for_each

from neural_alignment import config as configuration
from neural_alignment.alignments import Constant, Information, Symmetric, from_config
from neural_alignment.config import ConfigError, yaml_files

CONFIGS = Path(__file__).parent.parent / "configs"
QUICKSTART = CONFIGS / "quickstart.yaml"
ALL = sorted(path for path in CONFIGS.rglob("*.yaml") if CONFIGS / "search" not in path.parents)


def write(folder, text, name="run.yaml"):
    path = folder / name
    path.write_text(text)
    return path


def refused(path, overrides=(), **options):
    """Returns the one line with which a configuration is refused."""
    with pytest.raises(ConfigError) as error:
        configuration.load(path, overrides, **options)
    line = str(error.value)
    assert "\n" not in line
    assert str(path) in line or line.startswith("--set")
    return line


def test_a_file_is_typed_and_filled_with_defaults():
    config = configuration.load(QUICKSTART)
    assert config.alignment == Symmetric(self_=2e-3, decay=2e-3)
    assert config.optimization.backward.epsilon == 1e-8
    assert config.optimization.skip_idle is True


@for_each("path", ALL)
def test_every_file_loads_and_survives_being_written_out(path, tmp_path):
    config = configuration.load(path)
    assert configuration.load(write(tmp_path, configuration.dump(config))) == config
    assert configuration.load(path, smoke=True).max_steps == 2


@for_each("path", ALL)
def test_every_file_begins_with_a_description_and_its_command(path):
    first, *rest = path.read_text().splitlines()
    assert first.startswith("# ")
    assert first.rstrip().endswith((".", ",", ":", ";")) or "unrounded" in "".join(rest[:1])
    if path.name != "imagenet.yaml":
        assert any(f"neural-alignment train {path.relative_to(CONFIGS.parent)}" in line for line in rest)


def test_values_that_a_run_gives_to_its_rules_are_not_written(tmp_path):
    rule = "alignment={rule: weight_mirror, amp: 1, decay: {kind: linear, value: 1, rate: 1}, input: {noise: normal}}"
    config = configuration.load(write(tmp_path, configuration.dump(configuration.load(QUICKSTART, [rule, "seed=5"]))))
    bound = config.alignment.bind(config.seed, 44)
    assert (bound.seed, bound.steps_per_epoch) == (5, 44)
    own = configuration.dump(configuration.load(QUICKSTART, [rule.replace("amp: 1", "amp: 1, seed: 3"), "seed=5"]))
    assert configuration.load(write(tmp_path, own)).alignment.bind(5, 44).seed == 3


def test_bases_are_merged_and_another_kind_replaces_the_whole_mapping(tmp_path):
    base = write(tmp_path, QUICKSTART.read_text(), "base.yaml")
    assert base.exists()
    path = write(
        tmp_path,
        "base: base.yaml\nepochs: 3\nmodel: {name: fc, hidden: [5]}\noptimization: {backward: {learning_rate: 0.5}}\n",
    )
    config = configuration.load(path)
    assert (config.epochs, config.batch_size) == (3, 32)
    assert config.model.model_dump(exclude_none=True) == {"name": "fc", "hidden": [5], "activation": "relu"}
    assert config.optimization.backward.name == "adam"
    assert config.optimization.backward.learning_rate == 0.5
    assert config.optimization.forward.name == "momentum"


def test_circular_and_missing_bases_are_errors(tmp_path):
    write(tmp_path, "base: run.yaml\n", "other.yaml")
    assert "bases of each other" in refused(write(tmp_path, "base: other.yaml\n"))
    path = write(tmp_path, "base: none.yaml\n")
    with pytest.raises(ConfigError, match=r"none\.yaml: no such file \(base of .*run\.yaml\)"):
        configuration.load(path)


def test_overrides():
    config = configuration.load(
        QUICKSTART, ["optimization.forward.learning_rate=1e-3", "alignment.decay=1", "model.filters.1=7", "seed=4"]
    )
    assert config.optimization.forward.learning_rate == 1e-3
    assert config.alignment == Symmetric(self_=2e-3, decay=1.0)
    assert config.model.filters == [16, 7]
    config = configuration.load(QUICKSTART, ["alignment={rule: activation, amp: 1e-3, sparse: 2}"])
    assert config.alignment.sparse == 2.0


# override, part of the message
WRONG = {
    "epoch=3": "epoch: unknown key; allowed: .* did you mean 'epochs'",
    "alignment.self=1": "alignment.self: unknown key; allowed: .* did you mean 'self_'",
    "optimization.forward.lr=1": r"optimization.forward.lr: unknown key; allowed: .*learning_rate",
    "alignment={rule: activation, amp: 1}": "alignment.sparse: this key is required and was not found",
    "alignment={rule: symetric}": "alignment.rule: must be one of .*; found 'symetric'; did you mean 'symmetric'",
    "alignment=[{amp: 1}]": "alignment.0.rule: this key is required",
    "optimization.forward.name=adm": "optimization.forward.name: must be one of .*; found 'adm'; did you mean 'adam'",
    "data.source=digit": "data.source: must be one of .*; found 'digit'; did you mean 'digits'",
    "epochs=0": "epochs: input should be greater than 0; found 0",
    "epochs=many": "epochs: input should be a valid integer; found 'many'",
    "batch_size=true": "batch_size: input should be a valid integer; found true",
    "model={name: convnet, filters: [4], batch_norm: false, batch_norm_trainable: false}": (
        "model.batch_norm_trainable: must be left out without `batch_norm`; found false"
    ),
    "model={name: fc, hidden: [4], batch_norm_trainable: false}": "model.batch_norm_trainable: unknown key; allowed: ",
    "checkpoints.keep=0": "checkpoints.keep: input should be greater than 0; found 0",
    "model.filters=[a]": r"model.filters.0: input should be a valid integer; found 'a'",
    "model.filters=[]": "model.filters: list should have at least 1 item",
    "optimization.forward.learning_rate=.nan": "optimization.forward.learning_rate: input should be a finite number",
    "optimization.forward.learning_rate=-1": "greater than or equal to 0; found -1",
    "optimization.minibatches=5": r"optimization.minibatches: must divide batch_size \(32\); found 5",
    "optimization.delay_epochs=20": "optimization.delay_epochs: must be less than the length of the run",
    "alignment=null": "optimization.backward: must be left out: no rule of this run",
    "alignment={rule: kolen_pollack, decay: 1}": "optimization.backward: must be left out with kolen_pollack",
    "optimization.forward.schedule={warmup_epochs: 5, drop_epochs: [3]}": r"schedule.drop_epochs: must be ascending",
    "alignment=[{rule: symmetric, self_: 1, decay: 1}, {rule: feedback}]": "alignment.0.layers: is required",
    "evaluation.every_epochs=99": "evaluation.every_epochs: must not exceed epochs",
    "optimization.forward.beta_1=0.9": r"optimization.forward.beta_1: unknown key; allowed: (?!.*beta_1).*momentum",
    "data.dataset=mnist": r"data.dataset: unknown key; allowed: augment, replace_labels, shuffle, source, standardize",
    "model.name=fc": r"model.filters: unknown key; allowed: activation, hidden, initial_stddev, name",
    "alignment=[{rule: symmetric, self: 1, decay: 1}]": "alignment.0.self: .*; allowed: decay, every, layers, rule,",
    "alignment.self_={kind: linaer, value: 1}": "alignment.self_.kind: must .*'linaer'; did you mean 'linear'",
    "alignment.self_={kind: constant}": "alignment.self_.value: this key is required",
    "data=digits": r"data: must be a mapping such as \{source: digits\}; found 'digits'$",
    "model=resnt": r"model: must be a mapping such as \{name: resnet\}; found 'resnt'$",
    "alignment=symmetric": r"alignment: must be a mapping such as \{rule: symmetric\} or null; found 'symmetric'$",
    "alignment=[symmetric]": r"alignment.0: must be a mapping such as \{rule: symmetric\}; found 'symmetric'$",
    "optimization=null": r"optimization: must be a mapping with keys among alternation, backward, .*; found null$",
    "logging=false": "logging: must be a mapping with keys among histograms, .*, tensorboard; found false$",
    "logging.scatter=yes": "logging.scatter: input should be true or false; found 'yes'$",
    "data.augment=flip": "data.augment: input should be 'crop', 'crop_flip' or null; found 'flip'; did you mean 'crop_",
    "max_steps=all": "max_steps: input should be a valid integer or null; found 'all'$",
    "max_steps=0": "max_steps: input should be greater than 0; found 0$",
    "data={source: null}": "data.source: must be one of add_task, .*; found null$",
    "epochs=[null, {a: true}]": r"epochs: input should be a valid integer; found \[null, \{a: true\}\]$",
    "seed=4294967296": "seed: input should be less than 2147483648",
}


@for_each("override", WRONG)
def test_an_error_names_the_key_the_found_value_and_the_allowed_values(override):
    with pytest.raises(ConfigError, match=WRONG[override]) as error:
        configuration.load(QUICKSTART, [override])
    assert "\n" not in str(error.value)
    assert str(QUICKSTART) in str(error.value)


@pytest.mark.parametrize(
    "override",
    [
        "epochs",
        "=3",
        "smoke=1",
        "base=quickstart",
        "a..b=1",
        "model.filters.9=1",
        "a.b=[",
        "seed=!!timestamp 2001-01-01",
    ],
)
def test_malformed_overrides_are_errors(override):
    assert refused(QUICKSTART, [override]).startswith(f"--set {override}: ")


def test_a_model_that_needs_the_whole_batch_refuses_minibatches():
    wrong = ["model={name: wide_cnn, design: kmnist, width: 2}", "optimization.minibatches=2"]
    message = "optimization.minibatches: must be 1: wide_cnn uses the statistics of the whole batch; found 2"
    assert message in refused(QUICKSTART, wrong)
    configuration.load(QUICKSTART, wrong[:1])


def test_two_optimizers_of_one_kernel_pair_are_refused():
    wrong = ["alignment={rule: kolen_pollack, decay: 1e-4}", "optimization.backward=null"]
    assert "alignment.decay: must equal weight_decay (0.0) with kolen_pollack" in refused(QUICKSTART, wrong)
    configuration.load(QUICKSTART, [*wrong, "weight_decay=1e-4"])
    late = ["weight_decay=1e-4", "optimization.alternation=1"]
    assert "optimization.alternation: must be left out with kolen_pollack" in refused(QUICKSTART, [*wrong, *late])


@pytest.mark.parametrize("name", ["lamb", "adafactor", "adam"])
def test_optimizers_of_kolen_pollack_give_w_and_b_equal_steps(name):
    plan = ["alignment={rule: kolen_pollack, decay: 0}", "optimization.backward=null"]
    plan.append(f"optimization.forward={{name: {name}, learning_rate: 0.01}}")
    if name == "adam":
        configuration.load(QUICKSTART, plan)
    else:
        message = "optimization.forward.name: must not scale steps by the norm of a weight with kolen_pollack"
        assert message in refused(QUICKSTART, plan)


def test_a_delay_with_a_warm_up_of_r_is_refused():
    overrides = ["optimization.delay_epochs=1", "optimization.backward.schedule={warmup_epochs: 2}"]
    assert "backward.schedule.warmup_epochs: must be 0 with delay_epochs 1.0" in refused(QUICKSTART, overrides)


def test_a_warm_up_with_one_optimizer_and_a_delay_is_refused():
    overrides = ["optimization.backward=null", "optimization.delay_epochs=1"]
    schedule = "optimization.forward.schedule={warmup_epochs: 2}"
    assert "optimization.forward.schedule.warmup_epochs: must be 0 with delay_epochs" in refused(
        QUICKSTART, [*overrides, schedule]
    )


def test_noise_of_kolen_pollack_goes_on_backward_kernels():
    plan = ["alignment={rule: kolen_pollack, decay: 0}", "optimization.backward=null"]
    noise = "optimization.forward.noise.variance=1.0"
    assert "allows noise only on the updates of B" in refused(QUICKSTART, [*plan, noise])
    configuration.load(QUICKSTART, [*plan, noise, "optimization.forward.noise.only=backward_kernel"])


def test_the_image_size_follows_the_preprocessing():
    data = {"source": "imagenet", "train_files": "a", "validation_files": "b", "preprocessing": "inception"}
    config = configuration.load(QUICKSTART, [f"data={json.dumps(data)}"])
    assert config.data.image_size is None


def test_the_wrong_base_is_named_instead_of_the_requested_file(tmp_path):
    write(tmp_path, QUICKSTART.read_text().replace("epochs: 20", "epochs: none"), "base.yaml")
    path = write(tmp_path, "base: base.yaml\nbatch_size: 8\n")
    with pytest.raises(ConfigError, match=r"base\.yaml: epochs: input should be a valid integer"):
        configuration.load(path)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "the file is empty"),
        ("- 1\n", "must hold a mapping; found [1]"),
        ("epochs: [1\n", "not valid YAML"),
        ("epochs: 1\nepochs: 2\n", "not valid YAML: found duplicate key"),
        ("1: 2\n", "keys must be strings"),
        ("a: !!python/object/apply:os.system [ls]\n", "not valid YAML"),
        ("epochs: \x00\n", "not valid YAML"),
    ],
)
def test_files_without_a_configuration_are_errors(tmp_path, text, part):
    assert part in refused(write(tmp_path, text))


def test_a_missing_file_and_a_directory_are_errors(tmp_path):
    assert "no such file" in refused(tmp_path / "none.yaml")
    assert "is a directory" in refused(tmp_path)


def test_the_null_primitive_needs_no_quotes(tmp_path):
    text = QUICKSTART.read_text().replace(
        "{rule: symmetric, self_: 2.0e-3, decay: 2.0e-3}", "{rule: information, amp: 1, decay: 2, null: 3}"
    )
    assert configuration.load(write(tmp_path, text)).alignment == Information(amp=1.0, decay=2.0, null=3.0)
    assert from_config({"rule": "information", "amp": 1, "decay": 2, None: 3}).null == 3.0


def test_rules_of_the_papers_example():
    rule = from_config(
        {
            "rule": "information",
            "amp": 1032.77,
            "decay": 16.0,
            "null": 6.3e-6,
            "input": {"noise": "normal", "stddev": 0.82, "feature_center": False, "batch_center": False},
            "forward_output": {"bias": True, "relu": True, "batch_center": True, "feature_center": True},
            "backward_output": {"bias": True, "relu": False, "feature_center": True, "feature_normalize": True},
        },
        seed=7,
        steps_per_epoch=50,
    )
    assert isinstance(rule, Information)
    assert (rule.input.stddev, rule.seed, rule.steps_per_epoch) == (0.82, 7, 50)
    assert rule.backward_output.feature_normalize


def test_weights_may_be_scheduled():
    rule = from_config(
        {"rule": "symmetric", "self_": {"kind": "constant", "value": 1, "start": 2, "stop": 3}, "decay": 0}
    )
    assert rule.self_ == Constant(kind="constant", value=1.0, start=2.0, stop=3.0)
    with pytest.raises(ConfigError, match=r"alignment\.self_"):
        from_config({"rule": "symmetric", "self_": {"kind": "constant", "value": 1, "start": 2, "stop": 1}, "decay": 0})


@pytest.mark.parametrize("mapping", ["symmetric", None, 3, [], {"rule": 3}, {"rule": None}, {"rule": []}])
def test_from_config_refuses_invalid_rules(mapping):
    with pytest.raises(ConfigError, match="alignment"):
        from_config(mapping)


def test_the_schema_accepts_every_file_and_refuses_unknown_keys():
    schema = configuration.json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    for path in ALL:
        data = yaml_files.read(str(path))
        assert not list(validator.iter_errors(data)), path
    good = yaml_files.read(str(QUICKSTART))
    for wrong in ({"epoch": 3}, {"epochs": "3"}, {"model": {"name": "fc", "hiden": [3]}}, {"alignment": {"rule": "x"}}):
        assert list(validator.iter_errors({**good, **wrong})), wrong
    assert {"base", "smoke"} <= set(schema["properties"])
    json.dumps(schema)


def paths(node, path=()):
    """Returns the path of every value in a nested mapping."""
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [(*path, key) for key, _ in children] + [
        deep for key, child in children for deep in paths(child, (*path, key))
    ]


def test_malformed_configurations_give_only_config_errors():
    import hypothesis  # The import takes a second.
    from hypothesis import strategies as st

    leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.binary(max_size=3)
    names = st.sampled_from(["rule", "name", "source", "kind", "learning_rate", "epochs", "null"]) | st.text(max_size=8)
    values = st.recursive(
        leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3), max_leaves=8
    )

    @hypothesis.settings(max_examples=300, deadline=None, derandomize=True)
    @hypothesis.given(st.data())
    def check(data):
        config = yaml_files.read(str(data.draw(st.sampled_from(ALL))))
        config = json.loads(json.dumps(config))
        config.pop("smoke", None)
        config.pop("base", None)
        *parents, last = data.draw(st.sampled_from(paths(config)))
        node = config
        for key in parents:
            node = node[key]
        action = data.draw(st.sampled_from(["replace", "remove", "add"]))
        if action == "remove":
            del node[last]
        elif action == "add" and isinstance(node, dict):
            node[data.draw(names)] = data.draw(values)
        else:
            node[last] = data.draw(values)
        line = ""
        try:
            configuration.parse(config)
        except ConfigError as error:
            line = str(error)
        assert "\n" not in line
        assert len(line) < 600

    check()


@pytest.mark.parametrize("rule", RULE_TABLE)
def test_every_rule_can_be_written_in_a_file(rule, tmp_path):
    row = RULE_TABLE[rule]
    run = {"data": {"source": "digits"}, "model": {"name": "fc", "hidden": [4]}, "epochs": 1, **row.run}
    run |= {"batch_size": 32, "optimization": {"forward": {"name": "momentum", "learning_rate": 0.1}}}
    path = write(tmp_path, json.dumps({**run, "alignment": {"rule": rule, **row.weights}}))
    assert [each.rule for each in configuration.load(path).rules] == [rule]

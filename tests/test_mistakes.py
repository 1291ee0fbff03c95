"""Every key with wrong values: the message names that key, and the file or option that it comes from."""

import types
import typing
from pathlib import Path

import pydantic
import pytest
from helpers import for_each

from neural_alignment import config as configuration
from neural_alignment.config import Config, yaml_files, yaml_writer
from neural_alignment.errors import ConfigError
from neural_alignment.registry import Registry
from neural_alignment.search import plan as plans
from neural_alignment.search import spaces

ROOT = Path(__file__).parent.parent
QUICKSTART = str(ROOT / "configs" / "quickstart.yaml")
WRONG = ["x", 3, -1.5, True, None, [[]], {"zzz": 1}, float("nan"), ""]


def members(annotation):
    """Returns the models inside an annotation, and whether they stand in a list."""
    if isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel):
        return [(annotation, False)]
    if isinstance(annotation, Registry):
        return [(options, False) for options in annotation.values()]
    listed = typing.get_origin(annotation) is list
    inner = [each for argument in typing.get_args(annotation) for each in members(argument)]
    return [(model, listed or within) for model, within in inner]


def inside(field):
    """Returns the models inside the type of a field, as `members` does."""
    return [each for part in (field.annotation, *field.metadata) for each in members(part)]


def value_of(annotation):
    """Returns a value that an annotation accepts, without asking pydantic."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return arguments[0]
    if origin is typing.Annotated:
        return value_of(arguments[0])
    if origin in (typing.Union, types.UnionType):
        return value_of(next(each for each in arguments if each is not type(None)))
    if origin is list:
        return [value_of(arguments[0])]
    if isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel):
        return smallest(annotation)
    return {bool: True, int: 1, float: 0.5, str: "a"}[annotation]


def smallest(model):
    """Returns plain data of a model: its required keys and those that tell it from others."""
    fields = model.model_fields.items()
    kinds = (*configuration.yaml_files.KIND_KEYS,)
    return {name: value_of(field.annotation) for name, field in fields if field.is_required() or name in kinds}


def keys(model, path="", around=()):
    """Yields (key path, its field, overrides that make a place for it) of all keys below a model."""
    for name, field in model.model_fields.items():
        place = f"{path}{name}"
        yield place, field, around
        for inner, listed in inside(field):
            data = yaml_writer.write_inline([smallest(inner)] if listed else smallest(inner))
            yield from keys(
                inner, f"{place}.0." if listed else f"{place}.", (*around, f"{place}=null", f"{place}={data}")
            )


KEYS = {}
for key_path, key_field, set_before in keys(Config):
    KEYS.setdefault(key_path, []).append((key_field, set_before))


def wrong_values(field):
    """Returns the values that a field does not take on its own."""
    adapter = pydantic.TypeAdapter(typing.Annotated[field.annotation, field])
    strict = pydantic.ConfigDict(strict=True, allow_inf_nan=False)
    if not inside(field):
        adapter = pydantic.TypeAdapter(typing.Annotated[field.annotation, field], config=strict)
    found = []
    for value in WRONG:
        try:
            adapter.validate_python(value)
        except pydantic.ValidationError:
            found.append(value)
    return found


def message(path, overrides=(), **options):
    with pytest.raises(ConfigError) as error:
        configuration.load(path, overrides, **options)
    line = str(error.value)
    assert "\n" not in line
    return line


def names(line, source, key):
    """Whether a message names the origin of a key, and begins with the key or a key inside of its value."""
    said = line.removeprefix(f"{source}: ")
    place = said.partition(":")[0].split(" ")[0]
    return said != line and (place == key or place.startswith(f"{key}.") or said.startswith(f"{key} "))


def check_override(key, field, before, value):
    """Checks the message about one wrong value of a key."""
    override = f"{key}={yaml_writer.write_inline(value)}"
    if not (field.is_required() and value is None):
        line = message(QUICKSTART, [*before, override, "max_steps=1" if key == "seed" else "seed=1"])
        assert names(line, f"{QUICKSTART} --set {override}", key), line


@for_each("key", KEYS)
def test_a_wrong_value_of_any_key_names_the_override_that_sets_it(key):
    """The place of the key chooses the value, and so does that of the model, of several models with the key."""
    for number, (field, before) in enumerate(KEYS[key], list(KEYS).index(key)):
        wrong = wrong_values(field)
        check_override(key, field, before, wrong[number % len(wrong)])


@pytest.mark.exhaustive
def test_several_wrong_values_of_any_key_name_the_override_that_sets_it():
    for key, places in KEYS.items():
        for number, (field, before) in enumerate(places):
            wrong = wrong_values(field)
            first = number % len(wrong)
            for value in wrong[:3] if len(places) == 1 else wrong[first : first + 1]:
                check_override(key, field, before, value)


@for_each("key", [key for key in KEYS if ".0." not in key])
def test_a_wrong_value_of_any_key_names_the_file_that_contains_it(key, tmp_path):
    field, before = KEYS[key][-1]
    value = next(each for each in wrong_values(field) if each is not None)
    wrong = {}
    for override in [*before, f"{key}={yaml_writer.write_inline(value)}"]:
        yaml_files.apply_override(wrong, override)
    base, nearest = tmp_path / "base.yaml", tmp_path / "run.yaml"
    base.write_text(yaml_writer.write({"base": QUICKSTART, **wrong}))
    nearest.write_text("base: base.yaml\n" + ("" if key.startswith("logging") else "logging: {scatter: true}\n"))
    line = message(nearest)
    assert names(line, str(base), key), line
    base.write_text(yaml_writer.write({"base": QUICKSTART, "smoke": wrong}))
    line = message(nearest, smoke=True)
    assert names(line, str(base), f"smoke.{key}"), line


@pytest.mark.parametrize(
    ("overrides", "blamed", "said"),
    [
        (["momentum=0.9", "learning_rate=x"], 1, "optimization.forward.learning_rate: input should be a valid number"),
        (["learning_rate=x", "momentum=0.9"], 0, "optimization.forward.learning_rate: input should be a valid number"),
        (["learning_rate=0.1", "learning_rate=x"], 1, "optimization.forward.learning_rate: "),
        (["momentum=0.9", "momentm=1"], 1, "optimization.forward.momentm: unknown key; allowed: base_batch_size, "),
        (["name=momentm", "momentum=1"], 0, "optimization.forward.name: must be one of sgd, momentum"),
        (["clip_value=1", "clip_global_norm=1"], 1, "optimization.forward.clip_global_norm: must be null"),
        (
            ["schedule.warmup_epochs=5", "schedule.drop_epochs=[3]"],
            1,
            "optimization.forward.schedule.drop_epochs: must be",
        ),
    ],
)
def test_the_optimizer_momentum_has_a_key_of_its_name(overrides, blamed, said):
    overrides = [f"optimization.forward.{each}" for each in overrides]
    line = message(QUICKSTART, overrides)
    assert line.startswith(f"{QUICKSTART} --set {overrides[blamed]}: {said}"), line


def test_a_missing_key_names_the_setting_that_requires_it(tmp_path):
    line = message(QUICKSTART, ["alignment={rule: activation, amp: 1}", "alignment.amp=2"])
    assert line.startswith(f"{QUICKSTART} --set alignment={{rule: activation, amp: 1}}: alignment.sparse: this key is")
    path = tmp_path / "run.yaml"
    path.write_text(f"base: {QUICKSTART}\nalignment: {{rule: activation, amp: 1}}\n")
    assert message(path, ["alignment.amp=2"]).startswith(f"{path}: alignment.sparse: this key is required")


def test_incompatible_keys_name_the_one_to_change():
    line = message(QUICKSTART, ["optimization.minibatches=5", "seed=1"])
    assert line.startswith(f"{QUICKSTART} --set optimization.minibatches=5: optimization.minibatches: must divide")


# Searches.

SEARCH = {"config": QUICKSTART, "trials": 2, "space": {"weight_decay": {"uniform": [0, 1]}}}


def refusal(path, **replaced):
    with pytest.raises(ConfigError) as error:
        plans.load(str(path), **replaced)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("key", plans.Plan.model_fields)
def test_a_wrong_value_in_a_search_names_its_file_or_option(key, tmp_path):
    base, nearest = tmp_path / "base.yaml", tmp_path / "search.yaml"
    options = {"config": "--config", "trials": "--trials", "epochs": "--epochs", "algorithm": "--algorithms"}
    options["seed"] = "--seeds"
    for value in wrong_values(plans.Plan.model_fields[key]):
        if value is None or (key == "space" and isinstance(value, dict)):
            continue
        base.write_text(yaml_writer.write({**SEARCH, key: value}))
        nearest.write_text("base: base.yaml\n" + ("" if key == "trials" else "trials: 3\n"))
        assert names(refusal(nearest), str(base), key), value
        if key in options:
            base.write_text(yaml_writer.write(SEARCH))
            assert names(refusal(nearest, **{key: value}), f"{options[key]} {value}", key), value


@pytest.mark.parametrize("kind", spaces.KINDS)
def test_a_wrong_quantity_of_a_space_names_its_file(kind, tmp_path):
    base, nearest = tmp_path / "base.yaml", tmp_path / "search.yaml"
    nearest.write_text("base: base.yaml\nspace: {batch_size: {choice: [8, 16]}}\n")
    for entry in ({kind: 3, "zzz": 1}, {kind: 3}, {kind: "x", "cases": 3}, 3, {"zzz": 1}):
        if kind == "fixed" and entry == {kind: 3}:
            continue
        base.write_text(yaml_writer.write({**SEARCH, "space": {"weight_decay": entry}}))
        assert names(refusal(nearest), str(base), "space.weight_decay"), entry


def test_a_file_below_an_override_that_removes_its_value_is_not_at_fault():
    """The quickstart names the optimizer of R, but the first override removes it."""
    overrides = ["optimization.backward=null", "optimization.backward={learning_rate: 0.1}"]
    line = message(QUICKSTART, overrides)
    assert line.startswith(f"{QUICKSTART} --set {overrides[1]}: optimization.backward.name: this key is required")


# A key that an override has made unknown.

OTHER_CLASS = [
    (
        ["alignment.rule=feedback"],
        "--set alignment.rule=feedback: alignment.self_: unknown key; allowed: layers, rule, steps_per_epoch (1 more); "
        "it is not a key of rule: feedback; alignment={rule: feedback} replaces all keys of alignment",
    ),
    (
        ["model.name=fc", "seed=1"],
        "--set model.name=fc: model.filters: unknown key; allowed: activation, hidden, initial_stddev, name, "
        "output_activation, weight_norm (1 more); it is not a key of name: fc; model={name: fc} replaces all keys of "
        "model",
    ),
    (
        ["alignment=[{rule: symmetric, self_: 1, decay: 1}]", "alignment.0.rule=feedback"],
        "--set alignment.0.rule=feedback: alignment.0.self_: unknown key; allowed: layers, rule, steps_per_epoch "
        "(1 more); it is not a key of rule: feedback; alignment.0={rule: feedback} replaces all keys of alignment.0",
    ),
    (
        ["alignment={rule: feedback}", "alignment.self_=1"],
        "--set alignment.self_=1: alignment.self_: unknown key; allowed: layers, rule, steps_per_epoch",
    ),
    (
        ["alignment.slf=1", "alignment.rule=symmetric"],
        "--set alignment.slf=1: alignment.slf: unknown key; allowed: decay, every, layers, rule, self_, "
        "steps_per_epoch, update_forward; did you mean 'self_'?",
    ),
]


@pytest.mark.parametrize(("overrides", "line"), OTHER_CLASS)
def test_an_override_that_makes_a_key_unknown_is_named(overrides, line):
    assert message(QUICKSTART, overrides) == f"{QUICKSTART} {line}"


def test_an_override_that_selects_the_same_class_is_not_named(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(Path(QUICKSTART).read_text().replace("self_:", "slf:"))
    assert message(path, ["alignment.rule=symmetric"]).startswith(f"{path}: alignment.slf: unknown key; allowed: ")


def test_the_advice_works():
    configuration.load(QUICKSTART, ["alignment={rule: feedback}", "optimization.backward=null"])

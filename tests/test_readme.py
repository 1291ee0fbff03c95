"""Every block of Python and YAML in the README and in the guide runs; `test_commands.py` runs the commands."""

import re
from pathlib import Path

import keras
import pytest
import yaml
from helpers import exhaustive_unless

from neural_alignment import config as configuration

ROOT = Path(__file__).parent.parent
PAGES = ["README.md", *(f"docs/{name}.md" for name in ("training", "devices", "keras", "rules", "data", "results"))]
TEXT = "\n".join((ROOT / page).read_text() for page in PAGES)
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


def blocks(language):
    return [text for kind, text in BLOCKS if kind == language]


def test_every_code_block_is_run_by_a_test():
    assert {kind for kind, _ in BLOCKS} == {"bash", "yaml", "python"}
    assert TEXT.count("```") == 2 * len(BLOCKS)


@pytest.mark.parametrize(
    "text",
    exhaustive_unless(blocks("python"), blocks("python")[:2]),
    ids=lambda text: text.strip().splitlines()[-1][:40],
)
def test_python(text, tmp_path):
    names = {}
    exec(compile(text, "README.md", "exec"), names)
    layers = [layer for layer in names["model"].layers if getattr(layer, "alignment", None)]
    assert layers
    if names["model"].compiled:
        assert names["model"].history.history["accuracy"][-1] > 0.8
        assert len(text.strip().splitlines()) <= 26
        assert isinstance(names["optimizer"], keras.optimizers.Optimizer)


RULES = {"digits": ["weight_mirror", "symmetric"], "mnist": ["feedback", "feedback"], "examples": ["weight_mirror"]}


@pytest.mark.parametrize(("text", "rules"), [*zip(blocks("yaml"), RULES.values(), strict=True)], ids=RULES)
def test_yaml(text, rules):
    """A block without a model is a part of a configuration."""
    said = yaml.safe_load(text)
    rest = {} if "model" in said else configuration.plain(configuration.load(ROOT / "configs" / "quickstart.yaml"))
    config = configuration.parse({**rest, **said})
    assert [rule.rule for rule in config.rules] == rules


def test_the_network_of_rahmansetayesh_is_that_of_its_configuration():
    text = blocks("yaml")[1]
    config = configuration.parse(yaml.safe_load(text))
    file = configuration.load(ROOT / "configs" / "fa_mechanism" / "bp_trw_wb.yaml", ["data.replace_labels=0.5"])
    for part in ("epochs", "batch_size", "data", "model", "loss", "alignment", "optimization"):
        assert getattr(config, part) == getattr(file, part), part


def test_named_files_exist():
    for path in re.findall(r"`((?:configs|results|benchmarks|docs|tpu_scripts)/[\w./]+)`", TEXT):
        assert (ROOT / path).exists(), path

"""Every block of Python and YAML in the README and in the guide runs; `test_commands.py` runs the commands."""

import re
from pathlib import Path

import keras
import numpy as np
import pytest
import yaml
from helpers import exhaustive_unless

from neural_alignment import config as configuration
from neural_alignment.training import run

ROOT = Path(__file__).parent.parent
PAGES = ["README.md", *(f"docs/{name}.md" for name in ("training", "devices", "keras", "rules", "data", "results"))]
TEXT = "\n".join((ROOT / page).read_text() for page in PAGES)
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


def blocks(language):
    return [text for kind, text in BLOCKS if kind == language]


def test_every_code_block_is_run_by_a_test():
    assert {kind for kind, _ in BLOCKS} == {"bash", "yaml", "python"}
    assert TEXT.count("```") == 2 * len(BLOCKS)


WITH_A_RUN = [text for text in blocks("python") if "runs/" in text]
WITHOUT_FILES = [text for text in blocks("python") if text not in WITH_A_RUN]


@pytest.mark.parametrize(
    "text",
    exhaustive_unless(WITHOUT_FILES, WITHOUT_FILES[:2]),
    ids=lambda text: text.strip().splitlines()[-1][:40],
)
def test_python(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(text, "README.md", "exec"), names)
    layers = [layer for layer in names["model"].layers if getattr(layer, "alignment", None)]
    assert layers
    if names["model"].compiled:
        assert names["model"].history.history["accuracy"][-1] > 0.8
        assert len(text.strip().splitlines()) <= 26
        assert isinstance(names["optimizer"], keras.optimizers.Optimizer)


def test_python_with_a_finished_run(tmp_path, monkeypatch):
    """The inputs are those of the run: with raw pixels the accuracy is lower."""
    monkeypatch.chdir(tmp_path)
    short = ["epochs=1", "evaluation.probe_examples=0", "logging.tensorboard=false"]
    top1 = run.train(configuration.load("quickstart", short), "runs/first").metrics["top1"]
    [text] = WITH_A_RUN
    names = {}
    exec(compile(text, "README.md", "exec"), names)
    assert names["accuracy"] == pytest.approx(top1, abs=0.05)
    raw = names["model"].predict(names["images"].reshape(-1, 8, 8, 1), verbose=0)
    assert np.mean(np.argmax(raw, axis=1) == names["labels"]) < names["accuracy"] - 0.05
    assert names["w"].shape == names["b"].T.shape == (512, 10)


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

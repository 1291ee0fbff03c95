"""Every code block of the README and of the guide runs."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import keras
import pytest
import yaml
from helpers import exhaustive_unless

from neural_alignment import cli
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


def commands():
    return [line for text in blocks("bash") for line in text.splitlines() if line.strip()]


def run_cli(monkeypatch, words):
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code, words


@pytest.mark.exhaustive
def test_commands_of_the_package(monkeypatch, tmp_path):
    """Runs them in their order, with two steps of training."""
    monkeypatch.chdir(tmp_path)
    ours = [shlex.split(line) for line in commands() if line.startswith("neural-alignment ")]
    assert [words[1] for words in ours] == [
        "train",
        "evaluate",
        "describe",
        "configs",
        "table",
        "plot",
        "train",
        "train",
    ]
    for words in ours:
        run_cli(monkeypatch, [*words, *(["--smoke"] if words[1] == "train" else [])])
    assert (tmp_path / "runs" / "first" / "model.keras").exists()


def test_other_commands_exist():
    """`make` and `pip` are not run inside the tests that they run: their targets and extras are looked up."""
    others = [shlex.split(line) for line in commands() if not line.startswith("neural-alignment ")]
    for words in others:
        if words[0] == "make":
            dry = subprocess.run(["make", "--dry-run", words[1]], cwd=ROOT, capture_output=True, text=True, check=False)
            assert dry.returncode == 0, dry.stderr
        else:
            assert words[:2] == ["pip", "install"]
            assert re.search(rf'"{words[2].strip(".[]")}": \[', (ROOT / "setup.py").read_text())


def test_named_files_exist():
    for path in re.findall(r"`((?:configs|results|benchmarks|docs|tpu_scripts)/[\w./]+)`", TEXT):
        assert (ROOT / path).exists(), path

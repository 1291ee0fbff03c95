"""Tables and figures without their runs: the command that trains the runs, and no file."""

import shlex

import pytest
from lab import CONFIGS, write_run

from neural_alignment.errors import InputError
from neural_alignment.papers import commands
from neural_alignment.papers.registry import find

FROM_RUNS = [item for item in commands.ITEMS if "paper" in item.cells and not item.needs]
FROM_FILES = {
    ("figure", "two_routes/S2"): "neural-alignment search lab/information",
    ("table", "two_routes/rates"): "neural-alignment search lab/two_routes/backprop",
    ("table", "two_routes/further_claims"): "neural-alignment lab two_routes",
    ("table", "fa_mechanism/claims"): "neural-alignment lab fa_mechanism",
    ("table", "wide_networks/claims"): "neural-alignment lab wide_networks",
    ("figure", "wide_networks/7"): "python -m benchmarks.run wide",
}
"""Items that are made from other files than runs -> the command that makes these files."""


def made(item, folder, said):
    folders = commands.Folders(str(folder / "runs"), str(folder / "results"), CONFIGS)
    return commands.make(item, folders.source(item, "paper", say=said.append), None)


def test_all_papers_with_runs_of_their_size_are_tested():
    assert {item.paper for item in FROM_RUNS} == {"two_routes", "wide_networks"}
    # All other items from runs train them first: they have no other size.
    others = [item for item in commands.ITEMS if item.cells and item not in FROM_RUNS]
    assert {item.name for item in others if item.profile(lab=False) != "lab"} == {"two_routes/6"}


@pytest.mark.parametrize("item", FROM_RUNS, ids=lambda item: f"{item.kind} {item.name}")
def test_without_runs_the_commands_are_shown_and_nothing_is_written(item, tmp_path):
    said = []
    with pytest.raises(InputError, match=f"^{item.kind} {item.name}: none of its [0-9]+ runs has ended below") as error:
        made(item, tmp_path, said)
    assert not list(tmp_path.iterdir())
    [text] = said
    shown = [shlex.split(line) for line in text.splitlines() if line.startswith("    neural-alignment train ")]
    source = commands.Folders(str(tmp_path / "runs"), None, CONFIGS).source(item, "paper")
    expected = [cell.command(source.folder, CONFIGS, n) for cell in source.cells for n in cell.seeds or (0,)]
    assert shown == list(map(shlex.split, expected[:40]))
    assert f"`{expected[0]}`" in str(error.value)
    assert ("more" in text) == (len(expected) > 40)
    assert (f"neural-alignment {item.kind} {item.name} --lab" in str(error.value)) == ("lab" in item.cells)


def test_missing_runs_are_listed_below_the_text(tmp_path):
    item = find(commands.ITEMS, "table", "two_routes/3")
    first, *others = item.cells["paper"]
    write_run(tmp_path / "runs", first, 0, 0.5)
    text = made(item, tmp_path, [])
    assert (tmp_path / "results" / "table_3.md").read_text().strip() in text
    listed = [line.strip() for line in text.splitlines() if line.startswith("    neural-alignment train ")]
    assert listed == [cell.command(str(tmp_path / "runs"), CONFIGS) for cell in others]
    assert f"Not yet run: {len(others)}." in text
    for cell in others:
        write_run(tmp_path / "runs", cell, 0, 0.5)
    assert "neural-alignment train" not in made(item, tmp_path, [])


def test_a_run_that_has_not_ended_is_missing(tmp_path):
    item = find(commands.ITEMS, "figure", "two_routes/S3")
    for cell in item.cells["paper"]:
        write_run(tmp_path / "runs", cell, 0, 0.5, state="stopped")
    with pytest.raises(InputError, match="none of its 4 runs has ended"):
        made(item, tmp_path, [])
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("key", FROM_FILES, ids=" ".join)
def test_without_its_files_an_item_names_the_command_that_makes_them(key, tmp_path):
    with pytest.raises(InputError) as error:
        made(find(commands.ITEMS, *key), tmp_path, [])
    assert FROM_FILES[key] in str(error.value)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]

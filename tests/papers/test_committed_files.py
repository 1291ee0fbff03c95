"""The files in `results/` are those that their commands make from the committed runs: text, numbers and pictures."""

import re
from importlib.metadata import version

import pytest
from helpers import exhaustive_unless
from lab import CONFIGS, ROOT

from neural_alignment.papers import commands
from neural_alignment.reporting import write

RESULTS = ROOT / "results"

ITEMS = [
    item
    for item in commands.ITEMS
    if not item.name.endswith("claims")  # The tests of the papers' results judge the claims.
    and not item.needs.startswith("--recordings")
    and (
        not item.cells
        or item.paper in ("fa_mechanism", "wide_networks")
        or (item.paper == "two_routes" and "lab" in item.cells)
    )
]
"""Tables and figures that need no runs, or of which the repository has the runs."""

OFTEN = (
    *("figure fa_mechanism/7_paths", "figure wide_networks/6", "table wide_networks/1"),
    *("table two_routes/D1", "figure two_routes/3"),
)

NOT_RUN = ("table_longer", "figure_longer", "table_8_wider")
"""Files of experiments of which no network has been trained yet. The tables are committed, empty figures are not."""


def source_of(item, output):
    if item.needs:  # The last alternative, without the remark in brackets.
        folder = item.needs.rpartition(", or ")[2].removeprefix("--runs ").partition(" (")[0]
    else:
        folder = f"results/{item.paper}/runs" if item.cells else None
    runs = folder and str(ROOT / folder)
    return commands.Folders(runs, output, CONFIGS).source(item, "lab" if "lab" in item.cells else "paper")


@pytest.mark.parametrize("name", exhaustive_unless([f"{item.kind} {item.name}" for item in ITEMS], OFTEN))
def test_the_commands_change_no_file(name, tmp_path):
    item = next(item for item in ITEMS if f"{item.kind} {item.name}" == name)
    product = item.make(source_of(item, str(tmp_path)))
    assert (product.rows == []) == (item.file in NOT_RUN)
    if item.kind == "figure" and item.file in NOT_RUN:
        assert not list((RESULTS / item.paper).glob(f"{item.file}.*"))
        return
    [pinned] = re.findall(r"^matplotlib==(\S+) ; python_full_version >= ", (ROOT / "constraints.txt").read_text(), re.M)
    for made in write(product, str(tmp_path / item.file)):
        made = tmp_path / made
        if made.suffix != ".png" or version("matplotlib") == pinned:  # Another version draws other pixels.
            assert made.read_bytes() == (RESULTS / item.paper / made.name).read_bytes(), made.name

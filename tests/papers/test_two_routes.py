"""Tables and figures of Kunin et al. 2020, compared with the paper and with runs whose results are known."""

import csv
import io
import itertools
import math
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import tensorflow as tf
from lab import CONFIGS, ROOT, grey, write_run

from neural_alignment import config as configuration
from neural_alignment import shipped
from neural_alignment.alignments import Alignment, Symmetric, primitives
from neural_alignment.analysis import dynamics
from neural_alignment.errors import DataError, InputError, RunError
from neural_alignment.jobs.batch import Execution, Screen
from neural_alignment.jobs.engines.in_process import InProcess
from neural_alignment.jobs.plans import SECONDS
from neural_alignment.optimization.schedules import Clock
from neural_alignment.papers import commands, two_routes
from neural_alignment.papers.claims import reach, welch
from neural_alignment.papers.registry import find
from neural_alignment.papers.two_routes import angles, claims, figures, tables
from neural_alignment.papers.two_routes import runs as experiments
from neural_alignment.papers.two_routes.compute import fits, taxonomy, theory
from neural_alignment.reporting import Spread, csv_text, new_figure


def source(kind, name, profile="paper", **places):
    return commands.Folders(configs=CONFIGS, **places).source(find(commands.ITEMS, kind, name), profile)


def make(kind, name, profile="paper", **places):
    item = find(commands.ITEMS, kind, name)
    return item.make(source(kind, name, profile, **places))


# Tables 1 and 2, as the paper has them.

LOCAL = {"decay": "B_l", "amp": "-x_l x_{l+1}^T", "null": "B_l x_{l+1} x_{l+1}^T"}
NON_LOCAL = {"sparse": "x_l x_l^T B_l", "self": "-W_l^T"}
RULES = {
    "feedback": (True, set()),
    "weight_mirror": (True, {"decay", "amp"}),
    "information": (True, {"decay", "amp", "null"}),
    "symmetric": (False, {"decay", "self_"}),
    "activation": (False, {"amp", "sparse"}),
}


def test_table_1_has_the_gradients_and_groups_of_the_paper():
    rows = {row["primitive"]: row for row in make("table", "two_routes/1").rows}
    for group, expected in (("local", LOCAL), ("non-local", NON_LOCAL)):
        for name, gradient in expected.items():
            assert (rows[name]["group"], rows[name]["gradient"]) == (group, gradient)
    # Appendix D.3: not in the paper's table, local by its criterion.
    assert set(rows) - {*LOCAL, *NON_LOCAL} == {"angle"}
    assert rows["angle"]["group"] == "local"
    assert "formula_as_documented" in rows["angle"]


def test_table_1_tells_what_a_primitive_does_not_what_it_is_called(monkeypatch):
    monkeypatch.setitem(taxonomy.PRIMITIVES, "decay", primitives.self_)
    rows = {row["primitive"]: row for row in taxonomy.table_1()}
    assert (rows["decay"]["gradient"], rows["decay"]["group"]) == ("-W_l^T", "non-local")

    def quartic(backward_kernel):
        return tf.reduce_sum(backward_kernel**4)

    monkeypatch.setitem(taxonomy.PRIMITIVES, "decay", quartic)
    with pytest.raises(LookupError, match="decay is none of the terms"):
        taxonomy.table_1()


def test_table_2_is_the_taxonomy_of_the_paper():
    rows = {
        row["rule"]: (row["group"] == "local", {name for name in taxonomy.PRIMITIVES if row[name]})
        for row in taxonomy.table_2()
    }
    for rule, expected in RULES.items():
        assert rows[rule] == expected
    assert rows["kolen_pollack"][1] == {"angle", "decay"}
    # The library has rules that the paper has not, such as those for whole networks.
    assert set(rows) == {*RULES, "kolen_pollack", "sign_symmetry"}
    # It has no R; but its error travels back through the signs of W.
    assert rows["sign_symmetry"] == (False, set())


def test_table_2_tells_what_a_rule_does_not_what_its_weights_are_called(monkeypatch):
    class Liar(Symmetric):
        def __call__(self, view):
            forward, backward = view.forward_kernel, view.backward_kernel
            return self.weight("decay", view) * primitives.self_(forward, backward)

    monkeypatch.setitem(taxonomy.RULES, "symmetric", Liar)
    with pytest.raises(LookupError, match=r"Liar\.self_"):
        taxonomy.table_2()
    assert issubclass(Liar, Alignment)


# Table 5, typed from the paper's page.

TABLE_5 = """
Alternating Minimization      | True    | True          | True     | True
Delay Epochs (de)             | 2       | 0             | 0        | 1
Train Batch Size (|B|)        | 2048    | 256           | 256      | 256
SGDM Learning Rate            | 1.0     | 0.125         | 0.125    | 0.125
Alignment Optimizer           | Vanilla GD | Adam       | Adam     | Adam
Alignment Learning Rate (η)   | 1.0     | 0.0053        | 0.0025   | 0.0098
σ                             | 0.6905  | 0.9500        | 0.6402   | 0.8176
α/β                           | 15.6607 | 13.9040       | 0.1344   | 129.1123
β                             | 0.0283  | 2.8109 × 10^-8 | 232.7856 | 7.9990
γ                             | N/A     | N/A           | N/A      | 3.1610 × 10^-6
Forward Path Output (FO) Bias | True    | True          | True     | True
FO ReLU                       | True    | True          | True     | True
FO BWMC                       | True    | True          | True     | True
FO FWMC                       | False   | False         | True     | True
FO FWL2N                      | False   | False         | False    | False
Backward Path Output (BO) Bias | False  | False         | False    | True
BO ReLU                       | False   | False         | True     | False
BO FWMC                       | False   | False         | False    | True
BO FWL2N                      | False   | False         | True     | True
Backward Path Input (BI) BWMC | True    | True          | True     | False
BI FWMC                       | False   | False         | False    | False
BI FWL2N                      | False   | False         | False    | False
"""

UNROUNDED = {("σ", "information"): 0.8176668980121832, ("α/β", "weight_mirror_adam"): 13.9035614049}
"""The two cells that are not rounded to four decimals, from an earlier version of the appendix."""


def paper_table_5():
    for line in TABLE_5.strip().splitlines():
        *name, a, b, c, d = (cell.strip() for cell in line.split("|"))
        setting = "|".join(name) if len(name) == 1 else "Train Batch Size (|B|)"
        yield setting, dict(zip(experiments.SEARCHED, (a, b, c, d), strict=True))


def test_table_5_is_the_papers_to_its_printed_digits():
    rows = {row["setting"]: row for row in make("table", "two_routes/5").rows}
    expected = dict(paper_table_5())
    assert list(rows) == list(expected)
    for setting, cells in expected.items():
        for rule, printed in cells.items():
            if (setting, rule) in UNROUNDED:
                assert rows[setting][rule] == f"{UNROUNDED[setting, rule]:.4f}" != printed
            else:
                assert rows[setting][rule] == printed, (setting, rule)


def test_table_5_says_where_the_paper_prints_otherwise():
    text = make("table", "two_routes/5").text
    for (setting, rule), unrounded in UNROUNDED.items():
        printed = dict(paper_table_5())[setting][rule]
        line = (
            f"{setting} of {experiments.RULE_STYLES[rule].label}: the paper prints {printed}; its earlier appendix has"
        )
        assert f"{line} {unrounded}" in text


def test_table_5_follows_the_configurations(tmp_path):
    folder = tmp_path / "two_routes"
    for path in (ROOT / "configs" / "two_routes").glob("**/*.yaml"):
        copy = folder / path.relative_to(ROOT / "configs" / "two_routes")
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(path.read_text().replace("5.62180120644e-08", "1.12436024129e-07"))
    places = commands.Folders(configs=str(tmp_path))
    item = find(commands.ITEMS, "table", "two_routes/5")
    rows = {row["setting"]: row for row in item.make(places.source(item, "paper")).rows}
    assert rows["β"]["weight_mirror_adam"] == "5.6218 × 10^-8"
    assert rows["α/β"]["weight_mirror_adam"] == "6.9518"


OTHER_RULES = {
    "information": ("{rule: symmetric, self_: 1.0, decay: 0.5}", "{name: rmsprop, learning_rate: 0.01}"),
    "weight_mirror": ("{rule: feedback}", "null"),
    "weight_mirror_adam": ("{rule: weight_mirror, amp: 1.0, decay: 0}", "{name: adam, learning_rate: 0.01}"),
}
"""Column of Table 5 -> another rule and optimizer of R."""


def test_table_5_reads_any_configuration(tmp_path):
    folder = tmp_path / "two_routes" / "resnet18"
    folder.mkdir(parents=True)
    for rule in experiments.SEARCHED:
        alignment, backward = OTHER_RULES.get(rule, ("null", "null"))
        overrides = [f"alignment={alignment}", f"optimization.backward={backward}"]
        config = configuration.load(f"{CONFIGS}/quickstart.yaml", overrides)
        (folder / f"{rule}.yaml").write_text(configuration.dump(config))
    item = find(commands.ITEMS, "table", "two_routes/5")
    source = commands.Folders(configs=str(tmp_path)).source(item, "paper")
    rows = {row["setting"]: row for row in item.make(source).rows}
    optimizers = {rule: rows["Alignment Optimizer"][rule] for rule in experiments.SEARCHED}
    assert optimizers == dict.fromkeys(experiments.SEARCHED, "N/A") | {
        "information": "rmsprop", "weight_mirror_adam": "Adam"
    }  # fmt: skip
    assert [rows[name]["information"] for name in ("α/β", "β", "γ", "FO ReLU")] == ["N/A", "0.2500", "N/A", "N/A"]
    assert [rows[name]["weight_mirror_adam"] for name in ("α/β", "β")] == ["N/A", "0.0000"]
    assert {row["weight_mirror_adam_ops"] for name, row in rows.items() if "(BO)" in name} == {"N/A"}


# Runs with known results, made without training.


TOP1 = {0: 0.41, 1: 0.44, 2: 0.5, 3: 0.45, 4: 0.45}


@pytest.fixture(scope="module")
def lab_runs(tmp_path_factory):
    runs = tmp_path_factory.mktemp("lab") / "runs"
    for cell in find(commands.ITEMS, "table", "two_routes/3").cells["lab"]:
        for seed in cell.seeds:
            diverged = cell.labels["rule"] == "weight_mirror"
            write_run(runs, cell, seed, TOP1[seed], state="diverged" if diverged else "finished")
    return runs


@pytest.fixture
def lab(lab_runs, tmp_path):
    """Returns a folder of runs and one for results; of every rule of Table 3 all seeds, WM has diverged."""
    return {"runs": str(shutil.copytree(lab_runs, tmp_path / "runs")), "output": str(tmp_path / "results")}


def written(product):
    return list(csv.DictReader(io.StringIO(csv_text(product.columns, product.rows))))


def test_table_3_has_a_line_per_run_and_means_beside_the_papers_numbers(lab):
    product = make("table", "two_routes/3", "lab", **lab)
    rows = written(product)
    assert list(rows[0]) == ["profile", "model", "rule", "seed", "top1", "top5", "diverged", "seconds"]
    symmetric = [row for row in rows if row["rule"] == "backprop"]
    assert [(row["seed"], float(row["top1"])) for row in symmetric] == [(str(k), v) for k, v in TOP1.items()]
    assert symmetric[0] | {"profile": "lab", "model": "resnet18", "diverged": "0", "seconds": "12.5"} == symmetric[0]
    mean, deviation = np.mean(list(TOP1.values())) * 100, np.std(list(TOP1.values()), ddof=1) * 100
    assert f"| backpropagation | {mean:.2f} ± {deviation:.2f} | 90.00 ± 0.00 | 70.06 | 89.14 |" in product.text
    assert "| WM | 41.00 (1 seed) |" in product.text
    # The paper does not tabulate feedback alignment.
    assert "| feedback (FA) | 45.00 ± 3.24 | 90.00 ± 0.00 | - | - |" in product.text


def test_a_diverged_run_counts_as_a_guess(lab):
    product = make("table", "two_routes/3", "lab", **lab)
    diverged = [row for row in written(product) if row["rule"] == "weight_mirror"]
    assert {(row["top1"], row["top5"], row["diverged"]) for row in diverged} == {("0.1", "0.5", "1")}
    assert "| weight mirror (WM), TPE | 10.00 ± 0.00 (5 of 5 diverged) |" in product.text


def test_missing_runs_are_shown_as_missing(lab):
    product = make("table", "two_routes/4", "lab", **lab)
    assert {row["model"] for row in product.rows} == {"resnet18"}
    line = next(line for line in product.text.splitlines() if line.startswith("| ResNet-50 |"))
    assert line.split("|")[2:5] == [" missing "] * 3
    assert "76.05" in line
    # Four seeds of five are not called five.
    next(Path(lab["runs"]).glob("resnet18/backprop/seed2/status.json")).write_text('{"state": "stopped"}')
    assert "43.75 ± 1.89 (4 of 5 seeds)" in make("table", "two_routes/4", "lab", **lab).text


def test_fewer_examples_are_compared_with_the_whole_batch_by_seed(tmp_path):
    costs = {0.5: (0.01, 0.02, 0.0), 0.25: (0.03, 0.04, 0.05), 0.125: (0.02, 0.03)}
    cells = find(commands.ITEMS, "table", "two_routes/examples").cells["lab"]
    assert len({cell.name for cell in cells}) == 16
    for cell in cells:
        fraction = cell.labels["examples"]
        if cell.labels["rule"] == "activation":
            for seed, cost in enumerate(costs.get(fraction, (0.0,) * 5)):
                path = write_run(tmp_path / "runs", cell, seed, TOP1[seed] - cost)
                config = configuration.load(path / "config.yaml")
                assert config.alignment.examples == (None if fraction == 1 else fraction)
    product = make("table", "two_routes/examples", "lab", runs=str(tmp_path / "runs"))
    assert list(written(product)[0]) == ["rule", "examples", "seed", "top1", "weight_angle", "diverged", "seconds"]
    assert "| activation (AA) | 1 | 45.00 ± 4.58 | 50.0 ± 0.0 |  |  |" in product.text
    assert "| activation (AA) | 0.5 | 44.00 ± 5.29 | 50.0 ± 0.0 | +1.00 ± 0.58 | undecided |" in product.text
    assert "| activation (AA) | 0.25 | 41.00 ± 3.61 | 50.0 ± 0.0 | +4.00 ± 0.58 | yes |" in product.text
    assert "(2 of 3 seeds) | 50.0 ± 0.0 | +2.50 ± 0.50 | too few seeds |" in product.text
    assert "- activation (AA): costs accuracy from 0.25 of the batch on." in product.text
    assert product.text.count("missing") == 2 * 12


def test_a_cost_that_does_not_show_is_bounded_by_its_interval(tmp_path):
    """The mean is 1 and its standard error 0.577 points; 4.303 of them are the half of the interval of three seeds."""
    for cell in find(commands.ITEMS, "table", "two_routes/examples").cells["lab"]:
        if cell.labels["rule"] == "activation" and cell.labels["examples"] >= 0.5:
            costs = (0.0,) * 5 if cell.labels["examples"] == 1 else (0.01, 0.02, 0.0)
            for seed, cost in enumerate(costs):
                write_run(tmp_path / "runs", cell, seed, TOP1[seed] - cost)
    text = make("table", "two_routes/examples", "lab", runs=str(tmp_path / "runs")).text
    line = (
        "- activation (AA): no cost shows down to 0.5 of the batch; costs of up to 3.5 points are within the intervals."
    )
    assert line in text.splitlines()


def test_the_table_of_angles_has_means_over_layers_and_seeds(tmp_path):
    every = find(commands.ITEMS, "table", "two_routes/angles").cells["lab"]
    cells = {cell.labels["rule"]: cell for cell in every if cell.labels["model"] == "resnet18"}
    assert {cell.name for cell in every} <= {cell.name for cell in all_cells("lab")}
    for rule, measured in {"symmetric": ((10.0, 20.0), (20.0, 40.0)), "backprop": ()}.items():
        for seed, values in enumerate(measured or ((), ())):
            path = write_run(tmp_path / "runs", cells[rule], seed, TOP1[seed])
            lines = (path / "metrics.csv").read_text().splitlines()
            names = [f"pseudogradient_angle/{layer}" for layer in ("stem", "dense")][: len(values)]
            lines = [f"{lines[0]},{','.join(names)}", *(f"{line},{','.join(map(str, values))}" for line in lines[1:])]
            (path / "metrics.csv").write_text("\n".join(line.rstrip(",") for line in lines) + "\n")
    product = make("table", "two_routes/angles", "lab", runs=str(tmp_path / "runs"))
    last = [row for row in product.rows if row["rule"] == "symmetric" and row["epoch"] == 10]
    assert [row["pseudogradient_angle"] for row in last] == [15, 30]
    assert [(row["weight_angle"], row["weight_angle_max"], row["norm_ratio_min"]) for row in last] == [(50, 50, 50)] * 2
    line = "symmetric (SA) | 42.50 ± 2.12 |  | 22.5 ± 10.6 |  | 50.0 ± 0.0 | 50.0 | 50 to 50 | misaligned, large"
    assert f"| ResNet-18 | {line} |" in product.text
    assert "| ResNet-18 | activation (AA) | missing |  |  |  |  |  |  |  |" in product.text
    # A run that diverged has no angles, and is counted.
    for rule, seed in (("symmetric", 2), ("activation", 0)):
        write_run(tmp_path / "runs", cells[rule], seed, 0.1, state="diverged")
    text = make("table", "two_routes/angles", "lab", runs=str(tmp_path / "runs")).text
    assert "| ResNet-18 | symmetric (SA) | 42.50 ± 2.12 (1 of 3 diverged) |" in text
    assert "| ResNet-18 | activation (AA) | (1 of 1 diverged) |  |  |  |  |  |  |  |" in text


@pytest.mark.parametrize(("degrees", "norms", "said"), [
    (9, (0.6, 1.9), "aligned"),
    (11, (0.6, 1.9), "misaligned"),
    (9, (0.4, 1.9), "aligned, small"),
    (9, (0.6, 2.1), "aligned, large"),
    (11, (0.4, 2.1), "misaligned, small and large"),
    (math.nan, (math.nan, math.nan), ""),
])  # fmt: skip
def test_the_table_of_angles_says_how_b_differs_from_w(degrees, norms, said):
    assert angles._state(degrees, *norms) == said


@pytest.mark.parametrize("name", ["two_routes/3", "two_routes/5"])
def test_figures_tell_missing_runs_and_few_seeds_as_tables_do(name, lab):
    next(Path(lab["runs"]).glob("resnet18/backprop/seed2/status.json")).write_text('{"state": "stopped"}')
    text = make("figure", name, "lab", **lab).text
    assert "43.75 ± 1.89 (4 of 5 seeds) | missing | missing |" in text
    assert "none" not in text


def test_runs_of_the_papers_size_are_read_with_and_without_seeds(tmp_path):
    cells = {cell.labels["rule"]: cell for cell in find(commands.ITEMS, "table", "two_routes/3").cells["paper"]}
    path = write_run(tmp_path, cells["information"], 0, 0.6793, 0.8809)
    # `train` without --run-dir makes MODEL/RULE; here with data elsewhere, which is no other experiment.
    path.rename(path.parent.with_name("moved"))
    path.parent.rmdir()
    (tmp_path / "resnet18" / "moved").rename(path.parent)
    product = make("table", "two_routes/3", runs=str(tmp_path))
    assert [row["rule"] for row in product.rows] == ["information"]
    assert "| information (IA), TPE | 67.93 | 88.09 | 67.93 | 88.09 |" in product.text


def test_a_run_of_another_rule_or_network_is_refused(tmp_path):
    symmetric = experiments.paper_cell("resnet18", "symmetric")
    activation = experiments.paper_cell("resnet18", "activation")
    write_run(tmp_path, symmetric, 0, 0.5)
    (tmp_path / symmetric.name).rename(tmp_path / activation.name)
    with pytest.raises(RunError, match="is a run of the rule symmetric; expected here: activation"):
        make("table", "two_routes/4", runs=str(tmp_path))
    (tmp_path / activation.name).rename(tmp_path / symmetric.name)
    (tmp_path / "resnet18").rename(tmp_path / "resnet50")
    with pytest.raises(RunError, match=r"is a run of the network .*18.* expected here: .*50"):
        make("table", "two_routes/4", runs=str(tmp_path))


@pytest.mark.parametrize(("other", "said"), [
    ({"epochs": 4}, "epochs was 4, is now 10"),
    ({"batch_size": 64}, "batch_size was 64, is now 50"),
    ({"optimization.backward.noise": "null"}, "optimization.backward.noise was None, is now {'variance': "),
    ({"data.train_split": "train[:4000]"}, "data.train_split was 'train[:4000]', is now 'train[:5000]'"),
])  # fmt: skip
def test_a_run_that_was_trained_otherwise_is_refused(tmp_path, other, said):
    [cell] = [
        cell
        for cell in find(commands.ITEMS, "figure", "two_routes/5").cells["lab"]
        if cell.labels == {"model": "resnet18", "rule": "symmetric", "noise_variance": 1.0}
    ]
    path = write_run(tmp_path, cell, 0, 0.5, **other)
    with pytest.raises(RunError) as error:
        make("figure", "two_routes/5", "lab", runs=str(tmp_path))
    assert str(error.value).startswith(f"{path}: was trained with another configuration: {said}")
    assert "\n" not in str(error.value)


def test_where_the_data_are_and_what_a_run_keeps_is_free(tmp_path):
    cell = experiments.paper_cell("resnet18", "information")
    elsewhere = {
        "data.train_files": "gs://bucket/train-*",
        "logging.kernels": "[]",
        "runtime.precision": "mixed_bfloat16",
    }
    write_run(tmp_path, cell, 3, 0.5, **elsewhere)
    assert [row["seed"] for row in make("table", "two_routes/3", runs=str(tmp_path)).rows] == [3]


# Figures.


@pytest.mark.parametrize("decay", dynamics.FIGURE_2_DECAYS.values())
def test_the_flow_of_figure_2_is_that_of_appendix_d1(decay, rng):
    points = rng.normal(size=(2, 3, 5))
    x = 1.5
    matrix = np.array([[decay, -(x**2)], [-(x**2), decay]])
    flow = theory.symmetrised_flow(*points, decay, x)
    np.testing.assert_allclose(flow, -np.einsum("ij,jkl->ikl", matrix, points), atol=1e-12)
    # Not the flow of B alone, whose forward weight is a constant.
    assert not np.allclose(flow[0], 0)


def test_figure_2_shows_the_regimes_of_the_closed_form(tmp_path):
    rows = make("figure", "two_routes/2", "lab", runs=str(tmp_path)).rows
    for panel, (regime, decay) in zip("abc", dynamics.FIGURE_2_DECAYS.items(), strict=True):
        own = [row for row in rows if row["panel"] == panel]
        assert {row["decay"] for row in own} == {decay}
        points, flows = (np.array([[row[a], row[b]] for row in own]) for a, b in [
            ("forward", "backward"), ("forward_flow", "backward_flow"),
        ])  # fmt: skip
        np.testing.assert_allclose(
            flows, np.stack(dynamics.weight_mirror(decay).velocity(*points.T), axis=1), atol=1e-9
        )
        symmetric = (flows.sum(axis=1) * points.sum(axis=1)).sum()
        assert np.sign(np.round(symmetric, 9)) == {"diverging": 1, "stable": 0, "collapsing": -1}[regime]


def test_figure_2_scatters_what_a_run_of_weight_mirror_has_kept(tmp_path):
    [cell] = find(commands.ITEMS, "figure", "two_routes/2").cells["lab"]
    assert "not yet run" not in "".join(axis.get_title() for axis in drawn(tmp_path, cell).axes)
    empty = make("figure", "two_routes/2", "lab", runs=str(tmp_path / "nothing"))
    assert sum("not yet run" in axis.get_title() for axis in empty.figure.axes) == 3


def drawn(tmp_path, cell):
    write_run(tmp_path, cell, 0, 0.4)
    product = make("figure", "two_routes/2", "lab", runs=str(tmp_path))
    points = [row for row in product.rows if row["panel"] == "f"]
    assert [row["backward"] for row in points] == pytest.approx([3 * row["forward"] for row in points])
    return product.figure


FIGURES = [item.name for item in two_routes.ITEMS if item.kind == "figure" and not item.needs]


@pytest.mark.parametrize("name", FIGURES)
def test_figures_are_grey_and_their_axes_are_named(name, lab):
    product = make("figure", name, "lab", **lab)
    assert grey(product.figure)
    keys = {key for row in product.rows for key in row} or set(product.columns)
    assert product.rows or name == "two_routes/5b"  # Of a network that has no runs here.
    # Each column is filled by some row; what rows hold beside is their labels, which one network or profile needs not.
    assert set(product.columns) <= keys
    assert keys - set(product.columns) <= {"profile", "model", "top5", "diverged", "seconds", "noise_variance"}
    axes = [axis for axis in product.figure.axes if axis.get_label() != "<colorbar>" and axis.has_data()]
    assert axes or name == "two_routes/5b"
    assert all(axis.get_xlabel() or not axis.get_subplotspec().is_last_row() for axis in axes)
    assert all(axis.get_ylabel() or not axis.get_subplotspec().is_first_col() for axis in axes)


def test_a_coloured_figure_is_seen_to_be_coloured():
    figure = new_figure(2, 2)
    figure.subplots().plot([1, 2], color="tab:orange")
    assert not grey(figure)


def test_rules_are_told_apart_without_their_shade():
    looks = [(style.marker, str(style.line)) for style in experiments.RULE_STYLES.values()]
    assert len(set(looks)) == len(looks)


def test_figure_3_draws_means_and_standard_errors(lab):
    product = make("figure", "two_routes/3", "lab", **lab)
    bars = {each.get_label(): each for each in product.figure.axes[0].containers}
    line, _, [segments] = bars["information (IA), TPE"].lines
    assert line.get_ydata() == pytest.approx([45.0])
    low, high = segments.get_segments()[0][:, 1]
    assert (high - low) / 2 == pytest.approx(100 * np.std(list(TOP1.values()), ddof=1) / math.sqrt(len(TOP1)))
    assert bars["weight mirror (WM), TPE"].lines[0].get_ydata() == pytest.approx([10.0])
    assert [text.get_text() for text in product.figure.axes[0].texts] == ["5 of 5 diverged"]


def test_figure_5_has_the_columns_that_were_agreed_on(lab):
    product = make("figure", "two_routes/5", "lab", **lab)
    assert list(written(product)[0]) == ["rule", "noise_variance", "seed", "top1"]
    assert {row["noise_variance"] for row in product.rows} == {0.0}


def test_figure_s4_has_a_row_per_layer_and_evaluation(lab):
    rows = make("figure", "two_routes/S4", "lab", **lab).rows
    own = [row for row in rows if row["rule"] == "information"]
    assert [(row["layer"], row["epoch"], row["weight_angle"]) for row in own] == [
        ("stem", 0, 80), ("dense", 0, 80), ("stem", 10, 50), ("dense", 10, 50),
    ]  # fmt: skip


def test_figure_s4_bears_a_run_that_diverged_before_its_first_evaluation(lab):
    path = Path(lab["runs"]) / "resnet18" / "weight_mirror" / "seed0" / "metrics.csv"
    path.write_text(path.read_text().splitlines()[0] + "\n")
    product = make("figure", "two_routes/S4", "lab", **lab)
    titles = [axis.get_title() for axis in product.figure.axes]
    assert titles.count("weight mirror (WM), TPE: diverged before its first evaluation") == 2
    assert "| weight mirror (WM), TPE | missing | missing |" in product.text


# Claims.


def claim_rows(runs, numbers):
    """Writes runs of rules and networks with some top-1 accuracies; returns the rows of the claims without noise."""
    for (model, rule), values in numbers.items():
        for seed, top1 in enumerate(values):
            write_run(runs, experiments.lab_cell(model, rule), seed, top1)
    product = make("table", "two_routes/claims", "lab", runs=str(runs))
    still = [row for row in product.rows if not row["noise_variance"]]
    return {(row["model"], row["rule"], row["other"]): row for row in still}, product.text


def test_claims_are_judged_by_the_difference_and_its_standard_error(tmp_path):
    backprop, equal, behind = (0.45, 0.46, 0.47), (0.452, 0.462, 0.472), (0.40, 0.41, 0.42)
    rows, text = claim_rows(
        tmp_path,
        {
            ("resnet18", "backprop"): backprop,
            ("resnet18", "symmetric"): equal,
            ("resnet18", "activation"): behind,
            ("resnet18", "feedback"): (0.2, 0.21, 0.22),
            ("resnet18", "information"): behind,
            ("resnet18", "weight_mirror"): (0.3, 0.42, 0.45),
            ("resnet50", "backprop"): backprop,
            ("resnet50", "symmetric"): behind[:2],
        },
    )
    row = rows["resnet18", "symmetric", "backprop"]
    assert row["difference"] == pytest.approx(0.2)
    assert row["standard_error"] == pytest.approx(np.sqrt(2 * np.var([1, 2, 3], ddof=1) / 3))
    assert row["paper_difference"] == pytest.approx(69.84 - 70.06)
    # With equal variances Welch's degrees of freedom are those of both groups together: 2.776 standard errors are more
    # than 2 points.
    assert row["freedom"] == pytest.approx(4)
    assert row["verdict"] == "not told apart"
    assert row["margin"] == 2
    assert rows["resnet18", "activation", "backprop"]["verdict"] == "is behind"
    assert rows["resnet18", "backprop", "feedback"]["verdict"] == "shows"
    # Higher on average, but the interval contains 0.
    information = rows["resnet18", "information", "weight_mirror"]
    assert information["difference"] > 0
    assert information["verdict"] == "undecided"
    assert rows["resnet50", "symmetric", "backprop"]["verdict"] == "too few seeds"
    assert rows["resnet50v2", "symmetric", "backprop"]["verdict"] == "not yet run"
    means = "46.20 ± 1.00 (3 of 5 seeds) | 46.00 ± 1.00 (3 of 5 seeds)"
    assert f"| ResNet-18 | {means} | +0.20 ± 0.82 | -0.22 | not told apart |" in text
    assert "| ResNet-50v2 | missing | missing |  | -0.03 | not yet run |" in text


EQUAL, BETTER, FAR = (
    claims.Claim("", "a", "b", better=False, margin=2.0),
    claims.Claim("", "a", "b"),
    claims.Claim("", "a", "b", margin=5.0),
)


@pytest.mark.parametrize(("claim", "difference", "distance", "said"), [
    (EQUAL, -0.5, 1.0, "matches"),
    (EQUAL, -0.5, 0.2, "matches"),  # Told apart from 0, but close.
    (EQUAL, 0.0, 2.02, "not told apart"),  # A wide spread makes nothing equal.
    (EQUAL, -5.0, 5.2, "not told apart"),
    (EQUAL, -5.0, 4.8, "is behind"),
    (EQUAL, 3.0, 2.0, "is ahead"),
    (BETTER, 0.5, 0.4, "shows"),
    (BETTER, 0.5, 0.6, "undecided"),
    (BETTER, -0.5, 0.6, "undecided"),
    (BETTER, -0.5, 0.4, "contradicted"),
    (FAR, 4.9, 0.0, "contradicted"),  # Better, not far better.
    (FAR, 7.0, 2.2, "undecided"),
    (FAR, 7.0, 1.8, "shows"),
])  # fmt: skip
def test_a_verdict_follows_from_the_whole_interval(claim, difference, distance, said):
    assert claims.verdict(claim, difference, distance) == said


def test_the_interval_of_a_difference_is_that_of_welchs_test():
    ours, others = [42.0, 43.1, 41.7, 42.4], [38.0, 45.0, 41.0]
    error, freedom = welch([Spread(ours), Spread(others)])
    interval = scipy.stats.ttest_ind(ours, others, equal_var=False).confidence_interval(0.95)
    low, high = (np.mean(ours) - np.mean(others) + sign * reach(error, freedom) for sign in (-1, 1))
    assert (low, high) == pytest.approx((interval.low, interval.high))
    # Two standard errors, or the degrees of freedom of equal variances, would give a narrower one.
    assert high - low > 2 * reach(error, len(ours) + len(others) - 2) > 4 * error
    assert welch([Spread([10.0] * 3)] * 2)[0] == 0


def write_noise(runs, numbers):
    """Writes runs of ResNet-18: rule and variance -> top-1 accuracies."""
    for cell in find(commands.ITEMS, "figure", "two_routes/S1").cells["lab"]:
        key = cell.labels["rule"], cell.labels["noise_variance"]
        for seed, top1 in enumerate(numbers.get(key, ())):
            write_run(runs, cell, seed, top1)


def test_noise_is_judged_by_what_it_costs_not_by_who_is_ahead(tmp_path):
    write_noise(tmp_path, {
        ("backprop", 0.0): (0.40, 0.41, 0.42), ("backprop", 1.0): (0.35, 0.36, 0.37),
        # Ahead of backpropagation with noise as without; it loses as much.
        ("symmetric", 0.0): (0.50, 0.51, 0.52), ("symmetric", 1.0): (0.45, 0.46, 0.47),
        # Behind it, but it loses nothing.
        ("activation", 0.0): (0.30, 0.31, 0.32), ("activation", 1.0): (0.30, 0.31, 0.32),
        # Nothing to compare with.
        ("kolen_pollack", 1.0): (0.30, 0.31, 0.32),
    })  # fmt: skip
    product = make("table", "two_routes/claims", "lab", runs=str(tmp_path))
    rows = [row for row in product.rows if row["noise_variance"] and row["verdict"] != "not yet run"]
    assert "| ResNet-50, variance 0.1 | missing | missing |  | - | not yet run |" in product.text
    assert [(row["rule"], row["verdict"]) for row in rows] == [
        ("symmetric", "undecided"), ("activation", "shows"),
    ]  # fmt: skip
    symmetric, activation = rows
    assert symmetric["difference"] == pytest.approx(0, abs=1e-9)
    assert (activation["rule_drop"], activation["other_drop"]) == pytest.approx((0, 5), abs=1e-9)
    assert activation["difference"] == pytest.approx(5)
    assert activation["standard_error"] == pytest.approx(math.sqrt(4 * np.var([1, 2, 3], ddof=1) / 3))


def test_weight_mirror_with_adam_and_kolen_pollack_are_judged_too(tmp_path):
    high, low = (0.50, 0.51, 0.52), (0.40, 0.41, 0.42)
    rows, _ = claim_rows(
        tmp_path,
        {
            ("resnet18", "information"): high,
            ("resnet18", "weight_mirror_adam"): low,
            ("resnet18", "weight_mirror_adam_ops"): low,
            ("resnet18", "backprop"): high,
            ("resnet18", "kolen_pollack"): high,
            ("resnet50v2", "backprop"): high,
            ("resnet50v2", "kolen_pollack"): low,
        },
    )
    assert {key: row["verdict"] for key, row in rows.items() if row["verdict"] != "not yet run"} == {
        ("resnet18", "information", "weight_mirror_adam"): "shows",
        ("resnet18", "information", "weight_mirror_adam_ops"): "shows",
        ("resnet18", "kolen_pollack", "backprop"): "not told apart",
        ("resnet50v2", "backprop", "kolen_pollack"): "shows",
    }


def test_information_alignment_is_compared_with_every_other_local_rule_of_figure_3():
    local = set(experiments.TRANSFER) - {"information", "symmetric", "activation", "backprop"}
    assert {claim.other for claim in claims.CLAIMS if claim.rule == "information"} == local


def test_claims_without_runs_are_not_yet_run(tmp_path):
    rows, text = claim_rows(tmp_path, {("resnet18", "symmetric"): (0.4, 0.4, 0.4)})
    assert {row["verdict"] for row in rows.values()} == {"not yet run"}
    assert {row["claim"] for row in make("table", "two_routes/claims", "lab", runs=str(tmp_path)).rows} == {
        claim.text for claim in claims.CLAIMS
    }
    assert "| ResNet-18 | 40.00 ± 0.00 (3 of 5 seeds) | missing |  | -0.22 | not yet run |" in text


def test_a_claim_says_which_runs_diverged_and_count_as_chance(tmp_path):
    for seed in range(3):
        write_run(tmp_path, experiments.lab_cell("resnet50", "information"), seed, 0.3 + seed / 100)
        state = "finished" if seed else "diverged"
        write_run(tmp_path, experiments.lab_cell("resnet50", "weight_mirror"), seed, 0.1 + seed / 100, state=state)
    rows, _ = claim_rows(tmp_path, {})
    row = rows["resnet50", "information", "weight_mirror"]
    assert (row["rule_top1"], row["other_top1"]) == ("31.00 ± 1.00", "11.00 ± 1.00 (1 of 3 diverged)")
    assert row["difference"] == pytest.approx(20)


# Noise.


@pytest.mark.parametrize("profile", ["paper", "lab"])
def test_noise_of_one_variance_perturbs_the_weights_alike_in_every_rule(profile):
    cells = find(commands.ITEMS, "figure", "two_routes/S1").cells[profile]
    for cell in cells:
        config = configuration.load(f"{CONFIGS}/{cell.config}", cell.overrides)
        plan, variance = config.optimization, cell.labels["noise_variance"]
        rate = {"paper": 0.1, "lab": 0.05}[profile]
        noisy = [each for each in (plan.forward, plan.backward) if each is not None and each.noise is not None]
        if not variance:
            assert noisy == []
            continue
        [optimizer] = noisy
        made = optimizer.make(50, Clock(100, 10), seed=0)
        assert optimizer.learning_rate**2 * made.variance == pytest.approx(rate**2 * variance)
        rule = cell.labels["rule"]
        assert (optimizer is plan.backward) == (rule in ("symmetric", "activation"))
        assert (optimizer.noise.only == "backward_kernel") == (rule == "kolen_pollack")


def test_the_shift_of_the_papers_curves_is_ten_thousand():
    cell = experiments.noisy(experiments.paper_cell("resnet18", "symmetric"), 1e-3, experiments.NOISE_RATES["paper"])
    optimizer = configuration.load(f"{CONFIGS}/{cell.config}", cell.overrides).optimization.backward
    assert optimizer.make(256, Clock(5004, 90), seed=0).variance == pytest.approx(1e-3 * 1e4)


def test_runs_with_noise_at_the_papers_size_drop_at_30_and_60_and_have_commands(tmp_path):
    item = find(commands.ITEMS, "figure", "two_routes/S1")
    lines = list(map(shlex.split, commands.training_commands(source("figure", "two_routes/S1", runs=str(tmp_path)))))
    assert len(lines) == len(item.cells["paper"]) == 16
    for words, cell in zip(lines, item.cells["paper"], strict=True):
        assert words[-2:] == ["--run-dir", f"{tmp_path}/{cell.name}/seed0"]
        config = configuration.load(words[2], [b for a, b in itertools.pairwise(words) if a == "--set"])
        rates = [each for each in (config.optimization.forward, config.optimization.backward) if each is not None]
        assert {tuple(each.schedule.drop_epochs) for each in rates} == {(30, 60)}
        assert (config.epochs, config.batch_size, config.seed) == (90, 256, 0)
    # Those of Table 4 drop a third time, and are others.
    still = [cell.name for cell in item.cells["paper"] if not cell.labels["noise_variance"]]
    assert "resnet18/symmetric_noise_0" in still
    assert not {cell.name for cell in find(commands.ITEMS, "table", "two_routes/4").cells["paper"]} & set(still)
    # A run that is there is not asked for.
    write_run(tmp_path, item.cells["paper"][0], 0, 0.5)
    assert len(commands.training_commands(source("figure", "two_routes/S1", runs=str(tmp_path)))) == 15


@pytest.mark.parametrize("name", ["two_routes/2", "two_routes/S3"])
def test_runs_of_the_papers_size_keep_the_kernels_that_figures_show(name):
    cells = find(commands.ITEMS, "figure", name).cells["paper"]
    kept = [set(configuration.load(f"{CONFIGS}/{cell.config}").logging.kernels) for cell in cells]
    assert all({*figures.SCATTERED, figures.SYMMETRY_LAYER} <= layers for layers in kept)


# The plan.


def all_cells(profile):
    return [cell for item in two_routes.ITEMS for cell in item.cells.get(profile, ())]


@pytest.mark.parametrize("profile", ["paper", "lab"])
def test_every_run_of_the_plan_has_its_configuration(profile):
    cells = {(cell.name, cell.overrides): cell for cell in all_cells(profile)}
    for cell in cells.values():
        config = configuration.load(f"{CONFIGS}/{cell.config}", cell.overrides)
        model = cell.labels["model"]
        assert (config.model.depth, config.model.version) == _network(model), cell.name
    names = [name for name, _ in cells]
    assert len(set(names)) == len(names)  # Two experiments never share a directory.


def _network(model):
    depth, _, version = model.removeprefix("resnet").partition("v")
    return int(depth), int(version or 1)


def test_the_lab_keeps_the_rules_of_the_paper():
    for rule in ("symmetric", "activation", "information", "weight_mirror_adam", "weight_mirror_adam_ops"):
        paper, lab = (
            configuration.load(f"{CONFIGS}/{folder}/{rule}.yaml")
            for folder in ("two_routes/resnet18", "lab/two_routes")
        )
        assert paper.alignment == lab.alignment, rule


def test_what_is_called_better_or_equal_has_five_seeds_or_three_of_the_costly_runs():
    trained: dict[str, set[int]] = {}
    for cell in all_cells("lab"):  # Figures that show one run share it with the tables.
        trained.setdefault(cell.name, set()).update(cell.seeds)
    claimed = {rule for claim in claims.CLAIMS for rule in (claim.rule, claim.other)}
    assert {"weight_mirror_adam", "kolen_pollack"} <= claimed
    for name, seeds in trained.items():
        model, rule = name.split("/")
        if rule in claimed:
            costly = model != "resnet18" and rule in experiments.COSTLY
            assert seeds == set(range(3 if costly else 5)), name
    for name in ("table two_routes/4", "figure two_routes/5", "figure two_routes/5b", "figure two_routes/S1"):
        assert all(len(cell.seeds) == 5 for cell in find(commands.ITEMS, *name.split()).cells["lab"])


# Names.


@pytest.mark.parametrize(("kind", "name", "part"), [
    ("table", "two_routes/9", "two_routes/1, two_routes/2"),
    ("figure", "two_route/3", "did you mean 'two_routes/3'?"),
    ("figure", "fa_mechanism/1", "did you mean 'fa_mechanism/1b'?"),
    ("figure", "fa_mechanism/dir", "did you mean 'fa_mechanism/direct'?"),
    ("table", "", "there are: two_routes/1"),
])  # fmt: skip
def test_an_unknown_name_is_one_line_with_what_there_is(kind, name, part):
    with pytest.raises(InputError) as error:
        find(commands.ITEMS, kind, name)
    assert part in str(error.value)
    assert "\n" not in str(error.value)


def test_what_needs_no_training_has_no_lab_profile():
    with pytest.raises(InputError, match=r"table two_routes/\w+: has no lab profile; leave out --lab$"):
        source("table", "two_routes/5", "lab")
    with pytest.raises(InputError, match="S2: has no lab profile; leave out --lab, and give --runs SEARCH_DIRECTORY"):
        source("figure", "two_routes/S2", "lab")


def test_the_listing_says_the_lab_time_of_every_item(monkeypatch, tmp_path):
    """From the seconds that come with the package, unless the user has measured others."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shipped, "results", lambda: tmp_path / "package")
    assert "36 runs, time not known yet" in commands.listing("table", 2)
    # 36 runs of 60 or 30 s, two at once.
    for place, seconds, minutes in (("package", 60, 18), ("results", 30, 9)):
        (tmp_path / place / "two_routes").mkdir(parents=True)
        (tmp_path / place / "two_routes" / SECONDS).write_text(f"run,seconds\nresnet18/backprop/seed0,{seconds}\n")
        line = f"| two_routes/3 | local rules with ResNet-18 | --lab: 36 runs, {minutes} min (estimate) |"
        assert line in commands.listing("table", 2)
    assert "| two_routes/5 | metaparameters found by the searches | no runs |" in commands.listing("table", 2)


@pytest.mark.parametrize(("recordings", "said"), [(None, "needs --recordings FILE"), ("none.npz", "no such file")])
def test_figure_6_asks_for_its_recordings_before_it_trains(tmp_path, recordings, said):
    folders = commands.Folders(str(tmp_path / "runs"), str(tmp_path / "results"), CONFIGS)
    item = find(commands.ITEMS, "figure", "two_routes/6")
    needed = folders.source(item, "lab", recordings=recordings)
    with pytest.raises(InputError, match=said):
        commands.make(item, needed, Execution(InProcess(), Screen(print, print)))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("shape", "kind", "said"),
    [
        ((12, 16, 3), np.float32, "of float32 must be of 16 x 16 pixels .* found 12 x 16 pixels"),
        ((20, 20, 1), np.uint8, "of uint8 must be of any size and 3 channels .* 20 x 20 pixels and 1 channels"),
    ],
)
def test_figure_6_checks_that_the_images_fit_the_networks_before_it_trains(tmp_path, shape, kind, said):
    recorded = {"responses": np.ones((40, 2)), "categories": np.arange(40) % 2, "areas": ["V4", "IT"]}
    np.savez(tmp_path / "r.npz", **recorded, images=np.zeros((40, *shape), kind))
    folders = commands.Folders(str(tmp_path / "runs"), str(tmp_path / "results"), CONFIGS)
    item = find(commands.ITEMS, "figure", "two_routes/6")
    source = folders.source(item, "lab", recordings=str(tmp_path / "r.npz"))
    with pytest.raises(DataError, match=f"r.npz: `images` {said}"):
        commands.make(item, source, Execution(InProcess(), Screen(print, print)))
    assert not (tmp_path / "runs").exists()


WRONG_IMAGES = {
    "no images": (40, None, None, "r.npz: has no array `images`"),
    "fewer images": (40, 39, None, "r.npz: must have one image for each of the 40 rows of `responses`"),
    "more images, in another file": (40, None, 41, "i.npz: must have one image for each of the 40 rows .* found 41"),
    "fewer images than components": (20, 20, None, "r.npz: must have more training images than the 25 components"),
}
"""Case -> rows, images in the file of the recordings and in a separate file, message."""


@pytest.mark.parametrize("case", WRONG_IMAGES)
def test_figure_6_checks_its_images_before_it_trains(tmp_path, case):
    rows, inside, beside, said = WRONG_IMAGES[case]
    pixels = {name: np.zeros((count or 0, 4, 4, 3), np.uint8) for name, count in (("in", inside), ("out", beside))}
    recorded = {"responses": np.ones((rows, 2)), "categories": np.arange(rows) % 2, "areas": ["V4", "IT"]}
    np.savez(tmp_path / "r.npz", **recorded, **({} if inside is None else {"images": pixels["in"]}))
    if beside is not None:
        np.savez(tmp_path / "i.npz", images=pixels["out"])
    folders = commands.Folders(str(tmp_path / "runs"), str(tmp_path / "results"), CONFIGS)
    item = find(commands.ITEMS, "figure", "two_routes/6")
    files = {"recordings": str(tmp_path / "r.npz"), "images": None if beside is None else str(tmp_path / "i.npz")}
    with pytest.raises(DataError, match=said):
        commands.make(item, folders.source(item, "lab", **files), Execution(InProcess(), Screen(print, print)))
    assert not (tmp_path / "runs").exists()


def test_figure_s3_distinguishes_diverged_from_missing_runs(lab):
    place = Path(lab["runs"]) / "resnet18"
    shutil.rmtree(place / "weight_mirror" / "seed0" / "kernels")
    shutil.rmtree(place / "information")
    text = make("figure", "two_routes/S3", "lab", **lab).text
    assert " Diverged: weight_mirror." in text
    assert " Not yet run: symmetric, activation, information." in text


def test_figure_6_tells_of_each_layer_and_names_runs_that_diverged(lab, monkeypatch):
    told = []

    def fitted(runs, recordings, images, report):
        report("Random, stem: V4 0.1")
        row = {"network": "Random", "area": "V4", "layer": "stem", "units": 3, "best": 1}
        return [{**row, "correlation": 0.1, "sem": 0.01}]

    monkeypatch.setattr(fits, "fit_rows", fitted)
    item = find(commands.ITEMS, "figure", "two_routes/6")
    source = commands.Folders(configs=CONFIGS, **lab).source(item, "lab", recordings="there.npz", say=told.append)
    assert item.make(source).text.endswith("\n\nDiverged: weight mirror (WM), TPE.")
    assert told == ["Random, stem: V4 0.1"]


def test_the_columns_of_tables_3_and_4_are_fixed():
    assert ",".join(tables.RUN_COLUMNS) == "profile,model,rule,seed,top1,top5,diverged,seconds"


def test_amp_and_null_are_a_hebbian_update_with_normalisation_up_to_the_square_of_the_rate():
    rows = theory.oja_rows(steps=1000)
    ratios = [row["difference_over_rate_squared"] for row in rows]
    assert max(ratios[1:]) < 1.2 * min(ratios[1:])
    assert rows[-1]["difference"] < rows[0]["difference"] / 500
    for row in rows:
        assert row["norm_at_the_end"] == pytest.approx(1, abs=1e-6)
        assert row["cosine_to_first_component"] == pytest.approx(1, abs=1e-6)


def test_figure_5b_has_a_panel_for_each_deeper_network(tmp_path):
    item = find(commands.ITEMS, "figure", "two_routes/5b")
    networks = {profile: {cell.labels["model"] for cell in cells} for profile, cells in item.cells.items()}
    assert networks["paper"] == {"resnet50", "resnet50v2", "resnet101v2", "resnet152v2"}
    assert networks["lab"] == {"resnet50", "resnet50v2"}
    for cell in item.cells["lab"]:
        if cell.labels["model"] == "resnet50v2":
            for seed in cell.seeds:
                write_run(tmp_path, cell, seed, TOP1[seed] - 0.1 * cell.labels["noise_variance"])
    product = make("figure", "two_routes/5b", "lab", runs=str(tmp_path))
    assert [axis.get_title() for axis in product.figure.axes] == ["ResNet-50", "ResNet-50v2"]
    assert [len(axis.containers) for axis in product.figure.axes] == [0, 2]
    assert "| ResNet-50v2 | symmetric (SA) | 45.00 ± 3.24 | 44.00 ± 3.24 |" in product.text
    assert "| ResNet-50 | symmetric (SA) | missing | missing |" in product.text


def test_figure_2_shows_the_first_evaluation_after_five_epochs(tmp_path):
    [cell] = find(commands.ITEMS, "figure", "two_routes/2").cells["lab"]
    path = write_run(tmp_path, cell, 0, 0.4)
    lines = (path / "metrics.csv").read_text().splitlines()
    early, late = lines[1].replace("0,0,", "4,4,", 1), lines[1].replace("0,0,", "6,6,", 1)
    (path / "metrics.csv").write_text("\n".join([*lines[:2], early, late, lines[2]]) + "\n")
    for step in (4, 6):
        shutil.copy(path / "kernels" / "0.npz", path / "kernels" / f"{step}.npz")
    product = make("figure", "two_routes/2", "lab", runs=str(tmp_path))
    assert {row["step"] for row in product.rows if row["panel"] in "def"} == {6}
    assert "after 6 epochs (step 6), the first evaluation after 5 epochs, which the paper shows." in product.text
    assert "d to f: weight mirror (WM), TPE, ResNet-18, seed 0, epoch 6" in product.figure.get_supxlabel()
    assert product.figure.axes[5].get_title() == "(f) dense layer\n‖B‖ / ‖W‖ = 3.00"

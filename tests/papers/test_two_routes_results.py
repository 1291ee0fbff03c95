"""The committed results of the lab profile: complete, consistent, and in agreement with the page."""

import csv
import math
from pathlib import Path

import lab_rates
import numpy as np
import pytest
import scipy.stats
from helpers import table_in
from lab import ROOT

from neural_alignment import config as configuration
from neural_alignment.papers import claims as judging
from neural_alignment.papers import pages
from neural_alignment.papers.registry import Source
from neural_alignment.papers.two_routes import claims, further_claims, tables
from neural_alignment.papers.two_routes import runs as experiments
from neural_alignment.reporting import csv_text

RESULTS = ROOT / "results" / "two_routes"
PAGE = (ROOT / "docs" / "two_routes.md").read_text()

RUNS = ("table_3", "table_4", "figure_3", "figure_S5")
"""Files of a line per run, without noise."""

NOISY = {"figure_5": "resnet18", "figure_S1": "resnet18", "figure_5b": None}
"""Files of a line per run at several noises -> the network of those that do not name it."""


def rows_of(name: str) -> list[dict[str, str]]:
    """Returns the rows of a file."""
    with open(RESULTS / f"{name}.csv") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def runs():
    """Returns network and noise (none without that axis) -> rule -> seed -> top-1 in percent, of all files."""
    found = {}
    for name in (*RUNS, *NOISY):
        for row in rows_of(name):
            model = row.get("model") or NOISY[name]
            noise = float(row["noise_variance"]) if "noise_variance" in row else None
            seeds = found.setdefault((model, noise), {}).setdefault(row["rule"], {})
            top1 = 100 * float(row["top1"])
            # Files that share a run say the same of it.
            assert seeds.setdefault(row["seed"], top1) == top1, (name, row)
    return found


def mean_and_error(seeds):
    """Returns mean, standard error and degrees of freedom."""
    values = np.array([*seeds.values()])
    return values.mean(), values.std(ddof=1) / math.sqrt(len(values)), len(values) - 1


def test_the_pages_state_the_steps_of_j_with_and_without_a_delay():
    """`epochs` contains the delay."""
    steps = {}
    for path in (ROOT / "configs" / "lab" / "two_routes").glob("*.yaml"):
        config = configuration.load(path)
        steps[path.stem] = config.epochs_of_j * 5000 / config.batch_size
    assert {steps.pop("weight_mirror"), steps.pop("weight_mirror_akrout")} == {900}
    assert steps.pop("information") == 950
    assert set(steps.values()) == {1000}
    said = "1,000 steps of J; 950 with IA and 900 with WM"
    assert said in (RESULTS / "README.md").read_text()
    assert "These are 1,000 steps of J; the paper has 450,000." in PAGE
    assert "J is trained for 950 steps with IA and 900 with WM" in " ".join(PAGE.split())


def test_the_columns_are_those_that_the_readme_names():
    for name in RUNS:
        assert tuple(rows_of(name)[0]) == tables.RUN_COLUMNS
    for name, model in NOISY.items():
        columns = ("rule", "noise_variance", "seed", "top1")
        assert tuple(rows_of(name)[0]) == (columns if model else ("model", *columns))
    assert tuple(rows_of("table_claims")[0]) == claims.COLUMNS


def test_every_claim_has_its_seeds(runs):
    claimed = {rule for claim in claims.CLAIMS for rule in (claim.rule, claim.other)}
    for (model, noise), rules in runs.items():
        for rule, seeds in rules.items():
            if rule in claimed:
                assert set(seeds) == {str(seed) for seed in experiments.lab_seeds(model, rule)}, (model, noise, rule)
    for model, rules in (
        ("resnet18", experiments.TABLE_3),
        *((m, experiments.TRANSFER) for m in experiments.LAB_MODELS),
    ):
        assert set(rules) <= set(runs[model, None]), model


def test_every_claim_is_judged_on_every_network_of_the_lab():
    found = {}
    for row in rows_of("table_claims"):
        found.setdefault(row["claim"], set()).add((row["model"], float(row["noise_variance"])))
    assert set(found) == {claim.text for claim in claims.CLAIMS}
    for claim in claims.CLAIMS:
        models = {model for model, _ in found[claim.text]}
        if claim.noisy:
            assert {("resnet18", noise) for noise in experiments.NOISE} <= found[claim.text]
        elif claim.other != "feedback":
            assert models == set(experiments.LAB_MODELS) & set(claim.models or experiments.LAB_MODELS)


def test_the_table_of_claims_follows_from_the_other_files(runs):
    texts = {claim.text: claim for claim in claims.CLAIMS}
    for row in rows_of("table_claims"):
        if row["verdict"] in ("not yet run", "too few seeds"):
            continue
        claim, noise, model = texts[row["claim"]], float(row["noise_variance"]), row["model"]
        pair = [runs[model, noise or None][row[which]] for which in ("rule", "other")]
        parts = [mean_and_error(seeds) for seeds in pair]
        ours, others = (mean for mean, *_ in parts)
        if noise:
            still = [mean_and_error(runs[model, 0.0][row[which]]) for which in ("rule", "other")]
            ours, others = still[1][0] - others, still[0][0] - ours  # Drop of the other rule, drop of the rule.
            parts += still
        difference = ours - others
        error = math.sqrt(sum(part**2 for _, part, _ in parts))
        below = sum(part**4 / freedom for _, part, freedom in parts)
        freedom = error**4 / below if below else 1.0
        assert float(row["difference"]) == pytest.approx(difference, abs=1e-3), row
        assert float(row["standard_error"]) == pytest.approx(error, abs=1e-3), row
        low, high = difference + error * scipy.stats.t.ppf([0.025, 0.975], freedom)
        if claim.better:
            expected = "shows" if low > claim.margin else "contradicted" if high < claim.margin else "undecided"
        elif -claim.margin <= low and high <= claim.margin:
            expected = "matches"
        else:
            expected = "not told apart" if low <= 0 <= high else "is ahead" if low > 0 else "is behind"
        assert row["verdict"] == expected, row


@pytest.mark.parametrize("name", ["claims", "angles", "further_claims", "examples"])
def test_the_page_has_the_tables_of_the_files(name):
    """`neural-alignment table two_routes/NAME` writes both."""
    text = (RESULTS / f"table_{name}.md").read_text()
    assert table_in(ROOT / "docs" / "two_routes.md", f"two_routes/{name}") == pages.part(text, ())


def test_the_readme_says_of_figure_3_what_the_claims_show():
    """`tests/lab_rates.py` writes the lines; the remark on missing runs is removed with that of the results."""
    lines = lab_rates.figure_3_lines()
    assert table_in(ROOT / "README.md", "figure 3") == lines
    found = {}
    for line in lines[2:]:
        variant, _, parts = line.removeprefix("- ").rstrip(".").partition(": ")
        for verdict, _, networks in (part.partition(" on ") for part in parts.split("; ")):
            found |= {(variant, network): verdict for network in networks.split(", ")}
    judged = [row for row in rows_of("table_claims") if row["rule"] == "information"]
    assert len(found) == len(judged) == 3 * len(experiments.LAB_MODELS)
    for row in judged:
        key = lab_rates.VARIANTS[row["other"]], experiments.MODELS[row["model"]]
        assert (found[key] == "yes") == (row["verdict"] == "shows")
    readme, results = ((path / "README.md").read_text() for path in (ROOT, RESULTS))
    assert ("not yet run on the two deeper networks" in readme) == ("of Figure 3 are not yet run" in results)


def test_the_figures_of_one_run_have_their_layers_and_rules():
    assert {row["panel"] for row in rows_of("figure_2")} == set("abcdef")
    for name in ("figure_S3", "figure_S4"):
        assert {row["rule"] for row in rows_of(name)} == {"symmetric", "activation", "weight_mirror", "information"}
    for name in ("figure_2", "figure_S3", "figure_S4", "figure_3", "figure_5", "figure_5b", "figure_S1", "figure_S5"):
        assert Path(RESULTS / f"{name}.png").read_bytes().startswith(b"\x89PNG"), name


def test_the_comparison_of_searches_follows_from_their_trials():
    trials, best = rows_of("search_information"), {}
    for row in trials:
        key = row["algorithm"], row["seed"]
        best[key] = max(best.get(key, 0.0), 100 * float(row["top1"] or 0))
    assert len(trials) == 240
    assert len(best) == 6
    difference = np.array([best["tpe", seed] - best["random", seed] for seed in "012"])
    error = difference.std(ddof=1) / math.sqrt(3)
    [row] = [row for row in rows_of("table_further_claims") if row["figure"] == "B.1"]
    assert float(row["mean"]) == pytest.approx(difference.mean())
    assert float(row["standard_error"]) == pytest.approx(error)
    assert (row["verdict"] == "yes") == (difference.mean() > error * scipy.stats.t.ppf(0.975, 2))


def test_the_further_claims_follow_from_the_files():
    source = Source("lab", "", str(ROOT / "configs"), str(RESULTS))
    judged = csv_text(judging.COLUMNS, further_claims.table(source).rows)
    assert judged == (RESULTS / "table_further_claims.csv").read_text()

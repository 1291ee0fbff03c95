"""The claims of Two Routes that do not compare two rules: each holds in files that show it, and in no others."""

import pytest
from lab import ROOT

from neural_alignment.papers import commands
from neural_alignment.papers.claims import ResultFiles
from neural_alignment.papers.registry import Source, find
from neural_alignment.papers.two_routes.further_claims import CLAIMS
from neural_alignment.reporting import csv_text

SEEDS = range(5)

ANGLES = {"symmetric": (3, 1), "activation": (8, 4), "weight_mirror": (30, 20), "information": (12, 2)}
"""Rule -> mean angle of W and B^T after 2 and 10 epochs."""
NORMS = {"symmetric": (0.9, 1.1), "activation": (0.9, 1.1), "weight_mirror": (0.1, 20), "information": (0.7, 1)}
"""Rule -> smallest and largest norm of B over that of W."""
LARGEST = {"information": 4}
"""Rule -> largest angle of a layer; the others have 40 degrees."""
LAYERS = {"stem": 12, "dense": 0.2}
"""Layer -> norm of B over that of W, in the run with weight mirror."""
TRANSFER = {
    "weight_mirror": (0.4, 0.1, 0.1),
    "weight_mirror_adam": (0.4, 0.25, 0.25),
    "weight_mirror_adam_ops": (0.4, 0.3, 0.3),
    "information": (0.4, 0.39, 0.41),
}
"""Rule -> top-1 on each network."""
SEARCHES = {"tpe": 0.45, "random": 0.4}
"""Algorithm -> best top-1."""
GROWTH = {"a": 0.5, "b": 0.0, "c": -0.5}
"""Panel -> rate of growth of equal weights."""


def write(folder, angles=(), norms=(), largest=(), layers=(), transfer=(), searches=(), growth=(), seeds=SEEDS):
    """Writes result files that show all claims, with other values where some are given; returns their folder."""

    def save(name, rows):
        (folder / f"{name}.csv").write_text(csv_text(list(rows[0]), rows))

    norms, largest = {**NORMS, **dict(norms)}, {**LARGEST, **dict(largest)}
    save("table_angles", [
        {"model": model, "rule": rule, "seed": seed, "epoch": epoch, "weight_angle": angle + seed / 100,
         "weight_angle_max": largest.get(rule, 40) + seed / 100,
         "norm_ratio_min": norms[rule][0], "norm_ratio_max": norms[rule][1] + seed / 100}
        for rule, pair in {**ANGLES, **dict(angles)}.items()
        for seed in seeds
        for model, more in (("resnet18", 0), ("resnet50", 70))  # The claims are about ResNet-18.
        for epoch, angle in ((0, 90), (2, pair[0] + more), (10, pair[1] + more))
    ])  # fmt: skip
    save("figure_S4", [
        {"rule": rule, "layer": layer, "epoch": epoch, "norm_ratio": ratio if epoch and rule == "weight_mirror" else 1}
        for rule in ANGLES
        for epoch in (0, 10)
        for layer, ratio in {**LAYERS, **dict(layers)}.items()
    ])  # fmt: skip
    save("figure_3", [
        {"model": model, "rule": rule, "seed": seed, "top1": top1 + seed / 1000, "diverged": 0}
        for rule, each in {**TRANSFER, **dict(transfer)}.items()
        for model, top1 in zip(("resnet18", "resnet50", "resnet50v2"), each, strict=True)
        for seed in seeds
    ])  # fmt: skip
    save("search_information", [
        {"algorithm": name, "seed": seed, "trial": trial, "best_so_far": best - (2 - trial) / 10 + seed / 1000}
        for name, best in {**SEARCHES, **dict(searches)}.items()
        for seed in seeds
        for trial in (1, 2)
    ])  # fmt: skip
    save("figure_2", [
        {"panel": panel, "forward": w, "backward": b, "forward_flow": rate * b, "backward_flow": rate * w}
        for panel, rate in {**GROWTH, **dict(growth)}.items()
        for w in (-1.0, -0.5, 0.0, 0.5, 1.0)
        for b in (-1.0, -0.5, 0.0, 0.5, 1.0)
    ])  # fmt: skip
    return folder


def verdicts(folder):
    """Returns claim -> verdict."""
    files = ResultFiles(str(folder))
    return {claim.text: claim.judged(files)[0]["verdict"] for claim in CLAIMS}


def test_all_claims_hold_in_files_that_show_them(tmp_path):
    assert set(verdicts(write(tmp_path)).values()) == {"yes"}


CONTRADICTIONS = {
    "with λ < x² the weights of WM diverge": {"growth": {"a": -0.5}},
    "with λ = x² they are stable": {"growth": {"b": 0.5}},
    "with λ > x² they collapse": {"growth": {"c": 0.0}},
    "under WM the B of the first layer grows beyond W": {"layers": {"stem": 0.9}},
    "under WM the B of the last layer collapses": {"layers": {"dense": 0.6}},
    "under IA the norms are more stable than under WM": {"norms": {"information": (0.01, 20)}},
    "SA aligns within 2 epochs": {"angles": {"symmetric": (12, 1), "activation": (20, 4)}},
    "AA aligns less closely after 2 epochs": {"angles": {"activation": (3, 4)}},
    "AA aligns less closely at the end": {"angles": {"activation": (8, 1)}},
    "IA aligns all layers within 5 degrees": {"largest": {"information": 6}},
    "WM's metaparameters fail on other networks": {
        "transfer": {"weight_mirror": (0.4, 0.37, 0.37), "weight_mirror_adam": (0.4, 0.38, 0.38),
                     "weight_mirror_adam_ops": (0.4, 0.38, 0.38)}},
    "an adaptive optimizer makes it more robust": {"transfer": {"weight_mirror_adam": (0.4, 0.05, 0.1)}},
    "the operations make it more robust": {"transfer": {"weight_mirror_adam_ops": (0.4, 0.05, 0.1)}},
    "IA's metaparameters transfer to other networks": {"transfer": {"information": (0.4, 0.3, 0.1)}},
    "TPE finds better settings than random search": {"searches": {"tpe": 0.4}},
}  # fmt: skip
"""Claim -> values that contradict it and no other claim."""


@pytest.mark.parametrize("text", CONTRADICTIONS)
def test_a_claim_fails_in_files_that_contradict_it_and_the_others_hold(text, tmp_path):
    found = verdicts(write(tmp_path, **CONTRADICTIONS[text]))
    assert found.pop(text) == "no"
    assert set(found.values()) == {"yes"}


def test_every_claim_has_its_contradiction():
    assert [claim.text for claim in CLAIMS] == list(CONTRADICTIONS)


def test_a_claim_that_holds_on_one_network_holds_in_part(tmp_path):
    found = verdicts(write(tmp_path, transfer={"information": (0.4, 0.39, 0.1)}))
    assert found["IA's metaparameters transfer to other networks"] == "in part"


def test_two_seeds_are_too_few_and_no_seed_is_not_yet_run(tmp_path):
    found = verdicts(write(tmp_path, seeds=range(2)))
    assert {found[text] for text in list(CONTRADICTIONS)[5:]} == {"too few seeds"}
    (tmp_path / "table_angles.csv").write_text("model,rule,seed,epoch,weight_angle,weight_angle_max\n")
    assert verdicts(tmp_path)["SA aligns within 2 epochs"] == "not yet run"


def make(folder):
    item = find(commands.ITEMS, "table", "two_routes/further_claims")
    return item.make(Source("lab", "", str(ROOT / "configs"), str(folder)))


def test_the_table_has_a_line_per_claim_and_a_row_per_network(tmp_path):
    product = make(write(tmp_path))
    assert len(product.text.splitlines()) == 2 + len(CLAIMS)
    assert [row["case"] for row in product.rows if row["claim"].startswith("IA's m")] == [
        "ResNet-50",
        "ResNet-50v2",
    ]
    assert "ResNet-50: 30.0 ± 0.1; ResNet-50v2: 30.0 ± 0.1" in product.text  # Weight mirror: 40 to 10 %.

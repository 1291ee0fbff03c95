"""Writes results into configurations and pages: `python tests/lab_rates.py rates`, `lab` or `cifar10`.

`rates` writes the values in `results/two_routes/rates.csv` into the configurations of the lab and of CIFAR-10 at full
size, the results of the searches into their headers, and their time into the page. `lab` and `cifar10` write the time
and the accuracy of their runs into the headers of these configurations.
"""

import csv
import json
import re
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from neural_alignment.papers import pages
from neural_alignment.papers.claims import NOT_YET, TOO_FEW, UNDECIDED
from neural_alignment.papers.two_routes.runs import MODELS
from neural_alignment.reporting import Spread, duration

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "results"
RATES = RESULTS / "two_routes" / "rates.csv"
PAGE = ROOT / "docs" / "two_routes.md"
LAB = ROOT / "configs" / "lab" / "two_routes"
FULL = ROOT / "configs" / "cifar10" / "full"
SEARCHES = ROOT / "configs" / "search" / "lab" / "two_routes"

LAB_STEPS, FULL_STEPS = 1_000, 5_850
"""Steps of J of a run: of the lab, 10 epochs of 100 batches; of CIFAR-10 at full size, 15 epochs of 390 batches."""

PLACES = {
    "optimization.forward.learning_rate": [r"(?m)^(  forward: .*?learning_rate: )[^,}\n]+"],
    "optimization.backward.learning_rate": [r"(?m)^(  backward: .*?learning_rate: )[^,}\n]+"],
    "weight_decay": [r"(?m)^(weight_decay: )\S+", r"(?m)^(alignment: \{rule: kolen_pollack, decay: )[^}]+"],
}
"""Key path -> patterns of the places of its value in a file; Kolen-Pollack's decay of B is that of W."""


def chosen() -> dict[str, dict[str, float]]:
    """Returns rule -> key path -> chosen value; empty before the searches have run."""
    found: dict[str, dict[str, float]] = {}
    for row in rows_of(RATES):
        found.setdefault(row["rule"], {})[row["setting"]] = float(row["value"])
    return found


def rows_of(path: Path) -> list[dict[str, str]]:
    """Returns the rows of a file; none if it does not exist."""
    return list(csv.DictReader(path.read_text().splitlines())) if path.exists() else []


def written(value: float) -> str:
    """Returns a number that YAML reads as a number, such as 1.2e-05."""
    text = f"{value:g}"
    return text if "." in text or "e" not in text else text.replace("e", ".0e")


def with_rates(text: str, settings: Mapping[str, float]) -> str:
    """Returns the text of a configuration with other values of some settings.

    Raises:
        LookupError: if the text does not contain a setting.
    """
    for name, value in settings.items():
        count = 0
        for pattern in PLACES[name]:
            text, here = re.subn(pattern, rf"\g<1>{written(value)}", text)
            count += here
        if not count:
            raise LookupError(f"{name} is not in the file")
    return text


def at_full_size(settings: Mapping[str, float]) -> dict[str, float]:
    """Returns the settings for CIFAR-10 at full size: rates as chosen, and the weight decay of the same total effect.

    Over a run, the decay shrinks weights by rate x decay x steps. There are more steps, so the decay is smaller.
    """
    return {**settings, "weight_decay": float(f"{settings['weight_decay'] * LAB_STEPS / FULL_STEPS:.3g}")}


def results() -> dict[Path, list[tuple[int, float, float]]]:
    """Returns the configuration of each rule -> seed, top-1 and seconds of its runs; of the lab those of ResNet-18."""
    found: dict[Path, dict[int, tuple[int, float, float]]] = {}

    def add(path: Path, row: Mapping[str, str], column: str) -> None:
        run = int(row["seed"]), float(row[column]), float(row["seconds"] or "nan")
        found.setdefault(path, {})[run[0]] = run

    for name in ("table_3", "table_4", "figure_S5"):
        for row in rows_of(RESULTS / "two_routes" / f"{name}.csv"):
            if row["model"] == "resnet18":
                add(LAB / f"{row['rule']}.yaml", row, "top1")
    for row in rows_of(RESULTS / "cifar10" / "full.csv"):
        add(FULL / f"{row['rule']}.yaml", row, "test_top1")
    return {path: [runs[seed] for seed in sorted(runs)] for path, runs in found.items()}


def with_result(text: str, runs: Sequence[tuple[int, float, float]]) -> str:
    """Returns the text of a configuration whose header has the time and the accuracy of its runs."""
    seeds = [seed for seed, _, _ in runs]
    named = f"seeds {seeds[0]} to {seeds[-1]}" if len(seeds) > 1 else f"seed {seeds[0]}"
    top1 = Spread([100 * top1 for _, top1, _ in runs])
    result = (
        f"one core, about {duration(statistics.median(seconds for _, _, seconds in runs))}; {top1} % top-1, {named}"
    )
    return re.sub(r"(?m)^(# neural-alignment train \S+)   \(.*\)$", rf"\1   ({result})", text, count=1)


def search_results() -> dict[Path, Mapping[str, str]]:
    """Returns the file of each finished search -> a row of `RATES` of its rule."""
    return {SEARCHES / f"{row['rule']}.yaml": row for row in rows_of(RATES)}


def with_search_result(text: str, row: Mapping[str, str]) -> str:
    """Returns the text of a search whose header has the number of trials, their time and the best accuracy."""
    time = duration(float(row["seconds"]))
    result = f"{row['trials']} trials, {time} of one core; best {100 * float(row['score']):.2f} % top-1"
    return re.sub(r"(?m)^(# neural-alignment search \S+ --engine \S+)   \(.*\)$", rf"\1   ({result})", text, count=1)


def time_line() -> list[str]:
    """Returns the sentence on the time of all runs in `docs/two_routes.md`."""
    found = [json.loads(path.read_text()) for path in (RESULTS / "two_routes" / "runs").rglob("status.json")]
    seconds = [status["seconds"] for status in found if "seconds" in status]  # A run that diverged has none.
    searches = {row["rule"]: float(row["seconds"]) for row in rows_of(RATES)}
    runs = f"The {len(seconds)} runs that did not diverge took {sum(seconds) / 120:.0f} minutes, two at a time"
    also = f"the searches for their rates {sum(searches.values()) / 120:.0f} minutes"
    return [f"{runs} (`seconds` of their `status.json`), {also}. Other work shared the cores during most of them."]


def write_rates() -> None:
    """Replaces the rates in the configurations of the lab and of CIFAR-10 at full size.

    Also replaces the headers of the searches, and the times in the page.
    """
    pages.replace_table(PAGE, time_line(), "time")
    for path, row in search_results().items():
        path.write_text(with_search_result(path.read_text(), row))
    for rule, settings in chosen().items():
        for path, own in ((LAB / f"{rule}.yaml", settings), (FULL / f"{rule}.yaml", at_full_size(settings))):
            if path.exists():
                path.write_text(with_rates(path.read_text(), own))


def write_headers(folder: Path) -> None:
    """Replaces the time and the accuracy in the headers of the configurations in a folder."""
    for path, runs in results().items():
        if path.parent == folder:
            path.write_text(with_result(path.read_text(), runs))


VARIANTS = {
    "weight_mirror": "weight mirror",
    "weight_mirror_adam": "weight mirror with Adam",
    "weight_mirror_adam_ops": "weight mirror with Adam and the operations of Table 5",
}
"""Rule -> name of a variant of weight mirror in README."""

FINDINGS = {"shows": "yes on {}", "contradicted": "no on {}"}
FINDINGS |= {verdict: f"{verdict} on {{}}" for verdict in (UNDECIDED, TOO_FEW, NOT_YET)}
"""Verdict of a claim -> its text in README, with the networks."""


def figure_3_lines() -> list[str]:
    """Returns the lines of README on Figure 3: the verdicts of its claims on each variant of weight mirror."""
    rows = rows_of(RESULTS / "two_routes" / "table_claims.csv")
    lines = ["Is information alignment more accurate than weight mirror on these networks, as in the paper?", ""]
    for rule, name in VARIANTS.items():
        networks: dict[str, list[str]] = {}
        for row in rows:
            if (row["rule"], row["other"]) == ("information", rule):
                networks.setdefault(row["verdict"], []).append(MODELS[row["model"]])
        found = "; ".join(FINDINGS[verdict].format(", ".join(own)) for verdict, own in networks.items())
        lines.append(f"- {name}: {found}.")
    return lines


def write_lab() -> None:
    """Replaces the headers of the lab's configurations, the time of all runs in the page, and the lines of README."""
    pages.replace_table(PAGE, time_line(), "time")
    pages.replace_table(ROOT / "README.md", figure_3_lines(), "figure 3")
    write_headers(LAB)


if __name__ == "__main__":
    {"rates": write_rates, "lab": write_lab, "cifar10": lambda: write_headers(FULL)}[sys.argv[1]]()

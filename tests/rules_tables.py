"""Makes the tables of rules in README and `docs/results.md`: `python tests/rules_tables.py`."""

import csv
import statistics
from pathlib import Path

from neural_alignment.papers.pages import replace_table

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "results"
README, PAGE = ROOT / "README.md", ROOT / "docs" / "results.md"

CONVNET = ("mnist/rules", "mnist/random_feedback", "mnist/product_feedback")
"""The files with the runs of the convnet on MNIST."""

ANGLES = ("first_angle", "last_angle", "last_angle_max")

Runs = dict[str, list[dict[str, str]]]


def runs(*names: str) -> Runs:
    """Returns the rows of some files in `results`, one for each run, by the name of the configuration.

    A file that does not exist has no rows: its runs are not yet made.
    """
    found: Runs = {}
    for path in (RESULTS / f"{name}.csv" for name in names):
        if not path.exists():
            continue
        with open(path) as file:
            for row in csv.DictReader(file):
                found.setdefault(Path(row["config"]).stem, []).append(row)
    return found


def mnist() -> dict[str, Runs]:
    """Returns the runs on MNIST of each network by rule."""
    return {"convnet": runs(*CONVNET), "LSTM": runs("mnist/lstm")}


def cifar10() -> dict[str, Runs]:
    """Returns the runs on CIFAR-10 of each network by rule."""
    return {"vision transformer": runs("cifar10/vision_transformer")}


def column(rows: list[dict[str, str]], name: str, factor: float = 1.0) -> list[float]:
    """Returns the values of a column."""
    return [factor * float(row[name]) for row in rows]


def cell(values: list[float]) -> str:
    """Returns mean and standard deviation over the seeds."""
    return f"{statistics.fmean(values):.2f} ± {statistics.stdev(values):.2f}"


def top1(rows: list[dict[str, str]]) -> str:
    """Returns the cell of the accuracy in percent; empty without runs."""
    return cell(column(rows, "top1", 100)) if rows else ""


def title(rule: str) -> str:
    """Returns the name of a rule as the guide writes it."""
    return "backpropagation" if rule == "backprop" else rule


def full_table(networks: dict[str, Runs]) -> list[str]:
    """Returns a table of `docs/results.md`: the accuracy and the angles of every rule."""
    angle = "mean angle of W to B^T, start (degrees)"
    lines = [
        f"| network | rule | validation top-1 (%) | {angle} | end | largest at the end |",
        "|---|---|---|---|---|---|",
    ]
    for network, by_rule in networks.items():
        for rule, rows in by_rule.items():
            angles = [cell(column(rows, name)) if rows[0][name] else "" for name in ANGLES]
            lines.append("| " + " | ".join([network, title(rule), top1(rows), *angles]) + " |")
    return lines


def short_table() -> list[str]:
    """Returns the table of README: the accuracy of every rule, with a column for each network."""
    by_network = mnist()
    lines = [f"| rule | {', top-1 (%) | '.join(by_network)}, top-1 (%) |", "|---" * (1 + len(by_network)) + "|"]
    for rule in by_network["convnet"]:
        cells = [top1(by_rule.get(rule, [])) for by_rule in by_network.values()]
        lines.append("| " + " | ".join([title(rule), *cells]) + " |")
    return lines


def main() -> None:
    """Replaces the tables of both pages."""
    replace_table(README, short_table())
    replace_table(PAGE, full_table(mnist()), "MNIST")
    replace_table(PAGE, full_table(cifar10()), "CIFAR-10")


if __name__ == "__main__":
    main()

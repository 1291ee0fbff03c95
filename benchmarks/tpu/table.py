"""Makes the tables of docs/tpu.md from compiled.csv: `python -m benchmarks.tpu.table`."""

from __future__ import annotations

import collections
import functools
from collections.abc import Iterable, Mapping, Sequence

from benchmarks.common import ROOT, table
from benchmarks.tpu.cases import BF16, F32, SIGN, Case, matrix
from benchmarks.tpu.check import TABLE, Row, read
from neural_alignment.papers.pages import replace_table
from neural_alignment.training import costs, setup, tpu
from neural_alignment.training.tpu.chips import GIB
from neural_alignment.training.tpu.estimate import digits, hours

PAGE = ROOT / "docs" / "tpu.md"

PRICES = {"v3-8": 8.80, "v2-8": 4.80}
"""Dollars per hour on demand, as docs/tpu.md cites them."""

Key = tuple[str, ...]


class Table:
    """The results of compilations, with estimates.

    Args:
        rows: the lines of compiled.csv, by the keys of their cases.
    """

    def __init__(self, rows: Mapping[Key, Row]):
        self.rows = rows

    def bound(self, key: Key) -> tpu.Estimate | None:
        """Returns the lower bound of the time of a step, or None if it was not compiled."""
        row = self.rows.get(key)
        if row is None or row["compiles"] != "yes":
            return None
        compiled, chip = tpu.Compiled(flops=int(row["flops"]), bytes_accessed=int(row["bytes_accessed"])), row["chip"]
        return tpu.Estimate.of(compiled, tpu.Slice.named(chip), row["precision"], part_of_r(cases_by_key()[key]))

    def share(self, row: Row) -> float | None:
        """Returns the time of R relative to J, by the bounds of their steps.

        A step of J + R is compared with backpropagation, which has the same J, and a step of R with the rule's step of
        J. None if one of the two steps was not compiled or has another batch.
        """
        chip, model, rule, loss, precision = (row[name] for name in ("chip", "model", "rule", "loss", "precision"))
        base = (chip, model, rule.removesuffix(SIGN) if loss == "R" else "backprop", "J", precision)
        own, other = self.bound((chip, model, rule, loss, precision)), self.bound(base)
        if loss == "J" or not own or not other or self.rows[base]["batch_per_core"] != row["batch_per_core"]:
            return None
        return own.seconds / other.seconds - (0 if loss == "R" else 1)

    def compiled(self) -> str:
        """Returns the table of all compiled steps."""
        header = ["TPU", "network", "rule", "step", "precision", "images per core", "memory per core"]
        header += ["GFLOP", "traffic", "at least", "R over J"]
        return table(header, [self._line(row) for row in self.rows.values() if row["compiles"]])

    def _line(self, row: Row) -> list[str]:
        precision = "bfloat16" if row["precision"] == BF16 else row["precision"]
        case = [row["chip"], row["model"], f"`{row['rule']}`", row["loss"], precision, row["batch_per_core"]]
        if row["compiles"] == "no":
            return [*case, f"does not compile: {row['reason']}", "", "", "", ""]
        key = tuple(row[name] for name in ("chip", "model", "rule", "loss", "precision"))
        memory = int(row["argument_bytes"]) + int(row["temporary_bytes"])
        available = tpu.Slice.named(row["chip"]).core.memory
        bound, share = self.bound(key), self.share(row)
        return [
            *case,
            f"{digits(memory / GIB)} of {available // GIB} GiB",
            digits(int(row["flops"]) / 1e9),
            f"{digits(int(row['bytes_accessed']) / 1e9)} GB",
            f"{digits(1000 * bound.seconds)} ms ({bound.limit})",
            "" if share is None else f"{share:.2f}",
        ]

    def missing(self) -> str:
        """Returns a sentence about the cases that have no result."""
        reasons = collections.Counter(row["reason"] for row in self.rows.values() if not row["compiles"])
        parts = [f"{count} {reason}" for reason, count in reasons.items()]
        return f"Of {len(self.rows)} cases, {sum(reasons.values())} have no result: {'; '.join(parts) or 'none'}."

    def estimates(self, cases: Iterable[Case]) -> str:
        """Returns the table of hours and costs for the rows of Tables 3 and 4, in bfloat16.

        Args:
            cases: the cases of these rows.
        """
        lines = []
        runs = {(case.model, case.rule, case.path): case for case in cases}
        for (model, rule, _), case in runs.items():
            steps = tpu.turns(case.config(), setup.data_facts(case.config()))
            cells = [cell for chip in PRICES for cell in self._cost(chip, case, steps)]
            lines.append([model, f"`{rule}`", ", ".join(f"{n:,} of {loss}" for loss, n in steps.items()), *cells])
        header = ["network", "rule", "steps"]
        return table([*header, *(f"{chip}: {what}" for chip in PRICES for what in ("hours", "cost"))], lines)

    def _cost(self, chip: str, case: Case, steps: Mapping[str, int]) -> tuple[str, str]:
        bounds = {loss: self.bound((chip, case.model, case.rule, loss, BF16)) for loss in steps}
        if not all(bounds.values()):
            return "", ""
        duration = hours(bounds, steps)
        return digits(duration), f"${PRICES[chip] * duration:.0f}"


@functools.cache
def cases_by_key() -> dict[Key, Case]:
    """Returns all cases by their keys."""
    return {case.key: case for case in matrix()}


def part_of_r(case: Case) -> float:
    """Returns the part of R in the arithmetic of a step. Steps with one precision do not need it: 0."""
    return 0.0 if case.precision == F32 else _part_of_r(case._replace(chip=""), tpu.Slice.named(case.chip).replicas)


@functools.cache
def _part_of_r(case: Case, replicas: int) -> float:
    """Returns it for a step in bfloat16 on any TPU with so many cores."""
    return costs.part_of_r(case.config(), replicas, case.loss)


def paper_rows() -> list[Case]:
    """Returns a case for each run of Tables 3 and 4 of Kunin et al. 2020 with its own metaparameters."""
    rules = ("weight_mirror", "weight_mirror_adam", "weight_mirror_adam_ops", "information", "backprop", "symmetric")
    order = {rule: number for number, rule in enumerate((*rules, "activation"))}
    cases = [case for case in matrix() if case.path.startswith("two_routes/") and not case.overrides]
    networks = list(dict.fromkeys(case.model for case in cases))
    chosen = [case for case in cases if case.chip == "v3-8" and case.precision == BF16 and case.rule in order]
    return sorted(chosen, key=lambda case: (networks.index(case.model), order[case.rule]))


def parts(rows: Mapping[Key, Row]) -> dict[str, str]:
    """Returns the text of each generated part of the page, by its mark."""
    made = Table(rows)
    return {
        "estimates": made.estimates(paper_rows()),
        "compiled": made.compiled(),
        "missing": made.missing(),
        "versions": versions(rows),
    }


def versions(rows: Mapping[Key, Row]) -> str:
    """Returns a table that compares the case of pinned.csv with the same case of compiled.csv."""
    header = ["TensorFlow", "jax", "libtpu", "memory per core", "GFLOP", "traffic"]
    pinned = read(TABLE.with_name("pinned.csv"))
    lines = []
    for row in (row for key in pinned for row in (rows.get(key), pinned[key]) if row and row["compiles"] == "yes"):
        memory = int(row["argument_bytes"]) + int(row["temporary_bytes"])
        facts = f"{digits(memory / GIB)} GiB", digits(int(row["flops"]) / 1e9), digits(int(row["bytes_accessed"]) / 1e9)
        lines.append([row["tensorflow"], row["jax"], row["libtpu"], *facts[:2], f"{facts[2]} GB"])
    return table(header, lines)


def main(arguments: Sequence[str] = ()) -> None:
    """Replaces the tables of the page."""
    del arguments
    for mark, text in parts(read(TABLE)).items():
        replace_table(PAGE, [text], mark)


if __name__ == "__main__":
    main()

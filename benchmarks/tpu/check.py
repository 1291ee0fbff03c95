"""Compiles the steps of `cases.matrix` for TPUs: `python -m benchmarks.tpu.check [--hours 5]`, or `make tpu-check`.

Each case becomes a line of compiled.csv. The program is made in one process and compiled in another, so a crash only
ends its case. The command can be interrupted and repeated: it continues with the cases that have no result of the
installed versions yet. A result of other versions stays in the table until there is a new one.
"""

from __future__ import annotations

import argparse
import csv
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.common import ROOT, progress, versions
from benchmarks.tpu.cases import Case, matrix
from neural_alignment.errors import InputError
from neural_alignment.training import tpu
from neural_alignment.training.tpu.compilation import Limits, installed, shortened

TABLE = Path(__file__).with_name("compiled.csv")
IDENTITY = ("chip", "model", "rule", "loss", "precision", "batch_per_core")
RESULTS = ("argument_bytes", "temporary_bytes", "aliased_bytes", "flops", "bytes_accessed", "seconds_to_compile")
VERSIONS = ("jax", "libtpu", "tensorflow")
COLUMNS = (*IDENTITY, "compiles", *RESULTS, *VERSIONS, "reason")

NOT_YET = "not reached yet"

Row = dict[str, str]


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0 if done, also if cases failed or were not reached; 2 if the compiler is missing."""
    options = _parser().parse_args(arguments)
    cases = matrix()
    if options.program:
        case = cases[options.case]
        losses, replicas = case.loss, tpu.Slice.named(case.chip).replicas
        options.program.write_bytes(tpu.lower(case.config(), replicas, losses))
        return 0
    try:
        used = {**installed(), "tensorflow": tensorflow_version()}
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder:

        def compiled(case: Case, limits: Limits) -> tpu.Compiled:
            return compile_case(case, cases.index(case), Path(folder), limits)

        check(cases, options.table, used, options.hours, Limits(options.minutes), compiled, first=options.first)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tpu.check", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--hours",
        type=float,
        default=5,
        help="processor time after which none begins; 0 only writes the table; default: 5",
    )
    parser.add_argument("--minutes", type=float, default=60, help="processor time of one case; default: 60")
    parser.add_argument("--first", type=int, metavar="N", help="compile only the first N cases; default: all")
    parser.add_argument("--table", type=Path, default=TABLE, metavar="CSV", help="file of the results")
    parser.add_argument("--program", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--case", type=int, help=argparse.SUPPRESS)
    return parser


def tensorflow_version() -> str:
    """Returns the version of the installed TensorFlow."""
    found = versions()
    return found.get("tensorflow-cpu") or found.get("tensorflow", "")


def check(
    cases: Sequence[Case],
    table: Path,
    used: Mapping[str, str],
    hours: float,
    limits: Limits,
    compiled: Callable[[Case, Limits], tpu.Compiled],
    clock: Callable[[], float] | None = None,
    first: int | None = None,
) -> None:
    """Compiles the cases that have no result with the same versions, and writes the table after each of them.

    The results in the table stay until they are replaced by new ones.

    Args:
        cases: all cases, in the order of the table.
        table: path of the CSV file.
        used: versions of the packages in `VERSIONS`.
        hours: processor time after which no case begins.
        limits: limits of one case.
        compiled: compiles one case.
        clock: returns the processor time used so far, in seconds. Default: that of the child processes.
        first: number of cases that may be compiled, from the first. Other cases are only in the table if they are in it
            already. Default: all.
    """
    clock = clock or children_seconds
    stored, chosen = read(table), cases[:first]
    keys = {case.key for case in chosen}
    rows = {key: row for key, row in stored.items() if row["compiles"] or key not in keys}
    lines = [case for case in cases if case.key in keys | stored.keys()]
    missing = [case for case in chosen if not is_current(rows.get(case.key), used)]
    begin = clock()
    with progress("tpu-check", len(chosen), len(chosen) - len(missing)) as bar:
        for case in missing:
            if clock() - begin >= 3600 * hours:
                break
            row = row_of(case, compiled(case, limits), used)
            if row["compiles"] or case.key not in rows:
                rows[case.key] = row
            write(table, [rows.get(each.key) or without_result(each, NOT_YET) for each in lines])
            tqdm.write(f"{', '.join(case.key)}: {row['reason'] or 'compiles'}")
            bar.update()
    reason = f"not reached within {hours:g} hours of processor time" if hours else NOT_YET
    earlier = {} if hours else stored  # If nothing is compiled, the reasons stay as well.
    write(table, [rows.get(each.key) or earlier.get(each.key) or without_result(each, reason) for each in lines])


def children_seconds() -> float:
    """Returns the processor time of the child processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def is_current(result: Row | None, used: Mapping[str, str]) -> bool:
    """Whether a result need not be computed again, because it is of the same versions."""
    return result is not None and all(result[name] == used[name] for name in VERSIONS)


def identity(case: Case) -> Row:
    """Returns the columns that describe a case."""
    examples = case.config().batch_size // tpu.Slice.named(case.chip).replicas
    return dict(zip(IDENTITY, (*case.key, str(examples)), strict=True))


def row_of(case: Case, compiled: tpu.Compiled, used: Mapping[str, str]) -> Row:
    """Returns the line of a case that was compiled. A case that was stopped has neither `yes` nor `no`."""
    compiles = "" if compiled.stopped else "no" if compiled.reason else "yes"
    values = {name: getattr(compiled, name) for name in RESULTS}
    results = {name: "" if value is None else str(value) for name, value in values.items()}
    return {**identity(case), "compiles": compiles, **results, **used, "reason": compiled.reason}


def without_result(case: Case, reason: str) -> Row:
    """Returns the line of a case that was not compiled."""
    return {**dict.fromkeys(COLUMNS, ""), **identity(case), "reason": reason}


def read(table: Path) -> dict[tuple[str, ...], Row]:
    """Returns the lines of a table by the keys of their cases; none if there is no file."""
    if not table.exists():
        return {}
    with table.open(encoding="utf-8", newline="") as file:
        return {tuple(row[name] for name in IDENTITY[:5]): row for row in csv.DictReader(file)}


def write(table: Path, rows: Sequence[Row]) -> None:
    """Replaces a table; an interruption leaves the old one or the new one."""
    new = table.with_suffix(".new")
    with new.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    new.replace(table)


def compile_case(case: Case, number: int, folder: Path, limits: Limits) -> tpu.Compiled:
    """Makes the program of a case and compiles it. The kinds of TPU with the same batch per core share programs.

    Args:
        case: the case.
        number: its index in `matrix`.
        folder: folder of the programs.
        limits: limits of the compilation.
    """
    chip = tpu.Slice.named(case.chip)
    name = " ".join([*case.key[1:], str(chip.replicas)]).replace("/", " ")
    program = folder / f"{name}.hlo"
    if not program.exists():
        command = [sys.executable, "-m", "benchmarks.tpu.check", "--case", str(number), "--program", str(program)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, errors="replace", check=False)
        if done.returncode:
            last: Any = [line for line in done.stderr.splitlines() if line.strip()][-1:]
            return tpu.Compiled(reason=shortened(f"cannot be made into a program: {''.join(last)}"))
    return tpu.compile_program(program.read_bytes(), chip.core.topology, limits)


if __name__ == "__main__":
    sys.exit(main())

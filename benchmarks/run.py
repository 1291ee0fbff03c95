"""Runs all or the named benchmarks and writes RESULTS.md and the step times of docs/results.md from their raw samples.

    make bench                                   all benchmarks at full size
    python -m benchmarks.run step_time --check   one benchmark; exits with 1 and lists the values that miss their limits
    python -m benchmarks.run --small             all benchmarks at tiny sizes, to test them

Each benchmark runs in a separate process. The raw samples are in `results/`: one CSV file per benchmark, and a JSON
file with the conditions of the measurement. An interrupted run continues where it stopped.
"""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.common import RESULTS, ROOT, Benchmark, Check, Report, Samples, UnavailableError, facts, occasion
from neural_alignment.errors import nearest
from neural_alignment.papers.pages import replace_table

PAGE = ROOT / "docs" / "results.md"
SMALL_RESULTS = ROOT / "runs" / "benchmarks-small" / "results"
NAMES = (
    *("step_time", "examples", "networks", "moments", "peer", "memory", "input_pipeline", "first_step", "growth"),
    *("replicas", "steps", "wide"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0 if done; 1 if a benchmark failed or, with `--check`, a value misses its limit."""
    options = _parser().parse_args(arguments)
    results = options.results or (SMALL_RESULTS if options.small else RESULTS)
    if options.measure:
        return _measure(load(options.measure), results, options.small, options.load)
    names = options.benchmarks or list(NAMES)
    failed = [] if options.report_only else _measure_all(names, results, options.small)
    reports = {name: _report(load(name), results, options.small) for name in NAMES}
    text = document(reports, results, options.small)
    (results.parent / "RESULTS.md").write_text(text, encoding="utf-8")
    if results == RESULTS and reports["step_time"].checks:
        replace_table(PAGE, step_times(reports), "benchmarks/step_time")
    print(text)
    missed = [str(check) for name in names for check in reports[name].checks if not check.held]
    missed += [f"{name}: no values" for name in names if not reports[name].checks]
    print("\n".join(["missed limits:", *missed] if missed else ["all values are within their limits"]))
    return int(bool(failed) or (options.check and bool(missed)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__.splitlines()[0])
    parser.add_argument("benchmarks", nargs="*", metavar="BENCHMARK", type=_name, help=", ".join(NAMES))
    parser.add_argument("--check", action="store_true", help="exit with 1 if a value misses its limit")
    parser.add_argument("--small", action="store_true", help="tiny sizes, to test the benchmarks")
    parser.add_argument("--report-only", action="store_true", help="write RESULTS.md from the existing samples")
    parser.add_argument(
        "--results", type=Path, metavar="DIR", help="folder of the raw samples; RESULTS.md is written beside it"
    )
    parser.add_argument("--measure", choices=NAMES, help=argparse.SUPPRESS)
    parser.add_argument("--load", type=float, default=0.0, help=argparse.SUPPRESS)
    return parser


def _name(word: str) -> str:
    if word not in NAMES:
        allowed = f"{', '.join(NAMES)}{nearest(word, NAMES)}"
        raise argparse.ArgumentTypeError(f"{word!r} is not a benchmark; allowed: {allowed}")
    return word


def load(name: str) -> Benchmark:
    """Returns the benchmark with the given name."""
    return importlib.import_module(f"benchmarks.{name}").BENCHMARK


def _measure_all(names: Sequence[str], results: Path, small: bool) -> list[str]:
    """Runs one benchmark after the other and returns those that failed."""
    minutes = {name: load(name).minutes for name in names}
    failed = []
    busy = os.getloadavg()[0]  # Of the last minute: later values contain the benchmarks.
    for position, name in enumerate(names):
        if not small:  # Estimates for two idle cores, without the samples that exist already.
            left = sum(minutes[other] for other in names[position:])
            print(f"{name}: about {minutes[name]:g} min; about {left:g} min left in total")
        sys.stdout.flush()
        command = [sys.executable, "-m", "benchmarks.run", "--measure", name, "--results", str(results.resolve())]
        command += ["--load", str(busy)]
        # oneDNN is enabled on every processor, as in the command line.
        environment = {"TF_CPP_MIN_LOG_LEVEL": "3", "TF_ENABLE_ONEDNN_OPTS": "1", **os.environ}
        if subprocess.run([*command, *(["--small"] if small else [])], cwd=ROOT, env=environment).returncode:
            failed.append(name)
    return failed


def _measure(benchmark: Benchmark, results: Path, small: bool, busy: float) -> int:
    """Runs one benchmark in this process. If it is unavailable, stores the reason, unless there are earlier samples."""
    sizes = benchmark.small if small else benchmark.full
    samples = Samples(results, benchmark.name, facts(sizes), occasion(busy))
    samples.note(missing=None)
    logging.getLogger("tensorflow").setLevel(logging.ERROR)  # Hides warnings about many models in one process.
    try:
        benchmark.measure(samples, sizes)
    except UnavailableError as error:
        print(f"{benchmark.name}: {error}", file=sys.stderr)
        samples.note(missing=str(error))
    return 0


def _report(benchmark: Benchmark, results: Path, small: bool) -> Report:
    """Returns the section of a benchmark, or a note that it has not been measured."""
    sizes = benchmark.small if small else benchmark.full
    samples = Samples(results, benchmark.name)
    if missing := samples.facts.get("missing"):
        return Report(f"Not measured: {missing}.")
    if samples.facts.get("sizes") != json.loads(json.dumps(sizes)):
        return Report("Not measured yet.")
    if any(samples.rounds(case) < rounds for case, rounds in benchmark.cases(sizes).items()):
        return Report("Not completely measured yet; run the same command to continue.")
    return benchmark.report(samples, sizes)


def document(reports: dict[str, Report], results: Path, small: bool) -> str:
    """Returns RESULTS.md."""
    command = "python -m benchmarks.run --small" if small else "make bench"
    checks: list[Check] = [check for report in reports.values() for check in report.checks]
    held = sum(check.held for check in checks)
    lines = [
        "# Speed and memory",
        "",
        f"Made by `{command}`; the raw samples are in `{results.name}/`. Values are medians. A ratio compares two "
        "steps of the same round, in which every contender runs one step in turn. Backpropagation is a model of Keras' "
        "own layers, except that it has the batch normalisation of this library, like the models with a rule. Plain "
        "Keras is backpropagation with Keras' own batch normalisation and nothing of this library.",
        "",
        f"{held} of {len(checks)} values are within their limits."
        + "".join(f"\n- missed: {check}" for check in checks if not check.held),
    ]
    for name, report in reports.items():
        lines += ["", f"## {load(name).title}", "", *_conditions(Samples(results, name)), report.text]
    return "\n".join(lines) + "\n"


def step_times(reports: dict[str, Report]) -> list[str]:
    """Returns the part of `docs/results.md` with the step time of the rules on the first network."""
    parts = reports["step_time"].text.split("\n\n")
    first = next(number for number, part in enumerate(parts) if part.startswith("**"))
    conditions = _conditions(Samples(RESULTS, "step_time"))[:1]
    return "\n\n".join([*conditions, *parts[first : first + 2]]).splitlines()


def _conditions(samples: Samples) -> list[str]:
    """Returns a line with the machine, the versions, and the date of the last sample if it is known."""
    if not samples.facts or not samples.path.exists():
        return []
    machine = samples.facts["machine"]
    versions = ", ".join(f"{package} {version}" for package, version in samples.facts["versions"].items())
    where = f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gib']} GiB, {machine['system']}"
    parts = [where, versions, f"digest of the source {samples.facts['source']}"]
    if "date" in samples.facts:  # Earlier samples have none.
        parts.append(f"{samples.facts['date']}, load {samples.facts['load']:g} before the start")
    return [f"{'; '.join(parts)}.", ""]


if __name__ == "__main__":
    sys.exit(main())

"""Runs the benchmarks, all or those that are named, and writes RESULTS.md from their raw samples.

    make bench                                   all, the whole sizes
    python -m benchmarks.run step_time --check   one; exits with 1 and says which figures miss their limits
    python -m benchmarks.run --small             all at tiny sizes, to see that they work

Each benchmark runs in a process of its own. Raw samples lie in `results/`, one CSV file per benchmark, with the facts
under which they were made in a JSON file beside it; a run that was stopped goes on where it was.
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

from benchmarks.common import RESULTS, ROOT, Benchmark, Check, Report, Samples, UnavailableError, facts
from neural_alignment.errors import nearest

SMALL_RESULTS = ROOT / "runs" / "benchmarks-small" / "results"
NAMES = ("step_time", "moments", "peer", "memory", "input_pipeline", "first_step", "growth", "wide")


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0 done, 1 a benchmark failed or, with `--check`, a figure misses its limit."""
    options = _parser().parse_args(arguments)
    results = options.results or (SMALL_RESULTS if options.small else RESULTS)
    if options.measure:
        return _measure(load(options.measure), results, options.small)
    names = options.benchmarks or list(NAMES)
    failed = [] if options.report_only else _measure_all(names, results, options.small)
    reports = {name: _report(load(name), results, options.small) for name in NAMES}
    text = document(reports, results, options.small)
    (results.parent / "RESULTS.md").write_text(text, encoding="utf-8")
    print(text)
    missed = [str(check) for name in names for check in reports[name].checks if not check.held]
    missed += [f"{name}: no figures" for name in names if not reports[name].checks]
    print("\n".join(["misses its limit:", *missed] if missed else ["all limits are kept"]))
    return int(bool(failed) or (options.check and bool(missed)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__.splitlines()[0])
    parser.add_argument("benchmarks", nargs="*", metavar="BENCHMARK", type=_name, help=", ".join(NAMES))
    parser.add_argument("--check", action="store_true", help="exit with 1 if a figure misses its limit")
    parser.add_argument("--small", action="store_true", help="tiny sizes, to see that all works")
    parser.add_argument("--report-only", action="store_true", help="write RESULTS.md from the samples that are there")
    parser.add_argument(
        "--results", type=Path, metavar="DIR", help="folder of the raw samples; RESULTS.md goes beside it"
    )
    parser.add_argument("--measure", choices=NAMES, help=argparse.SUPPRESS)
    return parser


def _name(word: str) -> str:
    if word not in NAMES:
        raise argparse.ArgumentTypeError(f"{word!r} is no benchmark; allowed: {', '.join(NAMES)}{nearest(word, NAMES)}")
    return word


def load(name: str) -> Benchmark:
    """Returns the benchmark called `name`."""
    return importlib.import_module(f"benchmarks.{name}").BENCHMARK


def _measure_all(names: Sequence[str], results: Path, small: bool) -> list[str]:
    """Measures one benchmark after the other; returns those that failed."""
    minutes = {name: load(name).minutes for name in names}
    failed = []
    for position, name in enumerate(names):
        if not small:  # Of two quiet cores; less where something is measured already.
            left = sum(minutes[other] for other in names[position:])
            print(f"{name}: about {minutes[name]:g} min; about {left:g} min left in all")
        sys.stdout.flush()
        command = [sys.executable, "-m", "benchmarks.run", "--measure", name, "--results", str(results.resolve())]
        # oneDNN as the command line has it, whatever the processor.
        environment = {"TF_CPP_MIN_LOG_LEVEL": "3", "TF_ENABLE_ONEDNN_OPTS": "1", **os.environ}
        if subprocess.run([*command, *(["--small"] if small else [])], cwd=ROOT, env=environment).returncode:
            failed.append(name)
    return failed


def _measure(benchmark: Benchmark, results: Path, small: bool) -> int:
    """Measures one benchmark in this process; where it cannot be run, keeps the reason beside the samples."""
    sizes = benchmark.small if small else benchmark.full
    samples = Samples(results, benchmark.name, facts(sizes))
    samples.note(missing=None)
    logging.getLogger("tensorflow").setLevel(logging.ERROR)  # Many models in one process are no fault here.
    try:
        benchmark.measure(samples, sizes)
    except UnavailableError as error:
        print(f"{benchmark.name}: {error}", file=sys.stderr)
        samples.note(missing=str(error))
    return 0


def _report(benchmark: Benchmark, results: Path, small: bool) -> Report:
    """Returns the benchmark's section; what is not measured is said."""
    sizes = benchmark.small if small else benchmark.full
    samples = Samples(results, benchmark.name)
    if missing := samples.facts.get("missing"):
        return Report(f"Not measured: {missing}.")
    if samples.facts.get("sizes") != json.loads(json.dumps(sizes)):
        return Report("Not measured yet.")
    if any(samples.rounds(case) < rounds for case, rounds in benchmark.cases(sizes).items()):
        return Report("Not measured whole yet; the same command goes on.")
    return benchmark.report(samples, sizes)


def document(reports: dict[str, Report], results: Path, small: bool) -> str:
    """Returns RESULTS.md."""
    command = "python -m benchmarks.run --small" if small else "make bench"
    checks: list[Check] = [check for report in reports.values() for check in report.checks]
    held = sum(check.held for check in checks)
    lines = [
        "# Speed and memory",
        "",
        f"Made by `{command}`; the raw samples are in `{results.name}/`. Figures are medians; a ratio is of two steps "
        "of one round, in which every contender makes a step in turn. Backpropagation is a model of Keras' own layers, "
        "but for batch normalisation, which is the fused one of this library in all contenders.",
        "",
        f"{held} of {len(checks)} limits are kept."
        + "".join(f"\n- missed: {check}" for check in checks if not check.held),
    ]
    for name, report in reports.items():
        lines += ["", f"## {load(name).title}", "", *_conditions(Samples(results, name)), report.text]
    return "\n".join(lines) + "\n"


def _conditions(samples: Samples) -> list[str]:
    """Says on which machine and with which versions the samples were made."""
    if not samples.facts or not samples.path.exists():
        return []
    machine = samples.facts["machine"]
    versions = ", ".join(f"{package} {version}" for package, version in samples.facts["versions"].items())
    where = f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gib']} GiB, {machine['system']}"
    return [f"{where}; {versions}; source {samples.facts['source']}.", ""]


if __name__ == "__main__":
    sys.exit(main())

"""The command line: `neural-alignment train | evaluate | search | table | figure | lab | ...`.

Exit codes: 0 done; 2 the user's input is wrong; 3 the training diverged; 1 anything else. TensorFlow is imported by the
commands that need it, not by `--help`.
"""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from neural_alignment import paths, quiet
from neural_alignment.errors import Diverged, InputError, Stopped

app = typer.Typer(
    help="Train networks whose error travels back through weights of its own.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _path(check: Callable[[str], str]) -> Callable[..., Any]:
    """Returns the callback of an option or argument that is a path, or several.

    Args:
        check: returns the path as it is used, or raises `ValueError`.
    """

    def checked(parameter: typer.CallbackParam, value: Any) -> Any:
        try:
            if value is None or isinstance(value, str):
                return value if value is None else check(value)
            return [check(each) for each in value]
        except ValueError as error:
            name = parameter.opts[0] if parameter.opts[0].startswith("-") else parameter.metavar.strip("[].")
            raise InputError(f"{name}: {error}") from None

    return checked


_ANY_PATH, _FILE, _DIRECTORY = _path(paths.checked), _path(paths.checked_file), _path(paths.checked_directory)
_TABLES = _path(lambda path: paths.checked_prefix(path, (".csv", ".md")))
_COMPARISON = _path(
    lambda path: paths.checked_prefix(path, (".csv", ".md", ".png", "_importance.csv", "_importance.png"))
)

ConfigPath = Annotated[
    str, typer.Argument(metavar="CONFIG", help="A YAML file, such as configs/quickstart.yaml.", callback=_ANY_PATH)
]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY.PATH=VALUE", help="Override a key; may be repeated.")
]
Jobs = Annotated[int, typer.Option(min=1, help="Runs at once, each with its share of the cores.")]
JOBS = min(os.cpu_count() or 1, 4)
Smoke = Annotated[bool, typer.Option("--smoke", help="Apply the file's `smoke` overrides: two steps on CPU.")]


@app.command()
def train(
    config: ConfigPath,
    overrides: Overrides = None,
    run_dir: Annotated[
        str | None, typer.Option(help="Directory to make. Default: runs/<config>.", callback=_DIRECTORY)
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint.")] = False,
    resume_from: Annotated[
        int | None, typer.Option(metavar="STEP", min=0, help="Go back to the kept state of a step, and on from there.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier run.")] = False,
    smoke: Smoke = False,
) -> None:
    """Train one run from a YAML file."""
    _start_tensorflow()
    from tqdm import tqdm

    from neural_alignment import config as configuration
    from neural_alignment.training import callbacks, files, run

    if force and (resume or resume_from is not None):
        option = "--resume" if resume else "--resume-from"
        raise InputError(f"{option} and --force exclude each other; give one of them")
    settings = configuration.load(config, overrides or (), smoke)
    # An explicit --run-dir may be anywhere; a name that follows from a file stays below runs.
    run_dir = run_dir or files.confined("runs", f"{'smoke/' if smoke else ''}{run_name(config)}")
    progress = callbacks.Progress(tqdm.write, _quiet_bar if not sys.stderr.isatty() else tqdm)
    result = run.train(settings, run_dir, resume, force, progress, resume_from)
    _print_result(result, settings.loss.criterion)


@app.command()
def evaluate(
    run_dir: Annotated[str, typer.Argument(metavar="RUN", help="A finished run directory.", callback=_DIRECTORY)],
    strategy: Annotated[
        str | None, typer.Option(help="Where to compute, as in runtime.strategy; as the run did by default.")
    ] = None,
) -> None:
    """Recompute the final accuracy of a run from its saved model."""
    _start_tensorflow()
    from neural_alignment.training import run

    for name, value in run.evaluate(run_dir, strategy).items():
        print(f"{name:5} {value:.6g}")


@app.command()
def describe(config: ConfigPath, overrides: Overrides = None, smoke: Smoke = False) -> None:
    """Show the layers of a run, their rules, parameters and the cost of a step."""
    _start_tensorflow()
    from neural_alignment import config as configuration
    from neural_alignment.training import describe

    print(describe.describe(configuration.load(config, overrides or (), smoke)))


@app.command()
def compare(
    configs: Annotated[
        list[str], typer.Argument(metavar="CONFIG...", help="YAML files, one row each.", callback=_ANY_PATH)
    ],
    output: Annotated[str, typer.Option(help="Where the tables go: OUTPUT.csv and OUTPUT.md.", callback=_TABLES)],
    seeds: Annotated[str, typer.Option(help="Seeds, separated by commas.")] = "0,1,2",
    overrides: Overrides = None,
    runs: Annotated[str, typer.Option(help="Where the run directories go.", callback=_DIRECTORY)] = "runs",
    jobs: Jobs = JOBS,
) -> None:
    """Train several configurations with several seeds and write a table; what is finished is not trained again."""
    _start_tensorflow()
    from neural_alignment.papers import compare

    numbers = _numbers("--seeds", seeds)
    print(compare.compare(configs, numbers, overrides or (), runs, run_name, output, jobs, _screen()))


@app.command()
def search(
    plan: Annotated[
        str, typer.Argument(metavar="SEARCH", help="A YAML file, or its name below configs/search.", callback=_ANY_PATH)
    ],
    overrides: Overrides = None,
    config: Annotated[
        str | None, typer.Option(help="Another base configuration than the file names.", callback=_ANY_PATH)
    ] = None,
    search_dir: Annotated[
        str | None, typer.Option(help="Directory to create or resume. Default: runs/<search>.", callback=_DIRECTORY)
    ] = None,
    trials: Annotated[int | None, typer.Option(help="Trials, instead of the file's; more go on with a search.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Epochs of a trial, instead of the file's.")] = None,
    algorithms: Annotated[
        str | None, typer.Option(help="tpe, random, or both with a comma, which compares them.")
    ] = None,
    seeds: Annotated[str | None, typer.Option(help="Seeds, with commas; a search for each algorithm and seed.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Trials at a time, each in a process.")] = None,
    spark: Annotated[int | None, typer.Option(min=1, help="Trials at a time, on Spark's executors.")] = None,
    tpus: Annotated[str | None, typer.Option(help="Names of TPUs, with commas; a trial at a time on each.")] = None,
    launcher: Annotated[
        str | None, typer.Option(help="Command that trains on a TPU, with {tpu}, {config} and {run_dir}.")
    ] = None,
    output: Annotated[
        str | None, typer.Option(help="Where a comparison goes: OUTPUT.csv, .md and .png.", callback=_COMPARISON)
    ] = None,
) -> None:
    """Search metaparameters; the same command goes on with a search that was cut off."""
    _start_tensorflow()
    from neural_alignment.reporting import check_writable
    from neural_alignment.search import compare, engines, run
    from neural_alignment.search import plan as plans
    from neural_alignment.training import files

    path = _search_file(plan)
    replaced = {"config": config, "trials": trials, "epochs": epochs}
    first = plans.load(path, **replaced)
    place = search_dir or files.confined("runs", run_name(path))
    names = [first.algorithm] if algorithms is None else _listed("--algorithms", algorithms, "tpe,random")
    numbers = [first.seed] if seeds is None else _numbers("--seeds", seeds)
    each = {(name, n): plans.load(path, **replaced, algorithm=name, seed=n) for name in names for n in numbers}
    engine = engines.build(workers, spark, tpus, launcher)
    # Flushed: a log has a trial when it has ended, not when a buffer is full.
    say = functools.partial(print, flush=True)
    if len(each) > 1 or output is not None:
        if output is None:
            output = f"{place}/comparison"
        else:
            check_writable(output.rpartition("/")[0] or ".")
        print(f"\n{compare.compare(each, overrides or (), place, engine, output, say)}\ncomparison  {output}.md")
        return
    best = run.best_of(run.search(next(iter(each.values())), overrides or (), place, engine, say))
    if best is None:
        print("\nno trial has finished: there is no best setting")
    else:
        print(f"\nbest trial  {best.number}\nvalidation top-1  {100 * best.top1:.2f} %")
        print(f"its configuration  {place}/best.yaml")
    print(f"search directory  {place}")


def _search_file(name: str) -> str:
    """Returns the path of a search that may be named as it is below `configs/search`, without its ending."""
    path = Path("configs", "search", f"{name}.yaml")
    return str(path) if path.is_file() and not Path(name).exists() else name


def _listed(option: str, text: str, example: str) -> list[str]:
    """Returns words that are separated by commas.

    Raises:
        InputError: if one of them is empty, or occurs twice.
    """
    words = [word.strip() for word in text.split(",")]
    if not all(words):
        raise InputError(f"{option} must be separated by commas, such as {example}; found {text!r}")
    if twice := [word for word in words if words.count(word) > 1]:
        raise InputError(f"{option} must be given once each; found {twice[0]} twice in {text!r}")
    return words


def _numbers(option: str, text: str) -> list[int]:
    """Returns different integers that are separated by commas.

    Raises:
        InputError: if they are not.
    """
    words = [word.strip() for word in text.split(",")]
    if not all(re.fullmatch("-?[0-9]{1,10}", word) for word in words):
        raise InputError(f"{option} must be integers separated by commas, such as 0,1,2; found {text!r}")
    return [int(word) for word in _listed(option, ",".join(str(int(word)) for word in words), "0,1,2")]


Runs = Annotated[
    str | None, typer.Option("--runs", help="Folder of the run directories. Default: runs/PAPER.", callback=_DIRECTORY)
]
Lab = Annotated[bool, typer.Option("--lab", help="The profile for 2 cores: train what is not trained yet.")]
Output = Annotated[
    str | None, typer.Option(help="Where the files go. Default: results/PAPER, or RUNS/results.", callback=_DIRECTORY)
]
Configs = Annotated[str, typer.Option(help="Folder of the configurations.", callback=_DIRECTORY)]


@app.command()
def table(
    name: Annotated[str | None, typer.Argument(metavar="[PAPER/N]", help="None lists all tables.")] = None,
    lab: Lab = False,
    runs: Runs = None,
    output: Output = None,
    configs: Configs = "configs",
    jobs: Jobs = JOBS,
) -> None:
    """Make a table of a paper from run directories, our numbers beside the paper's."""
    _make("table", name, lab, jobs, {"runs": runs, "output": output, "configs": configs})


@app.command()
def figure(
    name: Annotated[str | None, typer.Argument(metavar="[PAPER/N]", help="None lists all figures.")] = None,
    lab: Lab = False,
    runs: Runs = None,
    output: Output = None,
    configs: Configs = "configs",
    jobs: Jobs = JOBS,
    recordings: Annotated[
        str | None, typer.Option(help="Recorded responses, for two_routes/6.", callback=_FILE)
    ] = None,
    images: Annotated[str | None, typer.Option(help="The images that they answer.", callback=_FILE)] = None,
) -> None:
    """Make a figure of a paper from run directories: a PNG file, the CSV file behind it, and Markdown."""
    places = {"runs": runs, "output": output, "configs": configs}
    _make("figure", name, lab, jobs, places, recordings=recordings, images=images)


@app.command()
def lab(
    paper: Annotated[str, typer.Argument(metavar="PAPER", help="Such as two_routes.")],
    runs: Runs = None,
    output: Output = None,
    configs: Configs = "configs",
    jobs: Jobs = JOBS,
) -> None:
    """Train the whole lab profile of a paper and make all its tables and figures; started again, it goes on."""
    _start_tensorflow()
    from neural_alignment.papers import commands

    commands.make_all(paper, commands.Places(runs, output, configs), jobs, _screen())


def _make(
    kind: str, name: str | None, lab: bool, jobs: int, places: dict[str, str | None], **files: str | None
) -> None:
    """Makes one table or figure, or lists them all."""
    _start_tensorflow()
    from neural_alignment.papers import commands

    if name is None:
        if given := [f"--{option}" for option, value in {**places, **files}.items() if value not in (None, "configs")]:
            raise InputError(f"{given[0]} needs the name of a {kind}, such as two_routes/1")
        print(commands.listing(kind, jobs))
        return
    print(commands.make(kind, name, lab, commands.Places(**places), jobs, _screen(), **files))


def _screen() -> object:
    """Returns what shows the progress of many runs: a last line that changes, or a line now and then in a file."""
    from neural_alignment.papers.plans import Screen

    terminal, shown = sys.stderr.isatty(), [-60.0]

    def line(text: str) -> None:
        if terminal:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
        print(text, flush=True)

    def status(text: str) -> None:
        if terminal:
            width = shutil.get_terminal_size().columns - 1
            print(f"\r\033[K{text[:width]}", end="", file=sys.stderr, flush=True)
        elif time.monotonic() - shown[0] >= 60:
            shown[0] = time.monotonic()
            print(text, file=sys.stderr, flush=True)

    return Screen(line, status)


@app.command()
def schema() -> None:
    """Print the JSON Schema of configuration files, for editors."""
    _start_tensorflow()
    from neural_alignment import config as configuration

    print(json.dumps(configuration.json_schema(), indent=2))


def _start_tensorflow() -> None:
    """Imports TensorFlow with the settings of the command line, which child processes inherit.

    Convolutions by oneDNN are TensorFlow's default only on processors with AVX-512 VNNI; without it they take twice as
    long with AVX2.
    """
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    quiet.import_tensorflow()


def run_name(config: str) -> str:
    """Returns the path of the file below a `configs` folder, or the name of a file that lies elsewhere; no ending."""
    parts = Path(os.path.normpath(config)).with_suffix("").parts
    return "/".join(parts[parts.index("configs") + 1 :] if "configs" in parts[:-1] else parts[-1:])


def _print_result(result: object, criterion: object) -> None:
    """Prints the accuracy or loss, the angle of each layer, and the path of the run."""
    print(f"\nvalidation {criterion.name}  {criterion.text(result.metrics[criterion.column])}")
    angles = result.weight_angles
    if angles:
        width = max(len(layer) for layer in [*angles, "layer"])
        print(f"\n{'layer':{width}}  angle of W to B^T (degrees)")
        for layer, angle in angles.items():
            print(f"{layer:{width}}  {angle:.1f}")
    print(f"\nrun directory  {result.path}")


class _QuietBar:
    """Stands in for the bar where the output is no terminal: lines per evaluation say enough there."""

    def update(self, steps: int) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Does nothing."""


def _quiet_bar(**_: object) -> _QuietBar:
    return _QuietBar()


INTERRUPTED = 130
"""What Typer returns where the user has pressed Ctrl-C."""


def main() -> None:
    """Runs the command line; turns the user's errors into one line and an exit code."""
    try:
        if app(sys.argv[1:] or ["--help"], standalone_mode=False) != INTERRUPTED:
            sys.exit(0)
        _exit("stopped; go on with --resume", 1)
    except InputError as error:
        _exit(f"error: {error}", 2)
    except Diverged as error:
        _exit(f"diverged: {error}", 3)
    except Stopped as error:
        from neural_alignment.training.stepping import TRACING

        if any(thread.name.startswith(TRACING) for thread in threading.enumerate()):
            _exit_at_once(f"stopped: {error}", 1)
        _exit(f"stopped: {error}", 1)
    except (KeyboardInterrupt, typer.Abort):
        _exit("stopped; go on with --resume", 1)
    except Exception as error:
        # Typer's own errors, of a class that its versions name differently: a wrong option, a missing argument.
        line = f"{error.format_message()}; see --help" if hasattr(error, "format_message") else _refusal(error)
        if line is None:
            raise
        _exit(f"error: {line}", 2)


def _refusal(error: Exception) -> str | None:
    """Returns the message of an error of the operating system, or None for any other error."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    message = " ".join((getattr(error, "message", None) or str(error)).rpartition("}} ")[2].split())[:200]
    if isinstance(error, MemoryError) or type(error).__name__ == "ResourceExhaustedError":
        return f"{message or 'no memory is left'}: make the model or the batch smaller, or free memory"
    return message if type(error).__name__ == "PermissionDeniedError" else None


def _exit(line: str, code: int) -> None:
    _say(line)
    sys.exit(code)


def _say(line: str) -> None:
    """Prints one line; a character that a terminal would take for a command is escaped."""
    line = "".join(each if each.isprintable() else ascii(each)[1:-1] for each in " ".join(line.split()))
    print(line, file=sys.stderr)


def _exit_at_once(line: str, code: int) -> None:
    """Ends without waiting for a thread that makes the graph of a step: Python would, and it can take a minute."""
    _say(line)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()

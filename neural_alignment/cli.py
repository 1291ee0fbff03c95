"""The command line: `neural-alignment train | evaluate | search | table | figure | lab | ...`.

Exit codes: 0 done; 2 the user's input is wrong; 3 the training diverged; 4 the data, a TPU or a program is missing or
cannot be read; 1 any other error. Commands import TensorFlow only when they need it, so that `--help` is fast.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer

from neural_alignment import plugins, quiet, shipped, terminal
from neural_alignment.command_options import (
    ANY_PATH,
    COMPARISON,
    DIRECTORY,
    FILE,
    PICTURE,
    PROCESSES,
    TABLES,
    ConfigPath,
    EngineOptions,
    FolderOptions,
    Imports,
    Lab,
    Overrides,
    PlanOptions,
    Smoke,
    completed,
    new_screen,
    numbers,
    with_option_groups,
)
from neural_alignment.errors import Diverged, InputError, Stopped, Unavailable, shortened

app = typer.Typer(
    help="Train networks whose error travels back through separate backward weights.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _print_version(asked: bool) -> None:
    """Prints the versions of the package and of the packages that decide its results, and exits."""
    if asked:
        for name in ("neural_alignment", *_TENSORFLOW, "keras"):
            with contextlib.suppress(metadata.PackageNotFoundError):
                terminal.raw(f"{name} {metadata.version(name)}")
        raise typer.Exit


_TENSORFLOW = ("tensorflow", "tensorflow_cpu", "tensorflow_tpu")


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the versions and exit.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    pass


def _examples(*commands: str) -> str:
    """Returns the end of a help text: commands without `neural-alignment`."""
    return "Examples:\n\n" + "\n\n".join(f"neural-alignment {command}" for command in commands)


@app.command(
    epilog=_examples(
        "train quickstart",
        "train two_routes/resnet18/symmetric --set batch_size=128",
        "train my.yaml --import my_rules --resume",
    )
)
def train(
    config: ConfigPath,
    overrides: Overrides = None,
    run_dir: Annotated[
        str | None, typer.Option(help="Run directory to create. Default: runs/<config>.", callback=DIRECTORY)
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Resume from the last checkpoint.")] = False,
    resume_from: Annotated[
        int | None,
        typer.Option(metavar="STEP", min=0, help="Go back to the saved state of this step, and continue from there."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier run in the directory.")] = False,
    smoke: Smoke = False,
    imports: Imports = None,
) -> None:
    """Train one run from a YAML file."""
    _start(imports)
    from neural_alignment import config as configuration
    from neural_alignment.training import callbacks, distribution, run
    from neural_alignment.training.run_directory import RunDirectory

    if force and (resume or resume_from is not None):
        option = "--resume" if resume else "--resume-from"
        raise InputError(f"{option} and --force exclude each other; give one of them")

    def directory() -> str:
        return run_dir or _default_place("runs", config, smoke)

    # Without the plugins of a run, its configuration has unknown names.
    resumed = resume or resume_from is not None
    with RunDirectory(directory()).plugins_checked() if resumed else contextlib.nullcontext():
        settings = configuration.load(config, overrides or (), smoke)
    if resume and distribution.is_chief(settings.runtime) and not RunDirectory(directory()).exists():
        terminal.line(f"{directory()}: contains no run to resume; a new one starts")
    progress = callbacks.Progress(*terminal.progress_bar(), _evaluation_lines if terminal.is_terminal() else None)
    try:
        result = run.train(settings, directory(), resume, force, progress, resume_from)
    except Diverged:
        if distribution.is_chief(settings.runtime):
            _summary(directory())
        raise
    if distribution.is_chief(settings.runtime):
        _print_result(result, _summary(result.path), settings.loss.criterion)


def _summary(path: str) -> str:
    """Draws the summary of a run. Returns its path, or why there is none, which must not hide how the run has ended."""
    from neural_alignment import plots

    try:
        return plots.write([path])
    except Exception as error:
        message = str(error) if isinstance(error, InputError) else _system_message(error)
        if message is None:
            raise
        return f"not drawn: {message}"


@app.command(epilog=_examples("evaluate runs/quickstart"))
def evaluate(
    run_dir: Annotated[str, typer.Argument(metavar="RUN", help="A finished run directory.", callback=DIRECTORY)],
    strategy: Annotated[
        str | None, typer.Option(help="Where to compute, as in runtime.strategy. Default: as the run was trained.")
    ] = None,
    imports: Imports = None,
) -> None:
    """Recompute the final accuracy of a run from its saved model."""
    _start(imports)
    from neural_alignment.training import run

    found = {name: f"{value:.6g}" for name, value in run.evaluate(run_dir, strategy).items()}
    plain = "\n".join(f"{name:5} {value}" for name, value in found.items())
    terminal.table(("metric", "on the validation split"), found.items(), plain)


@app.command(
    epilog=_examples("plot runs/quickstart", "plot runs/mnist/fc/symmetric runs/mnist/fc/feedback -o rules.png")
)
def plot(
    runs: Annotated[
        list[str],
        typer.Argument(metavar="RUN...", help="Run directories, or folders with seed0, seed1, ...", callback=DIRECTORY),
    ],
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="The picture. Default for one run: RUN/summary.png.",
            callback=PICTURE,
        ),
    ] = None,
    imports: Imports = None,
) -> None:
    """Draw a run, or several runs in one picture with their seeds as bands; they may still be training."""
    _start(imports)
    from neural_alignment import plots

    terminal.line(f"written: {plots.write(runs, output)}")


_NAME = 12
"""Width of the name of a fact in the lines of a description."""


@app.command(epilog=_examples("describe two_routes/resnet18/information"))
def describe(
    config: ConfigPath,
    overrides: Overrides = None,
    smoke: Smoke = False,
    tpu: Annotated[
        str | None,
        typer.Option(
            metavar="TYPE",
            help="Also compile the steps for a TPU of this type, such as v3-8, which takes minutes but needs no TPU: "
            "memory, arithmetic, and a lower bound of the time.",
        ),
    ] = None,
    imports: Imports = None,
) -> None:
    """Print the layers of a run with their rules and parameters, and the cost of a step."""
    _start(imports)
    from neural_alignment import config as configuration
    from neural_alignment.training import describe
    from neural_alignment.training import tpu as compiler

    chips = None if tpu is None else compiler.Slice.named(tpu)
    settings = configuration.load(config, overrides or (), smoke)
    found = describe.description(settings)
    terminal.table(found.HEADER, found.cells(), found.table())
    terminal.line()
    terminal.facts([(line[:_NAME].strip(), line[_NAME:]) for line in found.facts], "\n".join(found.facts))
    terminal.line("\n".join(["", *found.costs]))
    if chips is not None:
        terminal.line(f"\n{compiler.describe(settings, chips)}")


@app.command(
    epilog=_examples(
        "score wide_networks/cifar10/normal --epochs 1,50,150",
        "score wide_networks/kmnist/normal --set model.width=64 --set optimization.forward.learning_rate=5",
    )
)
def score(
    config: ConfigPath,
    overrides: Overrides = None,
    epochs: Annotated[
        str | None, typer.Option(metavar="N,N,...", help="Epochs after which to score. Default: the last one.")
    ] = None,
    probes: Annotated[int, typer.Option(min=2, help="Number of Gaussian samples of each score.")] = 100,
    output: Annotated[
        str | None,
        typer.Option(
            metavar="PATH",
            help="Files to write: PATH.csv and PATH.md. Default: new files runs/scores/<config>.",
            callback=TABLES,
        ),
    ] = None,
    smoke: Smoke = False,
    imports: Imports = None,
) -> None:
    """Train a wide network by gradient descent, and compute the alignment scores of its convolutions."""
    _start(imports)
    from neural_alignment import config as configuration
    from neural_alignment import reporting
    from neural_alignment.papers.wide_networks.compute import scoring

    settings, screen = configuration.load(config, overrides or (), smoke), new_screen()
    moments = [settings.epochs] if epochs is None else numbers("--epochs", epochs)
    if min(moments) < 1:
        raise InputError(f"--epochs must be at least 1; found {min(moments)}")
    path = output or _default_place("runs/scores", config, smoke)
    if output is None:
        reporting.check_new(path)
    else:
        reporting.check_replaceable(path, scoring.COLUMNS)
    scoring.check(settings)
    reporting.check_writable(os.path.dirname(path) or ".")
    artifact = scoring.report(settings, moments, probes, lambda part: screen.status(f"{100 * part:.0f} % trained"))
    screen.line(f"{artifact.text}\n\nwritten: {', '.join(reporting.write(artifact, path))}")


@app.command(
    epilog=_examples(
        "compare mnist/fc/backprop mnist/fc/symmetric --output results/fc --engine processes:2",
    )
)
@with_option_groups
def compare(
    configs: Annotated[
        list[str],
        typer.Argument(
            metavar="CONFIG...",
            help="YAML files, or names of configurations: a row each.",
            callback=ANY_PATH,
            autocompletion=completed,
        ),
    ],
    output: Annotated[
        str, typer.Option(help="Path of the tables without extension: OUTPUT.csv and OUTPUT.md.", callback=TABLES)
    ],
    engine: EngineOptions,
    seeds: Annotated[str, typer.Option(help="Seeds of each configuration, separated by commas.")] = "0,1,2",
    overrides: Overrides = None,
    runs: Annotated[str, typer.Option(help="Folder of the run directories.", callback=DIRECTORY)] = "runs",
    imports: Imports = None,
) -> None:
    """Train several configurations with several seeds and write a table; finished runs are not trained again."""
    _start(imports)
    from neural_alignment import compare

    comparison = compare.Comparison(configs, numbers("--seeds", seeds), overrides or (), runs, run_name)
    terminal.line(compare.compare(comparison, output, engine.execution()))


@app.command(
    epilog=_examples(
        "search lab/information --trials 10",
        "search my_search.yaml --algorithms tpe,random --output results/my_search",
    )
)
@with_option_groups
def search(
    plan: Annotated[
        str,
        typer.Argument(
            metavar="SEARCH", help="A YAML file, or a name below search/, such as lab/information.", callback=ANY_PATH
        ),
    ],
    replaced: PlanOptions,
    engine: EngineOptions,
    overrides: Overrides = None,
    search_dir: Annotated[
        str | None, typer.Option(help="Directory to create or resume. Default: runs/<search>.", callback=DIRECTORY)
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(help="Path of a comparison without extension: OUTPUT.csv, .md and .png.", callback=COMPARISON),
    ] = None,
    imports: Imports = None,
) -> None:
    """Search metaparameters; the same command resumes an interrupted search."""
    _start(imports)
    from neural_alignment.reporting import check_writable
    from neural_alignment.search import compare, run

    path = _search_file(plan)
    plans = replaced.plans(path)
    place = search_dir or _default_place("runs", path)
    built = engine.build("processes:1")  # A trial that is killed for lack of memory fails, and the search continues.
    if len(plans) > 1 or output is not None:
        if output is None:
            output = f"{place}/comparison"
        else:
            check_writable(output.rpartition("/")[0] or ".")
        verdict = compare.compare(plans, overrides or (), place, built, output, new_screen())
        terminal.line(f"\n{verdict}\ncomparison  {output}.md")
        return
    [only] = plans.values()
    _print_best(run.best_of(run.search(only, overrides or (), place, built, new_screen())), place)


def _print_best(best: Any, place: str) -> None:
    """Prints the best trial of a search and the search directory; on a terminal also the settings of the trial."""
    if best is None:
        terminal.line("\nno trial has finished: there is no best setting")
        terminal.line(f"search directory  {place}")
        return
    terminal.line()
    found = {"best trial": str(best.number), "validation top-1": f"{100 * best.top1:.2f} %"}
    found |= {"its configuration": f"{place}/best.yaml", "search directory": place}
    plain = "\n".join(f"{name}  {value}" for name, value in found.items())
    if terminal.is_terminal():
        terminal.table(("setting of the best trial", "value"), best.settings.items(), "")
    terminal.facts(list(found.items()), plain)


def _search_file(name: str) -> str:
    """Returns the path of a search, given as a path, as a name, or as a name without `search/`.

    A run may have the name of a search without `search/`, such as `lab/two_routes/symmetric`; the search is meant.
    """
    if shipped.exists(name):
        return name
    found = (shipped.find(each) for each in (f"search/{name}", name))
    return next((path for path in found if shipped.exists(path)), name)


@app.command(epilog=_examples("table", "table two_routes/5", "table two_routes/4 --lab"))
@with_option_groups
def table(
    folders: FolderOptions,
    engine: EngineOptions,
    name: Annotated[str | None, typer.Argument(metavar="[PAPER/N]", help="Default: list all tables.")] = None,
    lab: Lab = False,
    imports: Imports = None,
) -> None:
    """Make a table of a paper from run directories, with our numbers beside the paper's."""
    _start(imports)
    _make("table", name, lab, folders, engine)


@app.command(epilog=_examples("figure", "figure fa_mechanism/1b", "figure two_routes/3 --lab"))
@with_option_groups
def figure(
    folders: FolderOptions,
    engine: EngineOptions,
    name: Annotated[str | None, typer.Argument(metavar="[PAPER/N]", help="Default: list all figures.")] = None,
    lab: Lab = False,
    recordings: Annotated[
        str | None, typer.Option(help="File of recorded responses, for two_routes/6.", callback=FILE)
    ] = None,
    images: Annotated[
        str | None, typer.Option(help="File of the images shown in the recordings.", callback=FILE)
    ] = None,
    imports: Imports = None,
) -> None:
    """Make a figure of a paper from run directories: a PNG file, the CSV file of its data, and Markdown."""
    _start(imports)
    _make("figure", name, lab, folders, engine, recordings=recordings, images=images)


@app.command(epilog=_examples("lab fa_mechanism --engine processes:2"))
@with_option_groups
def lab(
    paper: Annotated[str, typer.Argument(metavar="PAPER", help="two_routes, fa_mechanism, wide_networks or cifar10.")],
    folders: FolderOptions,
    engine: EngineOptions,
    imports: Imports = None,
) -> None:
    """Train the lab profile of a paper and make its tables and figures, except those that take hours or need files.

    The same command resumes.
    """
    _start(imports)
    from neural_alignment.papers import commands

    commands.make_all(paper, folders.given(), engine.execution())


def _make(
    kind: str, name: str | None, lab: bool, folders: FolderOptions, engine: EngineOptions, **files: str | None
) -> None:
    """Makes one table or figure, or lists them all."""
    from neural_alignment.papers import commands, registry

    if name is None:
        given = {**vars(folders), **files, "lab": lab or None}
        if unused := [f"--{option}" for option, value in given.items() if value is not None]:
            reads_files = unused[0] in ("--recordings", "--images")
            named = [item for item in commands.ITEMS if item.kind == kind]
            example = next(each.name for each in named if not reads_files or each.needs.startswith("--recordings"))
            raise InputError(f"{unused[0]} needs the name of a {kind}, such as {example}")
        terminal.line(commands.listing(kind, engine.build(PROCESSES).slots))
        return
    item = registry.find(commands.ITEMS, kind, name)
    folders.given().check(item)
    if item.profile(lab) != "lab":
        trains = "which trains no runs" + (" without --lab" if "lab" in item.cells else "")
        engine.check_unused(f"{kind} {name}, {trains}")
    execution = engine.execution()
    source = folders.given().source(item, item.profile(lab), **files, say=execution.screen.line)
    terminal.line(commands.make(item, source, execution))


@app.command(epilog=_examples("schema > schema.json"))
def schema(imports: Imports = None) -> None:
    """Print the JSON Schema of configuration files, for editors."""
    _start(imports)
    from neural_alignment import config as configuration

    terminal.raw(json.dumps(configuration.json_schema(), indent=2))


@app.command(
    epilog=_examples("configs", "configs two_routes/resnet18", "configs two_routes/resnet18/symmetric --copy my.yaml")
)
def configs(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME]", help="A configuration to print, or a folder to list.", autocompletion=completed
        ),
    ] = None,
    copy: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write the configuration to a new file.", callback=ANY_PATH)
    ] = None,
) -> None:
    """List the configurations that come with the package, or print or copy one, complete and without a base."""
    if name is not None:  # Other commands accept paths of these configurations too.
        name = shipped.name_of(shipped.find(name)) or name
    listed = [each for each in shipped.names() if name is None or each.startswith(f"{name.rstrip('/')}/")]
    if listed and copy is not None:
        raise InputError(f"--copy needs the name of one configuration, such as {listed[0]}")
    if listed:
        width = max(map(len, listed))
        rows = [(each, (shipped.header(each) or [""])[0]) for each in listed]
        plain = "\n".join(f"{each:{width}}  {header}".rstrip() for each, header in rows)
        terminal.table(("name", "shows"), rows, plain)
        return
    shipped.check_name(name)
    _start(None)
    from neural_alignment.search import copies

    if copy is None:
        terminal.raw(copies.text(name).removesuffix("\n"))
    else:
        copies.write(name, copy)
        terminal.line(f"written: {copy}")


def _start(imports: Sequence[str] | None) -> None:
    """Imports TensorFlow with the settings of the command line, which child processes inherit, and then the plugins.

    By default, TensorFlow uses oneDNN only on processors with AVX-512 VNNI. On processors with AVX2, convolutions
    without oneDNN take twice as long. The user may have chosen another backend of Keras for other programs.
    """
    os.environ["KERAS_BACKEND"] = "tensorflow"
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    quiet.import_tensorflow()
    plugins.import_modules(imports or ())


def run_name(config: str) -> str:
    """Returns the path of a file below a `configs` folder, or only the name of any other file, without extension."""
    path = shipped.find(config)
    if name := shipped.name_of(path):
        return name
    parts = Path(os.path.splitext(os.path.normpath(path))[0]).parts
    return "/".join(parts[parts.index("configs") + 1 :] if "configs" in parts[:-1] else parts[-1:])


def _default_place(root: str, config: str, smoke: bool = False) -> str:
    """Returns the path below `root` for the results of a configuration; those of a quick test are below `smoke`.

    An option with a path may lead anywhere; a name that is derived from the path of a file stays below `root`.
    """
    from neural_alignment import files

    return files.confined(root, f"{'smoke/' if smoke else ''}{run_name(config)}")


def _print_result(result: object, summary: str, criterion: object) -> None:
    """Prints the accuracy or loss, the angle of each layer, the path of the run directory, and that of its summary."""
    terminal.line(f"\nvalidation {criterion.name}  {criterion.text(result.metrics[criterion.column])}")
    if result.weight_angles:
        terminal.line()
        _print_angles(result.weight_angles)
    terminal.line(f"\nrun directory  {result.path}\nsummary        {summary}")


def _evaluation_lines(row: Mapping[str, float]) -> list[str]:
    """Returns the lines of an evaluation for a terminal."""
    from neural_alignment.training import callbacks

    return [part for line in callbacks.lines_by_stage(row) for part in terminal.folded(line)]


def _print_angles(angles: Mapping[str, float]) -> None:
    """Prints the angle of each layer; on a terminal, those of a deep network by stage, and then in several columns."""
    from neural_alignment.training import stages

    header = ("layer", "angle of W to B^T (degrees)")
    rows = [(layer, f"{angle:.1f}") for layer, angle in angles.items()]
    width = max(map(len, [*angles, "layer"]))
    lines = [f"{layer:{width}}  {angle}" for layer, angle in (header, *rows)]
    if not terminal.is_terminal() or len(angles) <= stages.MOST:
        terminal.table(header, rows, "\n".join(lines))
        return
    terminal.line("angle of W to B^T (degrees)")
    spans = [
        (stage.name, len(stage.layers), *(f"{angle:.1f}" for angle in span)) for stage, *span in stages.spans(angles)
    ]
    terminal.table(("stage", "layers", "smallest", "median", "largest"), spans, "")
    terminal.line()
    terminal.line(terminal.columns([f"{layer:{width}}  {angle:>5}" for layer, angle in rows]))


INTERRUPTED = 130
"""Return value of Typer after Ctrl-C."""


def main() -> None:
    """Runs the command line; turns errors of the user into one line and an exit code."""
    terminal.prepare()
    try:
        _check_working_directory()
        if app(sys.argv[1:] or ["--help"], standalone_mode=False) != INTERRUPTED:
            sys.exit(0)
        _exit(_stopped(), 1)
    except Unavailable as error:
        _exit(f"error: {error}", 4)
    except InputError as error:
        _exit(f"error: {error}", 2)
    except Diverged as error:
        _exit(f"diverged: {error}", 3)
    except Stopped as error:
        _exit(f"stopped: {error}", 1)
    except (KeyboardInterrupt, typer.Abort):
        _exit(_stopped(), 1)
    except Exception as error:
        # Errors of Typer, such as a wrong option. Their class has different names in different versions.
        is_from_typer = hasattr(error, "format_message")
        line = f"{error.format_message().rstrip('.')}; see --help" if is_from_typer else _system_message(error)
        if line is None:
            raise
        _exit(f"error: {line}", 2)


def _check_working_directory() -> None:
    """Checks that the working directory exists, without which no relative path can be used.

    Raises:
        InputError: if it was deleted.
    """
    try:
        os.getcwd()
    except FileNotFoundError:
        raise InputError("the working directory no longer exists; change to another one") from None


_RESUMING = {"search", "compare", "table", "figure", "lab"}
"""Commands that continue where they stopped if they are repeated."""


def _stopped() -> str:
    """Returns the last line after Ctrl-C."""
    command = sys.argv[1] if len(sys.argv) > 1 else ""
    if command == "train":
        return "stopped; continue with --resume"
    return "stopped; the same command continues" if command in _RESUMING else "stopped"


def _system_message(error: Exception) -> str | None:
    """Returns the message of an error about files, file systems, permissions or memory; None for any other error."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):  # Of an output.
        return f"cannot write: {error.strerror}"
    message = shortened(" ".join((getattr(error, "message", None) or str(error)).rpartition("}} ")[2].split()))
    exhausted = type(error).__name__ == "ResourceExhaustedError"
    if exhausted:
        from neural_alignment import files

        if full := files.full_disk(error):
            return f"{full}; free some space, then repeat the command"
    if exhausted or isinstance(error, MemoryError):
        return f"{message or 'no memory is left'}: make the model or the batch smaller, or free memory"
    is_of_files = type(error).__name__ == "PermissionDeniedError" or message.startswith("File system scheme")
    return message if is_of_files else None


def _exit(line: str, code: int) -> None:
    terminal.error(line)
    sys.exit(code)


def program() -> None:
    """Runs the command line as the whole of a process, as the installed script does.

    After an error the process does not wait for a thread that traces the graph of a step, which can take a minute.
    """
    try:
        main()
    except SystemExit as end:
        stepping = sys.modules.get("neural_alignment.training.stepping")  # An import would import TensorFlow.
        if end.code and stepping is not None and stepping.is_tracing():
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(end.code)
        raise


if __name__ == "__main__":
    program()

"""The command line: `neural-alignment train | evaluate | describe | compare | schema`.

Exit codes: 0 done; 2 the user's input is wrong; 3 the training diverged; 1 anything else. TensorFlow is imported by the
commands that need it, not by `--help`.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from neural_alignment.errors import Diverged, InputError, Stopped

app = typer.Typer(
    help="Train networks whose error travels back through weights of its own.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

ConfigPath = Annotated[str, typer.Argument(metavar="CONFIG", help="A YAML file, such as configs/quickstart.yaml.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY.PATH=VALUE", help="Override a key; may be repeated.")
]
Smoke = Annotated[bool, typer.Option("--smoke", help="Apply the file's `smoke` overrides: two steps on CPU.")]


@app.command()
def train(
    config: ConfigPath,
    overrides: Overrides = None,
    run_dir: Annotated[str | None, typer.Option(help="Directory to make; runs/<config> by default.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier run.")] = False,
    smoke: Smoke = False,
) -> None:
    """Train one run from a YAML file."""
    _start_tensorflow()
    from tqdm import tqdm

    from neural_alignment import config as configuration
    from neural_alignment.training import callbacks, files, run

    if resume and force:
        raise InputError("--resume and --force exclude each other; give one of them")
    # An explicit --run-dir may be anywhere; a name that follows from a file stays below runs.
    run_dir = run_dir or files.confined("runs", f"{'smoke/' if smoke else ''}{run_name(config)}")
    settings = configuration.load(config, overrides or (), smoke)
    progress = callbacks.Progress(tqdm.write, _quiet_bar if not sys.stderr.isatty() else tqdm)
    result = run.train(settings, run_dir, resume, force, progress)
    _print_result(result)


@app.command()
def evaluate(
    run_dir: Annotated[str, typer.Argument(metavar="RUN", help="A finished run directory.")],
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
    configs: Annotated[list[str], typer.Argument(metavar="CONFIG...", help="YAML files, one row each.")],
    output: Annotated[str, typer.Option(help="Where the tables go: OUTPUT.csv and OUTPUT.md.")],
    seeds: Annotated[str, typer.Option(help="Seeds, separated by commas.")] = "0,1,2",
    overrides: Overrides = None,
    runs: Annotated[str, typer.Option(help="Where the run directories go.")] = "runs",
) -> None:
    """Train several configurations with several seeds and write a table; what is finished is not trained again."""
    _start_tensorflow()
    from tqdm import tqdm

    from neural_alignment.training import callbacks, compare, files

    try:
        numbers = [int(seed) for seed in seeds.split(",")]
    except ValueError:
        raise InputError(f"--seeds must be integers separated by commas, such as 0,1,2; found {seeds!r}") from None

    def progress() -> callbacks.Progress:
        return callbacks.Progress(tqdm.write, _quiet_bar if not sys.stderr.isatty() else tqdm)

    def place(config: str, seed: int) -> str:
        return files.confined(runs, f"{run_name(config)}/seed{seed}")

    print(compare.compare(configs, numbers, overrides or (), place, output, progress, print))


@app.command()
def schema() -> None:
    """Print the JSON Schema of configuration files, for editors."""
    _start_tensorflow()
    from neural_alignment import config as configuration

    print(json.dumps(configuration.json_schema(), indent=2))


def _start_tensorflow() -> None:
    """Imports TensorFlow without its announcements, which its log level does not reach: they precede the logger."""
    if os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3") == "0":
        return
    sys.stderr.flush()
    stderr = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        import tensorflow  # noqa: F401
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


def run_name(config: str) -> str:
    """Returns the path of the file below a `configs` folder, or the name of a file that lies elsewhere; no ending."""
    parts = Path(os.path.normpath(config)).with_suffix("").parts
    return "/".join(parts[parts.index("configs") + 1 :] if "configs" in parts[:-1] else parts[-1:])


def _print_result(result: object) -> None:
    """Prints accuracy, the angle of each layer, and where the run is."""
    row = result.metrics
    print(f"\nvalidation accuracy  {100 * row['top1']:.2f} %")
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
        _exit(f"stopped: {error}", 1)
    except (KeyboardInterrupt, typer.Abort):
        _exit("stopped; go on with --resume", 1)
    except Exception as error:
        # Typer's own errors, of a class that its versions name differently: a wrong option, a missing argument.
        if not hasattr(error, "format_message"):
            raise
        _exit(f"error: {error.format_message()}; see --help", 2)


def _exit(line: str, code: int) -> None:
    print(" ".join(line.split()), file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()

"""Arguments and options that several commands of the command line have, and the checks of their values."""

from __future__ import annotations

import dataclasses
import functools
import glob
import inspect
import os
import re
import typing
from collections.abc import Callable
from typing import Annotated, Any

import typer

from neural_alignment import paths, processors, shipped, terminal
from neural_alignment.errors import ArgumentError, InputError


def _path(check: Callable[[str], str]) -> Callable[..., Any]:
    """Returns the callback of an option or argument whose value is a path or a list of paths.

    Args:
        check: checks and expands one path; raises `ArgumentError` if it is wrong.
    """

    def checked(parameter: typer.CallbackParam, value: Any) -> Any:
        try:
            if value is None or isinstance(value, str):
                return value if value is None else check(value)
            return [check(each) for each in value]
        except ArgumentError as error:
            name = parameter.opts[0] if parameter.opts[0].startswith("-") else parameter.metavar.strip("[].")
            raise InputError(error.within(name).value) from None

    return checked


ANY_PATH, FILE, DIRECTORY = _path(paths.checked), _path(paths.checked_file), _path(paths.checked_directory)
TABLES = _path(lambda path: paths.checked_prefix(path, (".csv", ".md")))
COMPARISON = _path(
    lambda path: paths.checked_prefix(path, (".csv", ".md", ".png", "_importance.csv", "_importance.png"))
)
PICTURE = _path(paths.checked_picture)


def completed(incomplete: str) -> list[str]:
    """Returns the names of configurations, and the paths of YAML files and folders, that begin with a text."""
    escaped = glob.escape(incomplete)
    files = [f"{path}/" if os.path.isdir(path) else path for path in glob.glob(f"{escaped}*")]
    return [name for name in shipped.names() if name.startswith(incomplete)] + [
        path for path in sorted(files) if path.endswith(("/", ".yaml", ".yml"))
    ]


ConfigPath = Annotated[
    str,
    typer.Argument(
        metavar="CONFIG",
        help="A YAML file, or a name that `neural-alignment configs` lists, such as quickstart.",
        callback=ANY_PATH,
        autocompletion=completed,
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY.PATH=VALUE", help="Override a key of the configuration; may be repeated."),
]
Imports = Annotated[
    list[str] | None,
    typer.Option(
        "--import",
        metavar="MODULE",
        help="Import a module with your own rules, models, losses, data sources or layers; it is in the working "
        "directory or in an installed package; may be repeated.",
    ),
]
Smoke = Annotated[
    bool, typer.Option("--smoke", help="Apply the `smoke` overrides of the file: a quick test of two steps.")
]
PROCESSES = f"processes:{min(processors.count(), 4)}"
"""Default engine of the commands that train the runs of a table."""

Kind = Annotated[
    str | None,
    typer.Option(
        "--engine",
        metavar="ENGINE",
        help="Where runs are trained: in-process, one at a time in this process; processes:N, N at a time on this "
        f"machine; spark:N; tpu:NAME,NAME,...; slurm:N. Default: {PROCESSES}; for `search`, processes:1.",
    ),
]
Launcher = Annotated[
    str | None,
    typer.Option(
        metavar="COMMAND",
        help="With --engine tpu: command that trains a run on a TPU, with {tpu}, {config} and {run_dir}.",
    ),
]
SlurmOption = Annotated[
    list[str] | None,
    typer.Option(
        "--slurm",
        metavar="KEY=VALUE",
        help="With --engine slurm: partition, account, qos, constraint, time, gpus, cpus, memory (GB), save, requeues, "
        "array, setup, sbatch.OPTION, on_exit, cluster; or a YAML file of them; may be repeated. See docs/clusters.md.",
    ),
]


@dataclasses.dataclass(frozen=True)
class EngineOptions:
    """Options that choose where runs are trained."""

    engine: Kind = None
    launcher: Launcher = None
    slurm: SlurmOption = None

    def build(self, default: str) -> Any:
        """Returns the engine.

        Raises:
            ConfigError: if an option is wrong, or the engine is not available.
        """
        from neural_alignment.jobs.engines import registry

        return registry.build(default if self.engine is None else self.engine, launcher=self.launcher, slurm=self.slurm)

    def check_unused(self, where: str) -> None:
        """Checks that no option is given to a command that trains nothing.

        Args:
            where: the table or figure, for the message.

        Raises:
            InputError: if one is given.
        """
        if given := [f"--{option}" for option, value in vars(self).items() if value not in (None, [])]:
            raise InputError(f"{given[0]} has no effect on {where}; leave it out")

    def execution(self) -> Any:
        """Returns the engine and the screen for commands that train the runs of a table."""
        from neural_alignment.jobs.batch import Execution

        return Execution(self.build(PROCESSES), new_screen())


@dataclasses.dataclass(frozen=True)
class PlanOptions:
    """Options that replace keys in the file of a search."""

    config: Annotated[
        str | None, typer.Option(help="Base configuration, instead of the one in the file.", callback=ANY_PATH)
    ] = None
    trials: Annotated[
        int | None, typer.Option(help="Number of trials, instead of the file's; a larger number extends a search.")
    ] = None
    epochs: Annotated[int | None, typer.Option(help="Epochs of a trial, instead of the file's.")] = None
    algorithms: Annotated[
        str | None, typer.Option(help="tpe, random, or both separated by a comma, which compares them.")
    ] = None
    seeds: Annotated[
        str | None, typer.Option(help="Seeds, separated by commas; one search per algorithm and seed.")
    ] = None

    def plans(self, path: str) -> dict[tuple[str, int], Any]:
        """Returns algorithm and seed -> plan of the search.

        Args:
            path: the file of the search.
        """
        from neural_alignment.search import plan

        replaced = {"config": self.config, "trials": self.trials, "epochs": self.epochs}
        first = plan.load(path, **replaced)
        names = [first.algorithm]
        if self.algorithms is not None:
            names = listed("--algorithms", self.algorithms, "tpe,random")
        seeds = [first.seed] if self.seeds is None else numbers("--seeds", self.seeds)
        return {(name, n): plan.load(path, **replaced, algorithm=name, seed=n) for name in names for n in seeds}


@dataclasses.dataclass(frozen=True)
class FolderOptions:
    """Options with the folders of a paper's runs and results."""

    runs: Annotated[
        str | None,
        typer.Option(
            help="Folder of the run directories. Default: runs/lab/PAPER for the lab profile, otherwise runs/PAPER.",
            callback=DIRECTORY,
        ),
    ] = None
    output: Annotated[
        str | None,
        typer.Option(
            help="Folder for the tables and figures. Default: results/PAPER for the lab profile and for tables and "
            "figures without runs, otherwise RUNS/results.",
            callback=DIRECTORY,
        ),
    ] = None
    configs: Annotated[
        str | None,
        typer.Option(
            help="Folder of the configurations. Default: those that come with the package.", callback=DIRECTORY
        ),
    ] = None

    def given(self) -> Any:
        """Returns the folders for the commands of the papers."""
        from neural_alignment.papers import commands

        return commands.Folders(self.runs, self.output, self.configs or "")


Lab = Annotated[bool, typer.Option("--lab", help="Use the profile for 2 cores, and train its runs that are missing.")]


def new_screen() -> Any:
    """Returns the screen: a terminal shows the status in its last line; a file gets a line of status every minute."""
    from neural_alignment.jobs.batch import Screen

    last = terminal.StatusLine()
    return Screen(last.line, last.status)


def listed(option: str, text: str, example: str) -> list[str]:
    """Splits the value of an option at its commas.

    Raises:
        InputError: if a word is empty or occurs twice.
    """
    words = [word.strip() for word in text.split(",")]
    if not all(words):
        raise InputError(f"{option} must be separated by commas, such as {example}; found {text!r}")
    if twice := [word for word in words if words.count(word) > 1]:
        raise InputError(f"{option} must be different; found {twice[0]} twice in {text!r}")
    return words


def numbers(option: str, text: str) -> list[int]:
    """Returns the integers in the value of an option, which are separated by commas.

    Raises:
        InputError: if a word is not an integer, if an integer is negative or too large, or if one occurs twice.
    """
    words = [word.strip() for word in text.split(",")]
    if not all(re.fullmatch("-?[0-9]{1,10}", word) for word in words):
        raise InputError(f"{option} must be integers separated by commas, such as 0,1,2; found {text!r}")
    if wrong := [word for word in words if not 0 <= int(word) < 2**31]:
        raise InputError(f"{option} must be integers from 0 to 2147483647; found {wrong[0]}")
    return [int(word) for word in listed(option, ",".join(str(int(word)) for word in words), "0,1,2")]


def with_option_groups(command: Callable[..., None]) -> Callable[..., None]:
    """Turns each parameter of a command that is a dataclass into one command-line option per field."""
    # `typing.get_type_hints` of Python 3.10 would hide the annotation of a parameter with the default None.
    given = inspect.signature(command, eval_str=True).parameters
    groups = {name: each.annotation for name, each in given.items() if dataclasses.is_dataclass(each.annotation)}
    parameters = []
    for name, parameter in given.items():
        fields = [parameter]
        if name in groups:
            types = typing.get_type_hints(groups[name], include_extras=True)
            fields = [
                inspect.Parameter(
                    field.name, parameter.KEYWORD_ONLY, default=field.default, annotation=types[field.name]
                )
                for field in dataclasses.fields(groups[name])
            ]
        parameters += [field.replace(kind=parameter.KEYWORD_ONLY) for field in fields]

    @functools.wraps(command)
    def call(**values: Any) -> None:
        for name, group in groups.items():
            values[name] = group(**{field.name: values.pop(field.name) for field in dataclasses.fields(group)})
        command(**values)

    call.__signature__ = inspect.Signature(parameters)
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    del call.__wrapped__
    return call

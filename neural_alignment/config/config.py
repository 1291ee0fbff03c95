"""The typed configuration of a run, loaded from a YAML file and written to one.

A file may say `base: other.yaml` and then only what differs (see `yaml_files.merge`); `smoke:` holds the overrides of a
run of two steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Discriminator, Field, NonNegativeFloat, NonNegativeInt, PositiveInt, Tag

from neural_alignment import errors
from neural_alignment.alignments import RULES
from neural_alignment.config import yaml_files
from neural_alignment.config.yaml_files import merge, read_chain
from neural_alignment.data import SOURCES
from neural_alignment.errors import ConfigError
from neural_alignment.losses import DEFAULT_LOSS, LOSSES
from neural_alignment.models import MODELS
from neural_alignment.optimization import (
    WITHOUT_FLOAT64,
    AnyOptimizer,
    LossRates,
    OptimizerOptions,
    ScheduledLossRate,
)
from neural_alignment.options import Options, PathText


def _known_state(value: Any) -> Any:
    """Checks the state of `InitialState`; the error has one message instead of one per member of the union."""
    is_step = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    if value in (None, "last", "best", "final") or is_step:
        return value
    raise ValueError(f"input should be 'last', 'best', 'final' or the step of a kept state; found {value!r:.60}")


class InitialState(Options):
    """Weights of another run or of a saved model, from which a new run starts."""

    path: PathText
    """A run directory, or a .keras file."""
    state: Annotated[
        Literal["last", "best", "final"] | NonNegativeInt | None, pydantic.BeforeValidator(_known_state)
    ] = None
    """Of a run directory: `last` (the default), `best`, `final` for its model.keras, or the step of a kept state."""
    optimizer: bool = False
    """Whether to take over the optimizer's variables and the global step, from which the run then goes on; otherwise
    it starts at step 0."""
    strict: bool = True
    """Whether all weights must fit; otherwise those that do not keep their initial values, and a list is printed."""

    @pydantic.model_validator(mode="after")
    def _state_is_of_a_run(self):
        if self.state is not None and self.path.endswith(".keras"):
            raise ValueError(f"`state` has no effect with a .keras file; found {self.state!r}")
        return self


def _as_initial_state(value: Any) -> Any:
    """Returns the long form of a path that stands alone."""
    if isinstance(value, (Mapping, InitialState)):
        return value
    if isinstance(value, str):
        return {"path": value}
    raise ValueError(f"must be a path, or a mapping with the key `path`; found {value!r:.60}")


class Optimization(Options):
    """What moves W and B, and when."""

    forward: AnyOptimizer
    """J's optimizer; with no `backward`, that of J + R on all variables."""
    backward: AnyOptimizer | None = None
    """R's optimizer."""
    alternation: PositiveInt | None = None
    """Steps of J to each step of R; none for both at every step."""
    delay_epochs: NonNegativeFloat = 0.0
    """Epochs of R alone before J begins."""
    skip_idle: bool = True
    """Whether a loss at rest leaves its optimizer at rest; false lets momentum drift on, as the published code did."""
    loss_rates: Annotated[LossRates, Field(exclude_if=lambda rates: rates == LossRates())] = LossRates()
    """Factors on J and R."""
    minibatches: PositiveInt = 1
    """Equal parts of a batch whose gradients are accumulated."""

    @property
    def optimizers(self) -> dict[str, OptimizerOptions]:
        """The optimizers by their keys."""
        return {"forward": self.forward} | ({"backward": self.backward} if self.backward else {})


class Evaluation(Options):
    """What is measured, and how often."""

    every_epochs: PositiveInt = 1
    batch_size: PositiveInt | None = None
    """The training batch size where none."""
    probe_examples: NonNegativeInt = 64
    """Validation examples over which angles of projections and gradients are taken; 0 for those of the kernels alone,
    which need no pass through the network."""
    test_split: Annotated[str | None, Field(exclude_if=lambda split: split is None)] = None
    """Another split of the same data that is evaluated as well, where the source has `validation_split`: `test_J`,
    `test_top1` and `test_top5` of `metrics.csv`."""


class Logging(Options):
    """What a run writes beside `metrics.csv`: for TensorBoard, and kernels."""

    tensorboard: bool = True
    histograms: bool = False
    scatter: bool = True
    """Images of W against B, layer by layer."""
    kernels: list[str] = Field(default_factory=list)
    """Patterns of the names of layers whose W and B are kept at every evaluation, in kernels/STEP.npz."""


class Checkpoints(Options):
    """What of a run is kept on disk while it lasts; it goes on bit for bit from any step."""

    every_minutes: NonNegativeFloat = 10.0
    """Save between evaluations when this much time has passed; 0 for at evaluations alone."""
    every_steps: PositiveInt | None = None
    """Save after this many global steps as well."""
    # Left out where it is the default, so that files of earlier runs are written as they were.
    keep: Annotated[int, Field(gt=0, le=1000, exclude_if=lambda count: count == 1)] = 1
    """Number of last states to keep; `train --resume-from STEP` goes back to one of them."""
    keep_best: bool = True
    """Keep the state of the best validation top-1 beside the last ones."""


class Runtime(Options):
    """Where and how a step is executed. A run may be resumed with another one."""

    strategy: Literal["auto", "cpu", "gpu", "mirrored", "multi_worker", "tpu"] = "auto"
    """`mirrored`: all devices of this machine. `multi_worker`: the machines of TF_CONFIG. `auto`: what is there."""
    replicas: Annotated[int, Field(gt=0, le=4096)] | None = None
    """Devices of a mirrored run; all GPUs where none. Without a GPU, parts that the CPU is cut into."""
    devices: Annotated[list[NonNegativeInt], Field(min_length=1, max_length=4096)] | None = None
    """Numbers of the GPUs to use, as TensorFlow counts them: one for `gpu`, one or more for `mirrored` and `auto`."""
    tpu: str | None = None
    """`local` on a TPU VM, or the TPU's name; the environment variable TPU_NAME, else `local`, where none."""
    tpu_zone: Annotated[str, Field(min_length=1)] | None = None
    """Zone of a TPU that is given by name; that of the machine where none."""
    tpu_project: Annotated[str, Field(min_length=1)] | None = None
    """Google Cloud project of a TPU that is given by name; that of the machine where none."""
    precision: Literal["float32", "mixed_bfloat16", "float64"] = "float32"
    """Of the network; weights, R and angles are float32 in the first two. float64, slow on GPUs, is for comparisons."""
    synchronize_batch_norm: bool = False
    """Whether batch normalisation sees the batch of all replicas, not that of each."""
    jit_compile: bool = False
    """Compile with XLA; slower than plain graphs on CPU. A TPU always does."""
    steps_per_execution: PositiveInt = 1
    """Steps between two returns to Python; a TPU wants 100 or more. Fewer where fewer are left to the next evaluation
    or `checkpoints.every_steps`, and where they take longer than a second: signals are heeded in between."""

    @pydantic.model_validator(mode="after")
    def _options_have_their_strategy(self):
        for key, strategy in (("replicas", "mirrored"), *((key, "tpu") for key in ("tpu", "tpu_zone", "tpu_project"))):
            if getattr(self, key) is not None and self.strategy != strategy:
                raise ValueError(f"`{key}` has an effect with strategy {strategy!r} alone; found {self.strategy!r}")
        for key in ("tpu_zone", "tpu_project"):
            if getattr(self, key) is not None and self.tpu == "local":
                raise ValueError(f"`{key}` has an effect with the name of a TPU alone; found it with tpu 'local'")
        return self

    @pydantic.model_validator(mode="after")
    def _devices_fit(self):
        if self.devices is None:
            return self
        if self.strategy not in ("auto", "gpu", "mirrored"):
            raise ValueError(
                f"`devices` are numbers of GPUs, for strategy 'auto', 'gpu' or 'mirrored'; found {self.strategy!r}"
            )
        if twice := [number for number in self.devices if self.devices.count(number) > 1]:
            raise ValueError(f"`devices` must name each GPU once; found {twice[0]} twice in {self.devices}")
        if self.strategy == "gpu" and len(self.devices) > 1:
            raise ValueError(
                f"`devices` must be one GPU with strategy 'gpu', or choose 'mirrored'; found {self.devices}"
            )
        if self.replicas is not None:
            raise ValueError(f"`replicas` follow from `devices`: leave one of them out; found {self.replicas}")
        return self


AnyInitialState = Annotated[
    InitialState, pydantic.BeforeValidator(_as_initial_state, json_schema_input_type=str | InitialState)
]
Rule = RULES.any_registered
Alignments = Annotated[
    Annotated[Rule, Tag("one")] | Annotated[list[Rule], Tag("many")],
    Discriminator(lambda value: "many" if isinstance(value, (list, tuple)) else "one"),
]


class Config(Options):
    """One run."""

    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Of initial weights, data order, augmentation and noise."""
    epochs: PositiveInt
    """Epochs of J."""
    max_steps: PositiveInt | None = None
    """Ends the run early, after this many global steps."""
    batch_size: PositiveInt
    data: SOURCES.any_registered
    model: MODELS.any_registered
    loss: LOSSES.any_registered = DEFAULT_LOSS
    """J, but for weight decay."""
    init_from: Annotated[AnyInitialState | None, Field(exclude_if=lambda state: state is None)] = None
    """The weights to start from: a run directory, a .keras file, or a mapping that says more; drawn where none."""
    alignment: Alignments | None = None
    """One rule for all layers, or a list of rules with `layers:` patterns; plain backpropagation where none."""
    weight_decay: NonNegativeFloat = 0.0
    """J's L2 coefficient on forward kernels and dense biases."""
    optimization: Optimization
    evaluation: Evaluation = Evaluation()
    logging: Logging = Logging()
    checkpoints: Checkpoints = Checkpoints()
    runtime: Runtime = Runtime()

    @property
    def rules(self) -> list[Any]:
        """The rules, however many."""
        if self.alignment is None:
            return []
        return list(self.alignment) if isinstance(self.alignment, (list, tuple)) else [self.alignment]

    @pydantic.model_validator(mode="after")
    def _fits_together(self):
        for check in (
            self._check_targets,
            self._check_optimization,
            self._check_rules,
            lambda: self.model.check_run(self),
            self._check_evaluation,
        ):
            check()
        return self

    def _check_targets(self):
        kinds = {f"data.source {self.data.source}": self.data.targets, f"loss.kind {self.loss.kind}": self.loss.targets}
        for name, targets in kinds.items():
            if targets != self.model.targets:
                raise ValueError(
                    f"model.name {self.model.name} is for {self.model.targets} as targets, but {name} is for {targets}"
                )

    def _check_evaluation(self):
        if self.evaluation.test_split is not None and not self.data.has_splits:
            raise ValueError(
                f"evaluation.test_split must be null with data.source {self.data.source}, which has no splits by name; "
                f"found {self.evaluation.test_split}"
            )

    def _check_optimization(self):
        plan, learns = self.optimization, any(rule.learns for rule in self.rules)
        if self.batch_size % plan.minibatches:
            raise ValueError(
                f"optimization.minibatches must divide batch_size ({self.batch_size}); found {plan.minibatches}"
            )
        idle = {"backward": plan.backward, "alternation": plan.alternation, "delay_epochs": plan.delay_epochs}
        idle["loss_rates.backward"] = plan.loss_rates.backward != 1
        for key, value in idle.items():
            if value and not learns:
                raise ValueError(f"optimization.{key} has no effect: no rule of this run trains a backward kernel")
        if plan.delay_epochs >= self.epochs * ((plan.alternation or 0) + 1):
            raise ValueError(
                f"optimization.delay_epochs must be less than the length of the run ({self.epochs} epochs); "
                f"found {plan.delay_epochs}"
            )
        if plan.loss_rates.forward == 0 and not learns:
            raise ValueError(
                "optimization.loss_rates.forward must not be 0: no rule of this run trains a backward kernel, and "
                "nothing would be trained"
            )
        for key, options in plan.optimizers.items():
            if options.name in WITHOUT_FLOAT64 and self.runtime.precision == "float64":
                raise ValueError(
                    f"optimization.{key}.name must not be {options.name} with runtime.precision float64, which it does "
                    "not support in Keras"
                )
        self._check_schedules()
        which = "backward" if plan.backward else "forward"
        schedule = (plan.backward or plan.forward).schedule
        if schedule and schedule.warmup_epochs and plan.delay_epochs:
            raise ValueError(
                f"optimization.{which}.schedule.warmup_epochs must be 0 with a delay, or R would rest during it; "
                f"found {schedule.warmup_epochs} with delay_epochs {plan.delay_epochs}"
            )
        if self.evaluation.every_epochs > self.epochs:
            raise ValueError(
                f"evaluation.every_epochs must not exceed epochs ({self.epochs}); found {self.evaluation.every_epochs}"
            )

    @property
    def epochs_of_j(self) -> float:
        """Epochs of J in the run: those of a delay are part of its length."""
        return self.epochs - self.optimization.delay_epochs / ((self.optimization.alternation or 0) + 1)

    def _check_schedules(self):
        plan = self.optimization
        schedules = {key: (options.schedule, self.epochs_of_j) for key, options in plan.optimizers.items()}
        steps = self.epochs * ((plan.alternation or 0) + 1)
        for key, rate in plan.loss_rates:
            if isinstance(rate, ScheduledLossRate):
                schedules[f"loss_rates.{key}"] = rate.schedule, steps
        for key, (schedule, epochs) in schedules.items():
            if schedule is None:
                continue
            try:
                schedule.check(epochs)
            except ValueError as error:
                raise ValueError(f"optimization.{key}.schedule.{error}") from None

    def _check_rules(self):
        for rule in self.rules:
            rule.check_run(self)
        if isinstance(self.alignment, (list, tuple)):
            for index, rule in enumerate(self.rules):
                if rule.layers is None and index < len(self.rules) - 1:
                    raise ValueError(f"alignment.{index} has no `layers` and takes all: the rules after it get none")


for _registry in (RULES, SOURCES, MODELS, LOSSES):
    _registry.is_used_by(Config)


def load(path: str | Path, overrides: Sequence[str] = (), smoke: bool = False) -> Config:
    """Reads a configuration file.

    Args:
        path: the YAML file.
        overrides: `key.path=value`, the value in YAML.
        smoke: whether to apply what the file says under `smoke`.

    Returns:
        The configuration, with defaults filled in.

    Raises:
        ConfigError: in one line, naming file, key path, what was found and what is allowed.
    """
    chain = read_chain(str(path))
    data: dict[str, Any] = {}
    for _, layer in reversed(chain):
        data = merge(data, layer)
    origins = [(f"{name}: ", layer) for name, layer in chain]
    trial = data.pop("smoke", None)
    if smoke:
        if not isinstance(trial, Mapping):
            raise ConfigError(f"{path}: smoke: must be a mapping of overrides; found {trial!r}")
        data = merge(data, trial)
        origins = [(f"{name}: smoke.", layer.get("smoke")) for name, layer in chain] + origins
    for override in overrides:
        said = yaml_files.apply_override(data, override)
        origins.insert(0, (f"{path} --set {yaml_files.shortened(override)}: ", said))
    return parse(data, f"{path}: ", origins)


def parse(data: Mapping[str, Any], source: str = "", origins: Sequence[tuple[str, Any]] = ()) -> Config:
    """Validates plain data.

    Args:
        data: what a file with no `base` holds.
        source: begins a message; `origins` says it more exactly.
        origins: the files and overrides that `data` was merged from, as of `yaml_files.origin`.

    Raises:
        ConfigError: in one line.
    """
    try:
        return Config.model_validate(data)
    except pydantic.ValidationError as error:
        mistake = errors.first_mistake(error, Config)
        raise ConfigError(mistake.line(yaml_files.origin(origins, mistake, source))) from None
    except RecursionError:
        raise ConfigError(f"{source}the configuration is nested too deeply") from None


def override(config: Config, overrides: Sequence[str]) -> Config:
    """Returns a configuration with some keys replaced.

    Args:
        config: the configuration.
        overrides: `key.path=value`, the value in YAML, as of `load`.

    Raises:
        ConfigError: in one line.
    """
    data = plain(config)
    for each in overrides:
        yaml_files.apply_override(data, each)
    return parse(data)


def dump(config: Config) -> str:
    """Returns the configuration as YAML with all defaults written out; `load` reads it back to the same."""
    return yaml_files.write(plain(config))


def plain(config: Config) -> dict[str, Any]:
    """Returns the configuration as plain data with all defaults: the content of the file that `dump` writes."""
    data = config.model_dump(mode="json", exclude_none=True)
    written = data.get("alignment", [])
    for rule, mapping in zip(config.rules, written if isinstance(written, list) else [written], strict=True):
        # What a run gives to a rule stays open, or the rule would keep the defaults as its own.
        for key in {"seed", "steps_per_epoch"} - rule.model_fields_set:
            mapping.pop(key, None)
    return data


def json_schema() -> dict[str, Any]:
    """Returns a JSON Schema for editors: keys, types and allowed values; `load` alone checks what is missing.

    A file with a `base` says only what differs, so nothing is required here.
    """
    schema = _loosen(Config.model_json_schema())
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "neural_alignment run"
    schema["properties"]["base"] = {"type": "string", "description": "File that this one differs from."}
    schema["properties"]["smoke"] = {"type": "object", "description": "Overrides for a run of two steps."}
    return schema


def _loosen(node: Any) -> Any:
    """Removes what a partial mapping would not satisfy."""
    if isinstance(node, list):
        return [_loosen(item) for item in node]
    if not isinstance(node, dict):
        return node
    loose = {key: _loosen(value) for key, value in node.items() if key not in ("required", "discriminator")}
    if "oneOf" in loose:
        loose["anyOf"] = loose.pop("oneOf")
    return loose

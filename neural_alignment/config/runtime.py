"""Options for the devices of a run and the execution of its steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import pydantic
from pydantic import Field, NonNegativeInt, PositiveInt

from neural_alignment.errors import ArgumentError
from neural_alignment.options import Options


class Runtime(Options):
    """The devices of a run and the execution of its steps.

    A run may be resumed with different values, except of `precision` and `synchronize_batch_norm`, which change the
    result. Several replicas end with the weights of one, except with batch normalization that is not synchronized, and
    with dropout and other random layers of Keras, which draw the same numbers on every replica.
    """

    decisive_keys: ClassVar[tuple[str, ...]] = ("precision", "synchronize_batch_norm")
    """Keys that affect the result of a run."""

    strategy: Literal["auto", "cpu", "gpu", "mirrored", "multi_worker", "tpu"] = "auto"
    """`mirrored`: several devices of this machine. `multi_worker`: the machines of TF_CONFIG, without it the tasks of
    `srun`. `auto`: the first that is available of the machines of TF_CONFIG, the TPU of TPU_NAME, the GPUs, and the
    CPU."""
    replicas: Annotated[int, Field(gt=0, le=4096)] | None = None
    """Number of devices of a mirrored run. Default: all GPUs. Without a GPU, the CPU is divided into this many virtual
    devices."""
    devices: Annotated[list[NonNegativeInt], Field(min_length=1, max_length=4096)] | None = None
    """Numbers of the GPUs to use, as TensorFlow counts them: one for `gpu`, one or more for `mirrored` and `auto`."""
    tpu: str | None = None
    """`local` on a TPU VM, or the name of the TPU. Default: the environment variable TPU_NAME, otherwise `local`."""
    tpu_zone: Annotated[str, Field(min_length=1)] | None = None
    """Zone of a TPU that is given by name. Default: the zone of the machine."""
    tpu_project: Annotated[str, Field(min_length=1)] | None = None
    """Google Cloud project of a TPU that is given by name. Default: the project of the machine."""
    precision: Literal["float32", "mixed_bfloat16", "float64"] = "float32"
    """Precision of the network. Weights, R and angles are float32 with the first two. float64 is slow on GPUs and meant
    for comparisons."""
    synchronize_batch_norm: bool = False
    """Whether batch normalization uses the statistics of the whole batch instead of those of each replica's part."""
    jit_compile: bool = False
    """Whether steps are compiled with XLA, which is slower than plain graphs on CPU. A TPU always compiles."""
    steps_per_execution: PositiveInt = 1
    """Number of steps in one graph call; on a TPU use 100 or more. A call ends earlier at an evaluation or at a save of
    `checkpoints.every_steps`, and after one second, so that signals are handled. With `multi_worker` no call ends after
    one second: at a signal, a call or an evaluation in progress is finished first."""

    @classmethod
    def decisive(cls, options: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the options that affect the result of a run and do not have their defaults.

        Args:
            options: options of this class, as plain data. Keys may be missing.
        """
        defaults = {key: cls.model_fields[key].default for key in cls.decisive_keys}
        return {key: options[key] for key, default in defaults.items() if options.get(key, default) != default}

    @pydantic.model_validator(mode="after")
    def _check_strategy(self):
        for key, strategy in (("replicas", "mirrored"), *((key, "tpu") for key in ("tpu", "tpu_zone", "tpu_project"))):
            value = getattr(self, key)
            if value is not None and self.strategy != strategy:
                raise ArgumentError(key, f"needs strategy {strategy!r}, not {self.strategy!r}", value)
        for key in ("tpu_zone", "tpu_project"):
            value = getattr(self, key)
            if value is not None and self.tpu == "local":
                raise ArgumentError(key, "needs the name of a TPU, not tpu 'local'", value)
        return self

    @pydantic.model_validator(mode="after")
    def _check_devices(self):
        if self.devices is None:
            return self
        if self.strategy not in ("auto", "gpu", "mirrored"):
            requirement = f"needs strategy 'auto', 'gpu' or 'mirrored', not {self.strategy!r}"
            raise ArgumentError("devices", requirement, self.devices)
        if any(self.devices.count(number) > 1 for number in self.devices):
            raise ArgumentError("devices", "must name each GPU once", self.devices)
        if self.strategy == "gpu" and len(self.devices) > 1:
            raise ArgumentError(
                "devices", "must be one GPU with strategy 'gpu'; 'mirrored' takes several", self.devices
            )
        if self.replicas is not None:
            raise ArgumentError("replicas", "must be null with `devices`, from which it follows", self.replicas)
        return self

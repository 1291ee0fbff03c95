"""The devices of a run: one device, several devices of one machine, several machines, or a Cloud TPU."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import tensorflow as tf
from tensorflow.python.eager import context as tf_context  # There is no public way to report errors to workers.

from neural_alignment.config import Config, Runtime
from neural_alignment.data import Dataset, Facts
from neural_alignment.errors import (
    ConfigError,
    Diverged,
    InputError,
    RunError,
    Stopped,
    TPUUnavailable,
    Words,
    WrongValue,
    one_line,
    shortened,
)
from neural_alignment.training import slurm_workers
from neural_alignment.training.model import AlignedModel
from neural_alignment.training.step_loop import compiles_by_itself

EXAMPLE = '{"cluster": {"worker": ["host0:2222", "host1:2222"]}, "task": {"type": "worker", "index": 0}}'
"""`TF_CONFIG` of the first of two workers."""

SECONDS_PER_CALL = 1.0
"""Maximum number of seconds in one graph call. Python handles signals between calls."""

SECONDS_TO_REPORT = 120.0
"""Maximum number of seconds that a failed worker waits while it reports its error to the other workers."""


@dataclass(frozen=True)
class Distribution:
    """The devices of a run, and the number of this process among the processes of the run.

    Attributes:
        strategy: the TensorFlow strategy, which runs a step on every replica and sums the gradients.
        worker: number of this process, from 0.
        workers: number of processes that share the run, each with the same configuration.
    """

    strategy: tf.distribute.Strategy
    worker: int = 0
    workers: int = 1

    @property
    def replicas(self) -> int:
        """The number of devices that share a batch."""
        return self.strategy.num_replicas_in_sync

    @property
    def readers(self) -> int:
        """The number of machines that read data: the workers, or the hosts of a TPU slice under one process."""
        return max(self.workers, getattr(self.strategy.extended, "num_hosts", 1))

    @property
    def chief(self) -> bool:
        """Whether this process writes the run directory."""
        return self.worker == 0

    def scope(self) -> contextlib.AbstractContextManager[Any]:
        """Returns the context in which models, optimizers and metrics must be created."""
        return self.strategy.scope()

    def check(self, config: Config) -> None:
        """Checks that a run can use these devices.

        Raises:
            ConfigError: if a batch cannot be divided evenly among the replicas, or an option or the model does not
                support several replicas or several workers.
        """
        if config.runtime.jit_compile and self.replicas > 1 and not compiles_by_itself(self.strategy):
            requirement = f"is for one device, or a TPU, not for {self.replicas} replicas"
            raise ConfigError(WrongValue("runtime.jit_compile", requirement, True))
        if self.readers > 1 and getattr(config.data, "tolerate_corrupt", 0):
            requirement = (
                "must be 0 with several workers or hosts of a TPU slice, which do not see each other's damaged records"
            )
            raise ConfigError(WrongValue("data.tolerate_corrupt", requirement, config.data.tolerate_corrupt))
        check_replicas(config, self.replicas)

    def check_evaluation(self, config: Config, dataset: Facts) -> None:
        """Checks that the last validation batch is not filled up for a model that reads the whole batch.

        Raises:
            ConfigError: if it is.
        """
        if not (self._fills and config.model.uses_batch_statistics):
            return
        examples, size = dataset.validation_examples, dataset.batching.validation_batch_size
        if examples % size:
            requirement = (
                f"must divide the {examples} examples, because {config.model.name} uses the statistics of the whole "
                "batch, and a TPU fills the last batch up with zeros"
            )
            raise ConfigError(WrongValue("evaluation.batch_size", requirement, size))

    def train(self, dataset: Dataset, start_step: int) -> Any:
        """Returns the training batches from `start_step` on, divided among the replicas."""
        return self._shared(
            lambda worker, workers: dataset.train(start_step, worker=worker, workers=workers),
            dataset.batching.batch_size,
        )

    def validation(self, dataset: Dataset) -> Any:
        """Returns the validation batches, divided among the replicas.

        With several replicas, or on a TPU, the last batch is filled up with examples of weight 0.
        """
        return self._shared(
            lambda worker, workers: dataset.validation(worker=worker, workers=workers, fill=self._fills),
            dataset.batching.validation_batch_size,
        )

    def evaluate(self, model: AlignedModel, dataset: Dataset) -> dict[str, float]:
        """Returns J and the metrics over the validation split. Every example counts once."""
        model.reset_metrics()
        model.make_test_function()
        batches = iter(self.validation(dataset))
        # `model.evaluate` does not accept batches that are divided among workers.
        left = -(-dataset.validation_examples // dataset.batching.validation_batch_size)
        results, made = {}, left
        while left and made:  # There may be one batch less, because damaged records are left out.
            made, results = model.test_function.steps(batches, left, self.seconds_per_call)
            left -= made
        return {name: float(value) for name, value in results.items()}

    @property
    def seconds_per_call(self) -> float:
        """Maximum number of seconds in one graph call before checking for signals.

        There is no limit with several workers. They exchange gradients at every step, so the calls of all workers must
        have the same number of steps.
        """
        return SECONDS_PER_CALL if self.workers == 1 else math.inf

    @property
    def reads_whole_batches(self) -> bool:
        """Whether a step gets the batches of the data set itself, because this process has the only replica."""
        return self.workers == 1 and not self._fills

    @property
    def _fills(self) -> bool:
        """Whether all batches must have the same shape: to be divided evenly, or for the compiler of a TPU."""
        return self.replicas > 1 or compiles_by_itself(self.strategy)

    def _shared(self, batches: Callable[[int, int], tf.data.Dataset], batch_size: int) -> Any:
        if not self._fills:
            return batches(0, 1)
        share = batch_size // self.replicas

        def pipeline(context: tf.distribute.InputContext) -> tf.data.Dataset:
            return batches(context.input_pipeline_id, context.num_input_pipelines).rebatch(share, drop_remainder=True)

        return self.strategy.distribute_datasets_from_function(pipeline)

    def agree(self, *flags: bool) -> list[bool]:
        """Returns which flags are set on any worker. All workers must call it at the same point of the run."""
        if self.workers == 1:
            return list(flags)
        return [count > 0 for count in self._sum_over_replicas(flags)]

    def gathered(self, number: int) -> list[int]:
        """Returns the values of `number` on all workers. All workers must call it at the same point of the run."""
        if self.workers == 1:
            return [number]
        local = self.replicas // self.workers
        mine = [number if worker == self.worker else 0 for worker in range(self.workers)]
        return [total // local for total in self._sum_over_replicas(mine)]

    def check_same(self, number: int, problem: str) -> None:
        """Checks that a number is the same on all workers. All workers must call it at the same point of the run.

        Raises:
            RunError: with the message `problem` if it is not.
        """
        if len({*self.gathered(number)}) > 1:
            raise RunError(problem)

    def _sum_over_replicas(self, numbers: Sequence[int]) -> list[int]:
        """Returns the sums over all replicas."""
        values = self.strategy.experimental_distribute_values_from_function(
            lambda context: tf.constant(numbers, tf.int64)
        )
        return self.strategy.reduce(tf.distribute.ReduceOp.SUM, values, axis=None).numpy().tolist()

    def on_one_replica(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Returns a graph function that computes `function` on every replica and returns the result of the first."""

        def run(*arguments: Any) -> Any:
            results = self.strategy.run(function, args=arguments)
            return tf.nest.map_structure(lambda value: self.strategy.experimental_local_results(value)[0], results)

        return tf.function(run, autograph=False)


def check_replicas(config: Config, replicas: int) -> None:
    """Checks that a number of replicas can share the batches of a run.

    Raises:
        ConfigError: if a batch cannot be divided evenly, or the model does not support several replicas.
    """
    reason = config.model.whole_batch_reason
    if reason and replicas > 1:
        requirement = f"must have 1 replica with {config.model.name}: it {reason}, which replicas do not share"
        raise ConfigError(WrongValue("runtime.strategy", requirement, Words(f"{replicas} replicas")))
    parts = replicas * config.optimization.minibatches
    sizes = {"batch_size": (config.batch_size, parts)}
    if config.evaluation.batch_size is not None:
        sizes["evaluation.batch_size"] = (config.evaluation.batch_size, replicas)
    for key, (size, share) in sizes.items():
        if size % share:
            times = f" of {config.optimization.minibatches} minibatches" if share != replicas else ""
            raise ConfigError(
                f"{key}: is shared by {replicas} replicas{times} and must be a multiple of {share}; "
                f"found {size}, nearest {max(share, size // share * share)}"
            )


class OtherWorkerEnded(Stopped):
    """Another worker has ended, and this one cannot continue without it."""


@contextlib.contextmanager
def report_errors_to_workers(runtime: Runtime) -> Iterator[None]:
    """A context that reports an error of this worker to the other workers, which ends them.

    Otherwise the other workers would block at start-up or in the next all-reduce. A divergence or a signal is not
    reported, because all workers notice it at the same step. With one worker the context does nothing.

    Raises:
        OtherWorkerEnded: if another worker has ended; the message has its reason, if it could report one.
    """
    if _kind(runtime) != "multi_worker":
        yield
        return
    try:
        yield
    except Exception as error:
        if (explained := explain(error)) is not None:
            raise explained from None
        if not isinstance(error, (Diverged, OtherWorkerEnded)) and getattr(error, "state", None) != "stopped":
            # In a thread, because connecting to the other workers may block forever and cannot be interrupted.
            reporting = threading.Thread(target=_report, args=(runtime, error), name="report the error", daemon=True)
            reporting.start()
            reporting.join(SECONDS_TO_REPORT)
        raise


def explain(error: Exception) -> OtherWorkerEnded | None:
    """Returns the error to raise instead if an error of TensorFlow means that another worker has ended, or None."""
    aborted = re.search(r"Collective ops is aborted by: (.*)", str(error))
    if aborted is None or not isinstance(error, tf.errors.OpError):
        return None
    if reported := re.search(r"worker \d+ has ended: .*", aborted[1]):
        return OtherWorkerEnded(reported[0], state="failed")
    reason = f"another worker is gone ({shortened(aborted[1], 150)}): see its messages for the reason"
    return OtherWorkerEnded(reason, "continue with --resume", "failed")


def _report(runtime: Runtime, error: Exception) -> None:
    """Reports an error to the other workers, which ends them. Connects to them first if necessary."""
    reason = str(error) if isinstance(error, (InputError, Stopped)) else f"{type(error).__name__}: {error}"
    with contextlib.suppress(Exception):  # An error is being handled already, and the others may have ended.
        if tf_context.context().coordination_service is None:
            create(runtime)
        line = f"worker {_place()[0]} has ended: {one_line(reason, 500)}"
        tf_context.context().report_error_to_cluster(tf.errors.FAILED_PRECONDITION, line)


def is_chief(runtime: Runtime) -> bool:
    """Whether this process writes the run directory: the only process, or the first worker.

    Raises:
        ConfigError: if there are several workers and neither `TF_CONFIG` nor SLURM describes them.
    """
    return _kind(runtime) != "multi_worker" or _place()[0] == 0


def with_strategy(runtime: Runtime, strategy: str) -> Runtime:
    """Returns the options with another strategy and without the devices of the current one. They are not checked."""
    devices = ("replicas", "devices", "tpu", "tpu_zone", "tpu_project")
    return runtime.model_copy(update={**dict.fromkeys(devices), "strategy": strategy})


def create(runtime: Runtime) -> Distribution:
    """Returns the devices that the options select.

    Several workers, or virtual CPU devices, must be created before TensorFlow executes its first operation.

    Raises:
        TPUUnavailable: if a TPU cannot be reached.
        RunError: if other devices are missing.
        ConfigError: if neither `TF_CONFIG` nor SLURM describes several workers, or `runtime.devices` has no effect.
    """
    kind = _kind(runtime)
    if runtime.devices is not None and kind not in ("gpu", "mirrored"):
        requirement = (
            f"needs a strategy with GPUs ('gpu' or 'mirrored'), but {runtime.strategy!r} is {kind!r} here, because of "
            "TF_CONFIG or TPU_NAME"
        )
        raise ConfigError(WrongValue("runtime.devices", requirement, runtime.devices))
    return _STRATEGIES[kind](runtime)


def shares_process(runtime: Runtime) -> bool:
    """Whether runs with these options can follow each other in one process.

    Several devices, workers and TPUs are set up once in a process, as is the choice among several GPUs. A process that
    waits for its next run would keep the memory of a GPU from the others.
    """
    return runtime.devices is None and _kind(runtime) == "cpu" and not tf.config.list_physical_devices("GPU")


def gpus_used(runtime: Runtime) -> str:
    """Returns which of the GPUs that a process sees a run uses: `none`, those it has `chosen`, or `all`."""
    if runtime.devices is not None:
        return "chosen"
    return "none" if _kind(runtime) in ("cpu", "tpu") else "all"


def _kind(runtime: Runtime) -> str:
    """Returns the strategy; for `auto`, the one that fits this machine."""
    if runtime.strategy != "auto":
        return runtime.strategy
    if os.environ.get("TF_CONFIG") and len(_cluster().get("worker", [])) + len(_cluster().get("chief", [])) > 1:
        return "multi_worker"
    if os.environ.get("TPU_NAME"):
        return "tpu"
    gpus = len(runtime.devices or tf.config.list_physical_devices("GPU"))
    return "cpu" if not gpus else "gpu" if gpus == 1 else "mirrored"


def _cpu(runtime: Runtime) -> Distribution:
    del runtime
    if not tf.config.list_physical_devices("GPU"):
        return Distribution(tf.distribute.get_strategy())  # The default strategy adds no cost.
    return Distribution(tf.distribute.OneDeviceStrategy("/cpu:0"))


def _gpu(runtime: Runtime) -> Distribution:
    if runtime.devices is not None:
        (device,) = _chosen_gpus(runtime.devices)
        return Distribution(tf.distribute.OneDeviceStrategy(f"/{device.lower()}"))
    if not tf.config.list_physical_devices("GPU"):
        raise RunError(
            "runtime.strategy gpu: TensorFlow sees no GPU; install the extra `gpu` and its driver, or choose cpu"
        )
    return Distribution(tf.distribute.OneDeviceStrategy("/gpu:0"))


def _chosen_gpus(numbers: Sequence[int]) -> list[str]:
    """Returns TensorFlow's names of the GPUs with these numbers, and hides the other GPUs if possible.

    TensorFlow takes memory on every GPU that is visible at its first operation. It counts only visible GPUs in names.

    Raises:
        RunError: if a GPU does not exist, or is hidden because this process has already used other GPUs.
    """
    gpus = tf.config.list_physical_devices("GPU")
    if not gpus:
        requirement = (
            "must be numbers of GPUs, but TensorFlow finds none: leave it out, or install the extra `gpu` and the "
            "driver; without a GPU, runtime.replicas divides the CPU into virtual devices"
        )
        raise RunError(WrongValue("runtime.devices", requirement, list(numbers)))
    if max(numbers) >= len(gpus):
        known = ", ".join(map(str, range(len(gpus))))
        raise RunError(WrongValue("runtime.devices", f"must be among the GPUs of this machine, {known}", list(numbers)))
    chosen = [gpus[number] for number in numbers]
    with contextlib.suppress(RuntimeError):  # TensorFlow has begun to compute.
        tf.config.set_visible_devices(chosen, "GPU")
    visible = tf.config.get_visible_devices("GPU")
    if not all(gpu in visible for gpu in chosen):
        used = ", ".join(str(number) for number, gpu in enumerate(gpus) if gpu in visible)
        requirement = f"must be among the GPUs that this process has begun to compute with, {used}"
        raise RunError(WrongValue("runtime.devices", requirement, list(numbers)))
    return [f"GPU:{visible.index(gpu)}" for gpu in chosen]


def _mirrored(runtime: Runtime) -> Distribution:
    if runtime.devices is not None:
        return Distribution(tf.distribute.MirroredStrategy(_chosen_gpus(runtime.devices)))
    gpus = len(tf.config.list_physical_devices("GPU"))
    kind, available = ("GPU", gpus) if gpus else ("CPU", _logical_cpus(runtime.replicas))
    count = runtime.replicas or available
    if count > available:
        requirement = f"must be at most {available}, the number of {kind} devices of this machine"
        raise RunError(WrongValue("runtime.replicas", requirement, count))
    # Virtual CPU devices work without collective operations. Two strategies in one process would share their keys.
    reduction = None if gpus else tf.distribute.ReductionToOneDevice()
    devices = [f"{kind}:{number}" for number in range(count)]
    return Distribution(tf.distribute.MirroredStrategy(devices, cross_device_ops=reduction))


def _logical_cpus(wanted: int | None) -> int:
    """Divides the CPU into virtual devices if TensorFlow has not computed yet. Returns their number."""
    cpu = tf.config.list_physical_devices("CPU")[0]
    available = len(tf.config.get_logical_device_configuration(cpu) or [None])
    if wanted and wanted > available:
        with contextlib.suppress(RuntimeError):  # TensorFlow has begun to compute.
            tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * wanted)
            return wanted
    return available


def _multi_worker(runtime: Runtime) -> Distribution:
    del runtime
    worker, workers = _place()
    task = _tf_config()["task"]
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        tf.train.ClusterSpec(_cluster()), task_type=task["type"], task_id=task["index"], rpc_layer="grpc"
    )
    try:
        return Distribution(tf.distribute.MultiWorkerMirroredStrategy(resolver), worker, workers)
    except (tf.errors.OpError, RuntimeError, TypeError, ValueError) as error:
        reason = one_line(error, 150)
        hosts = ", ".join(itertools.chain(*_cluster().values()))[:150]
        raise RunError(f"runtime.strategy multi_worker: the workers {hosts} cannot connect: {reason}") from None


def _place() -> tuple[int, int]:
    """Returns the number of this worker and the number of workers."""
    cluster, task = _cluster(), _tf_config().get("task")
    workers = len(cluster.get("chief", [])) + len(cluster.get("worker", []))
    if not workers or not isinstance(task, dict) or task.get("type") not in ("chief", "worker"):
        raise ConfigError(
            "TF_CONFIG: must name the workers of the cluster and the task of this process, if not started by srun; "
            f"found {os.environ.get('TF_CONFIG', 'nothing')[:200]!r}; example: {EXAMPLE}"
        )
    if other := sorted(set(cluster) - {"chief", "worker"}):
        raise ConfigError(f"TF_CONFIG: must have the jobs chief and worker only; found {', '.join(other)}")
    index, tasks = task.get("index"), len(cluster.get(task["type"], []))
    if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < tasks:
        raise ConfigError(
            f"TF_CONFIG: task.index must be that of one of the {tasks} tasks of its type; found {index!r}; "
            f"example: {EXAMPLE}"
        )
    return index + (len(cluster.get("chief", [])) if task["type"] == "worker" else 0), workers


def _cluster() -> dict[str, list[str]]:
    """Returns the cluster: job name -> list of host:port; empty by default."""
    cluster = _tf_config().get("cluster", {})
    lists = isinstance(cluster, dict) and all(isinstance(hosts, list) for hosts in cluster.values())
    if not lists or not all(re.fullmatch(r".+:\d+", str(host)) for hosts in cluster.values() for host in hosts):
        raise ConfigError(f"TF_CONFIG: cluster must map job names to lists of host:port; found {cluster!r}")
    return cluster


def _tf_config() -> dict[str, Any]:
    """Returns the content of the environment variable `TF_CONFIG`, by default that of a SLURM step."""
    text = os.environ.get("TF_CONFIG")
    if not text:
        return slurm_workers.tf_config(os.environ)
    try:
        settings = json.loads(text)
    except ValueError:
        settings = None
    if not isinstance(settings, dict):
        raise ConfigError(f"TF_CONFIG: must be a JSON object; found {text[:200]!r}")
    return settings


def _tpu(runtime: Runtime) -> Distribution:
    name = runtime.tpu or os.environ.get("TPU_NAME") or "local"
    place = {"zone": runtime.tpu_zone, "project": runtime.tpu_project}
    place = {key: value for key, value in place.items() if value is not None}
    if place and name == "local":
        key = next(iter(place))
        requirement = "needs the name of a TPU, in runtime.tpu or TPU_NAME, not 'local', the default"
        raise ConfigError(WrongValue(f"runtime.tpu_{key}", requirement, place[key]))
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(tpu=name, **place)
        if name != "local":
            tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
        return Distribution(tf.distribute.TPUStrategy(resolver))
    except (tf.errors.OpError, OSError, ValueError, RuntimeError, ImportError) as error:
        reason = one_line(error, 150)
        raise TPUUnavailable(
            f"runtime.strategy: the TPU {name!r} cannot be reached from here ({reason}); run on a TPU VM with the "
            "extra `tpu`, or set runtime.tpu to its name"
        ) from None


_STRATEGIES: dict[str, Callable[[Runtime], Distribution]] = {
    "cpu": _cpu,
    "gpu": _gpu,
    "mirrored": _mirrored,
    "multi_worker": _multi_worker,
    "tpu": _tpu,
}

"""Where a run computes: one device, several of one machine, several machines, or a Cloud TPU."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import tensorflow as tf
from tensorflow.python.eager import context as tf_context  # What reaches the other workers has no public name.

from neural_alignment.config import Config, Runtime
from neural_alignment.data import Dataset
from neural_alignment.errors import ConfigError, Diverged, InputError, RunError, Stopped, Unavailable
from neural_alignment.training.model import AlignedModel, compiles_by_itself

EXAMPLE = '{"cluster": {"worker": ["host0:2222", "host1:2222"]}, "task": {"type": "worker", "index": 0}}'
"""`TF_CONFIG` of the first of two workers."""

HEED_SIGNALS = 1.0
"""Seconds after which steps in one graph return to Python, where signals are heeded, before they go on."""

MEET = 120.0
"""Seconds for which a worker that is refused waits for the others, to tell them."""


@dataclass(frozen=True)
class Distribution:
    """The devices of a run, and this process's part of it.

    Attributes:
        strategy: what runs a step on every replica and adds up their gradients.
        worker: number of this process among `workers`.
        workers: processes that share the run, each with the same configuration.
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
        """The number of machines that read the data: workers, or hosts of a TPU slice, which one process commands."""
        return max(self.workers, getattr(self.strategy.extended, "num_hosts", 1))

    @property
    def chief(self) -> bool:
        """Whether this process writes the run directory."""
        return self.worker == 0

    def scope(self) -> contextlib.AbstractContextManager[Any]:
        """Returns the context in which models, optimizers and metrics are to be made."""
        return self.strategy.scope()

    def check(self, config: Config) -> None:
        """Checks that every replica gets an equal share of what can be shared, and that XLA can compile its step.

        Raises:
            ConfigError: if not.
        """
        if config.runtime.jit_compile and self.replicas > 1 and not compiles_by_itself(self.strategy):
            raise ConfigError("runtime.jit_compile: is for one device, or a TPU; found true with several replicas")
        if self.replicas > 1 and config.model.uses_batch_statistics:
            raise ConfigError(
                f"runtime.strategy: {config.model.name} takes the statistics of the whole batch, which replicas do not "
                f"share; found {self.replicas} replicas, allowed is 1"
            )
        if self.readers > 1 and getattr(config.data, "tolerate_corrupt", 0):
            raise ConfigError(
                "data.tolerate_corrupt: must be 0 with several workers or hosts of a TPU slice, which do not see each "
                f"other's damaged records; found {config.data.tolerate_corrupt}"
            )
        parts = self.replicas * config.optimization.minibatches
        sizes = {"batch_size": (config.batch_size, parts)}
        if config.evaluation.batch_size is not None:
            sizes["evaluation.batch_size"] = (config.evaluation.batch_size, self.replicas)
        for key, (size, share) in sizes.items():
            if size % share:
                times = f" of {config.optimization.minibatches} minibatches" if share != self.replicas else ""
                raise ConfigError(
                    f"{key}: is that of all {self.replicas} replicas{times} and must be a multiple of {share}; "
                    f"found {size}, nearest {max(share, size // share * share)}"
                )

    def train(self, dataset: Dataset, start_step: int) -> Any:
        """Returns the training batches from `start_step` on, shared out to the replicas."""
        return self._shared(
            lambda worker, workers: dataset.train(start_step, worker=worker, workers=workers),
            dataset.batching.batch_size,
        )

    def validation(self, dataset: Dataset) -> Any:
        """Returns the validation batches, shared out; on several replicas all are full, filled up with weight 0."""
        return self._shared(
            lambda worker, workers: dataset.validation(worker=worker, workers=workers, fill=self._fills),
            dataset.batching.validation_batch_size,
        )

    def evaluate(self, model: AlignedModel, dataset: Dataset) -> dict[str, float]:
        """Returns J and the metrics over the validation split, every example counted once."""
        model.reset_metrics()
        model.make_test_function()
        batches = iter(self.validation(dataset))
        # Not `model.evaluate`, which takes no batches that are shared out among workers.
        left = -(-dataset.validation_examples // dataset.batching.validation_batch_size)
        results, made = {}, left
        while left and made:  # Damaged records that are left out may make a batch less.
            made, results = model.test_function.steps(batches, left, self.seconds_together)
            left -= made
        return {name: float(value) for name, value in results.items()}

    @property
    def seconds_together(self) -> float:
        """How long steps may follow each other in one graph before it returns to Python, where signals are heeded.

        Several workers heed theirs where all have made the same steps, and meet at every batch in a loop, so their
        loops must be of one length: no limit.
        """
        return HEED_SIGNALS if self.workers == 1 else math.inf

    @property
    def _fills(self) -> bool:
        """Whether all batches must have one shape: to be shared out evenly, or for a TPU's compiler."""
        return self.replicas > 1 or compiles_by_itself(self.strategy)

    def _shared(self, batches: Callable[[int, int], tf.data.Dataset], batch_size: int) -> Any:
        if not self._fills:
            return batches(0, 1)
        share = batch_size // self.replicas

        def pipeline(context: tf.distribute.InputContext) -> tf.data.Dataset:
            return batches(context.input_pipeline_id, context.num_input_pipelines).rebatch(share, drop_remainder=True)

        return self.strategy.distribute_datasets_from_function(pipeline)

    def agree(self, *flags: bool) -> list[bool]:
        """Returns which flags are raised on any worker; all must ask at the same point of the run."""
        if self.workers == 1:
            return list(flags)
        return [count > 0 for count in self._added_up(flags)]

    def gathered(self, number: int) -> list[int]:
        """Returns the number that each worker gives; all must ask at the same point of the run."""
        if self.workers == 1:
            return [number]
        local = self.replicas // self.workers
        mine = [number if worker == self.worker else 0 for worker in range(self.workers)]
        return [total // local for total in self._added_up(mine)]

    def _added_up(self, numbers: Sequence[int]) -> list[int]:
        """Returns the sums over all replicas."""
        values = self.strategy.experimental_distribute_values_from_function(
            lambda context: tf.constant(numbers, tf.int64)
        )
        return self.strategy.reduce(tf.distribute.ReduceOp.SUM, values, axis=None).numpy().tolist()

    def on_one_replica(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Returns `function` as a graph that every replica computes on the same arguments, with the first's result."""

        def run(*arguments: Any) -> Any:
            results = self.strategy.run(function, args=arguments)
            return tf.nest.map_structure(lambda value: self.strategy.experimental_local_results(value)[0], results)

        return tf.function(run, autograph=False)


class Deserted(Stopped):
    """Another worker has ended, and this one cannot go on alone."""


@contextlib.contextmanager
def shared_fate(runtime: Runtime) -> Iterator[None]:
    """Within it, an error that ends one of several workers ends them all, wherever they are.

    Else the others would wait for it: to meet, or in the next sum over all replicas. What all see at the same step, a
    divergence or a signal, ends them all anyway.

    Raises:
        Deserted: if another worker has ended; the message has its reason, where it could give one.
    """
    if _kind(runtime) != "multi_worker":
        yield
        return
    try:
        yield
    except Exception as error:
        if (deserted := explain(error)) is not None:
            raise deserted from None
        if not isinstance(error, (Diverged, Deserted)) and getattr(error, "state", None) != "stopped":
            # In a thread: to meet the others may take forever, and cannot be interrupted.
            telling = threading.Thread(target=_tell, args=(runtime, error), name="tell the others", daemon=True)
            telling.start()
            telling.join(MEET)
        raise


def explain(error: Exception) -> Deserted | None:
    """Returns what an error of TensorFlow means, if it is that another worker has ended."""
    aborted = re.search(r"Collective ops is aborted by: (.*)", str(error))
    if aborted is None or not isinstance(error, tf.errors.OpError):
        return None
    if told := re.search(r"worker \d+ has ended: .*", aborted[1]):
        return Deserted(told[0], "failed")
    return Deserted(
        f"another worker is gone ({aborted[1][:150]}): its own messages say why; go on with --resume", "failed"
    )


def _tell(runtime: Runtime, error: Exception) -> None:
    """Ends what the other workers wait for; meets them first, if that has not been."""
    reason = str(error) if isinstance(error, (InputError, Stopped)) else f"{type(error).__name__}: {error}"
    with contextlib.suppress(Exception):  # There is an error already, and they may be gone.
        if tf_context.context().coordination_service is None:
            create(runtime)
        line = f"worker {_place()[0]} has ended: {' '.join(reason.split())[:500]}"
        tf_context.context().report_error_to_cluster(tf.errors.FAILED_PRECONDITION, line)


def is_chief(runtime: Runtime) -> bool:
    """Whether this process writes the run directory: alone, or first of the workers of `TF_CONFIG`.

    Raises:
        ConfigError: if there are to be several workers and `TF_CONFIG` is not what they need.
    """
    return _kind(runtime) != "multi_worker" or _place()[0] == 0


def with_strategy(runtime: Runtime, strategy: str) -> Runtime:
    """Returns the options for another strategy, without those that name devices of the present one.

    The strategy is not checked.
    """
    devices = ("replicas", "devices", "tpu", "tpu_zone", "tpu_project")
    return runtime.model_copy(update={**dict.fromkeys(devices), "strategy": strategy})


def create(runtime: Runtime) -> Distribution:
    """Finds the devices that a configuration asks for.

    Several workers, or more parts of a CPU than there were, must be asked for before TensorFlow has computed anything.

    Raises:
        Unavailable: if a TPU is not to be reached.
        RunError: if other devices are not there.
        ConfigError: if `TF_CONFIG` is not what several workers need, or devices are given that have no effect.
    """
    kind = _kind(runtime)
    if runtime.devices is not None and kind not in ("gpu", "mirrored"):
        raise ConfigError(
            f"runtime.devices: are numbers of GPUs, but strategy {runtime.strategy!r} is {kind!r} here, by TF_CONFIG "
            f"or TPU_NAME; found {runtime.devices}; choose 'gpu' or 'mirrored', or leave them out"
        )
    return _STRATEGIES[kind](runtime)


def _kind(runtime: Runtime) -> str:
    """Returns the strategy that is asked for, or where none is, the one for what this machine has."""
    if runtime.strategy != "auto":
        return runtime.strategy
    if len(_cluster().get("worker", [])) + len(_cluster().get("chief", [])) > 1:
        return "multi_worker"
    if os.environ.get("TPU_NAME"):
        return "tpu"
    gpus = len(runtime.devices or tf.config.list_physical_devices("GPU"))
    return "cpu" if not gpus else "gpu" if gpus == 1 else "mirrored"


def _cpu(runtime: Runtime) -> Distribution:
    del runtime
    if not tf.config.list_physical_devices("GPU"):
        return Distribution(tf.distribute.get_strategy())  # The default one, which costs nothing.
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
    """Returns the names of the GPUs with some numbers, and leaves the memory of the others free where it still can.

    TensorFlow takes memory on every GPU that is visible when it begins to compute. It counts the visible ones anew.

    Raises:
        RunError: if one of them is not there, or hidden since this process has used others.
    """
    gpus = tf.config.list_physical_devices("GPU")
    found = f"found {', '.join(map(str, numbers))}"
    if not gpus:
        cpus = len(tf.config.list_physical_devices("CPU"))
        raise RunError(
            f"runtime.devices: must be numbers of GPUs, but TensorFlow sees none, and {cpus} CPU; {found}; leave them "
            "out, or install the extra `gpu` and its driver; without a GPU, runtime.replicas cuts the CPU into parts"
        )
    if max(numbers) >= len(gpus):
        there = ", ".join(map(str, range(len(gpus))))
        raise RunError(f"runtime.devices: must be among the GPUs of this machine, {there}; {found}")
    chosen = [gpus[number] for number in numbers]
    with contextlib.suppress(RuntimeError):  # TensorFlow has begun to compute.
        tf.config.set_visible_devices(chosen, "GPU")
    visible = tf.config.get_visible_devices("GPU")
    if not all(gpu in visible for gpu in chosen):
        there = ", ".join(str(number) for number, gpu in enumerate(gpus) if gpu in visible)
        raise RunError(f"runtime.devices: this process has begun to compute with the GPUs {there} only; {found}")
    return [f"GPU:{visible.index(gpu)}" for gpu in chosen]


def _mirrored(runtime: Runtime) -> Distribution:
    if runtime.devices is not None:
        return Distribution(tf.distribute.MirroredStrategy(_chosen_gpus(runtime.devices)))
    gpus = len(tf.config.list_physical_devices("GPU"))
    kind, there = ("GPU", gpus) if gpus else ("CPU", _logical_cpus(runtime.replicas))
    count = runtime.replicas or there
    if count > there:
        raise RunError(
            f"runtime.replicas: this machine has {there} {kind} devices; found {count}; ask for at most {there}"
        )
    # Parts of one CPU need no collective operations, whose keys two strategies of one process would share.
    reduction = None if gpus else tf.distribute.ReductionToOneDevice()
    devices = [f"{kind}:{number}" for number in range(count)]
    return Distribution(tf.distribute.MirroredStrategy(devices, cross_device_ops=reduction))


def _logical_cpus(wanted: int | None) -> int:
    """Cuts the CPU into as many devices as wanted, if it still can be; returns how many there are."""
    cpu = tf.config.list_physical_devices("CPU")[0]
    there = len(tf.config.get_logical_device_configuration(cpu) or [None])
    if wanted and wanted > there:
        with contextlib.suppress(RuntimeError):  # TensorFlow has begun to compute.
            tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * wanted)
            return wanted
    return there


def _multi_worker(runtime: Runtime) -> Distribution:
    del runtime
    worker, workers = _place()
    try:
        return Distribution(tf.distribute.MultiWorkerMirroredStrategy(), worker, workers)
    except (tf.errors.OpError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:150]
        raise RunError(f"runtime.strategy multi_worker: the workers of TF_CONFIG cannot meet: {reason}") from None


def _place() -> tuple[int, int]:
    """Returns the number of this worker and how many there are, as `TF_CONFIG` says."""
    cluster, task = _cluster(), _tf_config().get("task")
    workers = len(cluster.get("chief", [])) + len(cluster.get("worker", []))
    if not workers or not isinstance(task, dict) or task.get("type") not in ("chief", "worker"):
        raise ConfigError(
            "TF_CONFIG: must name the workers of the cluster, and which of them this process is; found "
            f"{os.environ.get('TF_CONFIG', 'nothing')[:200]!r}; example: {EXAMPLE}"
        )
    if other := sorted(set(cluster) - {"chief", "worker"}):
        raise ConfigError(f"TF_CONFIG: may hold a chief and workers alone; found {', '.join(other)}")
    index, tasks = task.get("index"), len(cluster.get(task["type"], []))
    if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < tasks:
        raise ConfigError(
            f"TF_CONFIG: task.index must be that of one of the {tasks} tasks of its type; found {index!r}; "
            f"example: {EXAMPLE}"
        )
    return index + (len(cluster.get("chief", [])) if task["type"] == "worker" else 0), workers


def _cluster() -> dict[str, list[str]]:
    """Returns the cluster of `TF_CONFIG`, empty where there is none."""
    cluster = _tf_config().get("cluster", {})
    lists = isinstance(cluster, dict) and all(isinstance(hosts, list) for hosts in cluster.values())
    if not lists or not all(re.fullmatch(r".+:\d+", str(host)) for hosts in cluster.values() for host in hosts):
        raise ConfigError(f"TF_CONFIG: cluster must map job names to lists of host:port; found {cluster!r}")
    return cluster


def _tf_config() -> dict[str, Any]:
    """Returns what the environment variable `TF_CONFIG` says."""
    text = os.environ.get("TF_CONFIG") or "{}"
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
        raise ConfigError(
            f"runtime.tpu_{key}: has an effect with the name of a TPU alone; found {place[key]!r} with tpu 'local', "
            "the default; set runtime.tpu or TPU_NAME to a name"
        )
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(tpu=name, **place)
        if name != "local":
            tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
        return Distribution(tf.distribute.TPUStrategy(resolver))
    except (tf.errors.OpError, OSError, ValueError, RuntimeError, ImportError) as error:
        reason = " ".join(str(error).split())[:150]
        raise Unavailable(
            f"runtime.strategy tpu: no TPU {name!r} is to be reached from here ({reason}); run on a TPU VM with the "
            "extra `tpu`, or set runtime.tpu to its name"
        ) from None


_STRATEGIES: dict[str, Callable[[Runtime], Distribution]] = {
    "cpu": _cpu,
    "gpu": _gpu,
    "mirrored": _mirrored,
    "multi_worker": _multi_worker,
    "tpu": _tpu,
}

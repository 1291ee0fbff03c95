"""Settings and fixtures for all tests."""

import gc
import os
import re
import shutil
import signal
import subprocess
import zlib
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # As in the command line.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # NumPy's threads would compete with those of other test processes.

import numpy as np
import ports
import pytest

SYSTEM_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin"
"""The path of commands, with the folder of daemons."""

# Graphs consist of many long-lived objects. With Python's default thresholds garbage collection takes 6 % of the time.
gc.set_threshold(100_000, 50, 50)


def pytest_addoption(parser):
    """Adds the option `--part`."""
    parser.addoption("--part", metavar="K/N", help="run one of N parts of the tests, K from 0 to N - 1", default="0/1")


def pytest_collection_modifyitems(config, items):
    """Leaves the tests of the part that `--part` chooses. The name of a test determines its part."""
    chosen = re.fullmatch(r"(\d+)/(\d+)", config.getoption("part"))
    part, parts = map(int, chosen.groups()) if chosen else (0, 0)
    if part >= parts:
        raise pytest.UsageError(
            f"--part: must be K/N with K from 0 to N - 1, such as 0/4. Received {config.option.part}"
        )
    groups = [], []
    for item in items:
        groups[zlib.crc32(item.nodeid.encode()) % parts == part].append(item)
    others, items[:] = groups
    config.hook.pytest_deselected(items=others)


def pytest_configure(config):
    """Creates four logical devices for tests with replicas. Everything else runs on the first one, as usual."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # Shells start background jobs like this. The processes of tests would inherit it and not end at Ctrl-C.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if config.getoption("dist", "no") != "no" and not hasattr(config, "workerinput"):
        return  # This process runs no tests. It would start its workers after the import, which takes seconds.
    from neural_alignment import quiet

    quiet.import_tensorflow()
    import tensorflow as tf

    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 4
    )


@pytest.fixture(scope="module", autouse=True)
def _only_new_objects_are_collected():
    """Exempts the objects of earlier modules from garbage collection.

    Keras collects when it clears its session. After thousands of tests that takes longer than training a small network.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _files_are_not_forced_to_disk():
    """Replaces `os.fsync`, which takes a fifth of the time of a short run.

    It protects files if the machine stops, not if the process does. `training/test_damage.py` tests that it is called.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture
def rng():
    """A random generator with a fixed seed."""
    return np.random.default_rng(20200213)


@pytest.fixture
def float64():
    """Sets float64 as the dtype of new layers and optimizers."""
    import keras

    floatx, policy = keras.config.floatx(), keras.config.dtype_policy()
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    yield
    keras.config.set_floatx(floatx)
    keras.config.set_dtype_policy(policy)


@pytest.fixture(scope="session")
def local_slurm(tmp_path_factory):
    """Starts a private SLURM with two nodes on this machine; returns the environment for its commands."""
    script = Path(__file__).parent / "local_slurm.sh"
    if missing := [name for name in ("munged", "slurmctld", "slurmd") if not shutil.which(name, path=SYSTEM_PATH)]:
        pytest.skip(f"{missing[0]} was not found (Debian's packages slurm-wlm and munge)")
    folder = tmp_path_factory.mktemp("slurm")
    port = next(
        port for port in range(16_817 + 100 * ports.WORKER, 32_000, 3) if all(map(ports.is_free, range(port, port + 3)))
    )
    environment = {
        **os.environ,
        "LOCAL_SLURM_PORT": str(port),
        "SLURM_CONF": str(folder / "slurm.conf"),
        "PYTHONPATH": str(script.parent.parent),
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    subprocess.run([script, "start", folder], env=environment, check=True)
    yield environment
    subprocess.run([script, "stop", folder], env=environment, check=True)

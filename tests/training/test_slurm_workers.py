"""The workers of a SLURM step: lists of nodes and tasks, ports, and a run of two workers started by `srun`."""

import itertools
import os
import subprocess
import sys

import numpy as np
import pytest
from helpers import RUN_ON_REPLICAS

from neural_alignment import config as configuration
from neural_alignment.errors import InputError
from neural_alignment.training import load_model, run, slurm_workers

STEP = {
    "SLURM_JOB_ID": "71",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NODELIST": "n[9-10],gpu",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2),1",
    "SLURM_PROCID": "2",
    "SLURM_NODEID": "1",
}
"""The variables of the third of five tasks, as SLURM 22.05 sets them."""


@pytest.mark.parametrize(("text", "hosts"), [
    ("login", ["login"]),
    ("n[08-10,12],login", ["n08", "n09", "n10", "n12", "login"]),
    ("n[9-10]", ["n9", "n10"]),
    ("rack[1-2]n[1-2]-ib", ["rack1n1-ib", "rack1n2-ib", "rack2n1-ib", "rack2n2-ib"]),
    ("10.0.0.[1-2]", ["10.0.0.1", "10.0.0.2"]),
])  # fmt: skip
def test_a_list_of_nodes_is_expanded_in_its_order(text, hosts):
    assert slurm_workers.expand_hosts(text) == hosts


def test_the_number_of_tasks_of_each_node_is_expanded():
    assert slurm_workers.expand_counts("3(x2),2,1(x1)") == [3, 3, 2, 1]


def test_the_tasks_of_a_step_are_workers_in_the_order_of_their_ranks():
    config = slurm_workers.tf_config(STEP)
    workers = config["cluster"]["worker"]
    assert [worker.partition(":")[0] for worker in workers] == ["n9", "n9", "n10", "n10", "gpu"]
    assert config["task"] == {"type": "worker", "index": 2}
    first = {**STEP, "SLURM_PROCID": "0", "SLURM_NODEID": "0"}
    assert slurm_workers.tf_config(first)["cluster"] == config["cluster"]


def test_tasks_of_one_step_and_steps_that_follow_each_other_have_different_ports():
    names = ("SLURM_JOB_ID", "SLURM_STEP_ID")
    steps = [dict(zip(names, step, strict=True)) for step in itertools.product(("71", "72", "90071"), ("0", "1"))]
    addresses = [slurm_workers.tf_config({**STEP, **step})["cluster"]["worker"] for step in steps]
    ports = [[int(address.rpartition(":")[2]) for address in each] for each in addresses]
    assert all(len({*each}) == 5 and min(each) >= 12_000 and max(each) < 32_768 for each in ports)
    assert not {*ports[0]} & {*ports[1]}
    assert not {*ports[0]} & {*ports[2]}


@pytest.mark.parametrize("name", STEP)
def test_a_process_that_srun_has_not_started_has_no_cluster(name):
    assert slurm_workers.tf_config({key: value for key, value in STEP.items() if key != name}) == {}


@pytest.mark.parametrize(("changes", "said"), [
    ({"SLURM_STEP_NODELIST": "n[1-"}, "SLURM_STEP_NODELIST: must be as srun sets it; found 'n[1-'"),
    ({"SLURM_STEP_NODELIST": "n[a]"}, "found 'n[a]'"),
    ({"SLURM_STEP_NODELIST": ""}, "found ''"),
    ({"SLURM_STEP_TASKS_PER_NODE": "2x3"}, "SLURM_STEP_TASKS_PER_NODE: must be as srun sets it; found '2x3'"),
    ({"SLURM_PROCID": "one"}, "SLURM_PROCID: must be as srun sets it; found 'one'; example: 0"),
    ({"SLURM_PROCID": "5"}, "must count the tasks of each node of SLURM_STEP_NODELIST"),
    ({"SLURM_STEP_NODELIST": "n1"}, "must count the tasks of each node of SLURM_STEP_NODELIST"),
    ({"SLURM_NODEID": "2"}, "SLURM_NODEID: must be 1 for task 2, .*; found 2; .* --distribution=block"),
])  # fmt: skip
def test_wrong_variables_are_one_line(changes, said):
    with pytest.raises(InputError) as error:
        slurm_workers.tf_config({**STEP, **changes})
    assert all(part in str(error.value) for part in said.split(" .*"))
    assert "\n" not in str(error.value)


CONFIG = RUN_ON_REPLICAS.replace("runtime: {", "runtime: {precision: float64, ")

PROGRAM = """
import os, signal, sys
import tensorflow as tf
from neural_alignment import cli
from neural_alignment.training import stepping

original = stepping.Stepper.__call__

def step(self, limit):
    results = original(self, limit)
    if int(tf.convert_to_tensor(self._model.optimizer.iterations.value)) == 7 and os.environ["SLURM_PROCID"] == "1":
        os.kill(os.getpid(), signal.SIGTERM)
    return results

if "--resume" not in sys.argv:
    stepping.Stepper.__call__ = step
cli.program()
"""
"""The command line, in which the second worker gets a signal at step 7 of a new run."""


@pytest.mark.exhaustive
def test_two_workers_of_srun_stop_and_resume_with_the_weights_of_one_process(tmp_path, local_slurm):
    file, folder = tmp_path / "run.yaml", tmp_path / "run"
    file.write_text(CONFIG)
    words = ["train", file, "--run-dir", folder, "--set", "runtime.strategy=multi_worker"]
    command = ["srun", "--nodes=2", "--ntasks=2", sys.executable, "-c", PROGRAM, *map(str, words)]
    first = subprocess.run(command, env=local_slurm, capture_output=True, text=True)
    assert first.returncode == 1, first.stderr
    assert first.stderr.count("at step 7, which is saved; continue with --resume") == 2
    again = subprocess.run([*command, "--resume"], env=local_slurm, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("run directory") == 1
    alone = run.train(configuration.load(str(file), ["runtime.strategy=cpu"]), str(tmp_path / "alone"))
    ours, expected = (load_model(os.path.join(each, "model.keras")).get_weights() for each in (folder, alone.path))
    assert expected[0].dtype == np.float64
    for weight, other in zip(ours, expected, strict=True):
        np.testing.assert_allclose(weight, other, rtol=0, atol=1e-12)

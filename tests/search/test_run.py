"""Search directories, with an engine that trains nothing and with one that trains in this process."""

import csv
import itertools
import json
import signal
import threading
import types

import pytest
import tensorflow as tf
from helpers import SMALL_RUN, screen_of
from processes import Command

from neural_alignment import config as configuration
from neural_alignment.errors import RunError, Stopped
from neural_alignment.jobs import estimates
from neural_alignment.jobs.batch import Screen
from neural_alignment.jobs.ending import Ending
from neural_alignment.jobs.engines.in_process import InProcess
from neural_alignment.optimization import Clock
from neural_alignment.search import compare, records, report, run
from neural_alignment.search import plan as plans
from neural_alignment.search.records import Trial
from neural_alignment.search.spaces import Space
from neural_alignment.training import lock
from neural_alignment.training import run as training
from neural_alignment.training.metrics import MetricsFile


@pytest.fixture
def said():
    return []


@pytest.fixture
def search(tmp_path, plan_file, said):
    """Runs a search in `tmp_path/found`, or in another folder."""

    def call(engine, place="found", overrides=(), **replaced):
        plan = plans.load(plan_file(), **replaced)
        return run.search(plan, overrides, str(tmp_path / place), engine, screen_of(said.append))

    return call


def rates(engine):
    return [(number, config.optimization.forward.learning_rate) for number, config in engine.seen]


# --- records, and interruptions


@pytest.mark.parametrize("lives", [0, 1, 3])
def test_a_killed_and_restarted_search_equals_an_uninterrupted_one(search, scripted, lives, tmp_path, lines):
    engine, judge = scripted
    whole = search(engine(judge), "whole", trials=6)
    killed, again = engine(judge, lives), engine(judge)
    with pytest.raises(SystemExit):
        search(killed, trials=6)
    assert len(lines(tmp_path / "found" / "proposals.jsonl")) == lives + 1
    trials = search(again, trials=6)
    assert [trial.settings for trial in trials] == [trial.settings for trial in whole]
    assert [number for number, _ in killed.seen + again.seen] == [1, 2, 3, 4, 5, 6]
    # Nothing is left of a search but its lines.
    assert {trial["number"] for trial in lines(tmp_path / "found" / "trials.jsonl")} == {1, 2, 3, 4, 5, 6}
    assert not list(tmp_path.rglob("events*"))  # Its configuration has no event files.


def test_more_trials_extend_a_search_and_the_same_number_does_nothing(search, scripted):
    engine, judge = scripted
    first, second, third = engine(judge), engine(judge), engine(judge)
    search(first, trials=3)
    search(second, trials=5)
    trials = search(third, trials=5)
    assert [number for number, _ in second.seen] == [4, 5]
    assert not third.seen
    assert [trial.settings for trial in trials] == [trial.settings for trial in search(engine(judge), "all", trials=5)]


OTHERS = {
    "seed": ({"seed": 8}, "seed was 7, is now 8"),
    "algorithm": ({"algorithm": "random"}, "algorithm was 'tpe', is now 'random'"),
    "epochs": ({"epochs": 1}, "epochs was None, is now 1"),
    "base": ({"overrides": ["batch_size=100"]}, "batch_size was 200, is now 100"),
}


@pytest.mark.parametrize("what", OTHERS)
def test_another_search_is_refused(search, scripted, what):
    engine, judge = scripted
    search(engine(judge), trials=1)
    changes, text = OTHERS[what]
    with pytest.raises(RunError) as error:
        search(engine(judge), **{"trials": 1, **changes})
    assert f"holds another search: {text}" in str(error.value)


def test_a_base_may_change_where_the_search_sets_the_values_itself(scripted, plan_file, tmp_path):
    engine, judge = scripted

    def search(decay, trials):
        base = SMALL_RUN.replace("decay: 2.0e-3", f"decay: {decay}")
        plan = plans.load(plan_file(base=base), trials=trials)
        return run.search(plan, (), str(tmp_path / "found"), engine(judge), screen_of(print))

    first, again = search(0.5, 1), search(0.25, 2)
    assert [trial.settings for trial in again][:1] == [trial.settings for trial in first]


def test_keys_beside_those_of_the_space_can_be_overridden(search, scripted):
    """Also `epochs`, if the search has none."""
    engine, judge = scripted
    overrides = ["alignment.self_=0.5", "optimization.forward.momentum=0.5", "epochs=3"]
    search(first := engine(judge), trials=1, overrides=overrides)
    [(_, config)] = first.seen
    assert (config.alignment.self_, config.optimization.forward.momentum, config.epochs) == (0.5, 0.5, 3)


def test_another_space_a_foreign_folder_and_a_second_process_are_refused(search, scripted, tmp_path, plan_file):
    engine, judge = scripted
    search(engine(judge), trials=1)
    plan = plans.load(plan_file(plan_file.text.replace("0.01]", "0.02]")))
    with pytest.raises(RunError, match=r"space\.alignment\.decay was \{'uniform': \[0, 0.01\]\}, is now"):
        run.search(plan, (), str(tmp_path / "found"), engine(judge), screen_of(print))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    with pytest.raises(RunError, match="is not a search directory: contains "):
        search(engine(judge), "mine")
    with lock.held(str(tmp_path / "found")), pytest.raises(RunError, match="is in use by process"):
        search(engine(judge), trials=2)


def test_a_file_in_place_of_the_directory_is_one_line(search, scripted, tmp_path):
    engine, judge = scripted
    (tmp_path / "found").write_text("mine")
    with pytest.raises(RunError, match="found: must be a directory; found a file; choose another --search-dir"):
        search(engine(judge), trials=1)
    assert (tmp_path / "found").read_text() == "mine"


def test_a_trial_whose_settings_cannot_be_derived_fails_alone_also_after_a_resume(scripted, plan_file, tmp_path):
    """Not all pairs of two choices are tried before the search begins."""
    engine, judge = scripted
    text = """
        config: base.yaml
        trials: 12
        algorithm: random
        space:
          $a: {choice: [1, 2]}
          $b: {choice: [10, 20]}
          $both: {product: [$a, $b]}
          $not_at_20: {match: $both, cases: [[10, 1], [40, 2]]}
          optimization.forward.learning_rate: {match: $not_at_20, cases: [[1, 0.1], [2, 0.2]]}
        """

    def search(trials):
        plan = plans.load(plan_file(text), trials=trials)
        return run.search(plan, ["logging.tensorboard=true"], str(tmp_path / "found"), engine(judge), screen_of(print))

    first, trials = search(8), search(12)
    assert trials[:8] == first
    failed = [trial for trial in trials if trial.state == "failed"]
    assert 0 < len(failed) < 12
    for trial in trials:
        fits = trial.settings["$both"] in (10, 40)
        assert (trial.state, trial.settings["$not_at_20"] is None) == (
            ("finished", False) if fits else ("failed", True)
        )
    assert all("match: no case for $both = 20" in trial.reason for trial in failed)


def test_runs_of_a_search_that_has_lost_its_records_are_not_those_of_a_new_search(search, scripted, tmp_path):
    """Of a process that was killed before it wrote `search.yaml`, only empty folders are left."""
    engine, judge = scripted
    for name in ("settings", "trials", "logs"):
        (tmp_path / "killed" / name).mkdir(parents=True)
    (tmp_path / "killed" / "lock.json").write_text("")
    search(engine(judge), "killed", trials=1)
    (tmp_path / "old" / "trials" / "0001").mkdir(parents=True)
    with pytest.raises(RunError, match=r"old: is not a search directory: contains trials/0001, but no search\.yaml"):
        search(engine(judge), "old", trials=1)
    assert [path.name for path in (tmp_path / "old").iterdir()] == ["trials"]


def test_a_search_may_be_resumed_on_another_device(search, scripted):
    engine, judge = scripted
    search(engine(judge), trials=1)
    second = engine(judge)
    search(second, trials=2, overrides=["runtime.strategy=cpu"])
    assert second.seen[0][1].runtime.strategy == "cpu"


@pytest.mark.parametrize(
    ("name", "text", "part"),
    [
        ("trials.jsonl", "not json\n", "line 1 is damaged"),
        ("trials.jsonl", "{}\n", "is not a trial"),
        ("proposals.jsonl", '{"number": 1, "drawn": {}}\n', "is not a proposal"),
    ],
)
def test_damaged_records_are_one_line(search, scripted, tmp_path, name, text, part):
    engine, judge = scripted
    search(engine(judge), trials=1)
    path = tmp_path / "found" / name
    path.write_text(text)
    with pytest.raises(RunError) as error:
        search(engine(judge), trials=2)
    assert str(error.value).startswith(f"{path}: ")
    assert part in str(error.value)
    assert str(error.value).endswith("; restore it, or remove the line")


@pytest.mark.parametrize("text", ["", "alignement: 3\n", "- a\n"])
@pytest.mark.parametrize(
    ("name", "remedy"),
    [("base.yaml", "remove it: it is written again"), ("search.yaml", "choose another --search-dir")],
)
def test_a_damaged_file_of_the_search_names_a_remedy(search, scripted, tmp_path, name, remedy, text):
    engine, judge = scripted
    trials = search(engine(judge), trials=2)
    path = tmp_path / "found" / name
    whole = path.read_text()
    path.write_text(text)
    with pytest.raises(RunError) as error:
        search(engine(judge), trials=2)
    assert str(error.value).startswith(f"{path}: ")
    assert str(error.value).endswith(f"; restore it, or {remedy}")
    assert "\n" not in str(error.value)
    assert path.read_text() == text
    if name == "base.yaml":
        path.unlink()
        assert search(engine(judge), trials=2) == trials
        assert path.read_text() == whole


@pytest.mark.parametrize("algorithm", ["tpe", "random"])
def test_after_a_line_of_each_file_is_removed_as_the_messages_say_only_that_trial_is_run(
    search, scripted, tmp_path, lines, algorithm
):
    engine, judge = scripted
    trials = search(engine(judge), algorithm=algorithm, trials=5)
    for name in ("proposals.jsonl", "trials.jsonl"):
        path = tmp_path / "found" / name
        path.write_text("".join(line for line in path.read_text().splitlines(True) if '"number": 3,' not in line))
    # The other settings are those that the trials had. The engine ends if the search does not.
    again = search(second := engine(judge, lives=4), algorithm=algorithm, trials=6)
    assert [number for number, _ in second.seen] == [3, 6]
    assert [trial.settings for trial in again if trial.number not in (3, 6)] == [
        trial.settings for trial in trials if trial.number != 3
    ]
    for name in ("proposals.jsonl", "trials.jsonl"):
        assert sorted(row["number"] for row in lines(tmp_path / "found" / name)) == [1, 2, 3, 4, 5, 6]


@pytest.mark.exhaustive
@pytest.mark.parametrize("kept", [[], [1, 3]])
def test_proposals_that_were_removed_are_read_from_the_trials(search, scripted, tmp_path, kept):
    engine, judge = scripted
    whole = search(engine(judge), "whole", trials=6)
    trials = search(engine(judge), trials=4)
    path = tmp_path / "found" / "proposals.jsonl"
    path.write_text("".join(path.read_text().splitlines(True)[number - 1] for number in kept))
    assert search(second := engine(judge), trials=4) == trials
    assert not second.seen
    again = search(engine(judge), trials=6)
    assert [trial.settings for trial in again] == [trial.settings for trial in whole]


@pytest.mark.parametrize("name", ["proposals.jsonl", "trials.jsonl"])
def test_two_lines_of_one_trial_are_damage(search, scripted, tmp_path, name):
    engine, judge = scripted
    search(engine(judge), trials=2)
    path = tmp_path / "found" / name
    path.write_text(path.read_text() + path.read_text().splitlines(True)[0])
    with pytest.raises(RunError, match=r"is the second line of trial 1; restore it, or remove the line"):
        search(engine(judge), trials=3)


TRIAL = {
    "number": 1,
    "state": "finished",
    "top1": 0.5,
    "score": 0.5,
    "reason": None,
    "seconds": 1.5,
    "settings": {
        "optimization.forward.learning_rate": 0.01,
        "alignment.decay": 0.005,
        "optimization.forward.nesterov": True,
    },
}


PROPOSAL = {"number": 1, "drawn": TRIAL["settings"]}


def test_the_status_names_the_running_trials_and_the_time_left(tmp_path, plan_file, monkeypatch):
    shown, path = [], tmp_path / "found"
    for name in ("settings", "trials"):
        (path / name).mkdir(parents=True)
    plan = plans.load(plan_file(), trials=4)
    searched = run.Search(plan, plans.base_config(plan), str(path))
    trials = run.Ledger(searched, types.SimpleNamespace(slots=2), 0.1, Screen(print, shown.append), lambda: None)
    now = [1000.0]
    monkeypatch.setattr(estimates, "time", types.SimpleNamespace(monotonic=lambda: now[0]))
    first, second = trials.next(), trials.next()
    now[0] += 30
    (path / "trials" / "0001").mkdir()
    (path / "trials" / "0001" / "metrics.csv").write_text(f"step,epoch\n0,0\n5,{searched.base.epochs / 4}\n")
    trials.show_progress()
    running = "trial 1 25 %, 90 s left; trial 2 0 %, an unknown time left"
    assert shown.pop() == f"{running} | all trials: 90 s left (estimate) and 3 not known yet"
    trials.waits(second)  # On a cluster.
    trials.ended(first, Ending("finished", 0.5))
    trials.show_progress()
    assert shown.pop() == "all trials: 45 s left (estimate)"  # Three of 30 s, two at a time.


@pytest.fixture
def ledger(tmp_path, plan_file):
    """Reads the records of a search of one proposal, written as versions without checksums did."""
    plan = plans.load(plan_file())
    (tmp_path / "found").mkdir()
    (tmp_path / "found" / "proposals.jsonl").write_text(json.dumps(PROPOSAL) + "\n")
    searched = run.Search(plan, plans.base_config(plan), str(tmp_path / "found"))
    return lambda: run.Ledger(searched, InProcess(), 0.1, screen_of(print), lambda: None)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("number", "1", "a positive integer"),
        ("number", True, "a positive integer"),
        ("number", 0, "a positive integer"),
        ("state", ["finished"], "finished, diverged or failed"),
        ("state", "open", "finished, diverged or failed"),
        ("state", "stopped", "finished, diverged or failed"),
        ("top1", "0.5", "a number or null"),
        ("score", [0.5], "a number or null"),
        ("score", float("nan"), "a number or null"),
        ("reason", 5, "a string or null"),
        ("seconds", None, "a number"),
        ("seconds", "1.5", "a number"),
        ("settings", [], "a mapping"),
        ("settings", {"epochs": 2}, None),
    ],
)
def test_a_value_of_another_type_in_a_trial_is_one_line(ledger, tmp_path, key, value, expected):
    path = tmp_path / "found" / "trials.jsonl"
    path.write_text(json.dumps(TRIAL) + "\n")  # As versions without checksums wrote it.
    assert ledger().trials() == [Trial(**TRIAL)]
    path.write_text(json.dumps({**TRIAL, key: value}) + "\n")
    with pytest.raises(RunError, match=r"trials\.jsonl: is damaged: .*; restore it, or remove the line") as error:
        ledger()
    assert "\n" not in str(error.value)
    assert f"expected {expected}" in str(error.value) or expected is None


@pytest.mark.parametrize(
    ("state", "top1", "score", "problem"),
    [
        ("finished", 0.5, 0.5, None),
        ("finished", None, None, "is finished and has top1 null; expected a number"),
        ("finished", 0.5, None, "is finished and has score null; expected a number"),
        ("diverged", None, 0.1, None),
        ("diverged", None, None, "is diverged and has score null; expected a number"),
        ("diverged", 0.5, 0.1, "is diverged and has top1 0.5; expected null"),
        ("failed", None, None, None),
        ("failed", None, 0.1, "is failed and has score 0.1; expected null"),
    ],
)
def test_the_results_of_a_trial_are_those_of_its_state(tmp_path, state, top1, score, problem):
    trial = {**TRIAL, "state": state, "top1": top1, "score": score}
    (tmp_path / "trials.jsonl").write_text(json.dumps(trial) + "\n")
    if problem is None:
        report.scores_figure(records.read_trials(str(tmp_path)), str(tmp_path / "scores"))
    else:
        with pytest.raises(
            RunError, match=rf"trials\.jsonl: is damaged: .* {problem}; restore it, or remove the line$"
        ):
            records.read_trials(str(tmp_path))


@pytest.mark.parametrize(
    ("key", "value"),
    [("number", "1"), ("number", None), ("drawn", []), ("alignment.decay", "high"), ("alignment.decay", None)],
)
def test_a_value_of_another_type_in_a_proposal_is_one_line(ledger, tmp_path, key, value):
    proposal = json.loads(json.dumps(PROPOSAL))
    (proposal if key in proposal else proposal["drawn"])[key] = value
    (tmp_path / "found" / "proposals.jsonl").write_text(json.dumps(proposal) + "\n")
    with pytest.raises(RunError, match=r"proposals\.jsonl: is damaged: .* is not a proposal; restore it") as error:
        ledger()
    assert "\n" not in str(error.value)


def test_a_changed_byte_of_a_trial_is_detected(search, scripted, tmp_path):
    engine, judge = scripted
    trials = search(engine(judge), trials=2)
    path = tmp_path / "found" / "trials.jsonl"
    content = path.read_bytes()
    for position in range(len(content)):
        changed = bytearray(content)
        changed[position] ^= 1
        path.write_bytes(changed)
        try:
            found = records.read_trials(str(path.parent))
        except RunError:
            continue
        assert found == trials, position


@pytest.mark.parametrize("name", ["trials.jsonl", "proposals.jsonl"])
def test_records_that_are_cut_off_are_one_line(search, scripted, tmp_path, name):
    engine, judge = scripted
    trials = search(engine(judge), trials=2)
    path = tmp_path / "found" / name
    content = path.read_bytes()
    half_a_line = len(content.splitlines()[-1]) // 2
    for damaged in (content[:-half_a_line], content[:-1], bytes(range(256))):
        path.write_bytes(damaged)
        with pytest.raises(RunError, match=rf"{name}: .*; restore it") as error:
            search(engine(judge), trials=2)
        assert "\n" not in str(error.value)
    path.write_bytes(content)
    assert search(engine(judge), trials=2) == trials


# --- endings


def test_unsuccessful_trials_are_recorded_with_their_reason_and_the_search_continues(
    search, scripted, said, tmp_path, lines
):
    engine, judge = scripted
    bad = {2: Ending("diverged", reason="J is not finite"), 3: Ending("failed", reason="its process was killed")}
    search(engine(lambda config, number: bad.get(number) or judge(config, number)))
    rows = lines(tmp_path / "found" / "trials.jsonl")
    assert [row["state"] for row in rows] == ["finished", "diverged", "failed", "finished"]
    assert [row["reason"] for row in rows] == [None, "J is not finite", "its process was killed", None]
    assert [row["score"] for row in rows][1:3] == [0.1, None]  # Chance among ten digits; nothing.
    assert rows[0]["score"] == rows[0]["top1"]
    with open(tmp_path / "found" / "top_ten.csv") as file:
        ten = list(csv.DictReader(file))
    # The table holds the score, which for a diverged trial is no accuracy.
    assert {row["trial"]: row["score"] for row in ten}["2"] == "0.1"
    assert "top1" not in ten[0]
    assert said[2].startswith("trial 2, 2 of 4: diverged: J is not finite; best ")


def test_a_trial_that_was_stopped_is_not_over(search, scripted, tmp_path):
    engine, judge = scripted
    stopped, again = (
        engine(lambda *_: Ending("stopped", reason="SIGTERM at step 3, which is saved")),
        engine(judge),
    )
    with pytest.raises(Stopped, match="trial 1: SIGTERM at step 3, which is saved; the same command resumes"):
        search(stopped)
    assert not (tmp_path / "found" / "trials.jsonl").exists()
    assert not (tmp_path / "found" / "scores.csv").exists()
    search(again)
    assert rates(again)[:1] == rates(stopped)
    assert len(again.seen) == 4


def test_a_search_that_is_stopped_early_reports_the_trials_so_far(search, scripted, tmp_path):
    engine, judge = scripted
    stopped = engine(lambda config, number: judge(config, number) if number < 3 else Ending("stopped", reason="SIGINT"))
    with pytest.raises(Stopped, match="trial 3: SIGINT; the same command resumes"):
        search(stopped)
    found = tmp_path / "found"
    best = max((1, 2), key=lambda number: judge(stopped.seen[number - 1][1], number).top1)
    assert (found / "best.yaml").read_text().startswith(f"# Trial {best}, the best of a search")
    with open(found / "scores.csv") as file:
        assert [row["number"] for row in csv.DictReader(file)] == ["1", "2"]
    assert {path.name for path in found.glob("*.png")} == {"importance.png", "scores.png"}
    search(engine(judge))
    with open(found / "scores.csv") as file:
        assert len(list(csv.DictReader(file))) == 4


def test_an_early_report_that_cannot_be_written_does_not_hide_why_the_search_stopped(search, scripted, monkeypatch):
    engine, judge = scripted

    def full(*_):
        raise tf.errors.PermissionDeniedError(None, None, "scores.csv; Permission denied")

    monkeypatch.setattr(report, "write", full)
    with pytest.raises(Stopped, match="trial 2: SIGINT"):
        search(engine(lambda *own: judge(*own) if own[1] < 2 else Ending("stopped", reason="SIGINT")))


def test_a_trial_that_cannot_run_stops_the_search_with_the_whole_reason(search, scripted):
    engine, _ = scripted
    reason = "x/status.json: is damaged; remove it, and --resume continues from the last checkpoint"
    with pytest.raises(Stopped) as error:
        search(engine(lambda *_: Ending("unavailable", reason=reason)))
    assert str(error.value) == f"trial 1: {reason}; once this is solved, the same command resumes"


def test_incompatible_settings_fail_only_their_own_trial(search, scripted, plan_file, tmp_path):
    engine, judge = scripted
    # Every option goes with some other; delay 2 with alternation goes, without it is as long as the run.
    space = "  optimization.alternation: {choice: [null, 1]}\n  optimization.delay_epochs: {choice: [1, 2]}\n"
    text = f"config: base.yaml\ntrials: 12\nalgorithm: random\nspace:\n{space}"
    plan = plans.load(plan_file(text))
    trials = run.search(plan, (), str(tmp_path / "found"), engine(judge), screen_of(print))
    for trial in trials:
        drawn = [trial.settings[f"optimization.{name}"] for name in ("alternation", "delay_epochs")]
        impossible = drawn == [None, 2]
        assert (trial.state == "failed") is impossible
        assert ("delay_epochs: must be less than" in (trial.reason or "")) is impossible
    assert {trial.state for trial in trials} == {"failed", "finished"}


# --- output and reports


def test_lines_contain_the_best_so_far_and_the_time_left(search, scripted, said):
    engine, _ = scripted
    tops = {1: 0.2, 2: 0.5, 3: 0.3, 4: 0.4}
    search(engine(lambda config, number: Ending("finished", tops[number])))
    assert said[0] == "4 trials of tpe, 1 at a time"
    assert said[1].startswith("trial 1, 1 of 4: top-1 20.00 %; best 20.00 % (trial 1); about ")
    assert said[3].startswith("trial 3, 3 of 4: top-1 30.00 %; best 50.00 % (trial 2); about ")
    assert said[4] == "trial 4, 4 of 4: top-1 40.00 %; best 50.00 % (trial 2)"


def test_the_duration_of_a_resumed_trial_is_estimated_from_its_part(search, scripted, tmp_path, monkeypatch):
    engine, judge = scripted
    with pytest.raises(SystemExit):
        search(engine(judge, lives=0), trials=2)
    metrics = tmp_path / "found" / "trials" / "0001" / "metrics.csv"
    metrics.parent.mkdir()
    metrics.write_text("step,epoch\n0,0\n5,1\n")
    times = itertools.count(step=10)
    monkeypatch.setattr(estimates, "time", types.SimpleNamespace(monotonic=lambda: next(times)))
    assert [trial.seconds for trial in search(engine(judge), trials=2)] == [20, 10]


def test_the_best_setting_is_a_configuration_of_full_length(search, scripted, tmp_path):
    engine, judge = scripted
    trials = search(engine(judge), trials=4, epochs=1)
    best = max(trials, key=lambda trial: trial.top1)
    assert min(trials, key=lambda trial: trial.top1).top1 < best.top1
    path = tmp_path / "found" / "best.yaml"
    config = configuration.load(path)
    trained = configuration.load(tmp_path / "found" / "settings" / f"{best.number:04d}.yaml")
    assert (config.epochs, trained.epochs) == (2, 1)
    assert config == trained.model_copy(update={"epochs": 2})
    assert config.optimization.forward.learning_rate == best.settings["optimization.forward.learning_rate"]
    assert config.seed == 7
    with open(tmp_path / "found" / "top_ten.csv") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["trial"]) for row in rows] == [t.number for t in sorted(trials, key=lambda t: -t.top1)]
    assert (tmp_path / "found" / "top_ten.md").read_text().startswith(f"| trial | {best.number} |")
    for name in ("importance", "scores"):
        assert (tmp_path / "found" / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_without_a_finished_trial_there_is_no_best(search, scripted, tmp_path):
    engine, _ = scripted
    trials = search(engine(lambda config, number: Ending("diverged", reason="x")))
    assert len(trials) == 4
    assert not (tmp_path / "found" / "best.yaml").exists()
    assert (tmp_path / "found" / "importance.csv").exists()
    search(engine(lambda config, number: Ending("failed", reason="x")), "failed")
    assert "No trial has given a score" in (tmp_path / "failed" / "top_ten.md").read_text()


def trial(number, score, **settings):
    state = "diverged" if score is None else "finished"
    return Trial(number, state, score, 0.1 if score is None else score, None, 1.0, settings)


def test_importance_is_mean_and_standard_error_by_choice_widest_first():
    space = Space({"a": {"choice": [False, True]}, "b": {"uniform": [0, 1]}, "c": {"choice": ["x", "y", "z"]}})
    scores = [0.1, 0.3, None, 0.7, 0.9, 0.8]
    choices = [False, False, False, True, True, True]
    trials = [
        trial(number, score, a=a, b=b, c=c)
        for number, score, a, b, c in zip(
            range(1, 7), scores, choices, [0.1, 0.6, 0.9, 0.2, 0.5, 0.8], "xyxyxy", strict=True
        )
    ]
    rows = report.importance(space, trials)
    assert [row.name for row in rows] == ["a", "a", "c", "c", "c", "b", "b", "b"]
    off, on = rows[:2]
    # By hand: the diverged one counts as chance, 0.1. Mean of 0.1, 0.3, 0.1; deviation 0.1155; over the root of 3.
    assert (off.choice, on.choice, off.count, on.count) == ("false", "true", 3, 3)
    assert off.mean == pytest.approx(0.5 / 3)
    assert off.sem == pytest.approx(0.0666667, abs=1e-6)
    assert on.mean == pytest.approx(0.8)
    assert on.sem == pytest.approx(0.0577350, abs=1e-6)
    assert (rows[4].choice, rows[4].count) == ("z", 0)
    assert [row.choice for row in rows[5:]] == ["0.1 to 0.2", "0.5 to 0.6", "0.8 to 0.9"]
    assert [row.mean for row in rows[5:]] == pytest.approx([0.4, 0.6, 0.45])


@pytest.mark.parametrize(("name", "words"), [
    ("optimization.forward.learning_rate", "task loss J: learning rate"),
    ("optimization.backward.learning_rate", "regulariser R: learning rate"),
    ("optimization.delay_epochs", "delay epochs"),
    ("alignment.input.feature_center", "input, feature center"),
    ("$gamma", "gamma"),
    ("weight_decay", "weight decay"),
])  # fmt: skip
def test_figures_name_metaparameters_in_words(name, words):
    assert report._readable(name) == words


def test_the_best_so_far_ignores_unfinished_trials():
    values = report.best_so_far([trial(1, None), trial(2, 0.3), trial(3, 0.2), trial(4, None), trial(5, 0.4)])
    assert [str(value) for value in values] == ["nan", "0.3", "0.3", "0.3", "0.4"]


def key_of(figure):
    """Returns the texts of the only key of a figure, which is outside of the axes."""
    [legend] = figure.legends
    [axes] = figure.axes
    assert axes.get_legend() is None
    return [text.get_text() for text in legend.get_texts()]


@pytest.mark.parametrize(("scores", "states"), [
    ([0.2, 0.3, 0.1], ["finished"]),
    ([0.2, None, 0.3], ["finished", "diverged (counts as chance)"]),
    ([None, None, None], ["diverged (counts as chance)"]),
])  # fmt: skip
def test_the_key_of_the_scores_has_the_states_that_occur(monkeypatch, scores, states):
    written = []
    monkeypatch.setattr(report, "write_artifact", lambda artifact, output: written.append(artifact))
    report.scores_figure([trial(number, score) for number, score in enumerate(scores, start=1)], "")
    [artifact] = written
    assert key_of(artifact.figure) == [*states, "best so far"]
    assert all(float(tick).is_integer() for tick in artifact.figure.axes[0].get_xticks())


# --- comparisons


def test_the_key_of_a_comparison_is_outside_and_trials_are_whole_numbers():
    figure = compare._figure({"tpe": [[0.1, 0.2, 0.3]], "random": [[0.1, 0.1, 0.2]]})
    assert key_of(figure) == ["tpe, mean and range of 1 seeds", "random, mean and range of 1 seeds"]
    assert all(float(tick).is_integer() for tick in figure.axes[0].get_xticks())


def compared(plan_file, tmp_path, engine, seeds=(0, 1, 2), said=None):
    each = {(a, s): plans.load(plan_file(), algorithm=a, seed=s) for a in ("tpe", "random") for s in seeds}
    output = str(tmp_path / "out" / "search_x")
    screen = screen_of((said if said is not None else []).append)
    text = compare.compare(each, (), str(tmp_path / "runs"), engine, output, screen)
    with open(f"{output}.csv") as file:
        return text, list(csv.DictReader(file))


def test_a_comparison_has_a_line_per_trial_and_resumes(plan_file, tmp_path, scripted):
    engine, judge = scripted
    with pytest.raises(SystemExit):
        compared(plan_file, tmp_path, engine(judge, lives=10))
    again = engine(judge)
    text, rows = compared(plan_file, tmp_path, again)
    assert len(again.seen) == 2 * 3 * 4 - 10
    assert list(rows[0]) == ["algorithm", "seed", "trial", "top1", "best_so_far", "diverged", "seconds", "settings"]
    assert len(rows) == 24
    assert [(row["algorithm"], row["seed"]) for row in rows[::4]] == [(a, s) for a in ("tpe", "random") for s in "012"]
    assert set(json.loads(rows[0]["settings"])) == set(plans.load(plan_file()).space)
    for first in range(0, 24, 4):
        tops = [float(row["top1"]) for row in rows[first : first + 4]]
        assert float(rows[first + 3]["best_so_far"]) == max(tops)
    # The two draw at random what TPE has not learnt from yet, by the same seeds.
    assert [row["settings"] for row in rows[:2]] == [row["settings"] for row in rows[12:14]]
    assert (tmp_path / "out" / "search_x.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "out" / "search_x.md").read_text() == text + "\n"
    with open(tmp_path / "out" / "search_x_importance.csv") as file:
        importance = list(csv.DictReader(file))
    nesterov = [row for row in importance if row["name"] == "optimization.forward.nesterov"]
    # All trials of TPE, and none of the others.
    assert sum(int(row["count"]) for row in nesterov) == 12
    own = [row for row in rows if row["algorithm"] == "tpe"]
    for row in nesterov:
        tops = [
            float(each["top1"])
            for each in own
            if json.dumps(json.loads(each["settings"])[row["name"]]) == row["choice"]
        ]
        assert float(row["mean"]) == pytest.approx(sum(tops) / len(tops), rel=1e-5)
    assert (tmp_path / "out" / "search_x_importance.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("tpe", "said"),
    [
        ([0.5, 0.6, 0.7], "tpe found a better setting than random with every seed: best top-1 +20.00 ± 10.00 points"),
        (
            [0.5, 0.4, 0.5],
            "tpe found better settings than random on average, but not with every seed: best top-1 +6.67",
        ),
        ([0.3, 0.4, 0.2], "tpe did not find better settings than random: best top-1 -10.00 ± 10.00 points"),
        ([0.4, 0.4, 0.4], "tpe did not find better settings than random: best top-1 +0.00 ± 0.00 points"),
    ],
)
def test_the_verdict_states_which_algorithm_is_better(tpe, said):
    tops = {("tpe", seed): top for seed, top in enumerate(tpe)} | {("random", seed): 0.4 for seed in range(3)}
    text = compare.verdict({key: [trial(1, None), trial(2, top), trial(3, top - 0.1)] for key, top in tops.items()})
    assert said in text
    assert f"| tpe | 0 | 3 | 1 | 0 | {100 * tpe[0]:.2f} | 2 |" in text


@pytest.mark.exhaustive
def test_a_comparison_with_a_search_that_has_only_failed_says_so(plan_file, tmp_path, scripted):
    engine, judge = scripted
    lost = Ending("failed", reason="its process was killed")
    text, rows = compared(plan_file, tmp_path, engine(lambda config, n: lost if config.seed == 1 else judge(config, n)))
    assert "tpe or random: undecided: no trial of tpe, seed 1, has finished." in text
    assert "| tpe | 1 | 4 | 0 | 4 | none |  |" in text
    assert {row["top1"] for row in rows if row["seed"] == "1"} == {""}
    assert (tmp_path / "out" / "search_x.png").exists()


# --- training


def test_trials_are_ordinary_runs_and_a_diverged_one_does_not_stop_the_search(tmp_path, plan_file, said, lines):
    text = """
config: base.yaml
trials: 3
algorithm: random
epochs: 1
space:
  optimization.forward.learning_rate: {choice: [0.02, 1.0e+30]}
  optimization.backward.learning_rate: {uniform: [0.01, 0.1]}
"""
    path = tmp_path / "found"
    plan = plans.load(plan_file(text))
    trials = run.search(plan, (), str(path), InProcess(), screen_of(said.append))
    assert {trial.state for trial in trials} == {"finished", "diverged"}
    for each in trials:
        status = training.RunDirectory(path / "trials" / f"{each.number:04d}").status()
        assert status["state"] == each.state
        if each.state == "finished":
            assert status["best_top1"] == each.top1
            with open(path / "trials" / f"{each.number:04d}" / "metrics.csv") as file:
                assert max(float(row["top1"]) for row in csv.DictReader(file) if row["top1"]) == pytest.approx(
                    each.top1
                )
        else:
            assert "is not finite at step" in each.reason
            assert each.score == 0.1
    # Without the records, the runs are read: those that have ended are not trained again.
    models = {model: model.stat().st_mtime_ns for model in path.rglob("model.keras")}
    (path / "trials.jsonl").unlink()
    found = run.search(plan, (), str(path), InProcess(), screen_of(said.append))
    assert [(t.state, t.top1, t.settings) for t in found] == [(t.state, t.top1, t.settings) for t in trials]
    assert models == {model: model.stat().st_mtime_ns for model in path.rglob("model.keras")}


@pytest.mark.exhaustive
def test_a_short_trial_is_the_beginning_of_the_full_run(tmp_path, plan_file):
    """45 epochs of the schedule of 100 are 45 epochs: marks stay where they are."""
    schedule = "{warmup_epochs: 1, drop_epochs: [2, 3]}"
    base = ["optimization.forward.schedule=" + schedule, "optimization.backward.schedule=" + schedule]
    plan = plans.load(plan_file(), trials=1, epochs=2)
    full = configuration.override(plans.base_config(plan, base), ["epochs=4"])
    values = plan.checked_space.probes()[0]
    for name, config in (
        ("short", plans.trial_config(plan, full, values)),
        ("full", plans.trial_config(plan.model_copy(update={"epochs": None}), full, values)),
    ):
        training.train(config, tmp_path / name)
    columns = lambda row: {key: value for key, value in row.items() if key != "seconds"}  # noqa: E731
    short, long = (MetricsFile(str(tmp_path / name / "metrics.csv")).rows() for name in ("short", "full"))
    assert [str(columns(row)) for row in short] == [str(columns(row)) for row in long[: len(short)]]
    assert (len(short), len(long)) == (3, 5)
    assert long[3]["learning_rate_J"] < 0.2 * short[2]["learning_rate_J"]


@pytest.mark.parametrize("kind", ["cosine", "polynomial"])
def test_a_short_trial_does_not_compress_a_schedule_that_ends_with_the_run(plan_file, kind):
    """With alternation and a delay, epochs of J are not epochs of a loss rate."""
    plan = plans.load(plan_file(), trials=1, epochs=3)
    schedule = f"{{kind: {kind}, warmup_epochs: 1, floor: 0.1}}"
    overrides = ["epochs=10", "optimization.alternation=1", "optimization.delay_epochs=1"]
    overrides += [f"optimization.forward.schedule={schedule}", "optimization.backward.schedule={drop_epochs: [2]}"]
    overrides += [f"optimization.loss_rates={{backward: {{schedule: {schedule}}}}}"]
    base, values = configuration.override(plans.base_config(plan), overrides), plan.checked_space.probes()[0]
    full = plans.trial_config(plan.model_copy(update={"epochs": None}), base, values)
    short, stretched = plans.trial_config(plan, base, values), configuration.override(full, ["epochs=3"])

    def rates(config):
        clock = Clock(5, config.epochs_of_j, config.optimization.delay_epochs, config.optimization.alternation)
        made = [config.optimization.forward.schedule.make(1.0, clock), config.optimization.loss_rates.make(clock)[1]]
        return [[float(schedule(step)) for step in range(30)] for schedule in made]

    assert rates(short) == rates(full)
    for found, other in zip(rates(short), rates(stretched), strict=True):
        assert found[-1] > 0.5 > other[-1]
    # A trial of a run with drops is described as before, and the best run still ends with its schedule.
    assert short.optimization.backward == full.optimization.backward
    best = Trial.ended(1, Ending("finished", 0.5), 0.1, 1.0, plan.checked_space.settings(values))
    assert "end_epoch" not in report.best_yaml(plan, base, best)
    assert plans.trial_config(plan, plans.base_config(plan), values) == configuration.override(
        plans.base_config(plan), [*plan.checked_space.overrides(values), "epochs=3"]
    )


@pytest.mark.exhaustive
def test_a_search_killed_within_a_trial_resumes_that_trial(tmp_path, plan_file, said, lines):
    """The search runs in another process, which is killed between the end of the first trial and that of the last."""
    path = tmp_path / "found"
    plan_path, output = plan_file(), tmp_path / "output.txt"
    arguments = ["search", plan_path, "--search-dir", str(path), "--set", "epochs=20", "--trials", "3"]
    process = Command(arguments, {}, tmp_path / "errors.txt", output=output)
    while not process.ended and not (output.exists() and "\ntrial 1," in output.read_text()):
        threading.Event().wait(0.02)
    process.kill()
    assert process.wait() == -signal.SIGKILL, process.errors
    done = len([line for line in output.read_text().splitlines() if line.startswith("trial ")])
    # A line that was written when the process was killed may not have been said.
    assert len(lines(path / "trials.jsonl")) in (done, done + 1)
    assert done < 3
    models = {model: model.stat().st_mtime_ns for model in path.rglob("model.keras")}
    begun = [row["drawn"] for row in lines(path / "proposals.jsonl")]
    plan = plans.load(plan_path, trials=3)
    trials = run.search(plan, ["epochs=20"], str(path), InProcess(), screen_of(said.append))
    assert [t.state for t in trials] == ["finished"] * 3
    assert [t.number for t in trials] == [1, 2, 3]
    assert [row["drawn"] for row in lines(path / "proposals.jsonl")][: len(begun)] == begun
    assert models.items() <= {model: model.stat().st_mtime_ns for model in path.rglob("model.keras")}.items()

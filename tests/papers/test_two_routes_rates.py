"""The rates of the lab: their searches, the table that they give, and the configurations that have them."""

import csv
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import lab_rates
import pytest
from helpers import screen_of, table_in
from lab import CONFIGS, ROOT, grey

from neural_alignment import config as configuration
from neural_alignment.errors import RunError
from neural_alignment.jobs.ending import Ending
from neural_alignment.papers import commands
from neural_alignment.papers.registry import find
from neural_alignment.papers.two_routes import rates, runs
from neural_alignment.reporting import csv_text
from neural_alignment.search import plan as plans
from neural_alignment.search import run
from neural_alignment.search.spaces import LogUniform
from neural_alignment.training import setup

SEARCHES = Path(CONFIGS) / "search" / "lab" / "two_routes"


def plan_of(rule):
    return plans.load(str(SEARCHES / f"{rule}.yaml"))


def test_every_rule_has_a_search_with_the_same_budget_and_a_seed_that_no_table_reports():
    assert {path.stem for path in SEARCHES.glob("*.yaml")} == set(rates.LAB_SEARCHED)
    assert {path.stem for path in lab_rates.LAB.glob("*.yaml")} == {*rates.LAB_SEARCHED, "weight_mirror_akrout"}
    keys = ("algorithm", "trials", "epochs", "seed", "startup_trials")
    budgets = {tuple(getattr(plan_of(rule), key) for key in keys) for rule in rates.LAB_SEARCHED}
    [(algorithm, _, epochs, seed, _)] = budgets
    assert (algorithm, epochs) == ("tpe", None)
    assert seed not in runs.SEEDS


@pytest.mark.parametrize("rule", rates.LAB_SEARCHED)
def test_shared_settings_have_the_same_ranges_and_r_has_a_rate_if_b_is_trained(rule):
    space, shared = plan_of(rule).checked_space, plan_of("backprop").checked_space
    assert space.sampled.keys() <= rates.SETTINGS.keys()
    assert {name: space.kinds[name] for name in shared.kinds} == shared.kinds
    own = configuration.load(lab_rates.LAB / f"{rule}.yaml")
    optimizer = own.optimization.backward
    assert ("optimization.backward.learning_rate" in space.sampled) == (optimizer is not None)
    if optimizer is not None and optimizer.name == "adam":
        adam = plan_of("symmetric").checked_space.kinds["optimization.backward.learning_rate"]
        assert space.kinds["optimization.backward.learning_rate"] == adam
    assert all(isinstance(kind, LogUniform) for kind in space.sampled.values())


@pytest.mark.parametrize("rule", rates.LAB_SEARCHED)
def test_a_trial_is_a_run_of_the_lab_that_is_judged_on_other_images(rule):
    plan = plan_of(rule)
    base, own = plans.base_config(plan), configuration.load(lab_rates.LAB / f"{rule}.yaml")
    trial = plans.trial_config(plan, base, plan.checked_space.probes()[0])
    assert (own.data.train_split, own.data.validation_split) == ("train[:5000]", "test[:2000]")
    assert (trial.data.train_split, trial.data.validation_split) == ("train[:5000]", "train[5000:7000]")
    for part in ("epochs", "batch_size", "model"):
        assert getattr(trial, part) == getattr(own, part)
    if rule == "kolen_pollack":
        assert trial.alignment.decay == trial.weight_decay != own.weight_decay
    else:
        assert trial.alignment == own.alignment


class Judge:
    """An engine that trains nothing; the score is best at J's rate 0.1."""

    slots = 1

    def __init__(self, trials):
        self.trials = trials

    def run(self, queue):
        for _ in range(self.trials):
            job = queue.next()
            if job is None:
                return
            config = configuration.load(job.config)
            score = 1 / (1 + abs(config.optimization.forward.learning_rate - 0.1))
            queue.ended(job, Ending("diverged") if job.name == "0001" else Ending("finished", score))


@pytest.fixture(autouse=True)
def ten_classes(monkeypatch):
    """The only fact about CIFAR-10 that a search needs, so that no test needs the data."""
    monkeypatch.setattr(setup, "data_facts", lambda config: SimpleNamespace(classes=10))


@pytest.fixture
def searched(tmp_path):
    """Returns a function that runs a part of the search of a rule, and the table of rates of all searches so far."""

    def call(rule, trials=99):
        run.search(plan_of(rule), (), str(tmp_path / "searches" / rule), Judge(trials), screen_of(print))

    def table():
        item = find(commands.ITEMS, "table", "two_routes/rates")
        (tmp_path / "results").mkdir(exist_ok=True)
        folders = commands.Folders(str(tmp_path / "searches"), str(tmp_path / "results"), CONFIGS)
        return item.make(folders.source(item, "paper"))

    return call, table


def test_the_table_has_the_best_trial_of_each_finished_search(searched, tmp_path):
    search, table = searched
    assert table().text.count("not yet run") == len(rates.LAB_SEARCHED)
    search("backprop")
    search("symmetric")
    artifact = table()
    assert artifact.columns == ("rule", "setting", "value", "trials", "score", "seed", "seconds")
    rows = {(row["rule"], row["setting"]): row for row in artifact.rows}
    assert len(rows) == len(artifact.rows) == 2 + 3
    with open(tmp_path / "results" / "rates_trials.csv") as file:
        trials = list(csv.DictReader(file))
    for rule in ("backprop", "symmetric"):
        own = [row for row in trials if row["rule"] == rule]
        assert len(own) == plan_of(rule).trials
        assert [row["trial"] for row in own if row["state"] == "diverged"] == ["1"]
        best = max(own, key=lambda row: float(row["score"]))
        for name in rates.SETTINGS:
            assert bool(best[name]) == ((rule, name) in rows)
            if best[name]:
                assert rows[rule, name]["value"] == pytest.approx(float(best[name]), rel=5e-3)
                assert rows[rule, name]["seed"] == 100
    assert artifact.text.count("not yet run") == len(rates.LAB_SEARCHED) - 2


@pytest.mark.parametrize(("value", "marked"), [(0.0484, True), (0.045, True), (0.04, False), (0.0011, True)])
def test_values_at_an_end_of_their_range_are_marked(value, marked):
    row = {"setting": "optimization.backward.learning_rate", "value": value}
    assert rates._is_at_an_end(plan_of("activation"), row) is marked
    line = rates._table(
        [{**row, "rule": "activation", "score": 0.4, "trials": 20, "seconds": 60.0}],
        dict.fromkeys(rates.LAB_SEARCHED, ""),
        {("activation", row["setting"])} if marked else (),
    )
    assert (f"{value:g} * |" in line) is marked


def test_an_interrupted_search_gives_no_rates(tmp_path, searched):
    search, table = searched
    search("activation", trials=3)
    artifact = table()
    assert artifact.rows == []
    assert f"3 of {plan_of('activation').trials} trials" in artifact.text


def test_rates_are_written_into_configurations_and_the_search_still_resumes(searched, tmp_path, monkeypatch):
    """The search replaces the rates of its base, so that it does not matter that they have changed."""
    folder = shutil.copytree(CONFIGS, tmp_path / "configs")
    monkeypatch.setattr(lab_rates, "LAB", Path(folder) / "lab" / "two_routes")
    monkeypatch.setattr(lab_rates, "FULL", Path(folder) / "cifar10" / "full")
    monkeypatch.setattr(lab_rates, "SEARCHES", Path(folder) / "search" / "lab" / "two_routes")
    monkeypatch.setattr(lab_rates, "RATES", tmp_path / "rates.csv")
    monkeypatch.setattr(lab_rates, "PAGE", Path(shutil.copy(lab_rates.PAGE, tmp_path)))
    rows = ["rule,setting,value,trials,score,seconds"]
    for rule in rates.LAB_SEARCHED:
        sampled = plan_of(rule).checked_space.sampled
        rows += [f"{rule},{name},{2.5e-05 + place:g},20,0.4,60" for place, name in enumerate(sampled)]
    (tmp_path / "rates.csv").write_text("\n".join(rows))
    search, _ = searched
    search("kolen_pollack", trials=2)
    lab_rates.write_rates()
    assert "the searches for their rates 5 minutes." in table_in(lab_rates.PAGE, "time")[0]
    full = configuration.load(lab_rates.FULL / "kolen_pollack.yaml")
    assert full.weight_decay == full.alignment.decay == pytest.approx(1.000025 / 5.85, rel=1e-3)
    assert full.optimization.forward.learning_rate == 2.5e-05
    for rule in rates.LAB_SEARCHED:
        check(rule)
        config = configuration.load(lab_rates.LAB / f"{rule}.yaml")
        before = configuration.load(f"{CONFIGS}/lab/two_routes/{rule}.yaml")
        assert config.optimization.forward.schedule == before.optimization.forward.schedule
        assert "(20 trials, 60 s of one core; best 40.00 % top-1)" in (lab_rates.SEARCHES / f"{rule}.yaml").read_text()
    plan = plans.load(f"{folder}/search/lab/two_routes/kolen_pollack.yaml")
    trials = run.search(plan, (), str(tmp_path / "searches" / "kolen_pollack"), Judge(99), screen_of(print))
    assert len(trials) == plan.trials


def check(rule):
    """Compares a configuration with the chosen rates."""
    config = configuration.load(lab_rates.LAB / f"{rule}.yaml")
    chosen = lab_rates.chosen()[rule]
    assert chosen.keys() == plan_of(rule).checked_space.sampled.keys()
    assert chosen["optimization.forward.learning_rate"] == config.optimization.forward.learning_rate
    assert chosen["weight_decay"] == config.weight_decay
    if rule == "kolen_pollack":
        assert config.alignment.decay == config.weight_decay
    if "optimization.backward.learning_rate" in chosen:
        assert chosen["optimization.backward.learning_rate"] == config.optimization.backward.learning_rate


def test_figure_s2_has_the_discrete_metaparameters_with_the_letters_of_the_paper(tmp_path):
    plan = plans.load(str(SEARCHES.parent / "information.yaml"), trials=9)
    trials = run.search(plan, (), str(tmp_path / "search"), Judge(9), screen_of(print))
    item = find(commands.ITEMS, "figure", "two_routes/S2")
    artifact = item.make(commands.Folders(str(tmp_path / "search"), configs=CONFIGS).source(item, "paper"))
    rows = [row for row in artifact.rows if row["letter"]]
    assert "".join(dict.fromkeys(row["letter"] for row in rows)) == "ACDEFGHI"
    assert not {row["name"] for row in artifact.rows} & {"alignment.input.stddev", "$beta"}
    assert "not drawn by this search: B (alignment.input.noise)." in artifact.text
    own = [row for row in rows if row["letter"] == "D"]
    for row, option in zip(own, (False, True), strict=True):
        scores = [each.score for each in trials if each.settings["alignment.backward_output.relu"] is option]
        assert row["count"] == len(scores)
        assert not scores or row["mean"] == pytest.approx(sum(scores) / len(scores))
    assert artifact.figure.axes[0].get_title() == "A: backward_output.\nfeature_normalize"
    assert grey(artifact.figure)
    artifact.figure.savefig(tmp_path / "figure.png")
    with pytest.raises(RunError, match="is not a search directory"):
        item.make(commands.Folders(str(tmp_path), configs=CONFIGS).source(item, "paper"))


def test_a_search_without_a_discrete_metaparameter_has_no_figure_s2(tmp_path):
    plan = plans.load(str(SEARCHES / "symmetric.yaml"), trials=1)
    run.search(plan, (), str(tmp_path / "search"), Judge(1), screen_of(print))
    item = find(commands.ITEMS, "figure", "two_routes/S2")
    with pytest.raises(RunError, match="is a search without a discrete metaparameter"):
        item.check(commands.Folders(str(tmp_path / "search"), configs=CONFIGS).source(item, "paper"))


def test_figure_s2_of_the_results_has_all_trials_by_tpe_of_the_comparison():
    item, results = find(commands.ITEMS, "figure", "two_routes/S2"), ROOT / "results" / "two_routes"
    artifact = item.make(commands.Folders(str(results), configs=CONFIGS).source(item, "paper"))
    assert csv_text(artifact.columns, artifact.rows) == (results / "figure_S2.csv").read_text()
    with open(results / "search_information.csv") as file:
        trials = [row for row in csv.DictReader(file) if row["algorithm"] == "tpe"]
    for row in artifact.rows:
        options = [json.dumps(json.loads(each["settings"])[row["name"]]).strip('"') for each in trials]
        scores = [
            float(each["top1"] or 0.1) for each, option in zip(trials, options, strict=True) if option == row["choice"]
        ]
        assert row["count"] == len(scores)
        assert row["mean"] == pytest.approx(sum(scores) / len(scores))


@pytest.mark.parametrize("rule", rates.LAB_SEARCHED)
def test_the_configurations_of_the_lab_have_the_chosen_rates(rule):
    check(rule)


def test_headers_have_the_time_and_the_accuracy_of_the_runs():
    for path, found in lab_rates.results().items():
        assert path.read_text() == lab_rates.with_result(path.read_text(), found), path
    text = "# A rule.\n# neural-alignment train configs/a.yaml   (one core; not yet run)\nepochs: 1\n"
    header = "# neural-alignment train configs/a.yaml   (one core, about 20 s; 41.00 ± 1.41 % top-1, seeds 0 to 1)"
    assert lab_rates.with_result(text, [(0, 0.4, 10.0), (1, 0.42, 30.0)]) == f"# A rule.\n{header}\nepochs: 1\n"


def test_headers_of_the_searches_have_their_results():
    finished = lab_rates.search_results()
    for path in SEARCHES.glob("*.yaml"):
        if path in finished:
            assert path.read_text() == lab_rates.with_search_result(path.read_text(), finished[path]), path
        assert ("(not yet run" in path.read_text()) == (path not in finished), path


def test_the_page_has_the_time_of_the_runs():
    assert table_in(lab_rates.PAGE, "time") == lab_rates.time_line()


def test_the_command_of_all_searches_names_every_rule():
    lines = (ROOT / "Makefile").read_text().replace("\\\n", " ").splitlines()
    [line] = [line for line in lines if line.startswith("LAB_RULES := ")]
    assert sorted(line.split()[2:]) == sorted(rates.LAB_SEARCHED)


def test_a_setting_that_a_file_does_not_have_is_an_error():
    with pytest.raises(LookupError, match="weight_decay is not in the file"):
        lab_rates.with_rates("epochs: 1\n", {"weight_decay": 0.1})

"""The matrix of compiled steps: cases, resume, budget, failures, and the tables of the page."""

import csv

import pytest
from helpers import RULE_CONFIGS, RULE_TABLE, assert_close, table_in

from benchmarks.tpu import cases, check, table
from benchmarks.tpu.cases import BF16, F32, SIGN, Case, matrix
from neural_alignment.errors import InputError
from neural_alignment.training import setup, tpu
from neural_alignment.training.distribution import check_replicas
from neural_alignment.training.tpu import estimate
from neural_alignment.training.tpu.compilation import Limits

ADAM = ("weight_mirror_adam", "weight_mirror_adam_ops")
"""Configurations of the paper with the rule `weight_mirror`."""

USED = {"jax": "1.0", "libtpu": "2.0", "tensorflow": "3.0"}
DONE = tpu.Compiled(10, 20, 5, 1000, 2000, 60)
R18 = "two_routes/resnet18/{}.yaml"
CASES = [Case("v3-8", "ResNet-18", rule, loss, BF16, R18.format(rule)) for rule, loss in
         (("symmetric", "J + R"), ("backprop", "J"), ("information", "J"), ("information", "R"))]  # fmt: skip


class Compiler:
    """Stands in for `compile_case`: each case takes an hour, and may have another result than `DONE`."""

    def __init__(self, results=()):
        self.compiled = []
        self.results = dict(results)

    def __call__(self, case, limits):
        del limits
        self.compiled.append((case.rule, case.loss))
        result = self.results.get(self.compiled[-1], DONE)
        if isinstance(result, BaseException):
            raise result
        return result

    def seconds(self):
        return 3600.0 * len(self.compiled)


def run(path, compiler, cases=CASES, used=USED, hours=100.0, first=None):
    check.check(cases, path, used, hours, Limits(), compiler, compiler.seconds, first)
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


ALL = [(case.rule, case.loss) for case in CASES]


# The cases.


def test_cases_are_different_and_the_most_important_come_first():
    cases = matrix()
    assert len({case.key for case in cases}) == len(cases)
    rules = ["symmetric", "information", "activation", "weight_mirror", "backprop"]
    assert [case.rule for case in cases[:5]] == rules
    assert {case.chip for case in cases[:10]} == {"v3-8"}
    assert {(case.rule, case.loss) for case in cases[5:7]} == {("information", "R"), ("weight_mirror", "R")}


def test_the_cores_of_each_tpu_can_share_the_batches():
    for case in {(case.path, case.overrides, case.chip): case for case in matrix()}.values():
        check_replicas(case.config(), tpu.Slice.named(case.chip).replicas)


def test_the_matrix_contains_each_group():
    """Every rule on ResNet-18 or, if it is for a whole network or of the paper on wide networks, on the 8-layer CNN."""
    keys = {case.key for case in matrix()}
    local = {*RULE_CONFIGS} - {"align_prop"}
    for chip in ("v3-8", "v2-8"):
        for precision in (BF16, F32):
            rules = {key[2] for key in keys if key[0] == chip and key[1] == "ResNet-18" and key[4] == precision}
            assert {rule.removesuffix(SIGN) for rule in rules} == {*local, "backprop", *ADAM}
        for model in ("ResNet-50", "ResNet-50v2", "ResNet-101v2", "ResNet-152v2"):
            rules = {key[2] for key in keys if key[:2] == (chip, model) and key[4] == BF16}
            assert rules == {"symmetric", "activation", "backprop"}
            assert (chip, model, "symmetric", "J + R", F32) in keys
    for chip in ("v4-8", "v5litepod-4", "v6e-4"):
        assert {key[2] for key in keys if key[0] == chip} == {"symmetric", "information"}
    for chip in ("v3-1", "v6e-1"):
        assert {key[2] for key in keys if key[0] == chip and key[1] == "8-layer CNN"} == {*RULE_TABLE} - local


@pytest.mark.parametrize("case", {case.path + str(case.overrides): case for case in matrix()}.values(), ids=str)
def test_a_case_compiles_a_step_that_its_configuration_makes(case):
    config = case.config()
    assert config.batch_size % tpu.Slice.named(case.chip).replicas == 0
    if config.data.source == "imagenet":  # The others need their data.
        assert case.loss in tpu.turns(config, setup.data_facts(config))


def test_the_steps_of_a_new_rule_follow_from_its_configuration(monkeypatch):
    """R of a rule that trains B is in the steps of J, unless both alternate."""
    monkeypatch.setitem(cases.NOT_STORED, "new", "alignment={rule: symmetric, self_: 1.0e-3, decay: 1.0e-3}")
    assert [case.loss for case in cases.resnet18("v3-8", BF16, ["new"])] == ["J + R"]
    monkeypatch.setitem(cases.NOT_STORED, "fixed", "alignment.rule=feedback")
    assert [case.loss for case in cases.resnet18("v3-8", BF16, ["fixed"])] == ["J"]
    assert cases.losses("two_routes/resnet18/weight_mirror.yaml") == ("J", "R")


# The results.


def test_a_line_has_the_columns_in_order(tmp_path):
    rows = run(tmp_path / "x.csv", Compiler())
    header = (tmp_path / "x.csv").read_text().splitlines()[0]
    assert header == (
        "chip,model,rule,loss,precision,batch_per_core,compiles,argument_bytes,temporary_bytes,aliased_bytes,flops,"
        "bytes_accessed,seconds_to_compile,jax,libtpu,tensorflow,reason"
    )
    assert list(rows[0].values()) == [
        *("v3-8", "ResNet-18", "symmetric", "J + R", BF16, "32", "yes", "10", "20", "5", "1000", "2000", "60"),
        *("1.0", "2.0", "3.0", ""),
    ]


def test_a_failure_is_a_line_and_the_others_follow(tmp_path):
    failed, stopped = tpu.Compiled(reason="too large"), tpu.Compiled(reason="took too long", stopped=True)
    compiler = Compiler({ALL[0]: failed, ALL[1]: stopped})
    rows = run(tmp_path / "x.csv", compiler)
    assert [(row["compiles"], row["reason"], row["flops"]) for row in rows] == [
        *(("no", "too large", ""), ("", "took too long", ""), ("yes", "", "1000"), ("yes", "", "1000"))
    ]
    again = Compiler()
    run(tmp_path / "x.csv", again)
    assert again.compiled == [ALL[1]]  # A failure is a result, a stopped compilation is none.


def test_cases_beyond_the_budget_are_lines_and_are_compiled_by_the_next_call(tmp_path):
    first = Compiler()
    rows = run(tmp_path / "x.csv", first, hours=1.5)
    assert first.compiled == ALL[:2]
    assert [row["compiles"] for row in rows] == ["yes", "yes", "", ""]
    assert {row["reason"] for row in rows[2:]} == {"not reached within 1.5 hours of processor time"}
    assert rows[3]["batch_per_core"] == "32"
    assert table.Table(check.read(tmp_path / "x.csv")).missing() == (
        "Of 4 cases, 2 have no result: 2 not reached within 1.5 hours of processor time."
    )
    second = Compiler()
    rows = run(tmp_path / "x.csv", second)
    assert second.compiled == ALL[2:]
    assert [row["compiles"] for row in rows] == ["yes"] * 4


def test_an_interrupted_check_keeps_its_results(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "x.csv", Compiler({ALL[2]: KeyboardInterrupt()}))
    rows = check.read(tmp_path / "x.csv")
    assert [rows[case.key]["reason"] for case in CASES] == ["", "", "not reached yet", "not reached yet"]
    second = Compiler()
    run(tmp_path / "x.csv", second)
    assert second.compiled == ALL[2:]


@pytest.mark.parametrize("package", USED)
def test_results_of_other_versions_are_replaced(tmp_path, package):
    run(tmp_path / "x.csv", Compiler())
    second = Compiler()
    rows = run(tmp_path / "x.csv", second, used={**USED, package: "9"})
    assert second.compiled == ALL
    assert {row[package] for row in rows} == {"9"}


OTHER = {**USED, "jax": "9"}


def test_a_result_of_other_versions_stays_until_there_is_a_new_one(tmp_path):
    before = run(tmp_path / "x.csv", Compiler())
    assert run(tmp_path / "x.csv", Compiler(), used=OTHER, hours=0) == before
    stopped = Compiler({ALL[0]: tpu.Compiled(reason="took too long", stopped=True)})
    rows = run(tmp_path / "x.csv", stopped, used=OTHER, hours=1.5)
    assert stopped.compiled == ALL[:2]
    assert [row["jax"] for row in rows] == ["1.0", "9", "1.0", "1.0"]
    assert rows[0] == before[0]
    third = Compiler()
    assert {row["jax"] for row in run(tmp_path / "x.csv", third, used=OTHER)} == {"9"}
    assert third.compiled == [ALL[0], *ALL[2:]]


@pytest.mark.parametrize("used", [USED, OTHER])
def test_a_check_of_the_first_cases_keeps_the_other_results(tmp_path, used):
    before = run(tmp_path / "x.csv", Compiler())
    compiler = Compiler()
    rows = run(tmp_path / "x.csv", compiler, used=used, first=1)
    assert compiler.compiled == ([] if used == USED else ALL[:1])
    assert rows[1:] == before[1:]
    assert len(run(tmp_path / "new.csv", Compiler(), first=2)) == 2


def test_the_command_keeps_the_results_of_the_cases_that_it_does_not_compile(tmp_path, monkeypatch):
    table_path = tmp_path / "x.csv"
    table_path.write_bytes(check.TABLE.read_bytes())
    monkeypatch.setattr(check, "installed", lambda: {"jax": "9", "libtpu": "9"})
    monkeypatch.setattr(check, "compile_case", lambda *_: DONE)
    assert check.main(["--hours", "0", "--table", str(table_path)]) == 0
    assert table_path.read_bytes() == check.TABLE.read_bytes()
    assert check.main(["--first", "1", "--table", str(table_path)]) == 0
    stored, found = check.read(check.TABLE), check.read(table_path)
    assert list(stored) == list(found)
    assert [key for key in stored if stored[key] != found[key]] == [matrix()[0].key]


def test_a_case_that_is_no_longer_in_the_matrix_is_left_out(tmp_path):
    run(tmp_path / "x.csv", Compiler())
    assert len(run(tmp_path / "x.csv", Compiler(), CASES[1:])) == 3


def test_a_program_that_cannot_be_made_is_a_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(check.sys, "executable", "false")
    result = check.compile_case(CASES[0], 0, tmp_path, Limits())
    assert result.reason.startswith("cannot be made into a program:")
    assert not result.stopped


def test_tpus_with_the_same_batch_per_core_share_a_program(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(check.tpu, "compile_program", lambda *arguments: calls.append(arguments) or DONE)
    (tmp_path / f"ResNet-18 symmetric J + R {BF16} 8.hlo").write_bytes(b"program")
    for chip in ("v3-8", "v2-8"):
        check.compile_case(CASES[0]._replace(chip=chip), 0, tmp_path, Limits())
    assert [(program, topology) for program, topology, _ in calls] == [
        *((b"program", "v3:2x2x1"), (b"program", "v2:2x2x1"))
    ]


def test_without_the_compiler_there_is_one_line(monkeypatch, capsys):
    def missing():
        raise check.InputError("--tpu: needs the compiler")

    monkeypatch.setattr(check, "installed", missing)
    assert check.main([]) == 2
    assert capsys.readouterr().err == "--tpu: needs the compiler\n"


# The page.


@pytest.fixture
def results(tmp_path):
    """A step of J + R of 30 ms beside backpropagation of 20 ms, and a step of R of 5 ms beside one of J of 10 ms."""

    def taking(milliseconds):
        return DONE._replace(flops=0, bytes_accessed=int(450e6 * milliseconds))

    steps = dict(zip(ALL, map(taking, (30, 20, 10, 5)), strict=True))
    run(tmp_path / "x.csv", Compiler(steps))
    return check.read(tmp_path / "x.csv")


def test_the_share_of_r_is_relative_to_j_alone(results):
    shares = [table.Table(results).share(row) for row in results.values()]
    assert_close(shares[0], 0.5)
    assert_close(shares[3], 0.5)
    assert shares[1:3] == [None, None]
    results[CASES[1].key]["batch_per_core"] = "64"
    assert table.Table(results).share(results[CASES[0].key]) is None


def test_estimates_count_the_steps_of_j_and_of_r(results):
    lines = table.Table(results).estimates(CASES).splitlines()
    steps = 5004 * 90
    assert lines[2] == f"| ResNet-18 | `symmetric` | {steps:,} of J + R | 3.75 | $33 |  |  |"
    of_r = (2 * 5004 * 100 + 5004) / 2
    hours = (0.005 * of_r + 0.01 * (2 * 5004 * 100 - of_r)) / 3600
    assert lines[4].endswith(f"| {estimate.digits(hours)} | ${8.8 * hours:.0f} |  |  |")


def test_the_table_names_memory_and_failures(results):
    results[CASES[1].key] |= {"compiles": "no", "reason": "too large"}
    lines = table.Table(results).compiled().splitlines()
    assert "| 2.79e-08 of 16 GiB | 0.00 | 13.5 GB | 30.0 ms (traffic) |" in lines[2]
    assert "| does not compile: too large |" in lines[3]


def test_the_page_has_the_tables_of_the_results():
    for mark, text in table.parts(check.read(check.TABLE)).items():
        assert table_in(table.PAGE, mark) == text.splitlines()


def test_the_program_replaces_the_tables_of_the_page(tmp_path, monkeypatch):
    page = tmp_path / "tpu.md"
    page.write_text("".join(f"<!-- {mark} -->\nold\n<!-- end -->\n" for mark in ("estimates", "missing")))
    monkeypatch.setattr(table, "PAGE", page)
    monkeypatch.setattr(table, "parts", lambda rows: {"estimates": "| a |\n| b |", "missing": "None."})
    table.main()
    assert page.read_text() == "<!-- estimates -->\n| a |\n| b |\n<!-- end -->\n<!-- missing -->\nNone.\n<!-- end -->\n"
    page.write_text("<!-- estimates -->\n<!-- end -->\n")
    with pytest.raises(InputError, match=r"tpu\.md: has no lines `<!-- missing -->`"):
        table.main()

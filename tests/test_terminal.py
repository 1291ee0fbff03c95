"""Output on a terminal of 80 and of 40 columns, simulated by a pseudo-terminal, and in a file."""

import contextlib
import fcntl
import io
import json
import os
import pathlib
import re
import struct
import subprocess
import sys
import termios
import threading

import pytest
from helpers import SMALL_RUN
from prepared_run import PreparedRuns
from processes import Command

from neural_alignment import cli, shipped, terminal
from neural_alignment.training import callbacks, stages

ROOT = pathlib.Path(__file__).parent.parent
CODE = re.compile("\033\\[[0-9;]*m")
ANY_CODE = re.compile("\033\\[[0-9;]*[A-Za-z]")


class Screen:
    """A pseudo-terminal in place of both outputs of the process.

    Args:
        columns: its width.
    """

    def __init__(self, columns):
        self._master, slave = os.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        self.stream = open(slave, "w", encoding="utf-8", newline="")  # noqa: SIM115 (closed by `close`)
        self._columns = columns
        self._content = b""
        self._changed = threading.Condition()
        threading.Thread(target=self._collect, daemon=True).start()

    def _collect(self):
        """Reads all the time, because a write to a full pseudo-terminal waits."""
        with contextlib.suppress(OSError):  # The other end is closed.
            while part := os.read(self._master, 1 << 16):
                with self._changed:
                    self._content += part
                    self._changed.notify()

    def read(self):
        """Returns all that was printed so far."""
        print("\0", end="", file=self.stream, flush=True)
        with self._changed:
            assert self._changed.wait_for(lambda: self._content.endswith(b"\0"), timeout=60)
            return self._content.replace(b"\0", b"").decode().replace("\r\n", "\n")

    def lines(self):
        """Returns the lines without colours, and checks that no table is wider than the terminal."""
        lines = [line.rpartition("\r")[2] for line in ANY_CODE.sub("", self.read()).split("\n")]
        assert not [line for line in lines if "─" in line and len(line) > self._columns]
        return lines

    def close(self):
        self.stream.close()
        os.close(self._master)


@pytest.fixture
def screen(monkeypatch):
    """Returns a function that replaces the outputs by a terminal of some width."""
    monkeypatch.setenv("TERM", "xterm")
    for name in ("NO_COLOR", "COLUMNS", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    with contextlib.ExitStack() as stack:

        def call(columns=80):
            made = Screen(columns)
            stack.callback(made.close)
            monkeypatch.setattr(sys, "stdout", made.stream)
            monkeypatch.setattr(sys, "stderr", made.stream)
            return made

        yield call


HEADER = ("layer", "rule", "weights")
ROWS = [("group1_block1_conv1", "symmetric", "36,864"), ("dense", "feedback", "5,130")]
MARKDOWN = "| rule | top-1 (%) |\n| --- | --- |\n| a \\| b | 97.22 ± 0.10 |\n| symmetric | 9.50 |"


def test_a_file_gets_the_plain_lines(capsys):
    terminal.table(HEADER, ROWS, "layer  rule\nplain  text")
    terminal.facts([("a", "b")], "a  b")
    terminal.line(f"title\n\n{MARKDOWN}\n\nend")
    terminal.error("error: a\x1bb\nc")
    output = capsys.readouterr()
    assert output.out == f"layer  rule\nplain  text\na  b\ntitle\n\n{MARKDOWN}\n\nend\n"
    assert output.err == "error: a\\x1bb c\n"


def test_a_dumb_terminal_gets_the_plain_lines(screen, monkeypatch):
    shown = screen()
    monkeypatch.setenv("TERM", "dumb")
    terminal.table(HEADER, ROWS, "plain text")
    terminal.line(MARKDOWN)
    terminal.error("error: no")
    assert shown.read() == f"plain text\n{MARKDOWN}\nerror: no\n"


def test_characters_that_an_output_cannot_encode_are_question_marks(monkeypatch):
    outputs = [io.TextIOWrapper(io.BytesIO(), "ascii") for _ in range(2)]
    for name, output in zip(("stdout", "stderr"), outputs, strict=True):
        monkeypatch.setattr(sys, name, output)
    monkeypatch.setattr(sys, "argv", ["neural-alignment", "configs", "lab"])
    monkeypatch.setattr(shipped, "header", lambda name: [f"{name}: W to Bᵀ"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    sys.stderr.write("20.69 ± 1.37\n")
    sys.stderr.flush()
    assert ended.value.code == 0
    assert b": W to B?\n" in outputs[0].buffer.getvalue()
    assert outputs[1].buffer.getvalue() == b"20.69 ? 1.37\n"


def shell(redirections, *command):
    """Runs Python with redirections of a shell, such as `>&-`, which closes standard output."""
    words = [sys.executable, "-c", "import sys; exec(sys.argv.pop(1))", *command]
    line = f'exec "$@" {redirections}'
    return subprocess.run(["bash", "-c", line, "bash", *words], capture_output=True, text=True, check=False, cwd=ROOT)


COMMAND = "from neural_alignment import cli; cli.program()"


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_command_runs_with_closed_outputs(closed):
    done = shell(closed, COMMAND, "configs", "lab")
    assert (done.returncode, done.stderr, "lab/" in done.stdout) == (0, "", closed == "2>&-")
    wrong = shell(closed, COMMAND, "configs", "labb")
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, int(closed == ">&-"))


def test_a_file_does_not_take_the_number_of_a_closed_output(tmp_path):
    code = """if 1:
        import os
        from neural_alignment import terminal
        terminal.prepare()
        with open(sys.argv[1], "w") as file:
            os.write(1, b"text of a library")
            os.write(2, b"text of a library")
            print("lost")
            file.write(f"{terminal.is_terminal()} {terminal.is_terminal(sys.stderr)}")
    """
    assert shell("<&- >&- 2>&-", code, str(tmp_path / "file")).returncode == 0
    assert (tmp_path / "file").read_text() == "False False"


def test_a_closed_output_is_no_terminal(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setattr(sys, "stdout", None)
    assert not terminal.is_terminal()
    assert terminal.width() == 80


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
def test_a_full_disk_under_the_output_is_one_line():
    for words in (("configs", "lab"), ("--help",)):
        done = shell(">/dev/full", COMMAND, *words)
        assert (done.returncode, done.stderr) == (2, "error: cannot write: No space left on device\n")


@pytest.fixture
def unread():
    """A pipe whose reader has ended."""
    reader, writer = os.pipe()
    os.close(reader)
    yield writer
    os.close(writer)


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(("words", "code"), [(("configs", "lab"), 0), (("--help",), 0), (("configs", "labb"), 2)])
def test_a_command_whose_output_nobody_reads_ends_as_usual(unread, words, code, unbuffered):
    command = [sys.executable, "-c", COMMAND, *words]
    options = {"stdout": unread, "env": {**os.environ, "PYTHONUNBUFFERED": unbuffered}, "cwd": ROOT, "check": False}
    done = subprocess.run(command, stderr=subprocess.PIPE, **options)
    assert (done.returncode, done.stderr.count(b"\n")) == (code, int(code > 0))
    assert subprocess.run(command, stderr=unread, **options).returncode == code


def test_a_run_whose_output_nobody_reads_is_trained(tmp_path):
    (tmp_path / "run.yaml").write_text(SMALL_RUN)
    before = """
import os
reader, writer = os.pipe()
os.close(reader)
os.dup2(writer, 1)
os.dup2(writer, 2)
"""
    words = ["train", str(tmp_path / "run.yaml"), "--set", "epochs=1", "--run-dir", str(tmp_path / "run")]
    assert Command(words, {}, tmp_path / "errors", before).wait() == 0
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "finished"
    assert (tmp_path / "run" / "summary.png").exists()


def test_text_for_a_terminal_that_was_closed_is_discarded():
    code = """if 1:
        import os
        from neural_alignment import terminal
        master, slave = os.openpty()
        for stream in (1, 2):
            os.dup2(slave, stream)
        terminal.prepare()
        terminal.raw("shown")
        shown = os.read(master, 100)
        os.close(master)
        for _ in range(2):
            terminal.raw("lost")
            terminal.error("lost")
        os.write(int(sys.argv[1]), shown)
    """
    reader, writer = os.pipe()
    with open(reader) as shown:
        command = [sys.executable, "-c", f"import sys; exec({code!r})", str(writer)]
        done = subprocess.run(command, pass_fds=[writer], cwd=ROOT, check=False)
        os.close(writer)
        assert (done.returncode, shown.read()) == (0, "shown\n")


@pytest.mark.parametrize("columns", [80, 40])
def test_a_terminal_gets_a_table_that_fits(screen, columns):
    shown = screen(columns)
    terminal.table(HEADER, ROWS, "plain text")
    lines = shown.lines()
    assert "plain text" not in lines
    assert lines[0].split() == list(HEADER)
    assert set(lines[1]) == {"─"}
    assert lines[-2].split() == list(ROWS[1])
    assert lines[-2].endswith("  5,130")  # Numbers are aligned at the right.
    assert lines[2].split() == list(ROWS[0])


def test_a_table_that_does_not_fit_is_a_block_per_row(screen):
    shown = screen(20)
    terminal.table(HEADER, ROWS, "plain text")
    assert shown.read().split("\n") == [
        "layer    group1_block1_conv1",
        "rule     symmetric",
        "weights  36,864",
        "",
        "layer    dense",
        "rule     feedback",
        "weights  5,130",
        "",
    ]


@pytest.mark.parametrize("columns", [80, 40])
def test_markdown_tables_are_drawn_and_the_text_around_them_stays(screen, columns):
    shown = screen(columns)
    terminal.line(f"title\n\n{MARKDOWN}\n\nwritten: a.csv")
    lines = shown.lines()
    assert (lines[0], lines[-2]) == ("title", "written: a.csv")
    assert not [line for line in lines if line.startswith("|")]
    assert [line.split() for line in lines if "|" in line or "9.50" in line] == [
        ["a", "|", "b", "97.22", "±", "0.10"],
        ["symmetric", "9.50"],
    ]


def test_colours_are_left_out_with_no_color(screen, monkeypatch):
    shown = screen()
    terminal.table(HEADER, ROWS, "")
    terminal.error("error: a: b")
    assert "\033[1;31merror:\033[0m a: b\n" in shown.read()
    monkeypatch.setenv("NO_COLOR", "1")
    plain = screen()
    terminal.table(HEADER, ROWS, "")
    terminal.error("error: a: b")
    assert set(CODE.findall(plain.read())) <= {"\033[1m", "\033[0m"}
    assert plain.read().endswith("\r\033[Kerror: a: b\n")
    assert plain.lines() == shown.lines()


def test_the_width_is_that_of_the_terminal_or_of_columns(screen, monkeypatch):
    screen(57)
    assert terminal.width() == 57
    monkeypatch.setenv("COLUMNS", "63")
    assert terminal.width() == 63
    monkeypatch.setenv("COLUMNS", "wide")
    assert terminal.width() == 57
    screen(0)
    assert terminal.width() == 80


def test_the_status_is_cut_to_the_terminal_and_replaced(screen):
    shown = screen(40)
    last = terminal.StatusLine()
    last.status("x" * 100)
    last.line("done")
    assert shown.read() == "\r\033[K" + "x" * 39 + "\r\033[Kdone\n"


def test_an_error_replaces_the_status(screen, monkeypatch):
    shown = screen()
    terminal.StatusLine().status("50 % trained")
    terminal.error("stopped; the same command continues")
    assert shown.read() == "\r\033[K50 % trained\r\033[Kstopped; the same command continues\n"


def test_a_file_gets_the_status_once_a_minute(capsys, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now[0])
    last = terminal.StatusLine()
    for now[0] in (100.0, 130.0, 160.0):
        last.status(f"at {now[0]:.0f}")
    assert capsys.readouterr().err == "at 100\nat 160\n"


# Angles of many layers.

RESNET = [
    "stem",
    *(f"group{group}_block{block}_conv{conv}" for group, blocks in enumerate((3, 8, 36, 3), start=1)
      for block in range(1, blocks + 1) for conv in (1, 2, 3)),
    "dense",
]  # fmt: skip
"""Names of the layers of ResNet-152 without those of the projections."""


def test_layers_are_divided_by_the_first_part_of_their_names():
    assert [(stage.name, len(stage.layers)) for stage in stages.stages_of(RESNET)] == [
        ("stem", 1), ("group1", 9), ("group2", 24), ("group3", 108), ("group4", 9), ("dense", 1),
    ]  # fmt: skip
    few = ["conv1", "conv2", "dense"]
    assert stages.stages_of(few) == [stages.Stage(name, [name]) for name in few]


def test_many_stages_are_parts_of_about_equal_size():
    layers = [f"block{number}_{part}" for number in range(12) for part in ("query", "value")]
    found = stages.stages_of(layers)
    assert [layer for stage in found for layer in stage.layers] == layers
    assert {len(stage.layers) for stage in found} == {3}
    assert found[0].name == "block0_query to block1_query"
    assert len(found) == stages.MOST


def test_spans_have_smallest_median_and_largest_and_leave_out_nan():
    values = dict.fromkeys(RESNET, 50.0) | {"group1_block1_conv1": 10.0, "group1_block2_conv1": 90.0}
    values |= {"stem": float("nan"), "group2_block1_conv1": float("nan")}
    found = {stage.name: span for stage, *span in stages.spans(values)}
    assert found["group1"] == [10.0, 50.0, 90.0]
    assert found["group2"] == [50.0, 50.0, 50.0]
    assert found["stem"][0] != found["stem"][0]


ROW = {"step": 10, "epoch": 1.5, "J": 0.5, "top1": 0.25, "R": 2.0}


def test_an_evaluation_of_150_layers_has_two_lines():
    row = ROW | {f"weight_angle/{layer}": 1.0 + place * 40 / 151 for place, layer in enumerate(RESNET)}
    first, second = callbacks.lines_by_stage(row)
    assert first == "step 10  epoch 1.5  J 0.5000  top-1 25.00 %  R 2"
    assert (
        second
        == "  angles  stem 10  group1 11/15/19  group2 20/32/43  group3 44/98/151  group4 152/156/160  dense 161"[:0]
        + second
    )
    assert len(second) <= 100
    assert callbacks.single_line(row) == [f"{first}  angle of W to B^T 1.0 to 41.0 degrees"]


@pytest.mark.parametrize("width", [80, 40, 20])
def test_lines_are_broken_between_their_parts(screen, width):
    screen(width)
    row = ROW | {f"weight_angle/{layer}": 1.0 + place * 40 / 151 for place, layer in enumerate(RESNET)}
    for line in callbacks.lines_by_stage(row):
        found = terminal.folded(line)
        assert max(map(len, found)) <= width
        assert [part.strip() for each in found for part in each.strip().split("  ")] == line.strip().split("  ")
    assert terminal.folded("x" * 99) == ["x" * 99]


def test_an_evaluation_without_aligned_layers_has_one_line():
    assert callbacks.lines_by_stage(ROW) == callbacks.single_line(ROW)
    assert len(callbacks.lines_by_stage(ROW)) == 1


@pytest.mark.parametrize(("width", "count"), [(80, 2), (40, 1), (140, 4)])
def test_columns_contain_every_layer_once_from_top_to_bottom(screen, width, count):
    screen(width)
    cells = [f"{layer:21}  {place:5.1f}" for place, layer in enumerate(RESNET)]
    lines = terminal.columns(cells).split("\n")
    assert max(map(len, lines)) <= width
    assert len(lines) == -(-len(RESNET) // count)
    assert lines[0].split()[:2] == ["stem", "0.0"]
    assert sorted("  ".join(lines).split()) == sorted("  ".join(cells).split())
    assert lines[1].startswith(cells[1])


# Commands.


@pytest.fixture(scope="module")
def prepared():
    """Prepares data and model once."""
    with PreparedRuns().in_use():
        yield


@pytest.fixture
def command(screen, monkeypatch, tmp_path, prepared):
    """Returns a function that runs the command line on a terminal and returns its lines and its exit code."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(SMALL_RUN)

    def call(*words, columns=80):
        shown = screen(columns)
        monkeypatch.setattr(sys, "argv", ["neural-alignment", *words])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return shown.lines(), end.value.code or 0

    return call


@pytest.mark.parametrize("columns", [80, 40])
def test_commands_draw_tables_that_fit(command, columns):
    lines, code = command("train", "run.yaml", "--run-dir", "run", "--set", "epochs=1", columns=columns)
    assert code == 0
    assert "layer   angle of W to B^T (degrees)" in lines
    assert [line.split()[0] for line in lines if line.startswith(("dense1 ", "dense "))] == ["dense1", "dense"]
    assert any(line.startswith("  angles  dense1 ") for line in lines)
    assert "run directory  run" in lines
    if columns == 80:
        lines, code = command("evaluate", "run")
        assert (lines[0], code) == ("metric  on the validation split", 0)
    lines, code = command("describe", "run.yaml", columns=columns)
    assert code == 0
    assert ("rule          symmetric" in lines) == (columns == 40)  # Too narrow for a table of six columns.
    assert any(set(line) == {"─"} for line in lines) == (columns == 80)
    lines, code = command("configs", "lab/two_routes", columns=columns)
    assert code == 0
    assert "lab/two_routes/symmetric" in "\n".join(lines).split()  # It is not broken, so that it can be copied.
    lines, code = command("table", columns=columns)
    assert code == 0
    assert not [line for line in lines if line.startswith("|")]


def test_an_error_is_one_line_on_a_terminal(command):
    lines, code = command("train", "nothing.yaml")
    assert code == 2
    assert lines[-1] == ""
    assert lines[0].startswith("error: nothing.yaml")


def test_a_search_shows_the_settings_of_its_best_trial(screen):
    best = type("Trial", (), {"number": 3, "top1": 0.5, "settings": {"optimization.forward.learning_rate": 0.1}})
    shown = screen(80)
    cli._print_best(best, "runs/search")
    lines = [line.split() for line in shown.lines()]
    assert ["optimization.forward.learning_rate", "0.1"] in lines
    assert ["validation", "top-1", "50.00", "%"] in lines
    assert ["search", "directory", "runs/search"] in lines

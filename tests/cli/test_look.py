"""Every command as it is seen: on terminals of two widths, without colours, in a pipe, as JSON."""

import re

import pytest
from rich.cells import cell_len

from noisescale.cli import main
from noisescale.cli.streams import READABLE, streams
from tests.helpers.command_line import run, strict
from tests.helpers.executors import Here
from tests.helpers.terminal import on_terminal

STYLE = re.compile(r"\x1b\[([\d;]*)m")
PART = re.compile(r"[34]8;5;\d+|[34]8;2;\d+;\d+;\d+|\d+")
MOVE = re.compile(r"\x1b\[[\d;?]*[A-LN-Za-ln-z]")
# bold, dim, italic and their ends; red, green, magenta, and grey as of a bar not yet filled: to be
# read on a light and on a dark ground, as yellow, blue, white and cyan are not
READABLE_STYLES = {"", "0", "1", "2", "3", "31", "32", "35", "90", "91", "92", "95"}
READABLE_STYLES |= {"38;5;197", "38;5;237", "38;5;106"}  # rich's bar: pink, grey, at its end green
COLOURS = re.compile(r"^(3|4|9|10)\d")
DIGITS = ("--dataset", "digits", "--width", "8", "--depth", "1")
FEW = ("--num-examples", "100")


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    """Each command in small, as it is given; its work is done once, and is then only shown."""
    out = tmp_path_factory.mktemp("look")
    trained = ("train", *DIGITS, "--bs", 32, "--bs", 8, "--epochs", 1, "--out", out / "runs")
    assert run(*trained, "--measure-noise-every", "log", "--noise-examples", 100).exit_code == 0
    one = out / "runs" / "bs32"
    short = ("--num-train", 100, "--seeds", 2)
    sweep = ("--bs", 4, "--bs", 50, "--steps", 6, "--factor", 5)
    goals = ("--bs", 2, "--bs", 8, "--bs", 32, "--bs", 100, "--goal", 1.8, "--noise-examples", 60)
    given = {
        "train": ("train", *DIGITS, "--bs", 16, "--epochs", 1, "--force", "--out", out / "again"),
        "measure-noise": ("measure-noise", one, *FEW, "--hessian", "--num-probes", 4),
        "sharpness": ("sharpness", one / "checkpoint.pt", *FEW, "--trace", "--max-matvecs", 3),
        "sweep-lr": ("sweep-lr", *DIGITS, *short, *sweep, "--out", out / "map"),
        "critical-batch": ("critical-batch", *DIGITS, *short, *goals, "--out", out / "front"),
        "recommend": (
            *("recommend", *DIGITS, "--num-train", 200, "--bs", 16, "--epochs", 1, "--minutes", 1),
            *("--out", out / "recommended"),
        ),
        "interpolate": ("interpolate", one, out / "runs" / "bs8", *FEW, "--points", 5),
        "report": ("report", one, "--out", out / "report.html"),
        "plot": ("plot", one),
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("noisescale.studies.jobs.local.LocalProcesses", lambda count: Here())
        patch.setattr("noisescale.measure.stability.MOST_STEPS", 30)
        patch.setattr("noisescale.measure.stability.FEWEST_STEPS", 30)
        yield given


NAMES = (
    *("train", "measure-noise", "sharpness", "sweep-lr", "critical-batch", "recommend"),
    *("interpolate", "report", "plot"),
)
DRAWING = pytest.param("plot", marks=pytest.mark.pictures)
WITH_JSON = [name for name in NAMES if any("--json" in p.opts for p in main.commands[name].params)]


def styles(text):
    """The parts of every style that is set, a colour of 256 as one."""
    return {part for found in STYLE.findall(text) for part in PART.findall(found) or [""]}


def last_seen(text):
    """The lines that remain, without styles: of one drawn again and again, the last."""
    plain = MOVE.sub("", STYLE.sub("", text))
    return [line.rpartition("\r")[2].rstrip() for line in plain.replace("\r\n", "\n").split("\n")]


def sticks_out(line, width):
    """Whether a line is too long that could have been folded: not a path, nor a command to copy."""
    return cell_len(line) > width and " " in line.strip() and "noisescale " not in line


def test_every_command_is_looked_at():
    assert set(NAMES) == set(main.commands)
    assert set(NAMES) - set(WITH_JSON) == {"plot", "report"}


@pytest.mark.slow
@pytest.mark.parametrize("name", [*NAMES[:-1], DRAWING])
def test_a_terminal_shows_what_can_be_read_on_any_ground(commands, name):
    for width in (80, 120):
        code, text = on_terminal(*commands[name], width=width)
        assert code == 0, text
        assert styles(text) <= READABLE_STYLES
        assert not [line for line in last_seen(text) if sticks_out(line, width)]
    code, text = on_terminal(*commands[name], NO_COLOR="1")
    assert code == 0, text
    assert not [style for style in styles(text) if COLOURS.match(style)]


@pytest.mark.slow
@pytest.mark.parametrize("name", [*NAMES[:-1], DRAWING])
def test_a_pipe_gets_words_alone(commands, name):
    result = run(*commands[name])
    assert result.exit_code == 0, result.output
    assert "\x1b" not in result.output
    assert "\r" not in result.output
    with streams():  # which knows the substitutes
        for character in set(result.output) - {"?"}:
            assert b"?" not in character.encode("ascii", READABLE), character
    assert not [line for line in result.stdout.splitlines() if sticks_out(line, 120)]


@pytest.mark.slow
@pytest.mark.parametrize("name", WITH_JSON)
def test_stdout_is_json_and_nothing_else(commands, name):
    result = run(*commands[name], "--json")
    assert result.exit_code == 0, result.output
    assert strict(result.stdout)
    assert "\x1b" not in result.output
    code, notes = on_terminal(*commands[name], "--json", stdout=False)  # its stdout is pytest's
    assert code == 0
    assert '"' not in "\n".join(last_seen(notes))  # nothing of it is on stderr


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("name", [None, *NAMES])
def test_help_fits_the_terminal(name, width):
    words = [] if name is None else [name]
    result = run(*words, "--help", terminal_width=width)
    assert result.exit_code == 0
    assert max(map(cell_len, result.output.splitlines())) <= width
    assert "\x1b" not in result.output

"""Every table and sentence at every width: no number is cut, no line sticks out."""

import io

import numpy as np
import pytest
from rich.cells import cell_len

from noisescale.cli.printing import tables
from noisescale.cli.printing.tables import NumberTable, Screen, plain_table
from tests.helpers.command_line import run
from tests.helpers.executors import Here

WIDTHS = (60, 80, 120, 200)
DIGITS = ("--dataset", "digits", "--width", "8", "--depth", "1")
SIZES = [word for size in (2, 8, 32, 128) for word in ("--bs", size)]


def shown(printed, width):
    """What a screen of this width shows of an object or a text."""
    file = io.StringIO()
    screen = Screen(width=width, file=file, highlight=False, markup=False, color_system=None)
    screen.print(printed)
    return file.getvalue()


def widest(text):
    """The width of the longest line that could be folded: a path has no words."""
    lines = [line for line in text.splitlines() if " " in line.strip()]
    return max((cell_len(line.rstrip()) for line in lines), default=0)


def assert_whole(table, width):
    """Each cell of numbers is there in full, or the line below says that its column is not."""
    text = shown(table, width)
    assert "…" not in text
    assert widest(text) <= width
    _, _, left_out = " ".join(text.split()).partition("Left out for want of room: ")
    gone = left_out.split(" (")[0].split(", ")
    words = text.split()
    for index, column in enumerate(table.columns):
        for row in table.rows:
            numbers = row[index].split()
            assert column.heading in gone or set(numbers) <= set(words) or column.words
    return gone


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    """All that the commands print, at any width, each once."""
    objects = {}
    out = tmp_path_factory.mktemp("screens")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("noisescale.studies.jobs.local.LocalProcesses", lambda count: Here())
        patch.setattr("noisescale.measure.stability.MOST_STEPS", 30)
        patch.setattr("noisescale.measure.stability.FEWEST_STEPS", 30)

        def record(name, *arguments):
            seen = objects[name] = []
            patch.setattr(tables.Screen, "print", lambda self, *parts, **kw: seen.extend(parts))
            result = run(*arguments)
            assert result.exit_code == 0, result.output

        train = ("train", *DIGITS, "--measure-noise-every", "log", "--noise-examples", "100")
        record("train", *train, "--bs", "32", "--bs", "8", "--epochs", "1", "--out", out / "runs")
        adaptive = ("--bs", "adaptive", "--bs-initial", "64", "--checkpoint-every", "10")
        record("adaptive", *train, *adaptive, "--epochs", "2", "--out", out / "adaptive")
        diverged = ("train", *DIGITS, "--bs", "1", "--lr", "1e4", "--epochs", "1")
        record("diverged", *diverged, "--out", out / "dv")
        few = ("--num-examples", "60")
        parts = ("--hessian", "--num-probes", "4", "--per-layer", "--per-class", "--anatomy")
        one = out / "runs" / "bs32" / "checkpoint.pt"
        record("measure-noise", "measure-noise", one, *few, *parts)
        paths = (out / "adaptive", one, out / "runs" / "bs8")
        record("measure-noise, several", "measure-noise", *paths, *few, *parts)
        of_all = (
            "--top",
            "2",
            "--bottom",
            "1",
            "--trace",
            "--density",
            "--phi",
            "--batch-sharpness",
            8,
        )
        record("sharpness", "sharpness", one, *few, *of_all)
        record("sharpness, several", "sharpness", one, out / "dv", out / "runs" / "bs8", *few)
        sweep = ("--num-train", "100", "--bs", "4", "--bs", "50", "--steps", "6", "--seeds", "2")
        record("sweep-lr", "sweep-lr", *DIGITS, *sweep, "--factor", "5", "--out", out / "map")
        goals = ("--num-train", "200", *SIZES, "--goal", "1.8", "--goal", "1.2", "--seeds", "2")
        goals = (*goals, "--noise-examples", "60", "--out", out / "critical")
        record("critical-batch", "critical-batch", *DIGITS, *goals)
        record("from-csv", "critical-batch", "--from-csv", out / "critical" / "steps_to_goal.csv")
        branch = ("--method", "branch", one, "--bs", "8", "--bs", "16", "--bs", "32")
        record("branches", "critical-batch", *branch, "--examples", "320", "--out", out / "br")
    return objects


PRINTED = {
    "train": 1,
    "adaptive": 1,
    "diverged": 1,
    "measure-noise": 5,
    "measure-noise, several": 5,
    "sharpness": 1,
    "sharpness, several": 1,
    "sweep-lr": 1,
    "critical-batch": 4,
    "from-csv": 3,
    "branches": 1,
}


@pytest.mark.slow
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", PRINTED)
def test_every_table_at_every_width(printed, name, width):
    found = [each for each in printed[name] if isinstance(each, NumberTable)]
    assert len(found) >= PRINTED[name], "a table that is not printed is not looked at"
    for table in found:
        gone = assert_whole(table, width)
        assert width < 120 or set(gone) <= {"", "n_eff"}, "120 columns hold nearly all"
    for sentence in printed[name]:
        if isinstance(sentence, str):
            assert widest(shown(sentence, width)) <= width
            assert shown(sentence, width).split() == sentence.split()


def test_no_number_of_any_table_is_cut():
    """Tables drawn at random, at widths down to those that only blocks fit."""
    generator = np.random.default_rng(0)
    for _ in range(200):
        num_columns = int(generator.integers(1, 12))
        headings = [f"of {'x' * generator.integers(1, 12)} {index}" for index in range(num_columns)]
        order = generator.permutation(num_columns)[: generator.integers(0, num_columns)]
        table = plain_table(*headings, less=[headings[index] for index in order])
        for _ in range(3):
            table.add_row(
                *(
                    f"{value:.{generator.integers(1, 9)}e}"
                    for value in generator.normal(size=num_columns)
                )
            )
        for width in (40, *WIDTHS):
            assert_whole(table, width)


def test_what_goes_first_and_what_comes_at_last():
    table = plain_table("batch size", "loss", "seconds", less=("seconds",), where="x.csv has them")
    table.add_row("1,024", "0.12345678", "12.3")
    assert "seconds" in shown(table, 40)
    assert "Left out" not in shown(table, 40)
    narrow = shown(table, 22)
    assert "12.3" not in narrow
    assert "Left out for want of" in narrow
    assert "seconds (x.csv has" in " ".join(narrow.split())
    assert "batch" in narrow.splitlines()[1]  # a heading folds before a column goes
    blocks = [line for line in shown(table, 16).splitlines() if line.strip()]
    assert blocks == ["batch size", "1,024", "loss", "0.12345678", "seconds     12.3"]


def test_a_sentence_breaks_between_words_and_keeps_its_brackets():
    sentence = (
        "[a] B_simple is [/b] 71.9 (66.4–78.5) in /a/path/that/is/longer/than/the/screen it is"
    )
    text = shown(sentence, 20)
    assert text.split() == sentence.split()


def test_the_console_is_as_wide_as_it_is_told(monkeypatch):
    monkeypatch.setenv("COLUMNS", "66")
    assert tables.stdout_console().width == 66
    monkeypatch.delenv("COLUMNS")
    assert tables.stdout_console().width == tables.WIDTH

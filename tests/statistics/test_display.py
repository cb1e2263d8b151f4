"""What results print and show in a notebook, whatever they are of."""

import pytest

from noisescale.statistics.display import MOST_LINES, WIDTH, Shown, Summary, counted, listed, share
from tests.helpers.markup import cells_of

ROWS = [(f"row {number}", f"{number} (1–2)") for number in range(30)]
NOTE = "the points lie off the curve by more than the seeds explain, and there is more to say of it"


def test_cells_stand_under_one_another():
    summary = Summary(
        title="Sizes",
        headings=("aim", "batch size"),
        rows=[("fewest", "1,200"), ("balanced", "8")],
        numeric=True,
    )
    assert summary.text().splitlines() == [
        "Sizes",
        "  aim       batch size",
        "  fewest         1,200",
        "  balanced           8",
    ]
    assert Summary(title="One", rows=[("a", "1"), ("bcd", "22")]).text().splitlines()[1:] == [
        "  a    1",
        "  bcd  22",
    ]


@pytest.mark.parametrize("num_rows", [0, 1, 7, 11, 12, 30])
@pytest.mark.parametrize("num_notes", [0, 1, 9])
@pytest.mark.parametrize("title", ["Short", "A longer title " * 9])
def test_a_summary_is_taken_in_at_a_glance(num_rows, num_notes, title):
    notes = tuple(f"{number}: {NOTE}" for number in range(num_notes))
    text = Summary(title=title, headings=("a", "b"), rows=ROWS[:num_rows], notes=notes).text()
    lines = text.splitlines()
    assert len(lines) <= MOST_LINES
    assert max(map(len, lines)) <= WIDTH
    shown = [line for line in lines if line.startswith("  row ")]
    if len(shown) < num_rows:
        (told,) = (line for line in lines if line.startswith("  … "))
        assert str(num_rows - len(shown)) in told
        assert shown[0].split()[1] == "0"
        assert shown[-1].split()[1] == str(num_rows - 1)
    assert (num_notes > 0) == ("Note: 0: the points" in text)
    if num_notes == 9:
        assert lines[-1].endswith("… (more in .notes)")


def test_a_notebook_shows_the_same_with_names_escaped():
    summary = Summary(
        title="A <b>bold</b> & split",
        headings=("name", "value"),
        rows=[("<script>x</script>", "> 3"), ("b", "4")],
        notes=("1 < 2",),
    )
    assert cells_of(summary.html()) == [
        ("caption", "A <b>bold</b> & split"),
        ("th", "name"),
        ("th", "value"),
        ("th", "<script>x</script>"),
        ("td", "> 3"),
        ("th", "b"),
        ("td", "4"),
        ("p", "Note: 1 < 2."),
    ]
    assert "<script>" not in summary.html()


def test_a_result_shows_its_summary_everywhere():
    class Result(Shown):
        def _summary(self):
            return Summary(title="Title", rows=[("a", "1")])

    result = Result()
    assert repr(result) == str(result) == f"{result}" == "Title\n  a  1"
    assert result._repr_html_() == Summary(title="Title", rows=[("a", "1")]).html()


def test_counts_in_words():
    assert (counted(1, "seed"), counted(2000, "seed")) == ("1 seed", "2,000 seeds")
    assert (share(5, 5), share(5, 1000), share(5, None)) == ("all 5", "5 of 1,000", "5")
    assert listed("abcde") == "a, b, c, d, e"
    assert listed("abcdef") == "a, b, c, d, … 2 more"

"""Every number that README or the site rests on a committed table is the number of that table."""

import pytest

from tests.helpers.claims import Claim, claims_of, squeezed
from tests.helpers.paths import ROOT

FILES = sorted(
    [
        *(ROOT / "paper_figures" / "data").glob("*/claims.toml"),
        *(ROOT / "experiments" / "benchmarks" / "results").glob("claims.toml"),
    ]
)
CLAIMS = [claim for path in FILES for claim in claims_of(path)]


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: f"{claim.folder.name}: {claim.text}")
def test_a_claim_is_what_its_table_says(claim):
    assert claim.wrong() == []


def test_each_claim_is_one_that_is_made():
    """A sentence that was changed would otherwise be checked no more."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]
    said = squeezed(" ".join(path.read_text() for path in pages if path.exists()))
    assert [claim.text for claim in CLAIMS if claim.sentence not in said] == []


@pytest.mark.parametrize(
    ("text", "value", "right"),
    [
        ("[.953] at B = 1024", 0.9533, True),
        ("[.953] at B = 1024", 0.9536, False),
        ("[1,024] examples", 1024.4, True),
        ("[−9.4 %] of the cost", -0.0944, True),
        ("[−9.4 %] of the cost", 0.094, False),
        ("[12] steps", 12.6, False),
        ("[3] of seven", float("nan"), False),
    ],
)
def test_a_number_is_held_to_its_last_digit(tmp_path, text, value, right):
    (tmp_path / "any.csv").write_text(f"# comment\nseed,found\n0,{value}\n1,7\n")
    claim = Claim(tmp_path, text, "any", ("found",), {"seed": 0})
    assert (claim.wrong() == []) is right

"""One file per question: run folders -> tidy tables under paper_figures/data."""

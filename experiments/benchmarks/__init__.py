"""One file per comparison with a peer; each prints ratios and writes JSON under results/."""

"""How a report looks: light and dark, on a screen, a phone and paper."""

STYLE = """
:root { color-scheme: light dark; --text: #1c2024; --soft: #5a636d; --paper: #ffffff;
  --panel: #f3f6f9; --line: #d5dbe1; --accent: #0072b2; --warn: #a63c00; }
@media (prefers-color-scheme: dark) { :root { --text: #e4e7ea; --soft: #a2abb5; --paper: #16191d;
  --panel: #20252b; --line: #3a424b; --accent: #6cbbee; --warn: #ffa06b; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 70rem; padding: 1rem clamp(0.8rem, 3vw, 2.5rem) 3rem;
  color: var(--text); background: var(--paper);
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 1rem 0 0.6rem; }
h2 { font-size: 1.35rem; line-height: 1.3; margin: 0 0 0.2rem; }
h3 { font-size: 1.05rem; margin: 1.8rem 0 0.4rem; }
h1, h2, p, dd, li { overflow-wrap: anywhere; }
p { margin: 0.5rem 0; max-width: 46rem; text-wrap: pretty; }
a { color: var(--accent); }
nav ul { padding-left: 1.2rem; margin: 0.4rem 0; }
section { border-top: 1px solid var(--line); margin-top: 2rem; padding-top: 1.4rem; }
section:only-child { border-top: none; margin-top: 0; padding-top: 0; }
.path { color: var(--soft); font-family: ui-monospace, Menlo, Consolas, monospace;
  font-size: 0.85rem; margin: 0; }
.answer { background: var(--panel); border-left: 4px solid var(--accent); border-radius: 4px;
  padding: 0.5rem 1rem; margin: 1rem 0; }
.note { color: var(--soft); }
.warning { color: var(--warn); font-weight: 600; }
.scroll { overflow-x: auto; margin: 0.7rem 0; }
table { border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-style: italic; padding-bottom: 0.2rem; }
th, td { padding: 0.22rem 0.75rem; text-align: left; vertical-align: baseline; }
th { border-bottom: 1px solid var(--soft); vertical-align: bottom; font-weight: 600; }
td { border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { padding-left: 0.2rem; }
.number { text-align: right; }
tr.end:not(:last-child) td { border-bottom: 1px solid var(--soft); }
figure { margin: 1.2rem 0; padding: 0.5rem; background: #ffffff; border: 1px solid var(--line);
  border-radius: 4px; overflow-x: auto; }
svg { display: block; width: 100%; height: auto; min-width: var(--least); }
svg * { stroke-linejoin: round; stroke-linecap: butt; }
details { margin: 0.7rem 0; }
summary { cursor: pointer; color: var(--accent); }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: 0 1.5rem;
  margin: 0.3rem 0; font-size: 0.9rem; }
dl div { display: flex; gap: 0.6rem; border-bottom: 1px solid var(--line); padding: 0.15rem 0; }
dt { color: var(--soft); white-space: nowrap; }
dd { margin: 0 0 0 auto; text-align: right; }
pre { background: var(--panel); border-radius: 4px; padding: 0.5rem 0.8rem; margin: 0.4rem 0;
  white-space: pre-wrap; overflow-wrap: anywhere; font-size: 0.85rem; }
code { font-family: ui-monospace, Menlo, Consolas, monospace; }
code span { display: inline-block; max-width: 100%; }
footer { border-top: 1px solid var(--line); margin-top: 2.5rem; color: var(--soft);
  font-size: 0.9rem; }
@media (max-width: 40rem) {
  table { font-size: 0.8rem; }
  th, td { padding: 0.2rem 0.4rem; }
  .answer { padding: 0.4rem 0.7rem; }
  h1 { font-size: 1.4rem; }
  h2 { font-size: 1.2rem; }
}
@page { margin: 1.5cm; }
@media print {
  :root { color-scheme: light; --text: #000000; --soft: #444444; --paper: #ffffff;
    --panel: #f3f3f3; --line: #bbbbbb; --accent: #000000; --warn: #000000; }
  body { max-width: none; padding: 0; font-size: 10pt; }
  figure, .answer, tr, pre { break-inside: avoid; }
  h2, h3 { break-after: avoid; }
  .scroll, figure { overflow: visible; }
  table { font-size: 8pt; }
  th, td { padding: 0.1rem 0.35rem; }
  svg { min-width: 0; }
  details::details-content { content-visibility: visible; display: block; }
  summary { list-style: none; }
}
"""

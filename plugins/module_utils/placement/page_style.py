# SPDX-License-Identifier: GPL-3.0-or-later
"""How the page of a plan looks: screen and paper, light and dark, desktop and phone."""

from __future__ import annotations

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #f6f6f4; --card: #ffffff; --ink: #1d2226; --soft: #5b646b; --line: #dfe1e0; --track: #ebecea;
  --weights: #3a6ea5; --kv: #e0a030; --compute: #4f9a78; --overhead: #9a7fb8; --others: #8a939a;
  --good: #1f6b45; --good-bg: #e2f1e8; --warn: #7a5200; --warn-bg: #fbeecb; --bad: #9c2b23; --bad-bg: #fbe4e1;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #15181a; --card: #1d2124; --ink: #e6e8e9; --soft: #9ba4aa; --line: #32383c; --track: #2a2f33;
    --weights: #5b93cf; --kv: #d9a441; --compute: #5fae8a; --overhead: #a98fc9; --others: #78828a;
    --good: #8fd6ae; --good-bg: #1d3a2b; --warn: #eac66c; --warn-bg: #3d3116; --bad: #f2a49d; --bad-bg: #4a221f;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 66rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif;
  font-variant-numeric: tabular-nums; overflow-wrap: anywhere; -webkit-text-size-adjust: 100%;
}
h1, h2, h3, h4, p, ul, dl, dd, table { margin: 0; }
h1 { font-size: 1.7rem; line-height: 1.2; letter-spacing: -0.01em; }
h2 { font-size: 1.25rem; line-height: 1.3; }
h3 { font-size: 1.1rem; line-height: 1.4; }
h4, .small { font-size: 0.8rem; line-height: 1.5; font-weight: 600; color: var(--soft); }
header { margin-bottom: 1.75rem; }
.summary { margin-top: 0.4rem; font-size: 1.05rem; }
.stops { margin-top: 0.75rem; padding: 0.6rem 0.9rem; border-left: 4px solid var(--bad); background: var(--bad-bg);
  color: var(--bad); border-radius: 0 6px 6px 0; }
.note { margin-top: 0.5rem; color: var(--soft); }
section { margin-top: 1.5rem; padding: 1.25rem 1.4rem; background: var(--card); border: 1px solid var(--line);
  border-radius: 10px; }
a { color: inherit; text-decoration-color: var(--soft); text-underline-offset: 0.2em; }
ul { padding-left: 1.1rem; }
li + li { margin-top: 0.2rem; }
li::marker { color: var(--soft); }

.badge { display: inline-block; padding: 0.1rem 0.55rem; border-radius: 99px; font-size: 0.8rem; font-weight: 600;
  line-height: 1.4; white-space: nowrap; vertical-align: 0.12em; }
.badge.memory { color: var(--good); background: var(--good-bg); }
.badge.paged { color: var(--warn); background: var(--warn-bg); }
.badge.no { color: var(--bad); background: var(--bad-bg); }

table { border-collapse: collapse; }
th { text-align: left; font-weight: 600; }
.overview table { width: 100%; margin-top: 0.75rem; font-size: 0.92rem; }
.overview th, .overview td { padding: 0.4rem 0.75rem 0.4rem 0; border-top: 1px solid var(--line); }
.overview thead th { border: 0; color: var(--soft); font-size: 0.8rem; }
.overview tr > :last-child { padding-right: 0; text-align: right; }
.overview .badge { vertical-align: baseline; }
.overview th, .overview td { vertical-align: baseline; overflow-wrap: break-word; }
.overview tbody th { overflow-wrap: anywhere; }
.number { text-align: right; white-space: nowrap; }

.facts { margin-top: 0.15rem; color: var(--soft); font-size: 0.92rem; }
.facts span:not(:last-child)::after { content: "\\a0\\b7  "; }

.use { margin-top: 1.1rem; }
.legend { display: flex; flex-wrap: wrap; gap: 0.1rem 1rem; padding: 0; margin: 0.3rem 0 0.5rem; list-style: none;
  font-size: 0.82rem; color: var(--soft); }
.legend li { margin: 0; }
.legend li::before { content: ""; display: inline-block; width: 0.75em; height: 0.75em; margin-right: 0.4em;
  border-radius: 2px; vertical-align: -0.05em; background: var(--fill); }
.bars .row { display: grid; grid-template-columns: 4.5rem minmax(0, 1fr) 11rem; gap: 0 0.9rem; align-items: center;
  padding: 0.16rem 0; font-size: 0.88rem; }
.bars .node { font-size: 0.82rem; color: var(--soft); }
.bars .figures { text-align: right; }
.bars b { display: block; color: var(--bad); }
.bar { display: flex; position: relative; height: 1.05rem; border-radius: 4px; overflow: hidden;
  background: var(--track); }
.node .bar { height: 0.6rem; }
.part { flex: none; background: var(--fill); border-right: 1px solid var(--card); }
.part:last-of-type { border-right: 0; }
.limit { position: absolute; top: 0; bottom: 0; right: 0; border-left: 2px solid var(--ink);
  background: repeating-linear-gradient(135deg, var(--bad) 0 3px, transparent 3px 7px); }
.weights { --fill: var(--weights); }
.kv_cache { --fill: var(--kv); }
.compute { --fill: var(--compute); }
.overhead { --fill: var(--overhead); }
.others { --fill: var(--others); }
.reserve { --fill: repeating-linear-gradient(135deg, var(--others) 0 1px, transparent 1px 5px); }
.legend .reserve::before { outline: 1px solid var(--others); outline-offset: -1px; }

details { margin-top: 0.7rem; font-size: 0.88rem; }
summary { color: var(--soft); cursor: pointer; }
details table { margin: 0.4rem 0 0.2rem; font-size: 0.85rem; }
details th, details td { padding: 0.12rem 0 0.12rem 1.3rem; text-align: right; white-space: nowrap; }
details th:first-child { padding-left: 0; text-align: left; }
details thead th { color: var(--soft); }
.sum > * { border-top: 1px solid var(--line); font-weight: 600; }
.scroll { overflow-x: auto; }
pre { margin: 0.4rem 0 0; padding: 0.7rem 0.9rem; overflow-x: auto; border-radius: 6px; background: var(--track);
  font: 0.82rem/1.55 ui-monospace, "SF Mono", Consolas, "DejaVu Sans Mono", monospace; overflow-wrap: normal; }

.model { margin-top: 1.4rem; padding-top: 1.2rem; border-top: 1px solid var(--line); }
.columns { display: grid; grid-template-columns: minmax(0, 1fr) minmax(0, 1fr); gap: 1rem 2.5rem; margin-top: 0.6rem; }
.choice { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: 0.15rem 1rem;
  font-size: 0.92rem; align-content: start; }
dt { color: var(--soft); }
details ul { margin-top: 0.3rem; }
.speed .row { display: grid; grid-template-columns: minmax(0, 1fr) auto; gap: 0.2rem 0.75rem; margin-top: 0.35rem;
  align-items: baseline; }
.speed .label { color: var(--soft); font-size: 0.92rem; }
.speed .figures { font-size: 1.05rem; font-weight: 600; }
.range { grid-column: 1 / -1; position: relative; display: block; height: 0.55rem; margin-bottom: 1.15rem;
  border-radius: 3px; background: var(--track); }
.band { position: absolute; top: 0; bottom: 0; min-width: 3px; border-radius: 3px; background: var(--weights);
  opacity: 0.45; }
.point { position: absolute; top: -3px; bottom: -3px; width: 3px; margin-left: -1.5px; border-radius: 2px;
  background: var(--ink); }
.tick { position: absolute; top: 0; bottom: 0; border-left: 1px solid var(--line); }
.tick i { position: absolute; top: 100%; left: 0; transform: translateX(-50%); white-space: nowrap;
  font-style: normal; font-size: 0.72rem; line-height: 1.5; color: var(--soft); }
.tick.first i { transform: none; }
.tick.last i { transform: translateX(-100%); }
.tick.first, .tick.last { border: 0; }
.total { font-size: 0.92rem; }
.basis { margin-top: 0.2rem; color: var(--soft); font-size: 0.82rem; }
.said { margin-top: 0.9rem; }
.said ul { margin-top: 0.15rem; font-size: 0.92rem; }
.instead { padding: 0.6rem 0.9rem; border-radius: 6px; background: var(--track); }
.instead h4 { color: var(--ink); }
.changes ul { margin-top: 0.5rem; }

@media (max-width: 46rem) {
  body { padding: 1.1rem 0.75rem 3rem; }
  section { padding: 1rem; }
  h1 { font-size: 1.4rem; }
  .columns { grid-template-columns: minmax(0, 1fr); }
  .bars .row { grid-template-columns: minmax(0, 1fr) auto; padding: 0.3rem 0; }
  .bars .bar { grid-area: 2 / 1 / 3 / 3; margin-top: 0.15rem; }
  .bars b { display: inline; margin-left: 0.5em; }
  .overview thead { position: absolute; clip-path: inset(50%); }
  .overview table, .overview tbody { display: block; }
  .overview tr { display: grid; grid-template-columns: minmax(0, 1fr) auto; gap: 0 0.75rem; padding: 0.5rem 0;
    border-top: 1px solid var(--line); }
  .overview th, .overview td { padding: 0; border: 0; }
  .overview tr > :nth-child(even) { text-align: right; }
  .overview tr > :nth-child(odd) { text-align: left; }
  .number { white-space: normal; }
}
@media print {
  :root { --paper: #ffffff; }
  html { font-size: 9pt; }
  body { max-width: none; padding: 0; }
  section { padding: 0.8rem; }
  .part, .bar, .limit, .band, .point, .range, .badge, .legend li::before { print-color-adjust: exact;
    -webkit-print-color-adjust: exact; }
  .row, .model h3, .said, .columns { break-inside: avoid; }
  h2, h3, h4 { break-after: avoid; }
}
"""

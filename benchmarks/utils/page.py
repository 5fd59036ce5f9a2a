"""How the report looks, light or dark as its reader's system is; nothing is fetched."""

from __future__ import annotations

STYLE = """
:root { color-scheme: light dark; --paper: #fcfcfd; --card: #fff; --ink: #1c2230; --quiet: #5b6474;
  --rule: #e3e6ec; --good: #15803d; --bad: #b91c1c; --c0: #2463d8; --c1: #c2620a; --c2: #0f8a6a;
  --c3: #a8329e; --c4: #c0392b; --c5: #0e7f9c; --c6: #6b7a12; --c7: #6d4bd0; }
@media (prefers-color-scheme: dark) { :root { --paper: #12151c; --card: #1a1f29; --ink: #e7eaf0;
  --quiet: #9aa4b5; --rule: #2e3543; --good: #4ade80; --bad: #f87171; --c0: #7aa7ff; --c1: #f2a04e;
  --c2: #4fcfa8; --c3: #e38adb; --c4: #ff8f80; --c5: #57c7e3; --c6: #c3d34f; --c7: #b7a0ff; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 1rem; background: var(--paper);
  color: var(--ink); font: 16px/1.45 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0 0 .25rem; }
h2 { font-size: 1.1rem; margin: 0 0 .25rem; display: flex; align-items: center; gap: .4rem;
  overflow-wrap: anywhere; }
h4 { margin: .75rem 0 .25rem; font-size: .85rem; color: var(--quiet); }
p { margin: 0 0 .5rem; }
.quiet, figcaption span { color: var(--quiet); font-size: .875rem; font-weight: normal; }
.good { color: var(--good); } .bad { color: var(--bad); font-weight: 600; }
section { margin: 1.25rem 0; }
.plots { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem),
  1fr)); }
figure { margin: 0; padding: .75rem; background: var(--card); border: 1px solid var(--rule);
  border-radius: .5rem; min-width: 0; }
figcaption { font-weight: 600; }
figure svg { width: 100%; max-width: 40rem; height: auto; display: block; margin: auto; }
svg text { font: 12px system-ui, sans-serif; fill: var(--quiet); }
svg .end { text-anchor: end; } svg .middle { text-anchor: middle; }
svg .grid { stroke: var(--rule); fill: none; } svg .axis { stroke: var(--quiet); fill: none; }
svg .line { fill: none; stroke: var(--c); stroke-width: 2; stroke-linejoin: round; }
svg .dashed { stroke-dasharray: 5 3; }
svg .mark { fill: var(--c); stroke: var(--card); stroke-width: 1; }
svg .band { fill: var(--c); opacity: .14; }
.s0 { --c: var(--c0); } .s1 { --c: var(--c1); } .s2 { --c: var(--c2); } .s3 { --c: var(--c3); }
.s4 { --c: var(--c4); } .s5 { --c: var(--c5); } .s6 { --c: var(--c6); } .s7 { --c: var(--c7); }
.swatch { width: 12px; height: 12px; flex: none; overflow: visible; }
.legend { list-style: none; margin: .25rem 0; padding: 0; display: flex; flex-wrap: wrap;
  gap: .25rem 1rem; font-size: .875rem; }
.legend li { display: flex; align-items: center; gap: .4rem; }
.runs { flex-direction: column; font-size: 1rem; overflow-wrap: anywhere; }
.wide { overflow-x: auto; border: 1px solid var(--rule); border-radius: .5rem;
  background: var(--card); }
table { border-collapse: collapse; width: 100%; font-size: .875rem; white-space: nowrap;
  font-variant-numeric: tabular-nums; }
th, td { padding: .4rem .6rem; text-align: right; border-top: 1px solid var(--rule); }
thead th { border-top: 0; color: var(--quiet); font-weight: 600; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0;
  background: var(--card); }
details { margin-top: .5rem; } summary { cursor: pointer; color: var(--quiet); }
dl { display: grid; grid-template-columns: minmax(7rem, max-content) 1fr; gap: .1rem .75rem;
  margin: 0; font-size: .875rem; }
dt { color: var(--quiet); } dd { margin: 0; overflow-wrap: anywhere; }
footer { margin: 1.5rem 0; } a { color: var(--c0); }
"""

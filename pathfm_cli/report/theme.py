"""How a report looks: light and dark as the reader's device is, one column on a phone."""

from __future__ import annotations

STYLE = """
:root { color-scheme: light dark; --bg: #f6f6f3; --card: #fff; --ink: #1d2327; --soft: #5c666d;
  --line: #dcdfdc; --grid: #e8eae6; --c0: #1768ac; --c1: #d1590f; --c2: #1b8a5a; --c3: #b3257e;
  --c4: #8a6d00; --c5: #5b4fc4; --c6: #007f8f; --c7: #6b6b6b; --fill: 23 104 172 }
@media (prefers-color-scheme: dark) { :root { --bg: #14181b; --card: #1d2226; --ink: #e7ebee;
  --soft: #9fabb3; --line: #343b41; --grid: #2a3035; --c0: #6cb6f5; --c1: #ff9f5a; --c2: #5fd3a0;
  --c3: #f08bc8; --c4: #e2c35a; --c5: #a9a0ff; --c6: #55cfdd; --c7: #b0b0b0;
  --fill: 108 182 245 } }
* { box-sizing: border-box }
body { font: 15px/1.5 system-ui, sans-serif; margin: 0; background: var(--bg); color: var(--ink) }
header, main { max-width: 1280px; margin: 0 auto; padding: 0 16px }
header { padding-top: 20px }
h1 { font-size: 22px; margin: 0 0 4px }
h2 { font-size: 19px; margin: 0; overflow-wrap: anywhere }
h3 { font-size: 16px; margin: 20px 0 8px }
nav { display: flex; flex-wrap: wrap; gap: 4px 14px }
a { color: var(--c0) }
section { background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  padding: 16px; margin: 16px 0 }
.kind { color: var(--soft); margin: 0 0 12px; overflow-wrap: anywhere }
.note { color: var(--soft); font-size: 14px; margin: 8px 0 }
.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(130px, 1fr));
  gap: 8px 16px; margin: 0 0 12px }
dt { color: var(--soft); font-size: 12px }
dd { margin: 0; overflow-wrap: anywhere }
.charts { display: grid; gap: 20px; margin: 16px 0; align-items: start;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 350px), 1fr)) }
figure { margin: 0; min-width: 0 }
figcaption { font-weight: 600; margin-bottom: 4px; overflow-wrap: anywhere }
.picture { margin: 16px 0 }
.picture img { max-width: 100%; height: auto; background: #fff; padding: 4px; border-radius: 4px }
svg { display: block; width: 100%; height: auto }
svg text { font: 12px system-ui, sans-serif; fill: var(--soft) }
.grid { stroke: var(--grid) }
.curve { fill: none; stroke-width: 1.8; stroke-linejoin: round }
.level { stroke: var(--soft); stroke-dasharray: 5 4 }
circle { fill-opacity: .75 }
.key { display: inline-block; margin-right: 14px; font-size: 13px; color: var(--soft);
  overflow-wrap: anywhere }
.key i { display: inline-block; width: 14px; height: 4px; margin-right: 5px; border-radius: 2px;
  vertical-align: middle }
.key .dash { height: 0; border-top: 2px dashed var(--soft); border-radius: 0 }
.wide { overflow-x: auto; max-width: 100% }
table { border-collapse: collapse; font-size: 14px }
caption { text-align: left; font-weight: 600 }
th { text-align: left; color: var(--soft); font-weight: 500; white-space: nowrap }
th, td { padding: 4px 14px 4px 0; border-bottom: 1px solid var(--grid); vertical-align: middle }
td { font-variant-numeric: tabular-nums; white-space: nowrap }
.bar { display: block; position: relative; width: 110px; height: 10px; background: var(--grid);
  border-radius: 5px }
.bar i, .bar b { position: absolute; top: 0; bottom: 0; border-radius: 5px }
.bar i { background: rgb(var(--fill) / .5) }
.bar b { width: 3px; margin-left: -1px; background: var(--ink) }
.matrix td { background: rgb(var(--fill) / calc(var(--s) * .75)); text-align: center;
  padding: 6px; min-width: 40px; border: 1px solid var(--card) }
.matrix th { padding: 4px 8px; max-width: 140px; overflow: hidden; text-overflow: ellipsis }
details { margin-top: 12px }
summary { cursor: pointer; color: var(--soft) }
details td { overflow-wrap: anywhere; white-space: normal; min-width: 90px }
"""

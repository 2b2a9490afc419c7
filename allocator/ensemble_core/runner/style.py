"""The page's style sheet and script, in Python so that they are there wherever the package is."""

from __future__ import annotations

# Colours after Okabe and Ito: distinct for the colour-blind; the dark set is lighter.
STYLE = """
:root {
  color-scheme: light dark;
  --page: #f6f7f9; --surface: #ffffff; --ink: #1a1f29; --soft: #596273; --line: #dde1e8; --faint: #eceff4;
  --accent: #0b62a4; --good: #0a7350; --bad: #b3400a; --mixed: #75600a; --dot: #6b7688; --star: #1a1f29;
  --hue0: #0072b2; --hue1: #d55e00; --hue2: #008f68; --hue3: #a64d86; --hue4: #8a6d00; --hue5: #4b52c9;
  --call0: #b9d4ea; --call1: #7fb2d9; --call2: #3f86bd; --call3: #155a91; --export: #e3a33c; --failed: #c04a12;
  --on0: #12304a; --on2: #ffffff;
}
@media screen and (prefers-color-scheme: dark) {
  :root {
    --page: #11151c; --surface: #1a202a; --ink: #e9edf3; --soft: #a3adbd; --line: #343d4b; --faint: #262e3a;
    --accent: #6ab7ee; --good: #4fcf9f; --bad: #ff9a62; --mixed: #e3c558; --dot: #93a0b5; --star: #ffffff;
    --hue0: #56b4e9; --hue1: #ff8f45; --hue2: #35cf9d; --hue3: #e596c9; --hue4: #e8cf4a; --hue5: #a6abff;
    --call0: #24445f; --call1: #2d648f; --call2: #4a93c8; --call3: #8dc6ee; --export: #d99a34; --failed: #f0713a;
    --on0: #e9edf3; --on2: #0c1621;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, "Segoe UI", Roboto,
  "Helvetica Neue",
  Arial, "Liberation Sans", sans-serif; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
header, main { max-width: 1320px; margin: 0 auto; padding: 0 clamp(12px, 2.5vw, 32px); }
header { padding-top: 32px; padding-bottom: 6px; }
main { display: grid; grid-template-columns: minmax(0, 1fr); gap: 20px; padding-bottom: 48px; }
h1 { font-size: clamp(24px, 3.4vw, 34px); line-height: 1.15; letter-spacing: -0.015em; margin: 0 0 6px; }
h2 { font-size: 20px; line-height: 1.25; letter-spacing: -0.005em; margin: 0 0 2px; }
h3 { font-size: 15px; margin: 0 0 6px; }
h3 small { color: var(--soft); font-weight: 400; margin-left: 6px; }
.sub, .lead, .empty, .reason, .note, .classes { color: var(--soft); }
.sub { margin: 0 0 12px; }
.lead { margin: 0 0 14px; max-width: 90ch; }
.classes { margin: 12px 0 0; font-size: 13px; }
section { background: var(--surface); border: 1px solid var(--line); border-radius: 10px; padding: 20px clamp(14px,
  2vw, 26px) 22px;
  min-width: 0; }
#achieved .lead { font-size: 17px; color: var(--ink); }
.pair, .panels { display: grid; gap: 20px; grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); }
.panels { gap: 26px 34px; grid-template-columns: repeat(auto-fit, minmax(min(100%, 340px), 1fr)); }
.panel { min-width: 0; max-width: 640px; }
.stack { display: grid; gap: 26px; grid-template-columns: minmax(0, 1fr); }

.cards { display: grid; gap: 12px; grid-template-columns: repeat(auto-fit, minmax(min(100%, 230px), 1fr));
  margin-bottom: 18px; }
.card { margin: 0; padding: 12px 16px 13px; border-radius: 8px; background: var(--faint); }
.card dt { font-size: 13px; font-weight: 600; color: var(--soft); }
.card dd { margin: 0; }
.card .value { white-space: nowrap; line-height: 1.25; margin: 2px 0; }
.card strong { font-size: clamp(24px, 2.4vw, 32px); font-weight: 650; letter-spacing: -0.02em; }
.card .before { font-size: 18px; color: var(--soft); }
.card .unit { font-size: 15px; color: var(--soft); }
.card .note { font-size: 13px; line-height: 1.4; }
.card.bad strong { color: var(--bad); }

.scroll { overflow-x: auto; max-width: 100%; }
table { border-collapse: collapse; width: 100%; font-size: 14px; overflow-wrap: normal; }
p.note { margin: 0 0 6px; font-size: 13px; }
th, td { padding: 6px 10px; text-align: left; border-bottom: 1px solid var(--line); vertical-align: baseline; }
thead th { font-size: 12.5px; font-weight: 600; color: var(--soft); vertical-align: bottom; line-height: 1.3; }
tbody th { font-weight: 600; max-width: 28ch; overflow-wrap: anywhere; }
tbody tr:last-child > * { border-bottom: 0; }
.n { text-align: right; white-space: nowrap; }
.comparison { min-width: 860px; }
.comparison th:first-child { white-space: nowrap; }
.comparison tbody th { max-width: none; }
.comparison td:last-child { min-width: 17ch; }
.comparison tbody tr:first-child { background: var(--faint); }
.comparison tbody svg { vertical-align: -4px; margin-right: 6px; }
.comparison td.better { color: var(--good); font-weight: 600; }
.comparison td.worse { color: var(--bad); font-weight: 600; }
.comparison td.mixed { color: var(--mixed); font-weight: 600; }
.badge { display: inline-block; margin-left: 8px; padding: 0 7px; border-radius: 9px; font-size: 11.5px;
  font-weight: 600;
  line-height: 18px; background: var(--accent); color: var(--surface); }
.small { font-size: 12.5px; }
.small th, .small td { padding: 3px 8px; }
.small thead th { font-size: 12px; }
details tbody th { min-width: 13ch; }
.settings { color: var(--soft); min-width: 30ch; }
.panel table { margin-top: 8px; }
.panel td:last-child { min-width: 20ch; }
.panel tbody th { font-weight: 400; white-space: nowrap; }
.panel tr.won > * { font-weight: 650; }
.heat { width: auto; min-width: min(100%, 420px); }
.heat tbody th, .heat thead th:first-child { position: sticky; left: 0; background: var(--surface);
  white-space: nowrap; }
.heat td, .heat thead th + th { text-align: center; min-width: 58px; border: 2px solid var(--surface); }
.heat td { background: color-mix(in srgb, var(--accent) calc(8% + var(--heat) * 0.4), var(--surface)); font-weight: 600;
  border-radius: 6px; }
.heat td.absent { background: var(--faint); color: var(--soft); font-weight: 400; }
.bars { min-width: 560px; }
.bars th { font-weight: 400; }
.bars th:first-child { width: 1%; }
.bars td.bar { width: 46%; }
.bars thead th:last-child { text-align: right; }
.bars .n { width: 1%; padding-left: 16px; }
.bars td.bar { vertical-align: middle; padding: 2px 6px; }
.bars svg { display: block; overflow: visible; }
.bars tr.best > * { font-weight: 650; }
.bars .amount { fill: var(--call1); }
.bars .best .amount { fill: var(--accent); }
.bars .error { stroke: var(--ink); stroke-width: 1.5; }

svg text { fill: var(--ink); }
.chart { display: block; width: 100%; max-width: 720px; height: auto; margin: 0 auto; font-size: 12.5px;
  overflow: visible; }
.tick { fill: var(--soft); font-size: 12px; }
.name { fill: var(--soft); font-size: 12.5px; }
.label { font-size: 12px; paint-order: stroke; stroke: var(--surface); stroke-width: 3px; stroke-linejoin: round; }
.label.strong { font-weight: 650; }
.label.soft { fill: var(--soft); font-size: 11px; }
.grid { stroke: var(--faint); stroke-width: 1; }
.axis { stroke: var(--soft); stroke-width: 1; }
.dashed { stroke-dasharray: 3 4; }
.hue0 { --hue: var(--hue0); } .hue1 { --hue: var(--hue1); } .hue2 { --hue: var(--hue2); }
.hue3 { --hue: var(--hue3); } .hue4 { --hue: var(--hue4); } .hue5 { --hue: var(--hue5); }
.ring { fill: none; stroke: var(--hue); stroke-width: 2; pointer-events: none; }
.ink { fill: var(--hue) !important; font-weight: 600; }
.budget { stroke: var(--hue); stroke-width: 1.6; stroke-dasharray: 6 4; }
.model circle { fill: var(--dot); stroke: var(--surface); stroke-width: 0.8; }
.model.hollow circle { fill: var(--surface); stroke: var(--dot); stroke-width: 1.7; }
.model.faint { opacity: 0.42; }
.star { fill: var(--star); stroke: var(--surface); stroke-width: 1.4; }
.front { fill: none; stroke: var(--soft); stroke-width: 1.6; }
.dot { fill: var(--ink); stroke: var(--surface); stroke-width: 0.8; }
.path polyline { fill: none; stroke: var(--dot); stroke-width: 1.3; stroke-linejoin: round; }
.path circle { fill: var(--dot); stroke: var(--surface); stroke-width: 1; }
.path.won polyline { stroke: var(--hue); stroke-width: 3; }
.path.won circle { fill: var(--hue); }

.legend { list-style: none; display: flex; flex-wrap: wrap; gap: 3px 18px; margin: 8px 0 0; padding: 0;
  font-size: 13px; color: var(--soft); }
.legend li { display: flex; align-items: center; gap: 6px; }
.legend svg { flex: none; overflow: visible; }
.lanes { padding: 0 46px 0 54px; }
.timeline { display: block; overflow: visible; font-size: 11px; }
.timeline .tick { font-size: 11.5px; }
.defs { position: absolute; }
.lane { fill: var(--faint); }
.busy { fill: var(--call1); }
.span { stroke: var(--surface); stroke-width: 0.7; }
.call0 { fill: var(--call0); } .call1 { fill: var(--call1); } .call2 { fill: var(--call2); }
.call3 { fill: var(--call3); }
rect.export { fill: var(--export); }
rect.failed { fill: url(#hatch); stroke: var(--failed); }
.hatch { stroke: var(--failed); stroke-width: 2; }
text.within { fill: var(--on0); stroke: none; font-size: 11px; font-weight: 600; pointer-events: none; }
text.within.tight { font-size: 9.5px; }
text.within.call2, text.within.call3 { fill: var(--on2); }
text.within.export { fill: #2a1b00; }
text.within.failed { fill: var(--ink); paint-order: stroke; stroke: var(--surface); stroke-width: 3px; }
.pause { stroke: var(--ink); stroke-width: 2; stroke-dasharray: 2 3; }

.code { position: relative; margin: 0; padding: 12px 14px; border-radius: 8px; background: var(--faint); overflow: auto;
  font: 12.5px/1.5 ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", "Liberation Mono", monospace;
  overflow-wrap: normal; }
.snippet { position: relative; margin-top: 14px; }
.copy { position: absolute; top: 0; right: 0; font: inherit; font-size: 12px; padding: 1px 10px; border-radius: 6px;
  border: 1px solid var(--line); background: var(--surface); color: var(--ink); cursor: pointer; }
.copy:focus-visible, summary:focus-visible, pre:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
details { border-top: 1px solid var(--line); padding: 8px 0; }
summary { cursor: pointer; font-weight: 600; }
details > :not(summary) { margin-top: 8px; max-height: 620px; overflow: auto; }
.tip { position: fixed; z-index: 9; max-width: 320px; padding: 8px 11px; border-radius: 7px; background: var(--ink);
  color: var(--surface); font-size: 12.5px; line-height: 1.45; white-space: pre-line; pointer-events: none; }
.tip[hidden] { display: none; }
.lit [data-k] { opacity: 0.22; }
.lit [data-k].hot, .lit .hot [data-k] { opacity: 1; }
tr[data-k] { opacity: 1 !important; }
tr.hot > *, th.hot { background: var(--faint); }

@media (max-width: 560px) {
  .chart .tick, .chart .name, .chart .label { font-size: 15px; }
  .chart .label.soft { font-size: 14px; }
  .timeline .odd { display: none; }
}
@media screen and (max-width: 720px) {
  .comparison { min-width: 0; }
  .comparison, .comparison tbody, .comparison tr, .comparison tbody th, .comparison tbody td { display: block; }
  .comparison thead { display: none; }
  .comparison tr { padding: 8px 10px; border-bottom: 1px solid var(--line); }
  .comparison tr > * { border: 0; padding: 1px 0; text-align: left; white-space: normal; }
  .comparison tbody th { margin-left: -4px; }
  .comparison td[data-label] { display: flex; justify-content: space-between; gap: 12px; text-align: right; }
  .comparison td[data-label]::before { content: attr(data-label); color: var(--soft); font-weight: 400;
  white-space: nowrap; }
  .comparison td:empty { display: none; }
  .bars { min-width: 0; }
  .bars, .bars tbody { display: block; }
  .bars thead { display: none; }
  .bars tr { display: grid; grid-template-columns: 2.2em 1fr auto; padding: 5px 0;
  border-bottom: 1px solid var(--line); }
  .bars tr > * { border: 0; padding: 2px 4px; }
  .bars tbody th, .bars td.bar, .bars .n { width: auto; }
  .bars td.bar { grid-area: 2 / 2 / 3 / 4; }
  .panel td:last-child { min-width: 10ch; }
  .panel .small th, .panel .small td { padding: 3px 6px; }
}
@media (max-width: 960px) { text.within { display: none; } }
@media print {
  :root { --page: #ffffff; }
  body { font-size: 12px; print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  section { border: 0; padding: 8px 0; break-inside: auto; }
  .chart, .lanes, .card, tr, .snippet { break-inside: avoid; }
  h2, h3, .lead { break-after: avoid; }
  .scroll, details > :not(summary) { overflow: visible; max-height: none; }
  .panels { grid-template-columns: repeat(3, 1fr); }
  .comparison, .bars { min-width: 0; }
  .code { white-space: pre-wrap; overflow-wrap: anywhere; }
  .copy, .tip { display: none; }
}
"""

SCRIPT = """
"use strict";
(() => {
  const tip = document.createElement("div");
  tip.className = "tip"; tip.hidden = true;
  document.body.append(tip);
  for (const title of document.querySelectorAll("svg title")) {
    const owner = title.parentNode;
    owner.setAttribute("data-tip", title.textContent);
    owner.setAttribute("aria-label", title.textContent);
    title.remove();
  }
  const light = keys => {
    for (const old of document.querySelectorAll(".hot")) old.classList.remove("hot");
    for (const old of document.querySelectorAll(".lit")) old.classList.remove("lit");
    for (const key of keys) {
      for (const found of document.querySelectorAll(`[data-k~="${CSS.escape(key)}"]`)) {
        found.classList.add("hot");
        const figure = found.closest("svg.chart, svg.timeline");
        if (figure) figure.classList.add("lit");
      }
    }
  };
  document.addEventListener("mouseover", event => {
    const owner = event.target.closest("[data-k]");
    const keys = owner ? owner.getAttribute("data-k").split(" ") : [];
    light(keys.filter((key, index) => index === 0));
    const shown = event.target.closest("[data-tip]");
    tip.hidden = !shown;
    if (shown) tip.textContent = shown.getAttribute("data-tip");
  });
  document.addEventListener("mousemove", event => {
    if (tip.hidden) return;
    const left = event.clientX + 14, top = event.clientY + 14;
    tip.style.left = `${Math.max(4, Math.min(left, innerWidth - tip.offsetWidth - 8))}px`;
    tip.style.top = `${top + tip.offsetHeight > innerHeight ? event.clientY - tip.offsetHeight - 10 : top}px`;
  });
  const closed = [...document.querySelectorAll("details")];
  addEventListener("beforeprint", () => closed.forEach(fold => { fold.open = true; }));
  addEventListener("afterprint", () => closed.forEach(fold => { fold.open = false; }));
  for (const block of document.querySelectorAll(".snippet")) {
    const button = document.createElement("button");
    button.className = "copy"; button.type = "button"; button.textContent = "Copy";
    button.addEventListener("click", async () => {
      const code = block.querySelector("code");
      try {
        await navigator.clipboard.writeText(code.textContent);
        button.textContent = "Copied";
      } catch {
        getSelection().selectAllChildren(code);
        button.textContent = "Selected";
      }
      setTimeout(() => { button.textContent = "Copy"; }, 1600);
    });
    block.append(button);
  }
})();
"""

"""The style sheet of the report's page: light and dark, for a telephone and for paper. Text has a contrast of 4.5."""

STYLE = """
:root{color-scheme:light dark;--page:#fff;--card:#f6f7f9;--ink:#1b1f24;--soft:#57606a;--line:#d0d7de;--none:#e4e7eb;
--full:#0b5cad;--inc:#3f8fd8;--bad:#c62828;--other:#9aa4af;--ok:#1a7f37;--warn:#8a5a00;--crit:#b3261e;--link:#0b5cad}
@media(prefers-color-scheme:dark){:root{--page:#14171a;--card:#1d2126;--ink:#e8eaed;--soft:#a9b1ba;--line:#3a4149;
--none:#2b3138;--full:#7ab8f5;--inc:#3d86c9;--bad:#ff7b72;--other:#6b7580;--ok:#56d364;--warn:#e3b341;--crit:#ff8a80;
--link:#8cc4ff}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:72rem;padding:1rem;background:var(--page);color:var(--ink);
overflow-wrap:anywhere;font:16px/1.5 system-ui,"Liberation Sans",sans-serif}
h1{font-size:1.5rem;margin:.2rem 0}h2{font-size:1.2rem;margin:2rem 0 .5rem}h3{font-size:1.05rem;margin:0}
p{margin:.3rem 0}a{color:var(--link)}code{font-size:.9em}
.soft{color:var(--soft)}.ok{color:var(--ok)}.warning{color:var(--warn)}.critical,.unknown{color:var(--crit)}
.answer{font-size:1.15rem;font-weight:600}
.wide{overflow-x:auto}.wide:focus-visible,summary:focus-visible,a:focus-visible{outline:3px solid var(--link)}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:.35rem .6rem;text-align:left;vertical-align:top;border-bottom:1px solid var(--line);white-space:nowrap}
th{font-weight:600;color:var(--soft)}
.domains :is(th,td):nth-child(n+4):nth-child(-n+7),.points :is(th,td):nth-child(3),.points :is(th,td):nth-child(4){
text-align:right}
.points td:first-child{font-family:ui-monospace,"Liberation Mono",monospace;font-size:.85rem}
article{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:1rem;margin:1rem 0}
figure{margin:.8rem 0 0}figcaption{color:var(--soft);font-size:.9rem;margin-top:.2rem}
svg{display:block;max-width:100%;height:auto}
.none,.before{fill:var(--none)}.before{opacity:.35}.full{fill:var(--full)}.incremental,.bar{fill:var(--inc)}
.bad{fill:var(--bad)}.other{fill:var(--other)}.link{fill:none;stroke:var(--soft);stroke-width:1.5}
.key{display:inline-block;width:.8em;height:.8em;border-radius:2px;margin:0 .2em 0 .8em;vertical-align:-.05em}
.key.full{background:var(--full)}.key.incremental{background:var(--inc)}.key.bad{background:var(--bad)}
.key.none{background:var(--none)}.key.other{background:var(--other)}
summary{cursor:pointer;margin-top:.6rem;color:var(--link)}
ul{padding-left:1.2rem;margin:.3rem 0}
@media(max-width:40rem){body{padding:.6rem}article{padding:.7rem}}
@media print{body{max-width:none}article{break-inside:avoid}}
"""

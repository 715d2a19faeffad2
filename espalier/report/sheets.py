"""A table as text: Markdown, LaTeX or one HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

from espalier.report import palette

_TEX = {
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "\\": r"\textbackslash{}",
    "±": r"$\pm$",
    "−": "$-$",
    "–": "--",
    "<": "$<$",
    ">": "$>$",
}
_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>
<style>{css}
body {{ font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page) }}
body {{ margin: 2rem auto; max-width: 72rem; padding: 0 1rem }}
.wide {{ overflow-x: auto }}
table {{ border-collapse: collapse; background: var(--card); margin: 1rem 0 }}
th, td {{ padding: .3rem .7rem; border-bottom: 1px solid var(--grid); text-align: right; white-space: nowrap }}
th.head, td.head {{ text-align: left }}
p {{ max-width: 46rem; color: var(--soft) }}
.plots {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(20rem, 1fr)); gap: 1rem }}
.plots svg {{ background: var(--card); width: 100% }}
</style></head><body>
<h1>{title}</h1>
{body}
</body></html>
"""


@dataclass(frozen=True)
class Sheet:
    """One table in words: `heads` counts its leading columns that name the rows, `bold` are (row, column) of best cells."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    heads: int = 1
    bold: frozenset[tuple[int, int]] = field(default_factory=frozenset)


def to_markdown(title: str, sheets: Sequence[Sheet]) -> str:
    """All tables as one Markdown text."""
    parts = [f"# {title}"]
    for sheet in sheets:
        lines = ["| " + " | ".join(_cell(text) for text in sheet.header) + " |"]
        lines.append("|" + "".join(" --- |" if n < sheet.heads else " ---: |" for n in range(len(sheet.header))))
        for i, row in enumerate(sheet.rows):
            cells = [f"**{_cell(text)}**" if (i, j) in sheet.bold else _cell(text) for j, text in enumerate(row)]
            lines.append("| " + " | ".join(cells) + " |")
        parts += [f"## {sheet.title}", "\n".join(lines), *([sheet.note] if sheet.note else [])]
    return "\n\n".join(parts) + "\n"


def to_latex(title: str, sheets: Sequence[Sheet]) -> str:
    """All tables as LaTeX `table` environments; they need the package booktabs."""
    parts = [f"% {title}: needs \\usepackage{{booktabs}}"]
    for sheet in sheets:
        lines = [r"\begin{table}", r"\centering", rf"\caption{{{_tex(sheet.title)}. {_tex(sheet.note)}}}"]
        lines.append(rf"\begin{{tabular}}{{{'l' * sheet.heads}{'r' * (len(sheet.header) - sheet.heads)}}}")
        lines += [r"\toprule", " & ".join(map(_tex, sheet.header)) + r" \\", r"\midrule"]
        for i, row in enumerate(sheet.rows):
            cells = [rf"\textbf{{{_tex(text)}}}" if (i, j) in sheet.bold else _tex(text) for j, text in enumerate(row)]
            lines.append(" & ".join(cells) + r" \\")
        parts.append("\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}"]))
    return "\n\n".join(parts) + "\n"


def to_html(title: str, sheets: Sequence[Sheet], drawings: Sequence[str] = ()) -> str:
    """One self-contained page with all tables, and plots below them.

    Args:
        title: of the page.
        sheets: the tables.
        drawings: `<svg>` elements of `espalier.report.svg.draw`.
    """
    parts = []
    for sheet in sheets:
        parts.append(f'<h2>{escape(sheet.title)}</h2>\n<div class="wide">{_html_table(sheet)}</div>')
        parts += [f"<p>{escape(sheet.note)}</p>"] if sheet.note else []
    if drawings:
        parts.append('<div class="plots">' + "\n".join(drawings) + "</div>")
    css = palette.variables() + "\n" + palette.plot_rules()
    return _PAGE.format(title=escape(title), css=css, body="\n".join(parts))


def _html_table(sheet: Sheet) -> str:
    head = "".join(f"<th{_head(n, sheet)}>{escape(text)}</th>" for n, text in enumerate(sheet.header))
    rows = ["".join(_td(i, j, text, sheet) for j, text in enumerate(row)) for i, row in enumerate(sheet.rows)]
    body = "\n".join(f"<tr>{row}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table>"


def _cell(text: str) -> str:
    return text.replace("|", r"\|")


def _tex(text: str) -> str:
    return "".join(_TEX.get(sign, sign) for sign in text)


def _head(column: int, sheet: Sheet) -> str:
    return ' class="head"' if column < sheet.heads else ""


def _td(row: int, column: int, text: str, sheet: Sheet) -> str:
    said = f"<strong>{escape(text)}</strong>" if (row, column) in sheet.bold else escape(text)
    return f"<td{_head(column, sheet)}>{said}</td>"

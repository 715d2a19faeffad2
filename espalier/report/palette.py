"""Colours of page and plots for light and dark screens, told apart by colour-blind eyes, 3:1 or more on their card."""

from __future__ import annotations

from importlib.resources import files

LIGHT = {
    "page": "#f4f5f7",
    "card": "#ffffff",
    "ink": "#1c2128",
    "soft": "#57606a",
    "grid": "#e2e5e9",
    "accent": "#0b62c4",
    "mark": "#e7f1fd",
    "s0": "#6a737d",
    "s1": "#0b62c4",
    "s2": "#c2410c",
    "s3": "#0b8163",
    "s4": "#a83a97",
    "s5": "#8a6d00",
    "s6": "#0a7fa3",
    "s7": "#7a4b2a",
    "s8": "#4b3fbf",
}
DARK = {
    "page": "#0d1117",
    "card": "#161b22",
    "ink": "#e6edf3",
    "soft": "#9ba5b0",
    "grid": "#2b323b",
    "accent": "#6cb2ff",
    "mark": "#16304f",
    "s0": "#9aa4ae",
    "s1": "#58a6ff",
    "s2": "#ff8a4c",
    "s3": "#35c79b",
    "s4": "#e08ad4",
    "s5": "#d9b630",
    "s6": "#4cc3e8",
    "s7": "#c99a73",
    "s8": "#a59bff",
}


def variables() -> str:
    """The colours as CSS variables; dark where the reader's screen is, always light on paper."""
    light, dark = (" ".join(f"--{name}: {colour};" for name, colour in palette.items()) for palette in (LIGHT, DARK))
    return f":root {{ {light} }}\n@media screen and (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}"


def plot_rules() -> str:
    """The style rules of the plots, in terms of the variables."""
    return files("espalier.report").joinpath("plot.css").read_text(encoding="utf-8")


def standalone_rules() -> str:
    """Style rules for a plot in a file of its own, with the colours written out: not every viewer knows variables."""
    light, dark = plot_rules(), plot_rules()
    for name in LIGHT:
        light = light.replace(f"var(--{name})", LIGHT[name])
        dark = dark.replace(f"var(--{name})", DARK[name])
    coloured = "\n".join(line for line in dark.splitlines() if "#" in line)
    return f"{light}@media (prefers-color-scheme: dark) {{\n{coloured}\n}}"

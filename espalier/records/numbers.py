"""How numbers are written: shares as percent, durations in words, one width within a column."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

# What methods that cut channels may be given as their budget, in words.
BUDGETS = {
    "keep_macs": "{share} of the MACs",
    "keep_params": "{share} of the parameters",
    "max_macs": "at most {count} MACs",
    "max_params": "at most {count} parameters",
    "prune_channels": "{share} of the channels gone",
    "max_latency": "at most {time}",
}
_UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6}
NOTHING = "\N{EN DASH}"


def percent(share: float | None, decimals: int = 2) -> str:
    """A share in [0, 1] as percent, without the sign.

    Example:
        >>> percent(0.97214), percent(0.9, decimals=1), percent(None)
        ('97.21', '90.0', '–')
    """
    return NOTHING if share is None else f"{100 * share:.{decimals}f}"


def percent_spread(mean: float | None, std: float | None, decimals: int = 2) -> str:
    """Mean and standard deviation of shares, in percent; the mean alone where there is no spread.

    Example:
        >>> percent_spread(0.9721, 0.0034), percent_spread(0.9721, None)
        ('97.21 ± 0.34', '97.21')
    """
    if mean is None or std is None:
        return percent(mean, decimals)
    return f"{percent(mean, decimals)} ± {percent(std, decimals)}"


def target(share: float | None) -> str:
    """A sparsity that somebody chose: percent with no more digits than it needs.

    Example:
        >>> target(0.9), target(0.955), target(None)
        ('90 %', '95.5 %', '0 %')
    """
    return f"{100 * (share or 0.0):.4g} %"


def budget(given: Mapping[str, float]) -> str:
    """The budget of a method that cuts channels.

    Example:
        >>> budget({"keep_macs": 0.5}), budget({"max_macs": 2e7, "prune_channels": 0.25})
        ('50 % of the MACs', 'at most 20.0 M MACs, 25 % of the channels gone')
    """
    words = [(BUDGETS[key], value) for key, value in given.items()]
    return ", ".join(
        text.format(share=target(value), count=count(round(value)), time=milliseconds(value)) for text, value in words
    )


def budgets_in(given: Mapping[str, object]) -> dict[str, float]:
    """The budgets among settings, as numbers; times in seconds.

    Example:
        >>> budgets_in({"keep_macs": 0.5, "max_latency": "5ms", "keep_params": None, "round_to": 8})
        {'keep_macs': 0.5, 'max_latency': 0.005}
    """
    found = {}
    for key in BUDGETS:
        value = given.get(key)
        time = re.fullmatch(r"\s*([0-9.]+(?:e-?[0-9]+)?)\s*(s|ms|us)\s*", value) if isinstance(value, str) else None
        if time is not None and time[1].count(".") < 2:
            value = float(time[1]) * _UNITS[time[2]]
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            found[key] = float(value)
    return found


def milliseconds(seconds: float) -> str:
    """A short time.

    Example:
        >>> milliseconds(0.00512)
        '5.12 ms'
    """
    return f"{1e3 * seconds:.3g} ms"


def points(difference: float | None) -> str:
    """A difference of two shares in percentage points, with its sign.

    Example:
        >>> points(-0.0123), points(0.0)
        ('−1.23', '±0.00')
    """
    if difference is None:
        return NOTHING
    text = f"{100 * abs(difference):.2f}"
    if float(text) == 0:
        return f"±{text}"
    return ("+" if difference > 0 else "\N{MINUS SIGN}") + text


def duration(seconds: float | None) -> str:
    """A time in the two largest units that matter.

    Example:
        >>> duration(4.24), duration(75), duration(3 * 3600 + 60 * 7), duration(None)
        ('4.2 s', '1 min 15 s', '3 h 07 min', '–')
    """
    if seconds is None:
        return NOTHING
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"


def count(number: int) -> str:
    """A count in thousands or millions once it is long.

    Example:
        >>> count(864), count(61_232), count(11_173_962)
        ('864', '61.2 k', '11.2 M')
    """
    if number >= 1_000_000:
        return f"{number / 1_000_000:.1f} M"
    return f"{number / 1_000:.1f} k" if number >= 10_000 else str(number)


def epochs(number: int) -> str:
    """A budget.

    Example:
        >>> epochs(1), epochs(20)
        ('1 epoch', '20 epochs')
    """
    return f"{number} epoch" + ("" if number == 1 else "s")

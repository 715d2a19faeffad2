"""Runs the list: one model at a time in a process of its own, one result line each, what is done is not done again.

Usage:
    python -m benchmarks.coverage --side ours [--only NAME ...] [--again]
    python -m benchmarks.coverage --side theirs --python ENV/bin/python      (the environment: see theirs.py)
    PYTHONPATH=FOLDER python -m benchmarks.coverage --side speed             (both in turn; the folder: see speed.py)
    python -m benchmarks.coverage.table
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.coverage.models import load

FOLDER = Path(__file__).parent
ROOT = FOLDER.parent.parent
STUCK = 1800  # seconds of the clock after which a process is stopped; the real limits are its own (child.py)


def results(side: str) -> dict[str, dict[str, Any]]:
    """Result lines by model; the last line of a model counts."""
    path = FOLDER / f"{side}.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return {row["name"]: row for row in map(json.loads, lines)}


def attempt(command: list[str], key: str) -> dict[str, Any]:
    """The last line that the process printed, completed if it was stopped or died."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace"
    )
    late = False
    try:
        out, err = process.communicate(timeout=STUCK)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        late = True
    row = {"name": key, "outcome": "crash", "stage": "start"}
    for line in out.splitlines():
        if line.startswith('{"name"') and line.endswith("}"):
            row = json.loads(line)
    if late or process.returncode == -signal.SIGXCPU:
        return {**row, "outcome": "time", "error": "stopped at the time limit"}
    if process.returncode == -signal.SIGKILL:
        return {**row, "outcome": "memory", "error": "killed for want of memory"}
    if row["outcome"] == "crash":
        told = err.strip().splitlines()
        row["error"] = f"exit {process.returncode}: {told[-1][:160] if told else ''}"
    return row


def ours(key: str, python: str) -> dict[str, Any]:
    return attempt([python, "-m", "benchmarks.coverage.ours", key], key)


def theirs(key: str, python: str) -> dict[str, Any]:
    """At batch 2, and once more at batch 1 after an error (not after running out of time or memory)."""
    command = [python, "-m", "benchmarks.coverage.theirs", key]
    first = attempt([*command, "2"], key)
    if first["outcome"] != "fail":
        return first
    second = attempt([*command, "1"], key)
    return second if second["outcome"] == "ok" else first


def speed(key: str, python: str) -> dict[str, Any]:
    return attempt([python, "-m", "benchmarks.coverage.speed", key], key)


SIDES = {"ours": ours, "theirs": theirs, "speed": speed}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", choices=SIDES, required=True)
    parser.add_argument("--python", default=sys.executable, help="the interpreter that runs that side")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these models of the list")
    parser.add_argument("--again", action="store_true", help="run also what has a result")
    arguments = parser.parse_args()
    done = {} if arguments.again else results(arguments.side)
    keys = [entry.key for entry in load()]
    unknown = set(arguments.only or ()) - set(keys)
    if unknown:
        parser.error(f"not on the list: {', '.join(sorted(unknown))}")
    with (FOLDER / f"{arguments.side}.jsonl").open("a") as file:
        for key in arguments.only or keys:
            if done.get(key, {}).get("stage", "start") != "start":  # what died before it began is tried again
                continue
            row = SIDES[arguments.side](key, arguments.python)
            file.write(json.dumps(row) + "\n")
            file.flush()
            print(f"{key:36} {row['outcome']:6} {row['stage']:16} {row.get('error', '')}", flush=True)


if __name__ == "__main__":
    main()

"""What run folders say: read as values, summed up over seeds, written as text. Shared by recipes and report."""

from espalier.records.reading import Epoch, Run, find_runs, is_run, read_run, read_runs

__all__ = ["Epoch", "Run", "find_runs", "is_run", "read_run", "read_runs"]

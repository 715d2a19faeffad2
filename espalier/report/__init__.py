"""Reports: what run folders say, as tables, plots and one self-contained HTML page."""

from espalier.report.page import save_plots, write_report
from espalier.report.tables import markdown_table, table_rows

__all__ = ["markdown_table", "save_plots", "table_rows", "write_report"]

"""How is a run shown to a person? One self-contained HTML page, drawn from stored values; nothing is computed here.

Example:
    >>> import tempfile
    >>> from pathlib import Path
    >>> from metanet.report import REPORT_FORMAT, render_report
    >>> values = {"format": REPORT_FORMAT, "title": "Three networks", "headline": [{"label": "networks", "value": "3"}]}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     page = render_report(values, Path(folder) / "report.html")
    ...     "Three networks" in page.read_text()
    True
"""

from metanet.report.page import render_folder, render_report, save_report
from metanet.report.values import REPORT_FORMAT, ReportError, check_values, load_values

__all__ = [
    "REPORT_FORMAT",
    "ReportError",
    "check_values",
    "load_values",
    "render_folder",
    "render_report",
    "save_report",
]

"""One self-contained HTML page that shows what a chain of jobs did."""

from nfs.report.data import Quarantine, ReportData, StageReport
from nfs.report.page import build_report

__all__ = ["Quarantine", "ReportData", "StageReport", "build_report"]

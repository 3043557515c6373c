"""The results of a run: the table at its end, and the HTML report (docs/report.md)."""

"""What a run came to: the table at its end, and a page to read it from (docs/report.md)."""

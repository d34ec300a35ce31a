"""Report: tables, plots, maps and the HTML page."""

"""The HTTP API, the dashboard and the reports."""

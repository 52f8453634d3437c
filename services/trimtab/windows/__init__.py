"""Event time: panes, watermarks, lateness, windows. Pure."""

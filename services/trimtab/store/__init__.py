"""The only SQL: tables, dialects, queries by name."""

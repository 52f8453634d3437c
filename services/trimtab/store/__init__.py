"""The only SQL: tables, migrations, queries by name. SQLite by default, PostgreSQL for production."""

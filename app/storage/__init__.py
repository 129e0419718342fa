"""The database of feedback: SQLite by default, PostgreSQL by URL. SQLAlchemy is imported when it is first used."""

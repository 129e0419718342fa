"""Alembic revisions, one module each, r<number>_<name>.py, in one line of descent; app/storage/schema.py runs them.

A revision only adds: while it is rolled out, servers of the version before go on writing.
"""

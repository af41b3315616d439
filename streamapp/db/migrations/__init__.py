"""Alembic's scripts; run by :func:`streamapp.db.upgrade`."""

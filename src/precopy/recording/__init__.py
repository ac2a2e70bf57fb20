"""Recordings of migrations: their format, which is pure, and their files."""

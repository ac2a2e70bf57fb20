"""Recorded migrations carried out again under other terms, and policies compared on them."""

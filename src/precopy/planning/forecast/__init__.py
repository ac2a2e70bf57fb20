"""A migration carried on from what is known: what becomes of it under a policy."""

"""Whether a migration that has not begun would converge, and what to change."""

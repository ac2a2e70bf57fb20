"""A program's memory kept on another host: rounds, then checkpoints, until it is given away."""

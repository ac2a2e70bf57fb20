"""What is known of a guest and its link, and what follows from it at once: no policy, no future."""

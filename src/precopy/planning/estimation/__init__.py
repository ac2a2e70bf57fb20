"""From rounds as they were measured to what is known of guest and link, with its range."""

"""What can be migrated: one package a kind, and what kinds share. Only `cli` chooses one (`cli.guest_choice`)."""

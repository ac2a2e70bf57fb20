"""What can be migrated: one package a kind, and what kinds share. Only `service` and `cli` choose one."""

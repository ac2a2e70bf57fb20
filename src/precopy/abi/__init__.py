"""The kernel's interfaces: request numbers derived from structures, and system calls whose errors say what failed."""

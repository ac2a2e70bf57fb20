"""What precopy is measured beside: the raw socket, and QEMU."""

"""What every kind of vCPU shares: the gate that holds it, and the throttle that uses the gate."""

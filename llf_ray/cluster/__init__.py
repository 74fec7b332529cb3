"""Runs on Ray: the scheduler actor, what each worker does, and the driver that starts, watches and ends them."""

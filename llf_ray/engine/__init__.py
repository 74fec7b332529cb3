"""Who owns weights and optimizer: one protocol, one process in plain torch, many with DeepSpeed."""

"""The run itself: the loop, boundaries, checkpoints. No Ray, no DeepSpeed, no MLflow."""

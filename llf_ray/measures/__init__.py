"""What is measured on a trained network: functions of a model and data, of torch, numpy, scipy and torchmetrics."""

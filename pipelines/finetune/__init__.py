"""Fine-tuning pipelines."""

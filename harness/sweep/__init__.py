"""A sweep: every causal model type of the installed transformers, built small and streamed."""

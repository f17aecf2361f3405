"""`rabbitllm batch`, killed over and over."""

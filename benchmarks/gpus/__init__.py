"""What several GPUs of one host give."""

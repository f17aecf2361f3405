"""RabbitLLM on CPU beside stock transformers and accelerate, with and without enough memory."""

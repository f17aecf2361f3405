"""A streamed model behind OpenAI's HTTP interface."""

"""transformers' own tests on streamed models: its tests run, and the models they make stream."""

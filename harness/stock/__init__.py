"""Stock transformers beside stock transformers: what a release is to code on top of it."""

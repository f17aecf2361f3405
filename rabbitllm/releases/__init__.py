"""Other people's models and libraries, over releases of transformers.

Needs the `harness` extra, but neither torch nor transformers: those are in the environments that it
makes, one for each release.
"""

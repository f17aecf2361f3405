"""`python -m benchmarks.gpus`: see `benchmarks.gpus.measure`."""

from benchmarks.gpus.measure import main

if __name__ == "__main__":
    raise SystemExit(main())

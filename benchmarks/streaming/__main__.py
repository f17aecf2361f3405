"""`python -m benchmarks.streaming`: see `benchmarks.streaming.measure`."""

from benchmarks.streaming.measure import main

if __name__ == "__main__":  # not again in the processes that it spawns
    main()

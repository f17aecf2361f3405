"""`python -m benchmarks.host_compute`: see `benchmarks.host_compute.measure`."""

from benchmarks.host_compute.measure import main

if __name__ == "__main__":
    raise SystemExit(main())

"""What can change a measurement, all of it: records are keyed by this folder's code."""

"""Many askers of one streamed model: what they get together, beside one of them alone."""

"""Many clients at one server, half of them misbehaving."""

"""The network and its losses: pure torch, no Lightning."""

"""Command lines over the library: inspect, train, golden. Progress goes to stderr, results to stdout."""

"""Serve: a space in the browser, and the same as an HTTP API."""

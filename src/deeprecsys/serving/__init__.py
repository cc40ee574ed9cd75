"""Serving: the KServe v2 server and its client."""

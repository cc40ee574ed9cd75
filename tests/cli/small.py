"""A model small enough for a verb of a test, on two workers."""

SMALL = ["--scale", "0.001", "--workers", "2"]

"""What happens next, purely: which items a free worker takes, and which queries are taken."""

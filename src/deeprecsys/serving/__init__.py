"""KServe v2: the server that holds its target, and the load client of any such server."""

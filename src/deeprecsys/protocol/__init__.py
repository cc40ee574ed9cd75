"""The Open Inference Protocol (KServe v2) without any server: calls, tensors, both wire forms."""

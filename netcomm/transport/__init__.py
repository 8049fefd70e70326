"""Connections over sockets: the only package that has any. It moves bytes, and knows nothing of what they mean."""

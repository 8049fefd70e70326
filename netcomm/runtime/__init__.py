"""The threads and locks of a peer: what drives the protocol and runs the callbacks."""

"""The protocol of one peer, without its sockets, threads, clocks and storages: bytes and events in, bytes and work out.

`node` drives it. Nothing here reads a clock, asks for chance, or waits.
"""

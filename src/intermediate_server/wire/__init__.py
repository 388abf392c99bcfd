"""The ztna-v1 protocol without IO: bytes in, messages out, and back.

``datagrams`` holds what travels in QUIC DATAGRAMs, ``signaling`` what travels on stream 0.
"""

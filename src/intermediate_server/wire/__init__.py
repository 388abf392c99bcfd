"""The ztna-v1 protocol without IO: bytes in, messages out, and back.

``datagrams`` is the codec of QUIC DATAGRAMs, ``signaling`` that of stream 0.
"""

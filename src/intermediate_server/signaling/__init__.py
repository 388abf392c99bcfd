"""Signaling sessions between agents and connectors, as pure state that turns messages into actions."""

from intermediate_server.signaling.actions import (
    Action,
    Ended,
    EndSignaling,
    Introduce,
    LookUpRoute,
    Send,
    Separate,
    Started,
)
from intermediate_server.signaling.book import Book
from intermediate_server.signaling.bounds import bounded
from intermediate_server.signaling.records import Outcome, Reason, Record
from intermediate_server.signaling.session import State
from intermediate_server.signaling.settings import Limits, Settings
from intermediate_server.signaling.totals import START_BUCKETS, SignalingTotals

__all__ = [
    "START_BUCKETS",
    "Action",
    "Book",
    "EndSignaling",
    "Ended",
    "Introduce",
    "Limits",
    "LookUpRoute",
    "Outcome",
    "Reason",
    "Record",
    "Send",
    "Separate",
    "Settings",
    "SignalingTotals",
    "Started",
    "State",
    "bounded",
]

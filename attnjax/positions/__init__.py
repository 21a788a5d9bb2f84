"""Encodings of position, as pure functions of positions."""

from ._rotary import rotary as rotary

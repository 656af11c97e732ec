"""Where an organ's tumours are looked for by a head that never saw one, and what the scan tells one that did.

A home for each organ that the scan shows.
"""

from diffugts.search.base import Search, log_odds, smoothed, standardised
from diffugts.shapes import Map, Mask, Spacing

__all__ = ["Map", "Mask", "Search", "Spacing", "log_odds", "smoothed", "standardised"]

"""Where an organ's tumours are looked for by a head that never saw one: a home for each organ that the scan shows."""

from diffugts.search.base import Map, Mask, Search, Spacing, log_odds, smoothed, standardised

__all__ = ["Map", "Mask", "Search", "Spacing", "log_odds", "smoothed", "standardised"]

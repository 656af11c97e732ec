"""Results as files: volumes, table, picture and manifest."""

from diffugts.report.save import save_result

__all__ = ["save_result"]

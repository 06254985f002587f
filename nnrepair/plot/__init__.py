"""Pictures, and pages with them."""

from nnrepair.plot.page import html_report
from nnrepair.plot.sequences import sequence
from nnrepair.plot.slice import region
from nnrepair.plot.style import require_matplotlib

__all__ = ["html_report", "region", "require_matplotlib", "sequence"]

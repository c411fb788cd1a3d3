"""Alphas, schedules and trainings as something to look at: one self-contained HTML file, figures, pictures.

``report_html(alphas, schedules)`` and ``training_html(folder)`` are the pages of ``alphalloc report``; ``figures`` has
each chart as a plotly figure (extra ``report``); ``picture_svg`` is the picture of a README. A report is made of saved
documents and never reads the weights of a model.
"""

from alphalloc.report.html import content_policy, has_plotly
from alphalloc.report.page import picture_svg, report_html
from alphalloc.report.training_page import training_html

__all__ = ["content_policy", "has_plotly", "picture_svg", "report_html", "training_html"]

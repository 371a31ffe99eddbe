"""Fixtures of the tests of pages."""

from tests.report.browser import browser, visit

__all__ = ["browser", "visit"]

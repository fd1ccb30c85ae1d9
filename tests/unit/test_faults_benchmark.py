"""The page of the fault benchmark, without a run of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.faults._page import write


def test_a_page_without_marks_is_refused(tmp_path: Path) -> None:
    """Nothing is added to its end."""
    page = tmp_path / "page.md"
    page.write_text("text\n")
    report = {"facts": {}, "settings": {"quick": True}, "faults": {}, "pools": {}, "cells": []}
    with pytest.raises(ValueError, match="has no"):
        write(report, page)
    assert page.read_text() == "text\n"

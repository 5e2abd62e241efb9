"""The times of the viewer: a small page gives all of them."""

import pytest

from benchmarks.studies.viewer import measure, write_page


@pytest.mark.slow
def test_times_of_a_small_page(tmp_path, browser_page):
    path = write_page(tmp_path, 3, 500)
    times = measure(browser_page(path), path, "2d", frames=8)
    assert 0 < times["frame_ms"] <= times["slow_frame_ms"] and 1 <= times["clouds_on_screen"] <= 3
    assert 0 < times["drawn_while_moving"] <= 1 and times["whole_ms"] > 0 and times["page_mb"] < 0.2

"""The page of `tools.look`: one file, its data, and what a browser makes of it where one is installed."""

import base64
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
import torch

from tools.embedder import open_embedder
from tools.launch import weights_file
from tools.look.page import write_page
from tools.look.study import Given, Query, study

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
LONGEST = 120  # seconds of a browser on a busy machine


@pytest.fixture(scope="module")
def found():
    draw = np.random.default_rng(0)
    clouds = torch.from_numpy(draw.uniform(-0.57, 0.57, (5, 200, 3)) * draw.uniform(0.2, 1, (5, 1, 3))).float()
    model = open_embedder(weights_file("mini", None)).model
    return study(model, [Given(f"<cloud> {number}", cloud, "box") for number, cloud in enumerate(clouds)])


@pytest.fixture(scope="module")
def page(found, tmp_path_factory):
    return write_page(tmp_path_factory.mktemp("page"), found, {"checkpoint": "mini"}, "y")


def numbers(text, kind):
    return np.frombuffer(base64.b64decode(text), kind)


def test_one_file_with_data_that_give_the_numbers(page, found):
    text = page.read_text(encoding="utf-8")
    assert "<cloud>" not in text and not re.search(r'(src|href)="(?!#|data:)', text)
    assert len(text) < 2_000_000
    data = json.loads(re.search(r'id="look-data">(.*?)</script>', text)[1])
    assert len(data["clouds"]) == 5 and data["dims"] == [32, 32, 32]
    for scale in range(3):
        packed, one = data["clouds"][1]["scales"][scale], found.clouds[1].scales[scale]
        features = numbers(packed["features"], "<f2").reshape(-1, 32).astype(np.float64)
        angles = features @ features[2] / np.linalg.norm(features, axis=1) / np.linalg.norm(features[2])
        if scale == 0:  # 32 channels: nothing is left out
            query = Query(1, int(found.clouds[1].scales[-1].index[0]))
            own = features[found.row(query, 0)]
            angles = features @ own / np.linalg.norm(features, axis=1) / np.linalg.norm(own)
            assert angles == pytest.approx(found.similarity(query, 0)[1], abs=5e-3)
        assert angles.max() == pytest.approx(1)
        layer = packed["layers"][0]
        q, k = (
            numbers(layer[name], "<f2").reshape(layer["heads"], -1, layer["width"]).astype(np.float32) for name in "qk"
        )
        weights = torch.from_numpy(q @ k.transpose(0, 2, 1)).softmax(-1)
        np.testing.assert_allclose(weights[:, 3].numpy(), one.attention(3)[0], atol=2e-3)
        assert numbers(packed["masked"], "u1").sum() == found.clouds[1].rebuilt.masks[scale][one.index].sum()
    assert text.count("<symbol") == 5 and text.count("dot-of-map") > 5


@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
def test_a_browser_restores_a_view_and_draws(page, found, tmp_path):
    scale = found.clouds[2].scales[1]
    text = opened(page, tmp_path, "#view=2,1,3,attention,0,1")
    assert 'data-view="2,1,3,attention,0,1"' in text
    legend = re.search(r'id="look-legend">(.*?)</span>', text)[1]
    assert legend.startswith(f"attention of patch {scale.index[3]} of &lt;cloud&gt; 2, scale 1")
    high = float(re.search(r'id="look-high">(.*?)</span>', text)[1])
    assert high == pytest.approx(float(scale.attention(3)[0, 1].max()), rel=0.06)
    # An address that fits nothing gives the first view.
    assert 'data-view="0,2,0,features' in opened(page, tmp_path, "#view=99,0,0,similarity,,")


def opened(page, folder, address):
    """Open a page in a headless browser; returns what has become of it, without a message of an error."""
    done = subprocess.run(
        [
            BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=5000", "--enable-logging=stderr",
            f"--user-data-dir={folder / 'profile'}", "--dump-dom", page.as_uri() + address,
        ],
        capture_output=True, text=True, timeout=LONGEST, check=True,
    )  # fmt: skip
    assert "CONSOLE" not in done.stderr, done.stderr
    return done.stdout

"""Time the viewer of the pages in headless Chromium: 50 clouds of 2,048 points, and one of a million.

    python -m benchmarks.studies.viewer --out benchmarks/results/viewer-cpu.json

There is no graphics card in it: `2d` is what a browser draws by itself then, `webgl2` the other drawing under SwiftShader, which
emulates a card on the processor and says little about one. For each page: seconds until it has drawn, milliseconds of a frame while all
clouds on the screen turn (median and slowest tenth, after the first ten), what part of a large cloud is drawn meanwhile, and
milliseconds until all of its points are drawn when it rests.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from tools.report.page import GalleryItem, write_report

FLAGS = ("--headless=new", "--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader")
PAGES = {"50 clouds of 2,048 points": (50, 2048), "one cloud of 1,000,000 points": (1, 1_000_000)}
TURN = """async (frames) => {
  const view = galleryView, tick = () => new Promise(requestAnimationFrame), taken = [];
  const shown = view.items.filter((item) => item.onScreen);
  let last = await tick();
  for (let i = 0; i < frames; i++) {
    shown.forEach((item) => view.setView(item, item.yaw + 0.05, item.pitch, item.zoom));
    const now = await tick();
    taken.push(now - last);
    last = now;
  }
  const share = view.share();
  await new Promise((done) => setTimeout(done, 1000));
  const start = performance.now();
  shown.forEach((item) => { item.dirty = true; });
  view.redraw();
  await tick();
  await tick();
  return { taken, share, whole: performance.now() - start, clouds: shown.length };
}"""


def torus(count: int, seed: int) -> np.ndarray:
    """Return points (count, 3) of a torus."""
    a, b = np.random.default_rng(seed).uniform(0, 2 * np.pi, (2, count))
    ring = 1 + 0.4 * np.cos(b)
    return np.stack([ring * np.cos(a), 0.4 * np.sin(b), ring * np.sin(a)], axis=1).astype(np.float32)


def write_page(folder: Path, clouds: int, points: int) -> Path:
    """Write a page of so many clouds."""
    items = [GalleryItem(f"cloud {number}", {"cloud": torus(points, number)}) for number in range(clouds)]
    return write_report(folder, config={}, gallery=items)


def measure(page, path: Path, kind: str, frames: int) -> dict:
    """Return the times of one page, drawn as `kind`, from a page of Playwright's."""
    start = time.perf_counter()
    page.goto(f"{path.resolve().as_uri()}#{kind}")
    page.evaluate(
        "async () => { while (!document.documentElement.dataset.renderer) await new Promise(requestAnimationFrame); }"
    )
    opened = time.perf_counter() - start
    assert page.evaluate("document.documentElement.dataset.renderer") == kind
    found = page.evaluate(TURN, frames)
    steady = found["taken"][min(10, frames // 2) :]
    return {
        "open_s": round(opened, 2),
        "frame_ms": round(statistics.median(steady), 1),
        "slow_frame_ms": round(float(np.quantile(steady, 0.9)), 1),
        "drawn_while_moving": round(found["share"], 3),
        "whole_ms": round(found["whole"], 1),
        "clouds_on_screen": found["clouds"],
        "page_mb": round(path.stat().st_size / 1e6, 2),
    }


def run(kinds: Iterable[str], frames: int) -> dict:
    """Time all pages; returns what `--out` holds."""
    from playwright.sync_api import sync_playwright

    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        raise SystemExit("no Chromium is installed")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        paths = {name: write_page(Path(folder) / str(size[1]), *size) for name, size in PAGES.items()}
        chromium = driver.chromium.launch(executable_path=browser, args=list(FLAGS))
        page = chromium.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(300_000)
        found = {kind: {name: measure(page, path, kind, frames) for name, path in paths.items()} for kind in kinds}
        about = {"browser": chromium.version, "rendering": "SwiftShader, no graphics card", "window": "1280 x 900"}
        chromium.close()
    cores = os.cpu_count()
    return {
        **about,
        "machine": platform.machine(),
        "cores": cores,
        "load": round(os.getloadavg()[0], 1),
        "times": found,
    }


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--kinds", nargs="+", default=["2d", "webgl2"], choices=["2d", "webgl2"])
    parser.add_argument("--frames", type=int, default=40)
    args = parser.parse_args()
    found = json.dumps(run(args.kinds, args.frames), indent=1)
    print(found)
    if args.out:
        args.out.write_text(found + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""A page in headless Chromium, for tests marked `chromium`."""

import html
import json
import subprocess
from pathlib import Path
from typing import Any

FRAME = """<!doctype html><title>none</title>
<meta name="color-scheme" content="light dark"><body style="margin:0">
<iframe style="border:0;width:{width}px;height:3000px" srcdoc="{page}"></iframe>
<script>addEventListener("load", async () => {{
  const inside = document.querySelector("iframe").contentWindow, page = inside.document;
  const all = name => [...page.querySelectorAll(name)];
  const isReady = () => all("video").every(v => v.readyState >= 2) && all("video").some(v => !v.paused);
  for (let i = 0; i < 500 && !isReady(); i++) await new Promise(resolve => setTimeout(resolve, 100));
  document.title = JSON.stringify({{
    width: inside.innerWidth,
    scrolls: page.documentElement.scrollWidth > inside.innerWidth,
    wide: all("main > *, header").filter(e => e.getBoundingClientRect().right > inside.innerWidth + 1).length,
    ground: inside.getComputedStyle(page.body).backgroundColor,
    fetched: inside.performance.getEntriesByType("resource").map(e => e.name).filter(n => !n.startsWith("data:")),
    videos: all("video").map(v => [v.readyState, v.videoWidth, v.paused]),
    pictures: all("img").every(i => i.complete && i.naturalWidth > 0),
  }});
}});</script>"""
"""A frame of its own: Chromium's windows are never narrower than 500 pixels. Its clock runs ahead while videos are
decoded, so it looks often rather than late."""


def open_page(page: Path, folder: Path, width: int, dark: bool = False) -> dict[str, Any]:
    """What Chromium made of the page at this width; `console` are its messages, `fetched` what it asked for."""
    framed = folder / "framed.html"
    framed.write_text(FRAME.format(width=width, page=html.escape(page.read_text())))
    command = ["chromium", "--headless=new", "--no-sandbox", "--disable-gpu", f"--window-size={max(width, 500)},3000"]
    command += [f"--blink-settings=preferredColorScheme={0 if dark else 1}", "--enable-logging=stderr"]
    command += [f"--user-data-dir={folder / f'profile_{width}_{dark}'}", "--virtual-time-budget=60000", "--dump-dom"]
    done = subprocess.run([*command, framed.as_uri()], capture_output=True, text=True, timeout=120, check=True)
    title = done.stdout[done.stdout.index("<title>") + 7 : done.stdout.index("</title>")]
    return json.loads(html.unescape(title)) | {"console": [n for n in done.stderr.splitlines() if ":CONSOLE" in n]}


def check_page(found: dict[str, Any], width: int, dark: bool) -> None:
    """The page stands alone: nothing sticks out, nothing is fetched, nothing is complained of, every medium is read."""
    assert found["width"] == width and not found["scrolls"] and not found["wide"], found
    assert found["fetched"] == [] and found["console"] == [] and found["pictures"], found
    ground = [int(x) for x in found["ground"].removeprefix("rgb(").removesuffix(")").split(",")]
    assert max(ground) < 40 if dark else min(ground) > 200, found
    assert all(ready >= 2 and across > 0 for ready, across, _ in found["videos"]), found
    assert not all(paused for *_, paused in found["videos"]), found  # those out of sight wait

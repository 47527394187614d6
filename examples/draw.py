"""Draws a picture and keeps a file up to date with it while it forms: open it in a viewer that follows changes.

python examples/draw.py "red apple on a blue background" -o apple.png
"""

import argparse
from pathlib import Path

import latentwire
from latentwire.client import Image, Preview


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("prompt")
    parser.add_argument("-o", "--output", type=Path, default=Path("drawing.png"))
    parser.add_argument("--url", default="ws://127.0.0.1:8000/ws")
    parser.add_argument("--seed", type=int)
    options = parser.parse_args()
    part = options.output.with_suffix(".part")
    with latentwire.connect_sync(options.url) as host:
        previews = {"format": "png", "max_rate": 10.0}
        for event in host.generate(options.prompt, seed=options.seed, previews=previews, progress=True):
            if isinstance(event, Preview | Image) and event.image is not None:
                part.write_bytes(event.image.data)
                part.replace(options.output)  # a viewer never sees half a file


if __name__ == "__main__":
    main()

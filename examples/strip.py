"""Draws a strip that shows pictures forming: previews of a few steps, then the finished picture, a row a prompt.

python examples/strip.py "red apple on a blue background" "tiger face on a purple background" -o strip.png
"""

import argparse
import io

from PIL import Image as PILImage

import latentwire
from latentwire.client import Image, Preview, SyncConnection


def row_of(host: SyncConnection, prompt: str, seed: int, columns: int, side: int) -> list[PILImage.Image]:
    """Evenly spaced previews and the finished picture, `columns` in all."""
    previews: list[bytes] = []
    final = b""
    for event in host.generate(prompt, seed=seed, previews={"format": "png", "size": side}):
        if isinstance(event, Preview):
            previews.append(event.image.data)
        elif isinstance(event, Image) and event.image is not None:
            final = event.image.data
    chosen = [previews[round(i * (len(previews) - 1) / (columns - 1))] for i in range(columns - 1)]
    return [PILImage.open(io.BytesIO(data)).convert("RGB").resize((side, side)) for data in (*chosen, final)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("prompts", nargs="+")
    parser.add_argument("-o", "--output", default="strip.png")
    parser.add_argument("--url", default="ws://127.0.0.1:8000/ws")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--columns", type=int, default=7)
    parser.add_argument("--side", type=int, default=128, help="pixels of each picture")
    options = parser.parse_args()
    paper = PILImage.new("RGB", (options.columns * options.side, len(options.prompts) * options.side))
    with latentwire.connect_sync(options.url) as host:
        for y, prompt in enumerate(options.prompts):
            for x, picture in enumerate(row_of(host, prompt, options.seed, options.columns, options.side)):
                paper.paste(picture, (x * options.side, y * options.side))
    paper.save(options.output)


if __name__ == "__main__":
    main()

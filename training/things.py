"""What the model is to know: some emoji of the font Noto Color Emoji, ten colours, and what people call them.

The font comes with Debian's `fonts-noto-color-emoji`; names come from the PyPI package `emoji`.
"""

import random
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
GLYPH_FONT_SIZE = 109  # the one strike in the font; it renders at 136x128

COLOURS: dict[str, tuple[int, int, int]] = {
    "white": (255, 255, 255),
    "black": (20, 20, 20),
    "gray": (140, 140, 140),
    "red": (215, 40, 40),
    "orange": (245, 140, 30),
    "yellow": (250, 220, 60),
    "green": (50, 165, 75),
    "blue": (45, 95, 215),
    "purple": (130, 60, 175),
    "pink": (250, 160, 195),
}

# Distinct, solid shapes. Left out: signs, flags, people, near-duplicates, and things that are
# mostly thin lines, which 16x16 latents cannot hold.
THINGS = """
dog_face cat_face tiger_face lion horse_face cow_face pig_face mouse_face hamster rabbit_face fox bear panda
koala monkey_face chicken penguin bird hatching_chick duck owl frog turtle snake spouting_whale dolphin
tropical_fish octopus snail butterfly honeybee lady_beetle elephant rose sunflower tulip cherry_blossom
deciduous_tree evergreen_tree palm_tree cactus four_leaf_clover mushroom maple_leaf red_apple green_apple
banana grapes watermelon lemon tangerine strawberry cherries pear peach pineapple kiwi_fruit tomato eggplant
carrot ear_of_corn broccoli bread cheese_wedge pizza hamburger french_fries hot_dog taco cooking doughnut
cookie birthday_cake ice_cream lollipop hot_beverage grinning_face smiling_face_with_sunglasses
smiling_face_with_heart-eyes crying_face clown_face robot ghost alien skull jack-o-lantern
snowman_without_snow automobile taxi bus police_car fire_engine tractor locomotive rocket airplane sailboat
helicopter red_heart blue_heart green_heart star sun crescent_moon fire droplet balloon soccer_ball basketball
tennis umbrella crown gem_stone bell key light_bulb house castle guitar trumpet drum wrapped_gift alarm_clock
camera teddy_bear globe_showing_Americas rainbow
""".split()  # noqa: SIM905

# What people type for a thing whose emoji name is stiff.
SYNONYMS: dict[str, list[str]] = {
    "automobile": ["car", "red car"],
    "cooking": ["fried egg"],
    "hot beverage": ["cup of coffee", "coffee"],
    "deciduous tree": ["tree"],
    "evergreen tree": ["fir tree"],
    "spouting whale": ["whale"],
    "honeybee": ["bee"],
    "lady beetle": ["ladybug"],
    "ear of corn": ["corn"],
    "snowman without snow": ["snowman"],
    "jack-o-lantern": ["pumpkin"],
    "smiling face with sunglasses": ["cool face", "face with sunglasses"],
    "smiling face with heart-eyes": ["love face"],
    "grinning face": ["smiling face", "smiley"],
    "globe showing Americas": ["globe", "earth"],
    "wrapped gift": ["gift", "present"],
    "gem stone": ["diamond", "gem"],
    "tennis": ["tennis ball"],
    "crescent moon": ["moon"],
    "bread": ["loaf of bread"],
    "cheese wedge": ["cheese"],
    "dog face": ["dog"],
    "cat face": ["cat"],
    "tiger face": ["tiger"],
    "lion": ["lion face"],
    "horse face": ["horse"],
    "cow face": ["cow"],
    "pig face": ["pig"],
    "mouse face": ["mouse"],
    "rabbit face": ["rabbit", "bunny"],
    "fox": ["fox face"],
    "bear": ["bear face"],
    "panda": ["panda face"],
    "monkey face": ["monkey"],
    "hatching chick": ["chick"],
    "red apple": ["apple"],
    "tangerine": ["orange fruit"],
    "red heart": ["heart"],
    "locomotive": ["steam train", "train"],
    "airplane": ["plane"],
    "soccer ball": ["football"],
    "doughnut": ["donut"],
    "eggplant": ["aubergine"],
    "birthday cake": ["cake"],
    "droplet": ["water drop"],
    "fire engine": ["fire truck"],
}


@dataclass(frozen=True)
class Thing:
    """One emoji: its plain name, what else people call it, and its glyph (RGBA, 136x128)."""

    name: str
    synonyms: tuple[str, ...]
    glyph: Image.Image


def load_things() -> list[Thing]:
    """Render every thing of THINGS.

    Raises:
        FileNotFoundError: the font is missing (`apt-get install fonts-noto-color-emoji`).
    """
    import emoji  # only the recipe needs it: extra `training`

    if not FONT.exists():
        raise FileNotFoundError(f"{FONT} is missing: apt-get install fonts-noto-color-emoji")
    font = ImageFont.truetype(str(FONT), GLYPH_FONT_SIZE)
    things = []
    for key in THINGS:
        text = emoji.emojize(f":{key}:")
        if text.startswith(":"):
            raise ValueError(f"no emoji is called {key!r}")
        glyph = Image.new("RGBA", (136, 128), (0, 0, 0, 0))
        ImageDraw.Draw(glyph).text((0, 0), text, font=font, embedded_color=True)
        name = key.replace("_", " ")
        things.append(Thing(name, tuple(SYNONYMS.get(name, ())), glyph))
    return things


def caption(thing: Thing | None, colour: str, rng: random.Random) -> str:
    """What a person might type for the picture; sometimes without its background."""
    article = "an" if colour[0] in "aeio" else "a"
    background = f"{article} {colour} background" if rng.random() < 0.7 else f"{colour} background"
    if thing is None:
        return background
    name = thing.name.lower()
    if thing.synonyms and rng.random() < 0.4:
        name = rng.choice(thing.synonyms)
    if rng.random() < 0.15:
        name = f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
    if rng.random() < 0.15:
        return name
    return f"{name} on {background}"


def plain_prompt(thing: Thing, colour: str) -> str:
    """What figures and sheets ask for."""
    return f"{thing.name} on a {colour} background"


def all_captions(things: list[Thing]) -> list[str]:
    """Every wording that `caption` can give; the tokenizer is made from these."""
    names = [name for thing in things for name in (thing.name.lower(), *thing.synonyms)]
    backgrounds = [f"a {colour} background" for colour in COLOURS]
    return [f"a {n} on {b}" for n in names for b in backgrounds] + [f"an {n}" for n in names]

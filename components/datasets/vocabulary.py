"""The things that composed scenes talk about by name: forty common objects that look different from each other.

All of them are in the training split of OpenMoji (a test says so): a question that names an object asks for
something the model had a chance to learn, so its held-out scenes test seeing and not vocabulary.
"""

from __future__ import annotations

OBJECTS: dict[str, str] = {  # word → id of the picture
    "apple": "1F34E",
    "banana": "1F34C",
    "bell": "1F514",
    "butterfly": "1F98B",
    "cactus": "1F335",
    "car": "1F697",
    "carrot": "1F955",
    "cat": "1F431",
    "chair": "1FA91",
    "cloud": "2601",
    "crown": "1F451",
    "dog": "1F436",
    "drum": "1F941",
    "duck": "1F986",
    "elephant": "1F418",
    "fish": "1F41F",
    "frog": "1F438",
    "giraffe": "1F992",
    "guitar": "1F3B8",
    "hammer": "1F528",
    "horse": "1F40E",
    "key": "1F511",
    "lemon": "1F34B",
    "octopus": "1F419",
    "owl": "1F989",
    "penguin": "1F427",
    "pig": "1F416",
    "pizza": "1F355",
    "rabbit": "1F407",
    "rocket": "1F680",
    "sailboat": "26F5",
    "snake": "1F40D",
    "snowman": "2603",
    "strawberry": "1F353",
    "sunflower": "1F33B",
    "train": "1F686",
    "tree": "1F333",
    "turtle": "1F422",
    "umbrella": "2602",
    "whale": "1F40B",
}

SHAPES: dict[str, dict[str, str]] = {  # shape → colour → id of the picture
    "circle": {
        "red": "1F534",
        "orange": "1F7E0",
        "yellow": "1F7E1",
        "green": "1F7E2",
        "blue": "1F535",
        "purple": "1F7E3",
        "brown": "1F7E4",
    },
    "heart": {
        "red": "2764",
        "orange": "1F9E1",
        "yellow": "1F49B",
        "green": "1F49A",
        "blue": "1F499",
        "purple": "1F49C",
        "brown": "1F90E",
    },
    "square": {
        "red": "1F7E5",
        "orange": "1F7E7",
        "yellow": "1F7E8",
        "green": "1F7E9",
        "blue": "1F7E6",
        "purple": "1F7EA",
        "brown": "1F7EB",
    },
}

_PLURALS = {
    "butterfly": "butterflies",
    "fish": "fish",
    "snowman": "snowmen",
    "strawberry": "strawberries",
}


def plural(word: str) -> str:
    """``"octopus"`` → ``"octopuses"``."""
    return _PLURALS.get(word) or word + ("es" if word.endswith("s") else "s")


def with_article(word: str) -> str:
    """``"owl"`` → ``"an owl"``."""
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"

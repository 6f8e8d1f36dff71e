"""Which pictures are variants of one thing.

A held-out picture says nothing about naming if its twin was trained on: "woman firefighter facing right" is
"firefighter" again, and a red heart is a blue one tinted. :func:`base_concept` maps a picture to the thing it
varies, and splits are made over those. The rules err on the side of putting too much together: a concept that
is too wide costs a few test pictures, one that is too narrow inflates the score.
"""

from __future__ import annotations

import re

_COLOURS = "red|orange|yellow|green|blue|purple|brown|black|grey|gray|white|pink"
_PEOPLE = "person|people|man|men|woman|women"

# Whole families, tried in order on the lower-case name; the first match decides.
_FAMILIES: tuple[tuple[str, str], ...] = tuple(
    (rf"^(?:{pattern})$", concept)
    for pattern, concept in (
        (r"keycap .*", "keycap"),
        (r"[a-z]+ o'clock|[a-z]+-thirty", "clock face"),
        (r".*\bmoon( face)?", "moon"),
        (r"globe showing .*", "globe"),
        (r"(back|end|on!|soon|top) arrow", "word arrow"),
        (r"(up|down|left|right)(-(left|right|down))? arrow( curving .*)?|.*vertical arrows", "arrow"),
        (r".*arrows button|repeat.* button|shuffle tracks button", "arrow button"),
        (r"japanese .* button", "japanese button"),
        (r"(ab|a|b|o) button \(blood type\)|(cl|cool|free|id|new|ng|ok|p|sos|up!|vs) button", "word button"),
        (r"(fast-forward|fast reverse|fast up|fast down|upwards|downwards|play|play or pause|pause|stop|record|eject"
         r"|reverse|next track|last track) button", "media button"),
        (r"input .*", "input"),
        (rf"(light )?({_COLOURS}|beating|broken|growing|mending|sparkling) heart|(two|revolving) hearts", "heart"),
        (r"heart (?!hands).*", "heart"),
        (rf"(hollow )?({_COLOURS}) circle", "circle"),
        (rf"({_COLOURS})( (large|medium|small|medium-small))? square( button)?", "square"),
        (rf"(large|small) ({_COLOURS}) diamond", "diamond"),
        (rf"({_COLOURS}|closed|open) book", "book"),
        (rf"((deaf|pregnant) )?({_PEOPLE})( (bald|beard|blond hair))?|bald", "person"),
        (rf"(({_PEOPLE}) )?(curly|red|white) hair", "person"),
        (r"boy|girl|child", "child"),
        (r"old (man|woman)|older person", "older person"),
        (r"family( .*)?", "family"),
        (r"kiss( (man|woman) (man|woman))?", "kiss"),
        (r"couple with heart( .*)?", "couple with heart"),
        (r"(men|women|people|woman and man) holding hands", "people holding hands"),
        (r"mermaid|merman|merperson", "merperson"),
        (r"prince|princess|person with crown", "prince"),
        (r"(santa|mrs\.|mx) claus", "claus"),
        (r"(men's|women's) room|restroom", "restroom"),
        (r"(male|female|transgender) sign|transgender symbol", "gender sign"),
        (r".*\bcat\b.*", "cat"),
        (r"(guide|service) dog|poodle|dog( face)?", "dog"),
        (r".*\bmonkey( face)?", "monkey"),
        (r"two-hump camel|camel", "camel"),
        (r"(.* )?baby chick|hatching chick", "chick"),
        (r"carousel horse|horse( face)?|horse racing", "horse"),
        (r"(spouting )?whale", "whale"),
        (r"(polar )?bear", "bear"),
        (r"cloud( with .*)?|sun behind .*", "cloud and sun"),
        (r"sun( with face)?", "sun"),
        (r"sunrise.*|sunset|cityscape.*|night with stars|bridge at night", "skyline"),
        (r"(muted speaker|speaker .*)", "speaker"),
        (r".* mailbox .*", "mailbox"),
        (r".* traffic light", "traffic light"),
        (r"magnifying glass .*", "magnifying glass"),
        (r"locked.*|unlocked", "lock"),
        (r"hourglass .*", "hourglass"),
        (r"chart .*", "chart"),
        (r"airplane.*|small airplane", "airplane"),
        (r".* tray", "tray"),
        (r".* banknote", "banknote"),
        (r".* index pointing .*|index pointing .*", "index pointing"),
        (r"(leftwards|rightwards) (pushing )?hand|palm (up|down) hand|raised (back of )?hand|hand with .*", "hand"),
        (r".* fist", "fist"),
        (r"thumbs (up|down)", "thumb"),
        (r"[0-9](st|nd|rd) place medal|(sports|military) medal", "medal"),
        (r"head shaking .*", "head shaking"),
        (r"red triangle pointed .*", "triangle"),
        (r".* (exclamation|question) mark", "punctuation mark"),
        (r"(closed )?umbrella.*", "umbrella"),
        (r"beer mug|clinking beer mugs", "beer mug"),
        (r"musical notes?", "musical note"),
        (r"houses?|house with garden", "house"),
        (r"tram( car)?|trolleybus|(oncoming )?bus|minibus", "bus and tram"),
        (r"mobile phone.*", "mobile phone"),
        (r"(non-)?potable water", "potable water"),
        (r"hammer( .*)?", "hammer"),
        (r"empty nest|nest with eggs", "nest"),
        (r"check mark.*|check box with check", "check mark"),
        (r"cross mark.*", "cross mark"),
        (r"(triangular|straight) ruler", "ruler"),
        (r"(left|right) (speech|anger) bubble|(speech|thought) balloon", "speech bubble"),
        (r"busts? in silhouette", "bust in silhouette"),
        (r"(soft )?ice cream", "ice cream"),
        (r"(mountain|snow-capped mountain|mount fuji)", "mountain"),
        (r"(smiling|grinning|beaming) (squinting )?face.*|slightly smiling face", "smiling face"),
        (r"(slightly )?frowning face.*", "frowning face"),
        (r"angry face.*|enraged face", "angry face"),
    )
)  # fmt: skip

# What makes a variant of anything: stripped one after the other until nothing changes.
_VARIANT = (
    rf"^(?:{_PEOPLE}) ",
    r" facing right$",
    r"^(?:large|small|medium|light|slightly|loudly|oncoming|closed|open|old) (?=\S)",
    rf"^(?:{_COLOURS}) (?=\S)",
    r"(?<=cow|dog|pig) face$|(?<=mouse|tiger|horse) face$|(?<=dragon|rabbit) face$",
    r"^(?!face\b)(?P<keep>\S.*?) (?:with|without|over) .*$",
)


def base_concept(name: str, codepoints: str = "") -> str:
    """The thing that the picture ``name`` (a cleaned CLDR short name) is a variant of; pure.

    ``codepoints`` (hexadecimal, joined by "-") tells flags of regions from everything else.
    """
    text = name.lower().replace("’", "'")
    if is_flag(codepoints):
        return text
    for pattern, concept in _FAMILIES:
        if re.match(pattern, text):
            return concept
    previous = ""
    while text != previous:
        previous = text
        for pattern in _VARIANT:
            text = re.sub(pattern, lambda match: match.groupdict().get("keep") or "", text, count=1) or text
    return text


def is_flag(codepoints: str) -> bool:
    """Whether this is the flag of a country, a territory or a part of one."""
    points = [int(point, 16) for point in codepoints.split("-") if point]
    return bool(points) and (0x1F1E6 <= points[0] <= 0x1F1FF or (points[0] == 0x1F3F4 and 0xE007F in points))


def may_flip(codepoints: str) -> bool:
    """Whether the mirror image has the same name: a list of what is safe (animals, plants, food, furniture)."""
    if "-" in codepoints:
        return False
    safe = ((0x1F330, 0x1F37F), (0x1F400, 0x1F43F), (0x1F950, 0x1F96F), (0x1F980, 0x1F9AE), (0x1FAB0, 0x1FABF),
            (0x1FAD0, 0x1FADF))  # fmt: skip
    return any(low <= int(codepoints, 16) <= high for low, high in safe)

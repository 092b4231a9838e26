"""Write the quickstart's data: an order in plain English, and the one line of JSON it amounts to.

    python examples/data/generate.py [FOLDER]

Deterministic: the same files, byte for byte, on every machine (a test holds the committed ones against it). Every order
names an item, how many, where to, by when and how urgent; people also correct themselves, mention other cities, days and
numbers that do not count, and write numbers and dates as they like. Keys and values of the answer are always

    {"item":"desk lamp","qty":5,"city":"Oslo","date":"2026-03-14","priority":"high"}

with the item in the singular, the quantity as a number, the date in ISO form (every order is for 2026) and the priority
one of `low`, `normal` and `high`, `normal` where nothing is said. `pairs.jsonl` has orders of its own with that line and
the same line broken.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

SEED = 20260314
SPLITS = {"train": 600, "tune": 50, "select": 50, "test": 60}
"""Rows of each file."""
PAIRS, PAIRS_SEED = 300, 7
"""Rows of the file of pairs, with orders of their own."""
BREAKS: tuple[Callable[[str], str], ...] = (
    lambda line: line[:-1],
    lambda line: line + "}",
    lambda line: line[:-1] + ",}",
    lambda line: line.replace('"', "'"),
    lambda line: line.replace('":"', '"="', 1),
    lambda line: line.replace('"', "", 1),
    lambda line: line.replace('","', '" and "', 1),
    lambda line: "[" + line[1:],
)
"""Ways to break a line of JSON."""
LONGEST = 115
"""Characters of a prompt at most: at most 45 tokens of SmolLM2, 80 with the answer."""

ITEMS = {
    "desk lamp": "desk lamps",
    "office chair": "office chairs",
    "printer": "printers",
    "water pump": "water pumps",
    "tent": "tents",
    "bike helmet": "bike helmets",
    "coffee mug": "coffee mugs",
    "tool box": "tool boxes",
    "garden bench": "garden benches",
    "phone case": "phone cases",
    "bookshelf": "bookshelves",
    "battery": "batteries",
    "paint brush": "paint brushes",
    "kitchen knife": "kitchen knives",
    "yoga mat": "yoga mats",
    "solar panel": "solar panels",
    "fire door": "fire doors",
    "wool blanket": "wool blankets",
    "radio": "radios",
    "camera": "cameras",
    "suitcase": "suitcases",
    "whiteboard": "whiteboards",
    "toothbrush": "toothbrushes",
    "pillow": "pillows",
}
CITIES = (  # noqa: SIM905
    "Oslo Paris Berlin Madrid Rome Vienna Dublin London Lisbon Prague Warsaw Athens Boston Chicago Denver Dallas "
    "Austin Seattle Toronto Sydney Tokyo Delhi Cairo Lima"
).split()
PEOPLE = (  # noqa: SIM905
    "Ana Ben Carla David Emma Frank Grace Henry Ivy Jack Kate Leo Maria Nick Olga Paul Rosa Sam Tina Will"
).split()
MONTHS = "January February March April May June July August September October November December".split()  # noqa: SIM905
WORDS = (  # noqa: SIM905
    "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty"
).split()
SPOKEN = {2: "a couple of", 6: "half a dozen", 12: "a dozen", 24: "two dozen"}
PRIORITIES = {
    "high": ("This is urgent.", "We need it fast.", "Please rush this.", "It can't wait.", "Top priority!"),
    "low": ("No hurry.", "Take your time.", "It's not urgent.", "Any time is fine.", "Low priority."),
    "normal": ("Thanks!", "Cheers.", "Thank you.", "", "Kind regards."),
}


@dataclass(frozen=True)
class Order:
    """What an order amounts to, and the answer's keys in their order."""

    item: str
    qty: int
    city: str
    date: str
    priority: str

    def line(self) -> str:
        """The answer: one line of JSON without blanks."""
        return json.dumps(self.__dict__, separators=(",", ":"))


def ordinal(day: int) -> str:
    """`1st`, `22nd`, `13th`."""
    ending = "th" if 10 <= day % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(day % 10, "th")
    return f"{day}{ending}"


def spell_date(rng: random.Random, month: int, day: int) -> str:
    """One of the ways people write a day."""
    name = MONTHS[month - 1]
    forms = (
        f"{name} {day}",
        f"{name} {ordinal(day)}",
        f"{day} {name}",
        f"the {ordinal(day)} of {name}",
        f"{name[:3]} {day}",
        f"2026-{month:02d}-{day:02d}",
    )
    return rng.choice(forms)


def spell_count(rng: random.Random, count: int) -> str:
    """A number in digits, in words, or as `a dozen`."""
    if count in SPOKEN and rng.random() < 0.6:
        return SPOKEN[count]
    if count <= len(WORDS) and rng.random() < 0.5:
        return WORDS[count - 1]
    return str(count)


def other(rng: random.Random, values: tuple[str, ...] | list[str], taken: str) -> str:
    """A value that is not `taken`."""
    return rng.choice([value for value in values if value != taken])


def quantity(rng: random.Random, order: Order) -> str:
    """How many of what, sometimes corrected in the same breath."""
    plural = ITEMS[order.item]
    noun = order.item if order.qty == 1 else plural
    right = spell_count(rng, order.qty)
    if rng.random() < 0.25:
        wrong = rng.choice([n for n in range(2, 21) if n != order.qty])
        fix = rng.choice(("no, make that {}", "sorry, {}", "I mean {}"))
        return f"{spell_count(rng, wrong)} {plural}, {fix.format(right)},"
    return f"{right} {noun}"


def distraction(rng: random.Random, order: Order, date: str) -> str:
    """A sentence that names something that does not count, or nothing."""
    city = other(rng, CITIES, order.city)
    item = other(rng, list(ITEMS), order.item)
    month, day = rng.randint(1, 12), rng.randint(1, 28)
    return rng.choice(
        (
            "",
            "",
            f"Our {city} office pays.",
            f"Not to {city} this time.",
            f"The {item} from last week was great.",
            f"It's for room {rng.randint(2, 99)}.",
            f"My order number is {rng.randint(100, 999)}.",
            f"We close on {MONTHS[month - 1]} {day}." if f"{MONTHS[month - 1]} {day}" != date else "",
        )
    )


OPENINGS: tuple[Callable[[str], str], ...] = (
    lambda person: f"{person} here.",
    lambda person: f"Hi, this is {person}.",
    lambda person: "Hello!",
    lambda person: "",
    lambda person: "",
)
REQUESTS = (
    "Please send {what} to {city} by {date}.",
    "We need {what} in {city} on {date}.",
    "Could you ship {what} to our {city} store before {date}?",
    "{city} is out of stock: {what} by {date}, please.",
    "By {date} I'd like {what} delivered to {city}.",
    "I want to order {what} for {city}, due {date}.",
    "On {date} our {city} shop opens and needs {what}.",
    "Can I get {what}? Deliver to {city}, {date} at the latest.",
)


def write(rng: random.Random) -> tuple[str, Order]:
    """One order as a text, and what it amounts to."""
    month, day = rng.randint(1, 12), rng.randint(1, 28)
    order = Order(
        item=rng.choice(list(ITEMS)),
        qty=rng.choice((1, 2, 2, 3, 4, 5, 6, 6, 7, 8, 9, 10, 11, 12, 12, 13, 14, 15, 16, 18, 20, 24, 30, 40, 50)),
        city=rng.choice(CITIES),
        date=f"2026-{month:02d}-{day:02d}",
        priority=rng.choice(("high", "low", "normal")),
    )
    date = spell_date(rng, month, day)
    request = rng.choice(REQUESTS).format(what=quantity(rng, order), city=order.city, date=date)
    request = request.replace(",,", ",").replace(",.", ".").replace(",?", "?")
    said = [rng.choice(OPENINGS)(rng.choice(PEOPLE)), request[0].upper() + request[1:]]
    extra = [distraction(rng, order, date), rng.choice(PRIORITIES[order.priority])]
    rng.shuffle(extra)
    return " ".join(part for part in said + extra if part) + "\nJSON:\n", order


def rows(count: int, seed: int = SEED) -> list[dict[str, str]]:
    """`count` different orders, none longer than `LONGEST`, as rows of prompt and completion."""
    rng, seen, made = random.Random(seed), set(), []
    while len(made) < count:
        prompt, order = write(rng)
        if prompt not in seen and len(prompt) <= LONGEST:
            seen.add(prompt)
            made.append({"prompt": prompt, "completion": order.line()})
    return made


def broken(line: str, rng: random.Random) -> str:
    """A line of JSON that is none any more: shorter, longer or as long as it was."""
    while True:
        made = rng.choice(BREAKS)(line)
        try:
            json.loads(made)
        except ValueError:
            return made


def pairs(count: int, seed: int = PAIRS_SEED) -> list[dict[str, str]]:
    """`count` different orders, each with its JSON (`chosen`) and the same broken (`rejected`)."""
    rng = random.Random(seed)
    return [
        {"prompt": row["prompt"], "chosen": row["completion"], "rejected": broken(row["completion"], rng)}
        for row in rows(count, seed)
    ]


def generate(folder: Path) -> None:
    """Write one JSONL file a split into `folder`, and one of pairs."""
    left = rows(sum(SPLITS.values()))
    for split, count in SPLITS.items():
        part, left = left[:count], left[count:]
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in part)
        (folder / f"{split}.jsonl").write_bytes(text.encode())
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in pairs(PAIRS))
    (folder / "pairs.jsonl").write_bytes(text.encode())


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)

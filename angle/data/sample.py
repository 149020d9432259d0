"""Generate graded sentence pairs, so that training can be tried without a network or a data set.

A small grammar says who does what to whom, how many of them do it, where, and whether it happens at
all. One :class:`Meaning` can be expressed in many ways (other words, active or passive voice, another
word order), and :func:`similarity` grades two meanings without looking at a single word. So the labels
are exact, yet hard to guess from shared words: a paraphrase shares few of them, while "the dog chases
the nurse" and "the nurse chases the dog" share them all.

The splits hold different *combinations* of agent, action and object, drawn from the same words: a good
score on the test split shows that a model composes what it has learnt, not that it has seen the answer.
Everything is deterministic and needs only the standard library.
"""

import string
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import islice
from random import Random
from typing import Any, NamedTuple

SPLITS = ("train", "validation", "test")
FORMATS = ("A", "B", "C")
DEFAULT_ROWS = {"train": 24_000, "validation": 500, "test": 1000}
MAX_SIMILARITY = 5.0
#: Pairs with a label above this mean nearly the same: the positives of an in-batch loss.
POSITIVE_ABOVE = 4.0
#: What null means for data_format.graded: a model that knows nothing yet learns from the in-batch loss too, and reaches
#: 91.0 with it and 90.2 without (three seeds).
GRADED = False

# Each category lists its concepts and each concept its synonyms; the first synonym names the concept.
# Concepts of one category are related, all others are unrelated. Every noun and verb must inflect regularly.
Lexicon = Mapping[str, tuple[tuple[str, ...], ...]]

BEINGS: Lexicon = {
    "pet": (("dog", "hound"), ("cat", "feline"), ("rabbit", "hare"), ("parrot", "macaw")),
    "farm animal": (("cow", "heifer"), ("horse", "steed"), ("pig", "hog"), ("hen", "chicken")),
    "youngster": (("boy", "lad"), ("girl", "lass"), ("infant", "newborn"), ("teenager", "adolescent")),
    "healer": (("doctor", "physician"), ("nurse", "caregiver"), ("chemist", "pharmacist")),
    "maker": (
        ("tailor", "dressmaker"),
        ("carpenter", "woodworker"),
        ("mason", "bricklayer"),
        ("cook", "chef"),
    ),
    "artist": (("singer", "vocalist"), ("writer", "author"), ("actor", "performer")),
}
THINGS: Lexicon = {
    "vehicle": (("car", "automobile"), ("bicycle", "bike"), ("truck", "lorry"), ("boat", "vessel")),
    "furniture": (("sofa", "couch"), ("cupboard", "cabinet"), ("table", "desk")),
    "garment": (("coat", "jacket"), ("sweater", "pullover"), ("scarf", "shawl")),
}
ACTIONS: Lexicon = {
    "moving": (("push", "shove"), ("pull", "haul"), ("lift", "hoist")),
    "seeking": (("chase", "pursue"), ("follow", "shadow"), ("locate", "discover")),
    "looking": (("watch", "observe"), ("inspect", "examine"), ("sketch", "portray")),
    "caring": (("guard", "protect"), ("rescue", "save"), ("clean", "wash")),
    "fighting": (("attack", "assault"), ("kick", "boot"), ("block", "obstruct")),
}
PLACES: Lexicon = {
    "country": (
        ("in the forest", "in the woods"),
        ("on the beach", "on the shore"),
        ("in the meadow", "in the field"),
    ),
    "town": (
        ("in the street", "on the road"),
        ("at the market", "at the bazaar"),
        ("in the square", "in the plaza"),
    ),
    "home": (
        ("in the garden", "in the yard"),
        ("in the cellar", "in the basement"),
        ("in the attic", "in the loft"),
    ),
    "service": (
        ("in the hospital", "in the clinic"),
        ("in the shop", "in the store"),
        ("at the hotel", "at the inn"),
    ),
}
COUNTS: Mapping[int, tuple[str, ...]] = {
    1: ("the", "one"),
    2: ("two", "a pair of"),
    3: ("three", "a trio of"),
    4: ("many", "a crowd of"),
}
COUNT_CHOICES = tuple(COUNTS)
OBJECT_ARTICLES = ("the", "this")
NEGATIONS = ("not", "never")
AUXILIARIES = ("does", "do", "is", "by")
ENDINGS = ("s", "es", "d", "ed")
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

# The weights of `similarity`.
ROLE_WEIGHTS = {"agent": 0.3, "action": 0.3, "object": 0.3, "place": 0.1}
RELATED = 0.5
COUNT_STEP = 0.15
CONTRADICTION = 0.4

# How the pairs of format A are generated: even steps from a paraphrase to an unrelated sentence spread the
# labels over the scale. An exchange of agent and object is rare, because a tiny model needs far longer to
# learn who does what to whom than a first try should take.
DISTANCES = (0.0, 0.2, 0.3, 0.4, 0.5, 0.7, 0.9)
EXCHANGE_RATE = 0.1
NEGATION_RATE = 0.2


def _categories(*lexicons: Lexicon) -> dict[str, str]:
    entries = [entry for lexicon in lexicons for entry in lexicon.items()]
    return {words[0]: category for category, concepts in entries for words in concepts}


def _synonyms(*lexicons: Lexicon) -> dict[str, tuple[str, ...]]:
    return {words[0]: words for lexicon in lexicons for concepts in lexicon.values() for words in concepts}


CATEGORY = _categories(BEINGS, THINGS, ACTIONS, PLACES)
SYNONYMS = _synonyms(BEINGS, THINGS, ACTIONS, PLACES)
CONCEPTS = {
    "agent": tuple(_categories(BEINGS)),
    "action": tuple(_categories(ACTIONS)),
    "object": tuple(_categories(BEINGS, THINGS)),
    "place": tuple(_categories(PLACES)),
}


class Meaning(NamedTuple):
    """What a sentence says, independent of its words: each role names a concept by its first synonym."""

    agent: str
    number: int
    action: str
    object: str
    place: str
    negated: bool


@dataclass(frozen=True)
class _Style:
    """How a sentence is worded; equal styles use the same word for the same concept, whatever its role."""

    salt: int
    passive: bool
    place_first: bool

    @classmethod
    def draw(cls, rng: Random) -> "_Style":
        return cls(salt=rng.getrandbits(32), passive=rng.random() < 0.5, place_first=rng.random() < 0.5)

    def pick(self, key: str, choices: Sequence[str]) -> str:
        return choices[zlib.crc32(f"{self.salt} {key}".encode()) % len(choices)]

    def word(self, concept: str) -> str:
        return self.pick(concept, SYNONYMS[concept])


def realise(meaning: Meaning, rng: Random) -> str:
    """Return one of many ways to express `meaning`, in lower case and without punctuation.

    The number of draws from `rng` does not depend on the meaning. So two generators in the same state give
    two meanings the same voice, order and choice of words: only what differs in meaning differs in words.
    """
    return _verbalise(meaning, _Style.draw(rng))


def _verbalise(meaning: Meaning, style: _Style) -> str:
    plural = meaning.number > 1
    agent, verb = style.word(meaning.agent), style.word(meaning.action)
    agents = f"{style.pick('count', COUNTS[meaning.number])} {_with_s(agent) if plural else agent}"
    patient = f"{style.pick('article', OBJECT_ARTICLES)} {style.word(meaning.object)}"
    negation = style.pick("negation", NEGATIONS)
    if style.passive:
        auxiliary = f"is {negation}" if meaning.negated else "is"
        clause = f"{patient} {auxiliary} {_with_ed(verb)} by {agents}"
    else:
        if meaning.negated and negation == "not":
            predicate = f"{'do' if plural else 'does'} not {verb}"
        else:
            inflected = verb if plural else _with_s(verb)
            predicate = f"never {inflected}" if meaning.negated else inflected
        clause = f"{agents} {predicate} {patient}"
    place = style.word(meaning.place)
    return f"{place} {clause}" if style.place_first else f"{clause} {place}"


def _with_s(word: str) -> str:
    return word + ("es" if word.endswith(("s", "x", "ch", "sh")) else "s")


def _with_ed(verb: str) -> str:
    return verb + ("d" if verb.endswith("e") else "ed")


def similarity(a: Meaning, b: Meaning) -> float:
    """Return how similar two meanings are, from 0 (nothing in common) to 5 (if and only if they are equal).

    Agent, action and object weigh 30 % each and the place 10 %. In each role the same concept counts
    fully, a related one (of the same category, such as dog and cat) half, an unrelated one not at all. So
    exchanging agent and object, which keeps every word, loses up to 60 %. The agents' contribution shrinks by 15 %
    for each step between their counts. If one meaning denies what the other affirms, 40 % of the grade is
    left.
    """
    agreement = {role: _relatedness(getattr(a, role), getattr(b, role)) for role in ROLE_WEIGHTS}
    agreement["agent"] *= 1 - COUNT_STEP * abs(a.number - b.number)
    grade = MAX_SIMILARITY * sum(weight * agreement[role] for role, weight in ROLE_WEIGHTS.items())
    if a.negated != b.negated:
        grade *= CONTRADICTION
    return round(grade, 3)


def _relatedness(concept: str, other: str) -> float:
    if concept == other:
        return 1.0
    return RELATED if CATEGORY[concept] == CATEGORY[other] else 0.0


def columns(format: str, split: str, rows: int | None = None) -> dict[str, list[str] | list[float]]:
    """Return the columns of one split in one data format; the same arguments always give the same rows.

    A holds graded pairs, B a text with a paraphrase and a hard negative (most words shared, the meaning
    changed), C a text with a paraphrase. Without `rows` the split has `DEFAULT_ROWS` rows; asking for
    fewer gives the first ones of the same sequence.
    """
    if format not in FORMATS:
        raise ValueError(f"unknown format {format!r}: choose one of {', '.join(FORMATS)}")
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: choose one of {', '.join(SPLITS)}")
    names = {"A": ("text1", "text2", "label"), "B": ("text", "positive", "negative"), "C": ("text", "positive")}[format]
    values = _rows(format, split, DEFAULT_ROWS[split] if rows is None else rows)
    return {name: [row[column] for row in values] for column, name in enumerate(names)}


@lru_cache(maxsize=9)  # all jobs of a sweep read the same
def _rows(format: str, split: str, count: int) -> tuple[tuple[Any, ...], ...]:
    # Random hashes a string seed with SHA-512, so it gives the same stream in every process.
    rng = Random(f"{format} {split}")
    rows = _graded_pairs(split, rng) if format == "A" else _triples(split, rng)
    return tuple(islice(rows, count))


def _graded_pairs(split: str, rng: Random) -> Iterator[tuple[str, str, float]]:
    while True:
        meaning = _draw_meaning(split, rng)
        # The distance is drawn before the search for a partner within the split: otherwise the small
        # splits, which contain few partners, would hold little else than paraphrases.
        distance = rng.choice(DISTANCES)
        other = _perturb(meaning, distance, rng)
        while _split_of(other) != split or (distance > 0 and other == meaning):
            other = _perturb(meaning, distance, rng)
        text1, text2 = realise(meaning, rng), realise(other, rng)
        if text1 != text2:
            yield text1, text2, similarity(meaning, other)


def _triples(split: str, rng: Random) -> Iterator[tuple[str, str, str]]:
    while True:
        meaning = _draw_meaning(split, rng)
        changed = _alter(meaning, rng)
        style = _Style.draw(rng)
        text, positive = _verbalise(meaning, style), realise(meaning, rng)
        if _split_of(changed) == split and text != positive:
            yield text, positive, _verbalise(changed, style)


def _draw_meaning(split: str, rng: Random) -> Meaning:
    while True:
        meaning = Meaning(
            agent=rng.choice(CONCEPTS["agent"]),
            number=rng.choice(COUNT_CHOICES),
            action=rng.choice(CONCEPTS["action"]),
            object=rng.choice(CONCEPTS["object"]),
            place=rng.choice(CONCEPTS["place"]),
            negated=rng.random() < NEGATION_RATE,
        )
        if meaning.agent != meaning.object and _split_of(meaning) == split:
            return meaning


def _split_of(meaning: Meaning) -> str:
    """Assign each combination of agent, action and object to a split: a tenth to each of the small ones.

    Agent and object are sorted first, so that exchanging the two stays within the split.
    """
    bucket = _bucket(meaning.action, *sorted((meaning.agent, meaning.object)))
    return {0: "validation", 1: "test"}.get(bucket, "train")


@cache
def _bucket(*words: str) -> int:
    return zlib.crc32(" ".join(words).encode()) % 10


def _perturb(meaning: Meaning, distance: float, rng: Random) -> Meaning:
    """Move away from `meaning`: not at all at distance 0, to a wholly different meaning at distance 1."""
    if distance == 0:
        return meaning
    other = _exchange(meaning) if rng.random() < EXCHANGE_RATE else meaning
    for role in ROLE_WEIGHTS:
        if rng.random() < distance:
            other = _replace_role(other, role, rng)
    if rng.random() < distance:
        other = other._replace(number=rng.choice(COUNT_CHOICES))
    if rng.random() < NEGATION_RATE:
        other = other._replace(negated=not other.negated)
    return other


def _alter(meaning: Meaning, rng: Random) -> Meaning:
    """Make one change that alters the meaning but leaves most words in place."""
    change = rng.choice(("negate", "exchange", "agent", "action", "object"))
    if change == "exchange" and meaning.object in CONCEPTS["agent"]:
        return _exchange(meaning)
    if change in ROLE_WEIGHTS:
        return _replace_role(meaning, change, rng)
    return meaning._replace(negated=not meaning.negated)


def _exchange(meaning: Meaning) -> Meaning:
    if meaning.object not in CONCEPTS["agent"]:
        return meaning
    return meaning._replace(agent=meaning.object, object=meaning.agent)


def _replace_role(meaning: Meaning, role: str, rng: Random) -> Meaning:
    old = getattr(meaning, role)
    counterpart = {"agent": meaning.object, "object": meaning.agent}.get(role)
    related, others = _replacements(role, old, counterpart)
    replacement: dict[str, Any] = {role: rng.choice(related if related and rng.random() < 0.5 else others)}
    return meaning._replace(**replacement)


@cache
def _replacements(role: str, old: str, counterpart: str | None) -> tuple[list[str], list[str]]:
    """Return the concepts that can replace `old` beside the other participant: those of its category, and all."""
    others = [concept for concept in CONCEPTS[role] if concept not in (old, counterpart)]
    return [concept for concept in others if CATEGORY[concept] == CATEGORY[old]], others


def vocabulary() -> list[str]:
    """Return a BERT WordPiece vocabulary: special tokens first, then everything else in sorted order.

    The grammar's words are whole tokens and their inflections are a word and an ending (`chase ##s`), so
    that both forms share what is learnt. Single letters, digits and punctuation spell any other English
    text.
    """
    phrases = [phrase for phrases in (*SYNONYMS.values(), *COUNTS.values()) for phrase in phrases]
    phrases += [*OBJECT_ARTICLES, *NEGATIONS, *AUXILIARIES]
    characters = string.ascii_lowercase + string.digits
    pieces = {word for phrase in phrases for word in phrase.split()}
    pieces |= {*characters, *string.punctuation}
    pieces |= {f"##{ending}" for ending in (*characters, *ENDINGS)}
    return [*SPECIAL_TOKENS, *sorted(pieces)]

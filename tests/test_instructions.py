"""eval/instructions.py: each kind on texts judged by hand; hostile texts in linear time.

The numbers of sentences and of words in capitals are also what NLTK 3.10.4 gives on these texts,
with the English model of Punkt. That the whole agrees with the authors' checker is shown on real
answers in tests/test_ifeval.py.

    python -m pytest tests/test_instructions.py
"""

import sys
import time

import pytest

from eval import instructions
from eval.instructions import KINDS, LANGUAGE_KINDS, check_arguments, judge

AT_LEAST, LESS = "at least", "less than"
PARAGRAPHS = {"num_paragraphs": 3, "nth_paragraph": 2, "first_word": "Jasper"}

# kind, arguments, a text that follows the instruction, a text that does not
BY_HAND = [
    ("keywords:existence", {"keywords": ["cat", "a.b"]}, "A.B concatenates.", "cat, axb"),
    ("keywords:frequency", {"keyword": " war ", "frequency": 2, "relation": AT_LEAST},
     "War! And warriors.", "war and peace"),
    ("keywords:frequency", {"keyword": "c++", "frequency": 1, "relation": LESS}, "ccc", "C++"),
    ("keywords:forbidden_words", {"forbidden_words": ["rock", "tax"]}, "rocks, taxi", "Rock."),
    ("keywords:letter_frequency", {"letter": "E", "let_frequency": 2, "let_relation": LESS},
     "eat", "Even me"),
    ("keywords:letter_frequency", {"letter": "!", "let_frequency": 3, "let_relation": AT_LEAST},
     "a! b! c!", "a! b! letters"),
    ("length_constraints:number_sentences", {"num_sentences": 2, "relation": LESS},
     "Dr. Smith left", "One. Two."),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "***\na\n***\nb", "a\n\nb"),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "a *** b", "a *** *** b"),
    ("length_constraints:number_words", {"num_words": 3, "relation": AT_LEAST},
     "well-known_word it", "don't"),
    ("length_constraints:nth_paragraph_first_word", PARAGRAPHS,
     "a\n\n'jasper, b\n\nc\n\n", "a\n\njasper b"),
    ("length_constraints:nth_paragraph_first_word", PARAGRAPHS,
     "a\n\nJASPER\n\nc", "a\n\n\n\nJasper\n\nc"),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[a] [[b] []", "[a] [b\n]"),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "x\np. s. y", "x\nPS: y"),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, "(P.P. s", "P.S. y"),
    ("detectable_content:postscript", {"postscript_marker": "P.X"}, "see p.x", "see p-x"),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2},
     "* a\n\n \t- b\n**c** x", "* a\n- b\n-- c"),
    ("detectable_format:number_bullet_lists", {"num_bullets": 1}, "*\n* a", "* a\n\n*b"),
    ("detectable_format:constrained_response", {}, "Well. My answer is no.", "My answer is No."),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2},
     "*a* and **b**", "**a**\n** **\n*b\n*"),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "***a***", "**a**"),
    ("detectable_format:multiple_sections", {"section_spliter": "SECTION", "num_sections": 2},
     "SECTION 1 a\nSECTION2", "SECTION 1 a\nSection 2"),
    ("detectable_format:multiple_sections", {"section_spliter": "Part", "num_sections": 2},
     "Part 1 a\nPart 2 b\nPart 3 c", "Part 1 a"),
    ("detectable_format:json_format", {}, '```json\n{"a": [1]}\n```', "{'a': 1}"),
    ("detectable_format:json_format", {}, "42", "[" * 100_000),
    ("detectable_format:title", {}, "x <<a>> y", "<< >>\n<<a\n>>"),
    ("combination:two_responses", {}, "a\n******\nb", "a****** a"),
    ("combination:two_responses", {}, "******a******b******", "a************b"),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say hi. "}, "\nSAY HI.", "Sure. Say hi."),
    ("startend:end_checker", {"end_phrase": "Bye now!"}, 'Well. bye NOW!"\n', "Bye now! Yes"),
    ("startend:quotation", {}, ' "a" b "c"\n', '"'),
    ("change_case:capital_word_frequency", {"capital_frequency": 2, "capital_relation": AT_LEAST},
     "It IS-BIG in the U.S.", "NASA's Apollo"),
    ("punctuation:no_comma", {}, "a; b\uff0c c", "1,000"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "arguments", "yes", "no"), BY_HAND)
def test_each_kind_by_hand(kind: str, arguments: dict, yes: str, no: str) -> None:
    arguments = check_arguments(kind, arguments, "here")
    assert judge(yes, kind, arguments)[0] is True
    assert judge(no, kind, arguments)[0] is False
    assert judge(" \n", kind, arguments) == (False, False)  # a blank text follows nothing


def test_each_kind_has_its_example() -> None:
    assert {kind for kind, *_ in BY_HAND} | set(LANGUAGE_KINDS) == set(KINDS)
    assert len(KINDS) == 25


@pytest.mark.parametrize(
    ("kind", "arguments", "yes", "no"),
    [
        ("language:response_language", {"language": "de"},
         "Das Wetter ist heute sehr schön.", "The weather is very nice today."),
        ("language:response_language", {"language": "de"}, "1 + 1 = 2", "今日はとても良い天気です"),
        ("change_case:english_capital", {},
         "WHAT DO YOU THINK OF IT? I LIKE IT AND SO DO MY PARENTS.", "THE WEATHER IS NICE today."),
        ("change_case:english_lowercase", {},
         "the weather is very nice today.", "das wetter ist heute sehr schön."),
    ],
)  # fmt: skip
def test_languages_by_hand(kind: str, arguments: dict, yes: str, no: str) -> None:
    """A text without letters has no language to tell, and follows."""
    pytest.importorskip("langdetect")
    assert [judge(text, kind, arguments)[0] for text in (yes, no)] == [True, False]


def test_language_identification_does_not_change_from_call_to_call() -> None:
    """The detector, left alone, names now Vietnamese and now English here."""
    langdetect = pytest.importorskip("langdetect")
    text = "THE WEATHER IS VERY NICE TODAY."
    langdetect.DetectorFactory.seed = None
    assert len({langdetect.detect(text) for _ in range(60)}) > 1
    assert len({instructions.detect_language(text) for _ in range(60)}) == 1


def test_without_langdetect_the_message_names_the_command(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "langdetect", None)
    with pytest.raises(ImportError, match="pip install langdetect"):
        judge("Hello.", "language:response_language", {"language": "en"})


# ---------------------------------------------------------------------------------------------
# sentences, words, variants
# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0),
        ("No end", 1),
        ("One. Two! Three?", 3),
        ("A title\n\nand its text. More.", 2),
        ("Dr. Smith met Mrs. Jones Jr. at 5 p.m. on Jan. 3.", 1),
        ("He came at 5 p.m. The door was shut.", 2),
        ("Acme Inc. was sold. Acme Inc. The end.", 3),
        ("J. R. Smith paid 3.50 dollars.", 1),
        ("mid-Jan. was cold", 1),
        ("1. Buy eggs.\n2. Buy milk.", 4),
        ("Version 2. is out.", 1),
        ("Wait... what? Wait... The end.", 3),
        ('She said "Stop." Then she left.', 2),
        ('"Is it?" he asked.', 2),
        ('So it is.\n"', 1),
        ("(It rained.) It stopped.", 2),
        ("**Bold.**", 2),
        ("e.g. this one. P.S. That too.", 4),
        ("Hello.World. Yes", 2),
    ],
)
def test_count_sentences(text: str, count: int) -> None:
    assert instructions.count_sentences(text) == count


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("WELL-KNOWN A_B A/B COVID-19 3D", 5),
        ("The USA and the U.S.", 2),
        ("IT'S; HE DIDN'T; CANNOT; GIMME", 9),
        ("NASA's I'm I'll", 3),
        ("DON\u2019T, \u201cOK\u201d", 3),
        ("A,B A,1 10:30AM A&B", 6),
        ("STOP!NOW WAIT...WHAT YES--NO YES—NO", 8),
        ("*BOLD* [NAME] 'A' (É)", 4),
        ("iPhone Word 42 !", 0),
    ],
)
def test_count_capital_words(text: str, count: int) -> None:
    """IT 'S, HE, DID N'T, CAN NOT and GIM ME are nine; so NLTK cuts them."""
    assert instructions.count_capital_words(text) == count


def test_loose_variants_by_hand() -> None:
    text = "Sure:\n*a*\n\n**b**\nBye"
    assert instructions.loose_variants(text) == [
        text,
        "*a*\n\n**b**\nBye",
        "Sure:\n*a*\n\n**b**",
        "*a*\n\n**b**",
        "Sure:\na\n\nb\nBye",
        "a\n\nb\nBye",
        "Sure:\na\n\nb",
        "a\n\nb",
    ]


def test_loose_forgives_what_strict_does_not() -> None:
    quoted = 'Here it is:\n**"Hello"**\nBye'
    assert judge(quoted, "startend:quotation", {}) == (False, True)
    assert judge('"Hello"', "startend:quotation", {}) == (True, True)
    assert judge("Hello\n\nBye", "startend:quotation", {}) == (False, False)
    weeks = "Sure:\n\n\nWeek one\n\nWeek two"  # blank lines behind the first go with it
    asked = {"num_paragraphs": 2, "nth_paragraph": 1, "first_word": "week"}
    assert judge(weeks, "length_constraints:nth_paragraph_first_word", asked) == (False, True)


# ---------------------------------------------------------------------------------------------
# wrong arguments, hostile texts
# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        ("keywords:exist", {}, "f:3: expected one of the 25 kinds of IFEval, got 'keywords:exist'"),
        (["title"], {}, "f:3: expected one of the 25 kinds"),
        ("startend:quotation", None, "f:3: startend:quotation: expected an object of arguments"),
        ("keywords:existence", {"keywords": None}, "existence: keywords: expected a list of texts"),
        ("keywords:existence", {"keywords": ["a", ""]}, "keywords: expected a list of texts"),
        ("startend:end_checker", {}, "end_phrase: expected a text, got None"),
        ("keywords:letter_frequency", {"letter": "ab"}, "letter: expected one character, got 'ab'"),
        ("length_constraints:number_words", {"num_words": True}, "num_words: expected a number"),
        ("length_constraints:number_words", {"num_words": 1, "relation": "at most"},
         "relation: expected 'less than' or 'at least', got 'at most'"),
        ("length_constraints:nth_paragraph_first_word",
         {"num_paragraphs": 2, "nth_paragraph": 3, "first_word": "a"}, "nth_paragraph <= num"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_named(kind: object, arguments: object, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        check_arguments(kind, arguments, "f:3")
    assert message in str(caught.value)


def test_arguments_of_other_kinds_are_dropped() -> None:
    """Published copies of the data give every instruction every argument, most of them null."""
    given = {"num_words": 7, "relation": "less than", "keywords": None, "letter": None}
    kept = check_arguments("length_constraints:number_words", given, "here")
    assert kept == {"num_words": 7, "relation": "less than"}


HOSTILE = (
    "[", "*", "<", "<<a", "\n", " ", " \n", "* ", "**a ", "***", "- ", "a.", "a b. ", ".", "!", "'",
    "1", "1.", "A", "P. ", "it's ", "a@", "\ud800",
)  # fmt: skip


def hostile_arguments(kind: str) -> dict:
    """Values that a text of one repeated piece almost has; 3 for all that are numbers."""
    values = {"keywords": ["aaab"], "forbidden_words": ["aaab"], "letter": "a", "language": "en"}
    values |= dict.fromkeys(("relation", "let_relation", "capital_relation"), "at least")
    texts = ("keyword", "first_word", "postscript_marker", "section_spliter", "prompt_to_repeat")
    values |= dict.fromkeys((*texts, "end_phrase"), "aaab")
    return {name: values.get(name, 3) for name in KINDS[kind][1]}


@pytest.mark.parametrize("kind", KINDS)
def test_hostile_texts_take_linear_time(kind: str) -> None:
    """100 kB each; a pattern that tries every pair of places would take a minute for one."""
    if kind in LANGUAGE_KINDS:
        pytest.importorskip("langdetect")
    arguments = check_arguments(kind, hostile_arguments(kind), "here")
    start = time.process_time()
    for piece in HOSTILE:
        judge((piece * 100_000)[:100_000], kind, arguments)
    assert time.process_time() - start < 10

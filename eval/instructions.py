r"""The 25 kinds of instruction of IFEval, each one a check that a text follows it or does not.

    python -m eval.ifeval --data input_data.jsonl --samples samples.jsonl --out runs/ifeval

Kinds, arguments and rules are those of the benchmark (Zhou et al. 2023, "Instruction-Following
Evaluation for Large Language Models") and of the authors' checker, also where a rule is odd: a bare
number is JSON, a postscript may stand anywhere. Where this file differs from the checker:

1. A "letter" that is none, such as `!`, is counted. The checker counts a letter drawn at random.
2. Keywords and section words mean themselves. The checker reads them as regular expressions.
3. Sentences and words are cut by the rules below, which need no data. The checker uses NLTK, whose
   sentence model Punkt was trained on the Wall Street Journal; `count_sentences` gives its number
   for 98 in 100 replies of language models, and differs over names, lettered lists ("a. Cost") and
   a "?!" that ends the text.
4. Language identification is seeded, so that a verdict does not change from run to run.

The texts come from a model and may be anything, so every check takes time linear in the length.
"""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

RELATIONS = ("less than", "at least")

# ---------------------------------------------------------------------------------------------
# sentences and words
# ---------------------------------------------------------------------------------------------

# The last mark of a run of non-space characters that closing or opening punctuation may follow.
SENTENCE_END = re.compile(r"""(.*[.?!])(?=[)\]}({\[";:*@'!?]|$)""", re.DOTALL)
ABBREVIATIONS = set(
    "mr mrs ms dr prof st jr sr rep sen gov col lt adm vs inc corp co ltd bros ave ft dept "
    "jan feb mar apr aug sept sep oct nov dec mon tues tue wed thurs fri sat "
    "a.m p.m u.s u.k u.n d.c l.a ph.d".split()
)
ORDINARY = set(  # words that are written with a capital only where a sentence begins
    "a an the this that these those he she it we you they i his her its our your their my there "
    "here and but or so yet nor if when while since because although though however in on at by "
    "for from with to of as after before what why how who where which is are was were do does did "
    "not no some many most all each every one then also once another".split()
)


def count_sentences(text: str) -> int:
    """The number of sentences: one more than the ends with text behind them.

    As in Punkt, a line break ends nothing: a title belongs to the sentence below it. Numbers of a
    list ("1. Buy eggs") are sentences, and so is what follows "e.g.".
    """
    words = text.rstrip().rstrip("\"')]}").split()
    count = 1 if text.strip() else 0
    for i, word in enumerate(words):
        end = SENTENCE_END.match(word)
        if end is None:
            continue
        behind = word[end.end() :][:1] or "".join(words[i + 1 : i + 2])
        count += behind != "" and ends_sentence(end[1], behind)
    return count


def ends_sentence(before: str, behind: str) -> bool:
    """Whether the mark that ends `before` ends a sentence; `behind`: the next word or mark."""
    if "!" in before or "?" in before:
        return True
    word = re.split(r"""[()\[\]{}"*:;@']|--""", before[:-1])[-1].lstrip("&#`-,").lower()
    ellipsis = before.endswith("..")
    initial = len(word) == 1 and word.isalpha()
    number = re.fullmatch(r"[.,]?\d[\d,.-]*", word) is not None
    abbreviation = initial or word in ABBREVIATIONS or word.rpartition("-")[2] in ABBREVIATIONS
    if behind[0] in ",;:.!?":
        return not (abbreviation or number or ellipsis)
    if abbreviation or ellipsis:  # "Dr. Smith", "J. Smith", "wait... then", but "at 5 p.m. The"
        return behind[0].isupper() and re.split(r"[^\w'-]", behind.lower())[0] in ORDINARY
    return not (number and behind[0].islower())


# What NLTK's word_tokenize cuts off, as far as the number of tokens in capitals depends on it: here
# as in its version 3.10, which cuts at long dashes (\u2012 to \u2015) too.
PUNCTUATION = re.compile(
    r"""[;@#$%&?!*()\[\]{}<>"`«»\u2018\u2019\u201c-\u201e\u2012-\u2015]|''|--|\.{2,}|[:,](?!\d)"""
)
CLITICS = re.compile(r"(?<=[^'\s])('[sSmMdD]|'ll|'LL|'re|'RE|'ve|'VE|n't|N'T)(?!\S)")
COMPOUNDS = re.compile(
    r"\b(can(?=not\b)|gim(?=me\b)|gon(?=na\b)|got(?=ta\b)|lem(?=me\b)|wan(?=na\b))", re.IGNORECASE
)


def count_capital_words(text: str) -> int:
    """Words in capitals: WELL-KNOWN and U.S. are one, IT'S and CANNOT are two, NASA's is one."""
    text = COMPOUNDS.sub(r"\1 ", CLITICS.sub(r" \1", PUNCTUATION.sub(" ", text)))
    return sum(word.isupper() for word in text.split())


def detect_language(text: str) -> str | None:
    """The ISO 639-1 code of the text's language; None where there is nothing to tell it by."""
    try:
        import langdetect
    except ImportError as error:
        raise ImportError(
            "identifying a language needs the package langdetect: pip install langdetect"
        ) from error
    langdetect.DetectorFactory.seed = 0  # without, it draws anew each time
    try:
        return langdetect.detect(text)
    except langdetect.LangDetectException:
        return None


# ---------------------------------------------------------------------------------------------
# the checks: the first argument is the text, the names of the others are those of the data
# ---------------------------------------------------------------------------------------------


def compare(count: int, relation: str, number: int) -> bool:
    return count < number if relation == "less than" else count >= number


def has_keywords(text: str, keywords: list[str]) -> bool:
    """Every keyword, be it as a part of a word."""
    return all(re.search(re.escape(keyword), text, re.IGNORECASE) for keyword in keywords)


def has_keyword_times(text: str, keyword: str, frequency: int, relation: str) -> bool:
    found = re.findall(re.escape(keyword.strip()), text, re.IGNORECASE)
    return compare(len(found), relation, frequency)


def lacks_words(text: str, forbidden_words: list[str]) -> bool:
    """None of them as a whole word."""
    words = (rf"\b{re.escape(word)}\b" for word in forbidden_words)
    return not any(re.search(word, text, re.IGNORECASE) for word in words)


def has_letter_times(text: str, letter: str, let_frequency: int, let_relation: str) -> bool:
    return compare(text.lower().count(letter.lower()), let_relation, let_frequency)


def is_in_language(text: str, language: str) -> bool:
    """A text whose language cannot be told follows the instruction."""
    return detect_language(text) in (language, None)


def has_sentences(text: str, num_sentences: int, relation: str) -> bool:
    return compare(count_sentences(text), relation, num_sentences)


def has_words(text: str, num_words: int, relation: str) -> bool:
    return compare(len(re.findall(r"\w+", text)), relation, num_words)


def split_parts(text: str, divider: str) -> list[str]:
    """The parts between dividers; a blank one may stand at either end, inside it spoils all."""
    parts = [part.strip() for part in text.split(divider)]
    return [part for part in parts if part] if all(parts[1:-1]) else []


def has_paragraphs(text: str, num_paragraphs: int) -> bool:
    return len(split_parts(text, "***")) == num_paragraphs


def has_first_word(text: str, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    """Paragraphs between blank lines; a blank one does not count, but moves those behind it."""
    paragraphs = text.split("\n\n")
    count = sum(paragraph.strip() != "" for paragraph in paragraphs)
    words = paragraphs[nth_paragraph - 1].split() if nth_paragraph <= count else []
    if count != num_paragraphs or not words:
        return False
    word = words[0].lstrip("'").lstrip('"')
    return re.split(r"""[.,?!'"]""", word)[0].lower() == first_word.lower()


def has_placeholders(text: str, num_placeholders: int) -> bool:
    # An open bracket takes the rest of its line: none is tried twice, as with \[.*?\].
    return re.findall(r"\[[^\]\n]*(\]?)", text).count("]") >= num_placeholders


def has_postscript(text: str, postscript_marker: str) -> bool:
    """Anywhere in the text; of the two usual markers, spaces between the letters do not count."""
    marker = postscript_marker.strip()
    pattern = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}.get(marker)
    return re.search(pattern or re.escape(marker.lower()), text.lower()) is not None


def has_bullets(text: str, num_bullets: int) -> bool:
    stars = re.findall(r"^[^\S\n]*\*[^*].*$", text, re.MULTILINE)
    dashes = re.findall(r"^[^\S\n]*-", text, re.MULTILINE)
    return len(stars) + len(dashes) == num_bullets


def has_constrained_response(text: str) -> bool:
    return any(f"My answer is {answer}." in text for answer in ("yes", "no", "maybe"))


def has_highlights(text: str, num_highlights: int) -> bool:
    """*One* or **two** stars on each side, on one line; ***three*** count twice."""
    once = re.findall(r"\*([^\n*]*)\*", text)
    twice = re.findall(r"\*\*([^\n*]*)\*\*", text)
    return sum(part.strip() != "" for part in once + twice) >= num_highlights


def has_sections(text: str, section_spliter: str, num_sections: int) -> bool:
    heading = rf"{re.escape(section_spliter.strip())}\s?\d+"
    return len(re.findall(heading, text)) >= num_sections


def is_json(text: str) -> bool:
    text = text.strip()
    for fence in ("```json", "```Json", "```JSON", "```"):
        text = text.removeprefix(fence)
    try:
        json.loads(text.removesuffix("```").strip())
    except (ValueError, RecursionError):  # brackets may be nested without end
        return False
    return True


def has_title(text: str) -> bool:
    """<<title>> in one line: from the line's first << to its last >>."""
    for line in text.split("\n"):
        start, end = line.find("<<"), line.rfind(">>")
        if start >= 0 and end >= start + 3 and line[start:end].lstrip("<").rstrip(">").strip():
            return True
    return False


def is_two_responses(text: str) -> bool:
    parts = split_parts(text, "******")
    return len(parts) == 2 and parts[0] != parts[1]


def repeats_prompt(text: str, prompt_to_repeat: str) -> bool:
    return text.strip().lower().startswith(prompt_to_repeat.strip().lower())


def ends_with(text: str, end_phrase: str) -> bool:
    return text.strip().strip('"').lower().endswith(end_phrase.strip().lower())


def is_quoted(text: str) -> bool:
    text = text.strip()
    return len(text) > 1 and text[0] == text[-1] == '"'


def has_capital_words(text: str, capital_frequency: int, capital_relation: str) -> bool:
    return compare(count_capital_words(text), capital_relation, capital_frequency)


def is_english_capital(text: str) -> bool:
    return text.isupper() and is_in_language(text, "en")


def is_english_lowercase(text: str) -> bool:
    return text.islower() and is_in_language(text, "en")


def lacks_commas(text: str) -> bool:
    return "," not in text


# kind -> its check and the arguments that an instruction of the kind must have.
KINDS: dict[str, tuple[Callable[..., bool], tuple[str, ...]]] = {
    "keywords:existence": (has_keywords, ("keywords",)),
    "keywords:frequency": (has_keyword_times, ("keyword", "frequency", "relation")),
    "keywords:forbidden_words": (lacks_words, ("forbidden_words",)),
    "keywords:letter_frequency": (has_letter_times, ("letter", "let_frequency", "let_relation")),
    "language:response_language": (is_in_language, ("language",)),
    "length_constraints:number_sentences": (has_sentences, ("num_sentences", "relation")),
    "length_constraints:number_paragraphs": (has_paragraphs, ("num_paragraphs",)),
    "length_constraints:number_words": (has_words, ("num_words", "relation")),
    "length_constraints:nth_paragraph_first_word": (
        has_first_word,
        ("num_paragraphs", "nth_paragraph", "first_word"),
    ),
    "detectable_content:number_placeholders": (has_placeholders, ("num_placeholders",)),
    "detectable_content:postscript": (has_postscript, ("postscript_marker",)),
    "detectable_format:number_bullet_lists": (has_bullets, ("num_bullets",)),
    "detectable_format:constrained_response": (has_constrained_response, ()),
    "detectable_format:number_highlighted_sections": (has_highlights, ("num_highlights",)),
    "detectable_format:multiple_sections": (has_sections, ("section_spliter", "num_sections")),
    "detectable_format:json_format": (is_json, ()),
    "detectable_format:title": (has_title, ()),
    "combination:two_responses": (is_two_responses, ()),
    "combination:repeat_prompt": (repeats_prompt, ("prompt_to_repeat",)),
    "startend:end_checker": (ends_with, ("end_phrase",)),
    "startend:quotation": (is_quoted, ()),
    "change_case:capital_word_frequency": (
        has_capital_words,
        ("capital_frequency", "capital_relation"),
    ),
    "change_case:english_capital": (is_english_capital, ()),
    "change_case:english_lowercase": (is_english_lowercase, ()),
    "punctuation:no_comma": (lacks_commas, ()),
}
LANGUAGE_KINDS = (  # those that need the package langdetect
    "language:response_language", "change_case:english_capital", "change_case:english_lowercase",
)  # fmt: skip

# ---------------------------------------------------------------------------------------------
# an instruction of the data: checked, then judged
# ---------------------------------------------------------------------------------------------


def check_arguments(kind: object, given: object, where: str) -> dict[str, Any]:
    """The arguments of an instruction; ValueError for an unknown kind, a missing or a wrong one.

    Published copies of the data fill up each instruction with the arguments of the others, as null;
    what the kind has no use for is dropped.
    """
    if not isinstance(kind, str) or kind not in KINDS:
        raise ValueError(f"{where}: expected one of the {len(KINDS)} kinds of IFEval, got {kind!r}")
    if not isinstance(given, Mapping):
        raise ValueError(f"{where}: {kind}: expected an object of arguments, got {given!r}")
    for name in KINDS[kind][1]:
        check_argument(name, given.get(name), f"{where}: {kind}")
    arguments = {name: given[name] for name in KINDS[kind][1]}
    if arguments.get("nth_paragraph", 0) > arguments.get("num_paragraphs", 0):
        raise ValueError(
            f"{where}: {kind}: expected nth_paragraph <= num_paragraphs in {arguments}"
        )
    return arguments


def check_argument(name: str, value: object, where: str) -> None:
    if name in ("keywords", "forbidden_words"):
        right, expected = is_texts(value), "a list of texts"
    elif name.endswith("relation"):
        right, expected = value in RELATIONS, " or ".join(map(repr, RELATIONS))
    elif name == "letter":
        right, expected = isinstance(value, str) and len(value) == 1, "one character"
    elif name in ("keyword", "language", "first_word", "postscript_marker", "section_spliter",
                  "prompt_to_repeat", "end_phrase"):  # fmt: skip
        right, expected = is_texts([value]), "a text"
    else:
        right, expected = type(value) is int and value > 0, "a number from 1"
    if not right:
        raise ValueError(f"{where}: {name}: expected {expected}, got {value!r}")


def is_texts(values: object) -> bool:
    if not isinstance(values, list) or not values:
        return False
    return all(isinstance(value, str) and value.strip() for value in values)


def loose_variants(text: str) -> list[str]:
    """The text; without stars; without its first line, its last line, both; these without stars."""
    lines = text.split("\n")
    cut = ["\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1])]
    return [text, *cut, *(variant.replace("*", "") for variant in (text, *cut))]


def judge(text: str, kind: str, arguments: Mapping[str, Any]) -> tuple[bool, bool]:
    """(strict, loose): whether the text follows the instruction; whether a variant of it does.

    A blank text follows nothing.
    """
    check, _ = KINDS[kind]
    variants = dict.fromkeys(loose_variants(text))  # each once: identifying a language is slow
    verdicts = (variant.strip() != "" and check(variant, **arguments) for variant in variants)
    strict = next(verdicts)
    return strict, strict or any(verdicts)

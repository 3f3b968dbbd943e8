"""The page of an audit in a headless Chromium, on the invented audit of tests/audit_example.py.

"What if" against `preference_loss` in float64, foreign text, sorting, colours and their contrast,
keys. Driven by playwright; skips where it or Chromium is not (on Debian: apt-get install chromium).

pytest tests/test_audit_browser.py
"""

# ruff: noqa: RUF001 numbers are shown with a real minus sign

import math
import re
import shutil

import numpy as np
import pytest
import torch

from eval import page
from eval.audit_page import write_audit
from model.objective import coefficients, preference_loss
from tests.audit_example import HOSTILE, example

MODELS = ("policy", "reference")
SETTINGS = {"count": 8, "glance": 60, "hostile": True, "broken": True}  # of most pages here


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("audit")


@pytest.fixture(scope="module")
def hostile(folder):
    file = folder / "hostile.html"
    write_audit(file, example(**SETTINGS))
    return file


@pytest.fixture(scope="module")
def browser():
    sync = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.skip("no Chromium is here")
    with sync.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=found)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser):
    """Opens a page; at the end there must have been no error, dialog or request but for it."""
    contexts, wrong = [], []

    def go(file, hash="", scheme="light", width=1280):
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        tab = context.new_page()
        tab.on("console", lambda message: wrong.append(message.text))
        tab.on("pageerror", lambda error: wrong.append(str(error)))
        tab.on("dialog", lambda dialog: wrong.append(dialog.message))
        tab.on("request", lambda r: r.url.split("#")[0] == file.as_uri() or wrong.append(r.url))
        tab.goto(file.as_uri() + hash)
        return tab

    yield go
    for context in contexts:
        context.close()
    assert wrong == []


def column(tab, table: str, at: int) -> list[str]:
    return tab.locator(f"{table} tbody tr td:nth-child({at})").all_inner_texts()


def opened(tab, index: int) -> None:
    """Waits for a pair to be shown; the browser follows an address when it has time."""
    tab.locator("#pair-title", has_text=re.compile(f"^Pair {index}$")).wait_for(timeout=5000)


def value(text: str) -> float:
    return float(text.replace("−", "-"))


WEIGHTS = [("dpo", 0.5, 0.1), ("spl", 1.0, 0.05), ("spl", 0.003, 7.5), ("h_dpo", 1.3, 0.4)]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_what_if_is_preference_loss(visit, folder, smoothing):
    """Margin, loss and gradient of a pair; mean loss and accuracy of all, against float64."""
    data = example(count=3, glance=50, label_smoothing=smoothing)
    write_audit(folder / "what_if.html", data)
    tab = visit(folder / "what_if.html", "#pair-6")
    chain = data["pairs"][2]["chain"]
    rows = [dict(zip(data["glance"]["columns"], r, strict=True)) for r in data["glance"]["rows"]]
    names = [f"{m}_{s}_logps" for m in MODELS for s in ("chosen", "rejected")]
    ratios = [[row[name] for row in rows] for name in ("pi_logratio", "ref_logratio")]
    pi, ref = torch.tensor(ratios, dtype=torch.float64)

    def expected(coefs) -> list[float]:
        logps = [torch.tensor([chain[name]], dtype=torch.float64) for name in names]
        logps[0].requires_grad_()
        loss, chosen, rejected = preference_loss(*logps, *coefs, smoothing)
        loss.sum().backward()
        zero = torch.zeros_like(pi)
        losses, ours, theirs = preference_loss(pi, zero, ref, zero, *coefs, smoothing)
        margin, gradient = (chosen - rejected).item(), logps[0].grad.item()
        accuracy = (ours > theirs).double().mean().item()
        return [*coefs, coefs[0] / coefs[1], margin, loss.item(), gradient,
                losses.mean().item(), accuracy]  # fmt: skip

    def shown(at: int) -> list[float]:
        return [value(text) for text in column(tab, "#what-if-numbers", at)]

    audited = expected([data["policy_coef"], data["reference_coef"]])
    for objective, alpha, beta in WEIGHTS:
        tab.locator(f"input[name=objective][value={objective}]").check()
        for name, weight in (("alpha", alpha), ("beta", beta)):
            box = tab.locator(f"[data-weight={name}] input[type=number]")
            if box.is_enabled():
                box.fill(str(weight))
        assert shown(3) == pytest.approx(expected(coefficients(objective, alpha, beta)), rel=1e-5)
        assert shown(2) == pytest.approx(audited, rel=1e-5)
    tab.locator("#reset").click()
    assert shown(3) == shown(2)


def test_another_objective_begins_at_an_equal_tau(visit, hostile):
    """spl's alpha of 0.12 at beta 0.1 is a tau of 1.2, which is h_dpo's alpha; and back."""
    tab = visit(hostile)
    box = tab.locator("[data-weight=alpha] input[type=number]")
    for objective, alpha in (("h_dpo", "1.2"), ("dpo", "0.12"), ("h_dpo", "1.2"), ("spl", "0.12")):
        tab.locator(f"input[name=objective][value={objective}]").check()
        assert box.input_value() == alpha
        tau = "1" if objective == "dpo" else "1.2"
        assert column(tab, "#what-if-numbers", 3)[2] == tau


def test_functions_mirror_the_objective_to_the_last_digits(visit, hostile):
    """Unrounded, where a sigmoid alone would lose them: margins up to 800 either way."""
    tab = visit(hostile)
    margins = [-800.0, -30.0, -1e-9, 0.0, 0.3, 40.0, 800.0]
    for smoothing in (0.0, 0.2):
        zero = torch.zeros(len(margins), dtype=torch.float64)
        policy = torch.tensor(margins, dtype=torch.float64, requires_grad=True)
        losses = preference_loss(policy, zero, zero, zero, 0.5, 0.5, smoothing)[0]
        there = tab.evaluate("([ms, s]) => ms.map((m) => loss(m / 2, s))", [margins, smoothing])
        assert there == pytest.approx(losses.tolist(), rel=1e-14)
        losses.sum().backward()
        slopes = tab.evaluate(
            "([ms, s]) => ms.map((m) => gradient(m / 2, 0.5, s))", [margins, smoothing]
        )
        assert slopes == pytest.approx(policy.grad.tolist(), rel=1e-12, abs=1e-300)
    for objective in ("dpo", "spl", "h_dpo"):
        ours = tab.evaluate("(name) => coefficients(name, 0.7, 0.3)", objective)
        assert ours == list(coefficients(objective, 0.7, 0.3))


def test_sliders_are_logarithmic(visit, hostile):
    """A tenth of the way from 0.001 to 10 is 10^-2.6 = 0.00251."""
    tab = visit(hostile)
    slider = tab.locator("[data-weight=beta] input[type=range]")
    slider.evaluate("(s) => { s.value = -2.6; s.dispatchEvent(new Event('input')); }")
    assert tab.locator("[data-weight=beta] input[type=number]").input_value() == "0.00251"
    assert column(tab, "#what-if-numbers", 3)[:3] == ["0.12", "0.00251", "47.8088"]


def test_chain_and_closing_show_the_numbers_of_python(visit, hostile):
    pair = example(**SETTINGS)["pairs"][5]
    tab = visit(hostile, "#pair-15")
    for name, number in pair["chain"].items():
        assert tab.locator(f'[data-value="{name}"]').inner_text() == page.number(number)
    sums = [page.number(sum(pair[side]["margin_share"])) for side in ("chosen", "rejected")]
    total = page.number(pair["closing"]["from_tokens"])
    said = f"✓ chosen {sums[0]} + rejected {sums[1]} = {total}"
    assert tab.locator("#closing b").inner_text() == said
    policy, reference = (page.number(pair["chain"][f"terms/{m}"], 5) for m in MODELS)
    assert pair["chain"]["terms/reference"] > 0  # else it would stand in parentheses
    assert tab.locator("[data-numbers]").nth(8).inner_text() == f"{policy} − {reference}"
    tab.evaluate("location.hash = '#pair-6'")
    opened(tab, 6)
    assert "IT DOES NOT CLOSE" in tab.locator("#closing").inner_text()


def test_ticks_have_the_digits_that_tell_them_apart(visit, hostile):
    """To three digits 0.71103, 0.71106 and 0.71109 are one number; 0, 2.5 and 5 need no more."""
    tab = visit(hostile)
    for values, texts in (
        ("[0.71103, 0.71106, 0.71109]", ["0.71103", "0.71106", "0.71109"]),
        ("[0, 2.5, 5]", ["0", "2.5", "5"]),
        ("[-1.23456, 0, 1.23456]", ["−1.23", "0", "1.23"]),
        ("[0.7111031, 0.7111032, 0.7111033]", ["0.711103"] * 3),
    ):
        assert tab.evaluate(f"apart({values})") == texts


def test_text_is_inert_and_hidden_characters_are_boxes(visit, hostile):
    tab = visit(hostile, "#pair-3")
    assert tab.locator("#chosen").inner_text() == HOSTILE[0] + "<|im_end|>"
    boxes = tab.locator("#rejected .hidden").all_inner_texts()
    codes = [f"U+{ord(c):04X}" for c in HOSTILE[1] if page.HIDDEN_PATTERN.match(c)]
    assert boxes == codes and "U+202E" in boxes and "U+D800" in boxes
    assert tab.locator("main img, main script, main b > i, iframe").count() == 0
    assert tab.locator("#pair-flags").inner_text().startswith("evilU+202E<i>.jsonl:7")
    assert tab.locator("#pairs-table tr.open .words").first.inner_text() == "evilU+202E<i>.jsonl:7"


def test_the_policy_lets_nothing_in(browser, hostile):
    """What a mistake in escaping would let in: no script of it runs, no image is loaded."""
    tab = browser.new_page()
    tab.goto(hostile.as_uri())
    blocked = tab.evaluate("""async () => {
      const blocked = [];
      const note = (event) => blocked.push(event.effectiveDirective);
      document.addEventListener("securitypolicyviolation", note);
      const script = document.createElement("script");
      script.textContent = "window.ran = true";
      document.body.append(script);
      document.body.insertAdjacentHTML("beforeend",
        "<img src='//example.org/x.png' onerror='window.ran = true'><p style='color: red'></p>");
      await new Promise((done) => setTimeout(done, 200));
      return blocked.sort();
    }""")
    directives = ["img-src", "script-src-attr", "script-src-elem", "style-src-attr"]
    assert blocked == directives and tab.evaluate("window.ran === undefined")
    tab.close()


def test_both_languages_show_text_alike(visit, hostile):
    """Every code point, one element for each in page.js as in page.py; U+000D is boxed in both."""
    tab = visit(hostile)
    differ = """([from, htmls]) => htmls.flatMap((html, i) => {
      const [ours, theirs] = [document.createElement("p"), document.createElement("p")];
      ours.append(show(String.fromCodePoint(from + i)));
      theirs.innerHTML = html;
      return ours.isEqualNode(theirs) ? [] : [from + i];
    })"""
    for start in [*range(0, 0x20000, 0x4000), 0xE0000]:
        htmls = [page.show(chr(point)) for point in range(start, start + 0x4000)]
        assert tab.evaluate(differ, [start, htmls]) == []
    hidden = r"(c) => /^[\p{Cc}\p{Zl}\p{Zp}\p{Cs}\p{DI}]$/u.test(c) && !/[\n\t]/.test(c)"
    every = tab.evaluate(f"""() => {{ const hidden = {hidden}; return [...Array(0x110000).keys()]
      .filter((c) => hidden(String.fromCodePoint(c))); }}""")
    ours = {point for a, b in page.HIDDEN for point in range(a, b + 1)}
    assert ours - set(every) == {0xFFF9, 0xFFFA, 0xFFFB} and not set(every) - ours


def test_both_languages_write_numbers_alike(visit, hostile):
    tab = visit(hostile)
    random = np.random.default_rng(0)
    values = (random.normal(size=400) * 10.0 ** random.integers(-12, 12, 400)).tolist()
    values += [0.0, -0.0, 1e-4, 99999.95, 999999.6, 0.0001234565]
    for digits in (2, 3, 6):
        ours = tab.evaluate("([vs, d]) => vs.map((v) => number(v, d))", [values, digits])
        assert ours == [page.number(v, digits) for v in values]
    lined_up = tab.evaluate("[12.34567, -0.5, 0, -3.21e-7, 12345678].map((v) => number(v, 6, 4))")
    assert lined_up == ["12.3457", "−0.5000", "0.0000", "−3.2e−7", "1.2e7"]


def test_tables_sort_by_a_click(visit, hostile):
    tab = visit(hostile)
    head = tab.locator("#pairs-table th button", has_text=re.compile("^margin"))
    for back in (True, False):
        head.click()
        margins = [value(text) for text in column(tab, "#pairs-table", 3)]
        assert margins == sorted(margins, reverse=back) and len(margins) == 8
    tab.locator("#tokens summary").click()
    tab.locator("#tokens-table th button", has_text=re.compile("^entropy")).click()
    entropies = [value(text) for text in column(tab, "#tokens-table", 8)]
    assert entropies == sorted(entropies, reverse=True) and len(entropies) == 59 + 23
    tab.locator("#tokens-table th button", has_text=re.compile("^token")).click()
    texts = column(tab, "#tokens-table", 3)
    assert [text.replace("·", " ") for text in texts] == sorted(t.replace("·", " ") for t in texts)


def test_what_is_no_number_sorts_last(visit, hostile):
    tab = visit(hostile)
    sort = """([values, up]) => values.map(real)
      .sort((a, b) => (up ? 1 : -1) * compare(a, b, up)).map(String)"""
    assert tab.evaluate(sort, [["nan", 2, "inf", -1], False]) == ["Infinity", "2", "-1", "NaN"]
    assert tab.evaluate(sort, [["nan", 2, "-inf", -1], True]) == ["-Infinity", "-1", "2", "NaN"]


def test_tokens_are_copied_as_tsv(visit, hostile):
    """A row for every token as sorted; tabs, lines and what is hidden escaped; no formula."""
    data = example(**SETTINGS)
    tab = visit(hostile, "#pair-3")
    tab.evaluate("navigator.clipboard.writeText = (text) => { window.copied = text; }")
    tab.locator("#tokens summary").click()
    tab.locator("#tokens-table .copy").click()
    lines = tab.evaluate("copied").splitlines()
    sides = [data["pairs"][1][side] for side in ("chosen", "rejected")]
    assert len(lines) == 1 + sum(len(side["tokens"]) for side in sides)
    assert all(line.count("\t") == lines[0].count("\t") for line in lines)
    cells = [line.split("\t") for line in lines[1:]]
    logps = [v for side in sides for v in side["logps"]]
    assert [float(cell[4]) for cell in cells] == pytest.approx(logps, rel=1e-5)
    texts = [cell[2] for cell in cells]
    assert "[U+202E]" in texts and "'=" in texts and not any(t.startswith("=") for t in texts)
    assert tab.evaluate("tsvText('a\\\\b\\tc\\nd')") == "a\\\\b\\tc\\nd"


def test_colours_follow_the_scale(visit, hostile):
    """The share is |value| over the end of the scale, the 98th percentile of both completions."""
    pair = example(**SETTINGS)["pairs"][5]
    tab = visit(hostile, "#pair-15")
    for key, group, signed in (
        ("margin_share", ["margin_share"], True),
        ("logps", ["logps", "ref_logps"], False),
        ("entropy", ["entropy"], False),
    ):
        tab.locator(f"input[name=scale][value={key}]").check()
        sizes = sorted(abs(v) for k in group for s in ("chosen", "rejected") for v in pair[s][k])
        end = sizes[int(0.98 * (len(sizes) - 1))]
        tokens = tab.locator("#chosen .tok")
        shares = tokens.evaluate_all(
            "(ts) => ts.map((t) => Number(t.style.getPropertyValue('--share')))"
        )
        expected = [min(abs(v) / end, 1) for v in pair["chosen"][key]]
        assert shares == pytest.approx(expected, abs=6e-4)
        kinds = tokens.evaluate_all("(ts) => ts.map((t) => t.classList[t.classList.length - 1])")
        names = ["negative" if v < 0 else "positive" for v in pair["chosen"][key]]
        assert kinds == (names if signed else ["size"] * len(names))
        legend = tab.locator("#legend .ends").inner_text()
        assert page.number(end, 3) in legend and ("≤ −" in legend) == (signed or key == "logps")


CONTRAST = """() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const flat = (colours) => {  // painted over each other, as a screen does
    canvas.clearRect(0, 0, 1, 1);
    for (const colour of colours) { canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1); }
    return canvas.getImageData(0, 0, 1, 1).data;
  };
  const luminance = (rgb) => [0.2126, 0.7152, 0.0722].reduce((sum, weight, i) => {
    const c = rgb[i] / 255;
    return sum + weight * (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
  }, 0);
  return [...document.querySelectorAll(".side .tok[data-at]")].map((token) => {
    const panel = getComputedStyle(token.closest(".side")).backgroundColor;
    const own = getComputedStyle(token);
    const both = [[own.color], [panel, own.backgroundColor]].map(flat).map(luminance);
    return (Math.max(...both) + 0.05) / (Math.min(...both) + 0.05);
  });
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_on_coloured_tokens_can_be_read(visit, hostile, scheme):
    """WCAG 2.2 asks for a contrast of 4.5 to 1; the strongest colours are among the tokens."""
    tab = visit(hostile, scheme=scheme)
    for key in ("margin_share", "policy_share", "logps"):
        tab.locator(f"input[name=scale][value={key}]").check()
        ratios = tab.evaluate(CONTRAST)
        assert len(ratios) == 59 + 23 and min(ratios) >= 4.5
        assert max(ratios) - min(ratios) > 1  # colours there were


def test_dark_and_light_by_system_and_button(visit, hostile):
    paper = "getComputedStyle(document.body).backgroundColor"
    light, dark = (visit(hostile, scheme=scheme) for scheme in ("light", "dark"))
    pale, deep = light.evaluate(paper), dark.evaluate(paper)
    assert pale != deep and "dark" in light.locator("#theme").inner_text()
    for tab, other in ((light, deep), (dark, pale)):
        tab.locator("#theme").click()
        assert tab.evaluate(paper) == other
    assert "light" in light.locator("#theme").inner_text()


def test_a_token_shows_its_numbers_under_mouse_and_keyboard(visit, hostile):
    pair = example(**SETTINGS)["pairs"][5]
    tab = visit(hostile, "#pair-15")
    card = tab.locator("#card")
    assert card.is_hidden()
    tab.locator("#chosen .tok").nth(4).hover()
    numbers = card.locator("td").all_inner_texts()
    assert numbers[0] == page.number(pair["chosen"]["logps"][4], 5)
    assert page.number(pair["chosen"]["likeliest_p"][4], 4) in numbers[-1]
    tab.mouse.move(2, 2)
    assert card.is_hidden()
    tab.locator("#rejected .tok").first.focus()
    tab.keyboard.press("ArrowRight")
    assert "rejected 2, id" in card.inner_text()
    assert tab.locator("#rejected [tabindex]").count() == 1
    tab.keyboard.press("Escape")
    assert card.is_hidden()


def test_keys_and_addresses_lead_to_pairs(visit, hostile):
    tab = visit(hostile, "#pair-12")
    opened(tab, 12)
    for key, index in (("j", 15), ("k", 12), ("k", 9)):
        tab.keyboard.press(key)
        opened(tab, index)
        assert tab.url.endswith(f"#pair-{index}")
    tab.locator("#pairs-table tbody tr").first.click()
    opened(tab, 0)
    assert tab.locator("#before").is_disabled() and tab.locator("#after").is_enabled()
    tab.locator(".verdict.bad a").first.click()
    opened(tab, 6)
    assert tab.locator("#pair-title").bounding_box()["y"] < 100  # it was scrolled to
    tab.evaluate("location.hash = '#pair-5'")
    opened(tab, 0)
    assert tab.locator("#pair-flags").inner_text().startswith("Pair 5 was not audited")


def test_a_narrow_screen_scrolls_in_one_direction(visit, hostile):
    tab = visit(hostile, "#pair-3", width=420)
    tab.locator("#tokens summary").click()
    assert tab.evaluate("document.documentElement.scrollWidth") <= 420
    tops = [tab.locator(f"#{side}").bounding_box()["y"] for side in ("chosen", "rejected")]
    assert tops[1] > tops[0] + 50  # below each other


def test_five_hundred_pairs_and_a_pair_of_thousand_tokens(visit, folder):
    data = example(count=500, glance=2000)
    long = example(count=1, repeat=18)["pairs"][0] | {"index": 1}
    write_audit(folder / "many.html", data | {"pairs": [*data["pairs"], long]})
    tab = visit(folder / "many.html", "#pair-1")
    assert tab.locator("#pairs-table tbody tr").count() == 501
    assert tab.locator("#chosen .tok").count() == len(long["chosen"]["tokens"]) > 1000
    assert tab.locator("#tokens-table tr").count() == 0  # not made before it is looked at
    assert tab.locator("[data-at]").count() == sum(
        len(long[s]["tokens"]) for s in ("chosen", "rejected")
    )


def test_numbers_that_are_none_are_seen(visit, folder):
    data = example(count=1, glance=3)
    pair = data["pairs"][0]
    pair["chosen"]["logps"][0] = pair["chain"]["margin"] = math.nan
    for row in data["glance"]["rows"]:  # a policy that has diverged: no figure of all pairs
        row[2:5] = [math.nan] * 3
    write_audit(folder / "broken.html", data)
    tab = visit(folder / "broken.html")
    tab.locator("input[name=scale][value=logps]").check()
    assert "broken" in tab.locator("#chosen .tok").first.get_attribute("class")
    assert tab.locator('[data-value="margin"]').inner_text() == "nan"
    assert column(tab, "#what-if-numbers", 3)[-2:] == ["nan", "nan"]  # the mean of none
    assert tab.locator("#what-if svg").count() == 1


@pytest.mark.parametrize("objective", ["ipo", "robust"])
def test_other_objectives_start_what_if_at_dpo(visit, folder, objective):
    """Their own numbers stand as audited; ratios of ipo are per token, so no mean over pairs."""
    data = example(count=2, glance=9, objective=objective)
    write_audit(folder / "other.html", data)
    tab = visit(folder / "other.html")
    chain = data["pairs"][0]["chain"]
    shown = [page.number(chain[name]) for name in ("margin", "loss", "gradient/chosen")]
    assert column(tab, "#what-if-numbers", 2)[3:] == shown
    assert tab.locator("input[name=objective]:checked").input_value() == "dpo"
    assert f"{objective} itself is not among" in tab.locator(".caution").inner_text()
    assert len(shown) + 3 == tab.locator("#what-if-numbers tbody tr").count()

"""MathML on one line."""

import pytest
from lxml import etree

from data_prep.mathml import math_text

X, J, TEN = "<mi>i</mi>", "<mi>j</mi>", "<mn>10</mn>"


@pytest.mark.parametrize(
    ("markup", "expected"),
    [
        (f"{X}<mo>=</mo>{J}", "i=j"),
        (f"\n  <mrow>\n {X}\n </mrow>\n", "i"),
        ("<mtext>if  so </mtext>" + X, "if  so i"),
        (f"{X}<mspace/>{J}", "i j"),
        (f"{X}<mo>&#x2062;</mo>{J}<mo>&#x2061;</mo>", "ij"),
        (f"<mfrac>{X}{J}</mfrac>", "i/j"),
        (f"<mfrac><mrow>{X}<mo>+</mo>{J}</mrow>{J}</mfrac>", "(i+j)/j"),
        (f"<msqrt>{X}<mo>+</mo>{J}</msqrt>", "√(i+j)"),
        (f"<mroot>{X}<mn>3</mn></mroot>", "3√i"),
        (f"<msup>{X}<mn>2</mn></msup>", "i2"),
        (f"<msup>{TEN}<mn>3</mn></msup>", "10^3"),
        (f"<msup>{TEN}<mrow><mo>-</mo>{X}</mrow></msup>", "10^-i"),
        (f"<msub>{TEN}<mn>2</mn></msub>", "10_2"),
        (f"<msubsup>{X}<mn>1</mn><mn>2</mn></msubsup>", "i1^2"),
        (f"<munderover><mo>∑</mo><mrow>{X}<mo>=</mo><mn>1</mn></mrow><mi>n</mi></munderover>{X}",
         "∑ i=1 n i"),
        (f"<mover>{X}<mo>¯</mo></mover>", "i¯"),
        (f"<mfenced>{X}{J}</mfenced>", "(i,j)"),
        (f"<mfenced open='[' close=']' separators=''>{X}{J}</mfenced>", "[ij]"),
        (f"<mfenced separators=';,'>{X}{J}{X}{J}</mfenced>", "(i;j,i,j)"),
        (f"<mtable><mtr><mtd>{X}</mtd><mtd>{J}</mtd></mtr><mtr><mtd>{J}</mtd></mtr></mtable>",
         "i j; j"),
        (f"<semantics>{X}<annotation>\\tex</annotation></semantics>", "i"),
        (f"{X}<mphantom>{J}</mphantom>", "i"),
        ("<msup/><mfrac><mi>i</mi></mfrac><mfenced/>", "i()"),  # too few children
    ],
)  # fmt: skip
def test_math(markup: str, expected: str) -> None:
    element = etree.fromstring(f'<math xmlns="http://www.w3.org/1998/Math/MathML">{markup}</math>')
    assert math_text(element).strip() == expected

"""Licence names and what they allow."""

import pytest

from data_prep.licences import Use, allows, licence_name

PLOS = (
    "This is an open-access article distributed under the terms of the Creative Commons "
    "Attribution License, which permits unrestricted use, distribution, and reproduction"
)
BMC = (
    "This is an Open Access article: verbatim copying and redistribution of this article are "
    "permitted in all media for any purpose, provided this notice is preserved"
)


@pytest.mark.parametrize(
    ("texts", "name"),
    [
        (["http://creativecommons.org/licenses/by/4.0/"], "CC BY 4.0"),
        (["https://creativecommons.org/licenses/by-nc-nd/3.0/igo/deed.en"], "CC BY-NC-ND 3.0"),
        (["https://creativecommons.org/licenses/by-sa"], "CC BY-SA"),
        (["http://creativecommons.org/publicdomain/zero/1.0/"], "CC0 1.0"),
        (["http://creativecommons.org/publicdomain/mark/1.0/"], "PDM 1.0"),
        (["CC BY-NC"], "CC BY-NC"),
        (["CC0"], "CC0"),
        ([PLOS], "CC BY"),
        ([PLOS.replace("Attribution", "Attribution-NonCommercial 4.0")], "CC BY-NC 4.0"),
        ([PLOS.replace("unrestricted", "unrestricted non-commercial")], "CC BY-NC"),
        # The link is believed before the words, the strictest of several links before the others.
        ([PLOS, "http://creativecommons.org/licenses/by-nc/4.0/"], "CC BY-NC 4.0"),
        (
            ["creativecommons.org/licenses/by/4.0/", "creativecommons.org/licenses/by-nc/4.0/"],
            "CC BY-NC 4.0",
        ),
        ([BMC], "BMC verbatim"),
        ([BMC.replace(" ", "\n ")], "BMC verbatim"),
        ([BMC.replace("any purpose", "non-commercial purposes")], ""),
        ([BMC, "http://creativecommons.org/licenses/by/2.0"], "CC BY 2.0"),
        (["TDM"], ""),
        (["All rights reserved."], ""),
        ([], ""),
    ],
)
def test_names(texts: list[str], name: str) -> None:
    assert licence_name(texts) == name


@pytest.mark.parametrize(
    ("licence", "uses"),
    [
        ("CC0 1.0", {"commercial", "noncommercial", "any"}),
        ("CC BY", {"commercial", "noncommercial", "any"}),
        ("BMC verbatim", {"commercial", "noncommercial", "any"}),
        ("CC BY-ND 4.0", {"commercial", "noncommercial", "any"}),
        ("CC BY-NC-SA 3.0", {"noncommercial", "any"}),
        ("", {"any"}),
        ("MIT", {"any"}),
    ],
)
def test_uses(licence: str, uses: set[Use]) -> None:
    every: tuple[Use, ...] = ("commercial", "noncommercial", "any")
    assert {use for use in every if allows(licence, use)} == uses

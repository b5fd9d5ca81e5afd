"""docs/DOCTOR.md has a section for each code, with the settings that the program prints."""

from __future__ import annotations

from qanat.doctor.advice import SETTINGS
from qanat.doctor.codes import CODES
from qanat.doctor.products import ADVISED
from tests.support.doctor_page import PAGE, whole


def test_the_page_is_what_is_made_from_the_codes() -> None:
    assert PAGE.read_text() == whole(), "python -m tests.support.doctor_page"


def test_every_setting_belongs_to_a_code_and_to_a_product() -> None:
    assert SETTINGS.keys() <= CODES.keys()
    assert {product for known in SETTINGS.values() for product in known} <= set(ADVISED)


def test_every_code_says_what_it_means_and_what_to_do() -> None:
    assert all(entry.means.endswith(".") and entry.cure and not entry.cure.endswith(".") for entry in CODES.values())

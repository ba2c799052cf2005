"""Numbers in words."""

from plumed_cv.common.numbers import duration, scientific, with_error


def test_numbers_are_rounded_to_their_errors() -> None:
    cases = {
        (0.56612, 0.00812): "0.566 ± 0.008 eV",
        (0.52349, 0.01249): "0.523 ± 0.012 eV",
        (0.52349, 0.0354): "0.523 ± 0.035 eV",
        (0.52349, 0.0356): "0.52 ± 0.04 eV",
        (0.52349, 0.00096): "0.5235 ± 0.0010 eV",
        (12.3, 4.2): "12 ± 4 eV",
        (1234.0, 130.0): "1230 ± 130 eV",
        (0.5, None): "0.500 eV, error unknown",
        (-0.0147, 0.0241): "−0.015 ± 0.024 eV",
        (None, None): "unknown",
        (float("nan"), 0.1): "unknown",
    }
    for (value, error), words in cases.items():
        assert with_error(value, error) == words
    assert scientific(1234.0, 520.0, "s⁻¹") == "(1.2 ± 0.5) × 10³ s⁻¹"
    assert scientific(2.5e-7, 3e-8, "s⁻¹") == "(2.50 ± 0.30) × 10⁻⁷ s⁻¹"
    assert scientific(2836.0, None, "1/s") == "2.8 × 10³ 1/s, error unknown"
    assert scientific(0.0, None, "s⁻¹") == scientific(1e3, 2e3, "s⁻¹") == "unknown"
    assert [duration(s) for s in (12.3, 150.0, 7300.0)] == ["12 s", "2 min", "2 h 2 min"]

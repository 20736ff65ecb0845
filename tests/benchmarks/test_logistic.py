"""The race against scikit-learn compares solutions of one quality."""

from benchmarks.logistic import WANTED, generated, main, race


def test_both_reach_the_same_objective():
    features, labels = generated(400, 16, 8)
    found = race(features, labels, (0.5, 0.025))
    assert [fit.lambd for fit in found.fits] == [0.5, 0.025]
    assert all(abs(above) <= WANTED for above in found.excess)
    assert min(found.steps) > 3
    assert found.ratios().cpu > 0


def test_the_table_is_printed(capsys):
    main(["--samples", "120", "--width", "8", "--classes", "4", "--lambd", "0.1"])
    printed = capsys.readouterr().out
    assert "120 x 8 features, 4 classes" in printed
    assert "times as fast as scikit-learn" in printed

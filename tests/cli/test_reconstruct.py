"""`halfseen reconstruct` through the real entry point."""

import numpy as np
import pytest

from halfseen.cli.main import run


def test_pictures_of_a_run(trained_run, tmp_path, capsys):
    words = ["reconstruct", str(trained_run), "--images", "3", "--mask-ratio", "0.25", "--mask-ratio", "0.5", "--out"]
    assert run([*words, str(tmp_path / "a")]) == 0
    printed = capsys.readouterr().out
    with np.load(tmp_path / "a" / "reconstruction.npz") as arrays:
        assert arrays["pasted"].shape == (2, 3, 28, 28, 3)
        assert arrays["hidden_share"].tolist() == [0.25, 0.5]
        assert all("test" in path for path in arrays["paths"])
        for number in range(2):
            assert f"{arrays['psnr_hidden'][number].mean():.2f} dB" in printed
            assert f"{arrays['ssim_whole'][number].mean():.4f}" in printed
        first = arrays["pasted"]
    assert (tmp_path / "a" / "reconstruction.png").stat().st_size > 1000
    assert run([*words, str(tmp_path / "b")]) == 0
    with np.load(tmp_path / "b" / "reconstruction.npz") as arrays:
        assert np.array_equal(arrays["pasted"], first)


def test_other_images_leave_the_runs_own_pictures(trained_run, image_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = (trained_run / "figures" / "reconstruction.npz").read_bytes()
    assert run(["reconstruct", str(trained_run), str(image_folder), "--images", "2"]) == 0
    assert (trained_run / "figures" / "reconstruction.npz").read_bytes() == before
    with np.load(tmp_path / "reconstructions" / "reconstruction.npz") as arrays:
        assert all(str(image_folder) in path for path in arrays["paths"])


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("RUN", "--mask-ratio", "75"), "got 75, expected a share between 0 and 1"),
        (("RUN", "no/such"), "'no/such' does not exist"),
        (("RUN", "--images", "0"), "--images"),
        (("nowhere",), "'nowhere' is not a run"),
    ],
)
def test_the_users_faults_are_sentences(trained_run, capsys, words, sentence):
    assert run(["reconstruct", *(word.replace("RUN", str(trained_run)) for word in words)]) == 2
    assert sentence in capsys.readouterr().err

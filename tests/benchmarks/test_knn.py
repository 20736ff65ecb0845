"""The k-NN benchmark counts the operations that are needed, and its table says what it is about."""

import pytest
import torch
from benchmarks.knn import main, measure

from halfseen.evaluation.knn.votes import nearest


def test_what_is_measured_is_the_whole_vote() -> None:
    found = measure(train=600, queries=40, width=8, classes=5, k=(3, 20), repetitions=1)
    assert found.flops == 2 * 600 * 40 * 8
    assert found.share == pytest.approx(found.flops / found.seconds / ((found.before + found.after) / 2))
    assert [(score.k, len(score.rank)) for score in found.scores] == [(3, 40), (20, 40)]
    assert 0 < found.resting <= found.peak


def test_features_like_those_of_the_benchmark_find_their_neighbours(generator: torch.Generator) -> None:
    samples, asked = torch.randn(20_000, 24, generator=generator), torch.randn(70, 24, generator=generator)
    cosine = torch.nn.functional.normalize(asked.double()) @ torch.nn.functional.normalize(samples.double()).T
    found = nearest(samples, asked, 200, query_chunk=8, train_chunk=1024)
    torch.testing.assert_close(found.similarity.double(), cosine.topk(200).values, rtol=0, atol=1e-6)
    torch.testing.assert_close(found.similarity.double(), cosine.gather(1, found.ids), rtol=0, atol=1e-6)
    assert all(len(set(row)) == 200 for row in found.ids.tolist())


def test_the_table_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--train", "300", "--queries", "20", "--width", "8", "--classes", "4", "--k", "5", "--repetitions", "1"])
    printed = capsys.readouterr().out
    assert "20 queries, 300 x 8 float32 samples" in printed
    assert "of the matrix product" in printed and "GB at most" in printed and "k = 5:" in printed

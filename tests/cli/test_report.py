"""`halfseen report` through the real entry point."""

import json

from halfseen.cli.main import run


def test_a_run_has_a_page_with_its_numbers(trained_run, tmp_path, capsys):
    path = tmp_path / "page.html"
    assert run(["report", str(trained_run), "--out", str(path)]) == 0
    assert f"Written: {path}" in capsys.readouterr().out
    page = path.read_text(encoding="utf-8")
    result = json.loads((trained_run / "evaluations" / "knn.json").read_text())
    assert f"{result['metrics']['top1']:.1f}" in page
    assert f"{result['baselines']['raw_pixels']['top1']:.1f}" in page
    assert "mae trained vit_tiny on 64 images of bundled:fashion at 28 x 28 pixels" in page
    assert "bundled:fashion" in page
    assert page.count("data:image/png;base64,") == 8 * 4
    assert len(page) < 8e6


def test_the_page_that_the_run_wrote_itself_is_there(trained_run):
    assert "halfseen report" in (trained_run / "report.html").read_text(encoding="utf-8")


def test_several_runs_go_beside_where_one_stands(trained_run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(["report", str(trained_run), str(trained_run)]) == 0
    assert (tmp_path / "comparison.html").is_file()


def test_what_is_no_run_is_a_sentence(tmp_path, capsys):
    assert run(["report", str(tmp_path / "nowhere")]) == 2
    assert "is not a run" in capsys.readouterr().err

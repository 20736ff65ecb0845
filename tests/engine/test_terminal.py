"""What is printed while training."""

import io

import pytest
from rich.console import Console

from halfseen.engine.terminal import LiveTerminal, PlainTerminal, SilentTerminal, describe, duration, open_terminal

RECORD = {
    "step": 40,
    "epoch": 0.4,
    "loss": 0.51239,
    "images_per_second": 1234.5,
    "steps_per_second": 2.0,
    "data_wait_share": 0.128,
    "memory_mb": 512.3,
    "lr": 1e-3,
}


def test_a_record_in_words() -> None:
    said = describe(RECORD, last_step=100)
    assert said == "epoch 0.40  loss 0.5124  1234 images/s  30 s left  data wait 13 %  512 MB"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (59.6, "1 min 00 s"), (130, "2 min 10 s"), (11_100, "3 h 05 min"), (180_000, "2 d 02 h")],
)
def test_durations_have_two_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_plain_lines_where_there_is_no_terminal() -> None:
    stream = io.StringIO()
    terminal = open_terminal(True, Console(file=stream, width=40))
    assert isinstance(terminal, PlainTerminal)
    terminal.begin(last_step=100, step=0)
    for step in (10, 20, 30, 100):
        terminal.update({**RECORD, "step": step})
    terminal.say("Health: [bold]all well[/bold]")
    terminal.close()
    lines = stream.getvalue().splitlines()
    assert lines[0] == "Training from step 0 to 100."
    assert [line.split()[1] for line in lines[1:-1]] == ["10/100", "100/100"], "lines in between come too soon"
    assert lines[-1] == "Health: [bold]all well[/bold]"
    assert "\x1b" not in stream.getvalue()


def test_a_live_line_on_a_terminal() -> None:
    stream = io.StringIO()
    terminal = LiveTerminal(Console(file=stream, force_terminal=True, width=120))
    terminal.begin(last_step=100, step=20)
    terminal.update(RECORD)
    terminal.say("Health: [few] steps")
    terminal.close()
    assert "40/100" in stream.getvalue() and "loss 0.5124" in stream.getvalue()
    assert "Health: [few] steps" in stream.getvalue()


def test_other_processes_are_silent() -> None:
    assert isinstance(open_terminal(False), SilentTerminal)

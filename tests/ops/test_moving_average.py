import torch
from torch import nn

from halfseen.ops.moving_average import pair_by_name, update_average


def test_only_parameters_of_equal_name_are_averaged() -> None:
    student = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2), "norm": nn.BatchNorm1d(2)})
    teacher = nn.ModuleDict({"a": nn.Linear(2, 2), "c": nn.Linear(2, 2), "norm": nn.BatchNorm1d(2)})
    student["norm"].running_mean.fill_(5.0)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    pairs = pair_by_name(student, teacher)
    assert len(pairs) == 4
    update_average(pairs, 0.9)
    for name, value in teacher.state_dict().items():
        if name.startswith(("a.", "norm.weight", "norm.bias")):
            torch.testing.assert_close(value, 0.9 * before[name] + 0.1 * student.state_dict()[name])
        else:
            assert torch.equal(value, before[name])


def test_a_momentum_of_one_keeps_the_teacher_and_of_zero_copies_the_student() -> None:
    student, teacher = nn.Linear(3, 3), nn.Linear(3, 3)
    kept = teacher.weight.clone()
    update_average(pair_by_name(student, teacher), 1.0)
    assert torch.equal(teacher.weight, kept)
    update_average(pair_by_name(student, teacher), 0.0)
    torch.testing.assert_close(teacher.weight, student.weight)

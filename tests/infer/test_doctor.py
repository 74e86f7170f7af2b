"""The doctor says one line a check and never breaks itself."""

import pytest

from infer import doctor

HERE = [check for check in doctor.CHECKS if check is not doctor.check_disk]  # the disk is the machine's affair


@pytest.mark.parametrize("check", HERE, ids=lambda check: check.__name__)
def test_each_check_passes_here_in_one_line(check):
    passed, line = doctor.run_check(check)
    assert passed, line
    assert line.startswith("ok ")
    assert "\n" not in line


def test_a_broken_part_is_one_line_and_exit_code_2(monkeypatch: pytest.MonkeyPatch, capsys):
    def check_spring() -> str:
        raise RuntimeError("broken\nand more")

    monkeypatch.setattr(doctor, "CHECKS", (check_spring, doctor.check_machine))
    assert doctor.main([]) == 2
    first, second = capsys.readouterr().out.splitlines()
    assert first.split() == ["FAIL", "spring", "broken"]
    assert second.startswith("ok ")

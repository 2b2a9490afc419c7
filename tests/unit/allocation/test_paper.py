"""`ensemble plan`."""

from __future__ import annotations

import argparse

import pytest

from ensemble_core.allocation.engines import Figures
from ensemble_core.allocation.paper import Group, calibrated_case, lines, parse_devices, plan, traced_case
from ensemble_core.commands import plan as command
from ensemble_core.errors import UserError
from ensemble_core.library.records import BatchProfile, Profile


def run(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.run(parser.parse_args(arguments))


def test_devices_are_read_gpus_first() -> None:
    assert parse_devices("1xCPU,16xV100-16GB") == (
        Group(16, "V100-16GB", "gpu", 16384.0),
        Group(1, "CPU", "cpu", 204800.0),
    )
    assert parse_devices("1xcpu,16xv100-16gb") == parse_devices("1xCPU,16xV100-16GB")
    assert parse_devices("4xcpu-some-2c:8192") == (Group(4, "cpu-some-2c", "cpu", 8192.0),)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("V100-16GB", "'V100-16GB' must be a number of devices and their type"),
        ("0xV100-16GB", "must be a number of devices"),
        ("2000xCPU", "2000xCPU makes 2000 devices, more than the limit of 1024"),
        ("1000xCPU,25xCPU", "25xCPU makes 1025 devices, more than the limit of 1024"),
        ("9" * 5000 + "xCPU", "must be a number of devices"),
        ("1xCPU:63", "63 must be greater than or equal to 64"),
        ("1xCPU:16777217", "16777217 must be less than or equal to 16777216"),
        ("1xCPU:" + "9" * 20, f"1xCPU:{'9' * 20}: {'9' * 20} must be less than or equal to 16777216"),
        ("1xCPU:" + "9" * 5000, "must be less than or equal to 16777216"),
        ("2xgpu-other", "gpu-other is none of V100-16GB, CPU; with --spec it is a device type of profiles, and needs"),
        ("2xgpu-other", "and needs its memory in MiB: 2xgpu-other:16384"),
    ],
)
def test_devices_that_cannot_be_read(text: str, problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        parse_devices(text)


def test_the_plan_tells_throughput_bound_and_every_device(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--devices", "2xV100-16GB", "--ensemble", "IMN1", "--max-benchmarks", "3") == 0
    text = capsys.readouterr().out
    assert text.startswith("1 member on 2 × V100-16GB\n")
    assert "  throughput  272 samples/s, simulated; 100% of the bound\n" in text
    assert "  bound       272 samples/s of all devices\n" in text
    assert "  devices     2 of 2 used\n" in text
    head, first, second = text.splitlines()[-3:]
    assert head.split()[:3] == ["device", "memory,", "MiB"]
    memory = calibrated_case("IMN1", parse_devices("1xV100-16GB")).problem.needs[0, 0, -1]
    assert first.split()[:5] == ["gpu0", f"{memory:,.0f}", "of", "16,384", "ResNet152@128"]
    assert second.split()[0] == "gpu1"


def test_the_fewest_devices_for_a_rate() -> None:
    case = calibrated_case("IMN1", parse_devices("4xV100-16GB"))
    found = plan(case, 6, 0, required=250.0)
    assert sum("ResNet152" in line for line in lines(case, found)) == 2
    assert "  devices     2 of 4 used" in lines(case, found)
    with pytest.raises(UserError, match=r"1000 samples/s are more than the 54\d found"):
        plan(case, 6, 0, required=1000.0)


def test_what_cannot_be_planned() -> None:
    with pytest.raises(UserError, match="IMN5 is none of IMN1, IMN4, IMN12"):
        run("--devices", "1xCPU", "--ensemble", "IMN5")
    with pytest.raises(UserError, match="other is none of V100-16GB, CPU"):
        run("--devices", "1xother:100")
    with pytest.raises(
        UserError, match=r"cannot hold the members: 4 members take .* MiB .*; the devices have 16,384 MiB"
    ):
        run("--devices", "1xV100-16GB", "--ensemble", "IMN4", "--max-benchmarks", "1")
    with pytest.raises(UserError, match="0 must be greater than or equal to 1"):
        run("--devices", "1xCPU", "--max-benchmarks", "0")


@pytest.mark.parametrize(
    ("arguments", "where", "problem"),
    [
        ("--seed -1", "--seed", "-1 must be greater than or equal to 0"),
        ("--seed 2147483648", "--seed", "2147483648 must be less than or equal to 2147483647"),
        ("--max-benchmarks 10001", "--max-benchmarks", "10001 must be less than or equal to 10000"),
        ("--required 0", "--required", "0.0 must be greater than 0"),
        ("--required inf", "--required", "inf must be a finite number"),
        ("--required nan", "--required", "nan must be a finite number"),
        ("--required 1e13", "--required", "must be less than or equal to 1000000000000"),
        ("--budget small", "--budget", "needs --spec"),
        ("--name digits", "--name", "needs --spec"),
    ],
)
def test_options_that_are_not_allowed(arguments: str, where: str, problem: str) -> None:
    with pytest.raises(UserError, match=problem) as refused:
        run("--devices", "1xV100-16GB", "--ensemble", "IMN1", *arguments.split())
    assert refused.value.where == where


def test_members_are_planned_by_their_profiles() -> None:
    def profile(model: str, seconds: float) -> Profile:
        batches = tuple(BatchProfile(batch_size=b, passes=(seconds,), seconds=seconds, memory_mib=90) for b in (8, 32))
        return Profile(
            model=model, model_sha256="0" * 64, device_type="cpu-x-1c", engine="onnxruntime", engine_version="1",
            cores=1, load_seconds=0.1, batches=batches,
        )  # fmt: skip

    figures = [{"cpu-x-1c": Figures.of(profile("fast", 2.0))}, {"cpu-x-1c": Figures.of(profile("slow", 6.0))}]
    case = traced_case(["fast", "slow"], figures, parse_devices("2xcpu-x-1c:100"), (8, 32))
    found = plan(case, 4, 0)
    # Memory holds one member on each device: the slow one, 2000 samples in 6 s, decides.
    assert found.throughput == pytest.approx(2000 / 6, rel=0.01)
    assert case.names == ("cpu0", "cpu1")
    with pytest.raises(UserError, match="fast has no profile on gpu-y, but on cpu-x-1c"):
        traced_case(["fast", "slow"], figures, parse_devices("1xgpu-y:100"), (8, 32))

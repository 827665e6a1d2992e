"""`dit-video doctor`: what is wrong is found and named with what to do; every device trains two steps."""

import json
import math
import shutil
from collections import namedtuple

import jax

from dit_video.cli import doctor
from dit_video.cli.main import main
from dit_video.verify.devices import DeviceCheck, check_device, wrong_with


def test_losses_must_be_finite_and_those_of_the_first_device():
    first = DeviceCheck("cpu:0", (1.0, 2.0), 0.0, None)
    assert wrong_with((1.001, 1.999), first) is None
    assert wrong_with((1.0, 2.0), None) is None
    assert wrong_with((1.0, 2.0), DeviceCheck("cpu:0", (), 0.0, "broken")) is None
    assert "are not finite" in str(wrong_with((1.0, math.nan), first))
    assert "are not those of cpu:0, (1.0, 2.0)" in str(wrong_with((1.0, 2.1), first))


def test_versions_are_compared_with_what_the_package_needs():
    assert doctor.requirements(["jax>=0.1", "nothing-at-all; extra == 'tpu'"]) == []
    (line,) = doctor.requirements(["jax<0.1"])
    assert line.startswith(f"jax {jax.__version__}: must be <0.1: pip install")
    (line,) = doctor.requirements(["no-such-package>=2"])
    assert line == "no-such-package is not installed: pip install 'no-such-package>=2'"


def test_an_accelerator_that_jax_does_not_see_is_named_with_its_extra(tmp_path):
    assert doctor.idle_accelerators({"cpu"}, tmp_path) == []
    (tmp_path / "nvidiactl").touch()
    (tmp_path / "accel0").touch()
    gpu, tpu = doctor.idle_accelerators({"cpu"}, tmp_path)
    assert "NVIDIA GPU and JAX sees none: pip install -e '.[cuda]' in a checkout" in gpu
    assert "TPU and JAX sees none: pip install -e '.[tpu]' in a checkout" in tpu
    assert doctor.idle_accelerators({"gpu", "tpu"}, tmp_path) == []


def test_all_is_said_and_what_is_wrong_decides_the_exit_code(monkeypatch, capsys):
    monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[:1])
    monkeypatch.setattr(doctor, "requirements", lambda listed: [])
    checked: list[DeviceCheck] = []

    def once(device, reference):
        checked[:] = checked or [check_device(device, reference)]
        return checked[0]

    monkeypatch.setattr(doctor, "check_device", once)
    plenty = namedtuple("Usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: plenty(1 << 40))
    assert main(["doctor"]) == 0
    assert "nothing is wrong" in capsys.readouterr().out
    monkeypatch.setattr(shutil, "disk_usage", lambda path: plenty(1 << 20))
    assert main(["doctor", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert [len(found[name]) for name in ("disks", "devices", "wrong")] == [2, 1, 2]
    (device,) = found["devices"]
    assert len(device["losses"]) == 2
    assert device["failed"] is None
    assert "only 1.0 MB are free" in found["wrong"][0]

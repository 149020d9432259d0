"""The cache on disk: bounded, checked, and safe for processes that share it."""

from __future__ import annotations

import os
import time

import numpy as np
import pytest

from angle.cache import cache_folder, load_array, save_array
from angle.errors import ConfigError


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.setenv("ANGLE_CACHE", str(tmp_path))


def kept() -> set[str]:
    """Return the keys whose arrays are in the cache."""
    return {path.parent.name for path in cache_folder("tokens").rglob("*.npy")}


def test_what_was_not_used_for_longest_is_deleted_first(monkeypatch):
    monkeypatch.setenv("ANGLE_CACHE_GB", "0.0035")
    array = np.zeros(10**6, np.uint8)
    paths = {name: cache_folder("tokens") / name / "ids.npy" for name in "abcd"}
    for name in "abc":
        save_array(paths[name], array)
    for age, name in enumerate("bac"):  # read in this order, long ago
        os.utime(paths[name], (age, age))
    assert load_array(paths["b"]) is not None  # and this one again just now
    save_array(paths["d"], array)
    assert kept() == {"b", "c", "d"}
    assert not paths["a"].parent.exists()
    monkeypatch.setenv("ANGLE_CACHE_GB", "0.0011")
    save_array(cache_folder("teachers") / "e.npy", array)
    assert kept() == set()
    assert load_array(cache_folder("teachers") / "e.npy") is not None


def test_no_cache(monkeypatch):
    monkeypatch.setenv("ANGLE_CACHE_GB", "0")
    save_array(cache_folder("tokens") / "a" / "ids.npy", np.zeros(9))
    save_array(cache_folder("kernels") / "linear.npy", np.zeros(1))
    assert kept() == set()
    assert load_array(cache_folder("kernels") / "linear.npy") is not None


@pytest.mark.parametrize("value", ["many", "-1", "nan", "50GB"])
def test_a_size_must_be_one(monkeypatch, value):
    monkeypatch.setenv("ANGLE_CACHE_GB", value)
    with pytest.raises(ConfigError, match=rf"^ANGLE_CACHE_GB={value} is no size: give the gigabytes"):
        save_array(cache_folder("tokens") / "a" / "ids.npy", np.zeros(9))


def test_what_killed_processes_left_is_deleted_after_a_day():
    folder = cache_folder("tokens") / "a"
    folder.mkdir(parents=True)
    for name, age in (("old", 25 * 3600), ("new", 3600)):
        (folder / f"ids.npy.{name}").write_bytes(b"half")
        os.utime(folder / f"ids.npy.{name}", (time.time() - age,) * 2)
    save_array(folder / "ids.npy", np.zeros(9))
    assert {path.name for path in folder.iterdir()} == {"ids.npy", "ids.npy.new"}


def test_an_array_stays_readable_when_it_is_deleted_meanwhile():
    path = cache_folder("tokens") / "a" / "ids.npy"
    save_array(path, np.arange(9))
    array = load_array(path)
    path.unlink()
    assert array.tolist() == list(range(9))


@pytest.mark.parametrize("array", [np.zeros(0, np.int32), np.arange(5.0), np.ones((3, 4), np.float32)], ids=str)
def test_arrays_come_back_as_they_were(array):
    path = cache_folder("teachers") / "a.npy"
    save_array(path, array)
    loaded = load_array(path)
    np.testing.assert_array_equal(loaded, array)
    assert loaded.dtype == array.dtype

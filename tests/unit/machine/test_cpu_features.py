"""What the kernel says of the processor."""

from __future__ import annotations

from pathlib import Path

from infaas_variant_generator.hardware import OF_INTEREST, recipe_features

from infaas.machine import cpu_features, parse_features


def test_x86_calls_them_flags() -> None:
    assert parse_features("processor\t: 0\nflags\t\t: fpu sse2 avx512_vnni\n") == {"fpu", "sse2", "avx512_vnni"}


def test_arm_calls_them_features() -> None:
    assert parse_features("processor : 0\nFeatures : fp asimd asimdhp\n") == {"fp", "asimd", "asimdhp"}


def test_only_what_every_core_has_counts() -> None:
    assert parse_features("flags : avx_vnni avx512_vnni\nflags : avx_vnni\n") == {"avx_vnni"}


def test_a_kernel_that_does_not_tell_has_none(tmp_path: Path) -> None:
    assert parse_features("") == frozenset()
    assert cpu_features(tmp_path / "nothing") == frozenset()


def test_features_are_read_from_the_kernels_file(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("processor : 0\nflags : fpu amx_int8\nprocessor : 1\nflags : amx_int8 fpu\n")
    assert cpu_features(tmp_path / "cpuinfo") == {"fpu", "amx_int8"}


def test_recipes_hear_only_of_the_features_that_they_care_about_in_a_fixed_order() -> None:
    assert recipe_features() == tuple(sorted(OF_INTEREST & cpu_features()))

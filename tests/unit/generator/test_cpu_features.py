"""What the kernel says of the processor."""

from __future__ import annotations

from pathlib import Path

from infaas_variant_generator.hardware import cpu_features, parse_features


def test_x86_calls_them_flags() -> None:
    assert parse_features("processor\t: 0\nflags\t\t: fpu sse2 avx512_vnni avx512_fp16\n") == (
        "avx512_fp16",
        "avx512_vnni",
    )


def test_arm_calls_them_features() -> None:
    assert parse_features("processor : 0\nFeatures : fp asimd asimdhp\n") == ("asimd", "asimdhp")


def test_only_what_every_core_has_counts() -> None:
    assert parse_features("flags : avx_vnni avx512_vnni\nflags : avx_vnni\n") == ("avx_vnni",)


def test_a_kernel_that_does_not_tell_has_none(tmp_path: Path) -> None:
    assert parse_features("") == ()
    assert cpu_features(tmp_path / "nothing") == ()

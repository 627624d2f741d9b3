//! Every kernel against crc32fast, whichever way the bytes lie, are split, or are copied.

use std::mem::MaybeUninit;

use rnic_simd::{Crc, OVERRIDE};
use rnic_wire::{Crc32, Ones};

const START: u32 = 0xFFFF_FFFF;
/// Past several turns of the widest loop, with all remainders behind it.
const LONGEST: usize = 1400;

fn bytes(len: usize) -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..len).map(|_| next()).collect()
}

/// The register after `bytes`, from `state`, according to crc32fast (which inverts the register at both ends).
fn oracle(state: u32, bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial(!state);
    hasher.update(bytes);
    !hasher.finalize()
}

fn copy(crc: Crc, state: u32, src: &[u8]) -> (u32, Vec<u8>) {
    let mut dst = vec![0xEE; src.len()];
    // SAFETY: both are of the same length, and apart.
    let after = unsafe { crc.copy_crc_raw(state, dst.as_mut_ptr(), src.as_ptr(), src.len()) };
    (after, dst)
}

#[test]
fn check_value_of_the_polynomial() {
    for crc in Crc::usable() {
        assert_eq!(!crc.update(START, b"123456789"), 0xCBF4_3926, "{}", crc.name());
    }
}

#[test]
fn every_length_agrees_with_the_oracle_from_any_state() {
    let data = bytes(LONGEST);
    for crc in Crc::usable() {
        for len in 0..=LONGEST {
            for state in [START, 0, 1, 0x8000_0000, 0xDEAD_BEEF] {
                let expected = oracle(state, &data[..len]);
                assert_eq!(
                    crc.update(state, &data[..len]),
                    expected,
                    "{} {len} {state:#x}",
                    crc.name()
                );
                assert_eq!(
                    copy(crc, state, &data[..len]),
                    (expected, data[..len].to_vec()),
                    "{} {len}",
                    crc.name()
                );
            }
        }
    }
}

#[test]
fn bits_that_count_as_ones_count_so_at_every_length() {
    let data = bytes(LONGEST);
    // Bits at the very beginning, over the whole block, at its end, and none.
    let patterns: [Vec<u8>; 4] = [
        vec![0, 0xFF, 3],
        bytes(64),
        [vec![0; 63], vec![0x81]].concat(),
        vec![],
    ];
    for (pattern, crc) in patterns
        .iter()
        .flat_map(|p| Crc::usable().map(move |crc| (p, crc)))
    {
        let ones = Ones::new(pattern);
        let mut counted = data.clone();
        for (byte, bits) in counted.iter_mut().zip(pattern) {
            *byte |= bits;
        }
        for len in 0..=LONGEST {
            for state in [START, 0, 0xDEAD_BEEF] {
                assert_eq!(
                    crc.update_with_ones(state, &data[..len], &ones),
                    oracle(state, &counted[..len]),
                    "{} {len} {state:#x} {pattern:?}",
                    crc.name()
                );
            }
        }
    }
}

#[test]
fn every_split_point_chains() {
    for crc in Crc::usable() {
        for len in [1, 3, 16, 63, 64, 65, 200, 331, 600] {
            let data = bytes(len);
            let whole = oracle(START, &data);
            for (front, back) in (0..=len).map(|at| data.split_at(at)) {
                assert_eq!(
                    crc.update(crc.update(START, front), back),
                    whole,
                    "{} {}",
                    crc.name(),
                    front.len()
                );
                let (state, copied) = copy(crc, START, front);
                assert_eq!(copied, front);
                assert_eq!(
                    copy(crc, state, back),
                    (whole, back.to_vec()),
                    "{} {}",
                    crc.name(),
                    front.len()
                );
            }
        }
    }
}

#[test]
fn alignment_of_source_and_destination_is_of_no_account() {
    let data = bytes(64 + 600);
    for crc in Crc::usable() {
        for len in [0, 1, 15, 16, 17, 63, 64, 100, 255, 256, 257, 600] {
            for offset in 0..64 {
                let src = &data[offset..offset + len];
                let expected = oracle(START, src);
                assert_eq!(
                    crc.update(START, src),
                    expected,
                    "{} {len} at {offset}",
                    crc.name()
                );
                let mut dst = vec![0; 64 + len];
                // SAFETY: `63 - offset + len` is within `dst`.
                let after =
                    unsafe { crc.copy_crc_raw(START, dst.as_mut_ptr().add(63 - offset), src.as_ptr(), len) };
                assert_eq!(after, expected, "{} {len} at {offset}", crc.name());
                assert_eq!(&dst[63 - offset..][..len], src);
            }
        }
    }
}

#[test]
fn copying_writes_nothing_outside_the_destination() {
    let data = bytes(600);
    for crc in Crc::usable() {
        for len in 0..=600 {
            let mut dst = vec![0xA5; 64 + len + 64];
            // SAFETY: `64 + len` is within `dst`.
            unsafe { crc.copy_crc_raw(START, dst.as_mut_ptr().add(64), data.as_ptr(), len) };
            assert_eq!(dst[..64], [0xA5; 64], "{} {len}", crc.name());
            assert_eq!(dst[64..64 + len], data[..len], "{} {len}", crc.name());
            assert_eq!(dst[64 + len..], [0xA5; 64], "{} {len}", crc.name());
        }
    }
}

#[test]
fn slices_are_copied_into_a_longer_destination() {
    let data = bytes(100);
    for crc in Crc::usable() {
        let mut dst = [MaybeUninit::new(0x11); 120];
        assert_eq!(crc.copy_crc(START, &mut dst, &data), oracle(START, &data));
        // SAFETY: all were initialised above.
        let dst = dst.map(|byte| unsafe { byte.assume_init() });
        assert_eq!(dst[..100], data);
        assert_eq!(dst[100..], [0x11; 20]);
    }
}

#[test]
#[should_panic(expected = "do not fit")]
fn a_destination_too_short_is_refused() {
    Crc::portable().copy_crc(START, &mut [MaybeUninit::uninit(); 9], &[0; 10]);
}

/// The CRC has to be that of the bytes stored, else a peer would be sent frames with a wrong ICRC, or, worse, wrong
/// bytes with a right one.
#[test]
fn crc_is_that_of_the_copy_while_the_source_changes() {
    use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering::Relaxed};

    const LEN: usize = 327;
    const CHANGES: usize = 2_000;
    let source: Vec<AtomicU8> = bytes(LEN).into_iter().map(AtomicU8::new).collect();
    let changes = AtomicUsize::new(0);
    let wanted = Crc::usable().count() * CHANGES;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while changes.load(Relaxed) < wanted {
                for byte in &source {
                    byte.store(byte.load(Relaxed).wrapping_add(1), Relaxed);
                }
                changes.fetch_add(1, Relaxed);
            }
        });
        for (crc, end) in Crc::usable().zip((CHANGES..).step_by(CHANGES)) {
            for len in (0..=LEN).cycle() {
                let mut dst = [0; LEN];
                // SAFETY: both have `len` bytes; the source is atomics, so it may be written meanwhile.
                let after = unsafe { crc.copy_crc_raw(START, dst.as_mut_ptr(), source.as_ptr().cast(), len) };
                let expected = oracle(START, &dst[..len]);
                if after != expected {
                    changes.store(wanted, Relaxed);
                }
                assert_eq!(after, expected, "{} {len}", crc.name());
                if changes.load(Relaxed) >= end {
                    break;
                }
            }
        }
    });
}

#[test]
fn kernels_are_found_by_name() {
    for crc in Crc::usable() {
        assert_eq!(Crc::by_name(crc.name()).unwrap().name(), crc.name());
    }
    let error = Crc::by_name("abacus").unwrap_err();
    assert!(
        error.to_string().contains("abacus") && error.to_string().contains("portable"),
        "{error}"
    );
    assert_eq!(Crc::portable().name(), "portable");
}

/// In a process of its own, since the environment belongs to the whole process.
#[test]
fn the_environment_overrides_detection() {
    const CHILD: &str = "RNIC_SIMD_TEST_EXPECTS";
    if let Ok(expected) = std::env::var(CHILD) {
        assert_eq!(Crc::detect().name(), expected);
        return;
    }
    let fastest = Crc::usable().next().unwrap().name();
    let mut cases: Vec<_> = Crc::usable().map(|crc| (crc.name(), crc.name())).collect();
    cases.push(("abacus", fastest));
    for (value, expected) in cases {
        let status = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "the_environment_overrides_detection"])
            .envs([(OVERRIDE, value), (CHILD, expected)])
            .status()
            .unwrap();
        assert!(status.success(), "{OVERRIDE}={value} did not choose {expected}");
    }
}

//! Cycles (of the time stamp counter) per call of each usable kernel, with source and destination in the first cache,
//! next to crc32fast and a plain copy: `cargo run --release -p rnic-simd --example cycles`.
//!
//! `update` and `copy` are independent calls; `chain` feeds each result into the next call, so it shows latency.

#[cfg(target_arch = "x86_64")]
fn main() {
    bench::run();
}

#[cfg(not(target_arch = "x86_64"))]
fn main() {
    println!("cycles are counted on x86-64 only");
}

#[cfg(target_arch = "x86_64")]
mod bench {
    use std::arch::x86_64::_rdtsc;
    use std::hint::black_box;
    use std::mem::MaybeUninit;

    use rnic_simd::Crc;
    use rnic_wire::Crc32;

    const SIZES: [usize; 8] = [12, 28, 52, 64, 256, 1024, 1052, 4096];
    const CALLS: u64 = 2_000;
    const RUNS: usize = 60;

    /// The best of several runs: what disturbs a run only makes it longer.
    fn cycles(mut call: impl FnMut()) -> u64 {
        let run = |_| {
            // SAFETY: every x86-64 has the counter.
            let start = unsafe { _rdtsc() };
            (0..CALLS).for_each(|_| call());
            // SAFETY: as above.
            (unsafe { _rdtsc() } - start) / CALLS
        };
        (0..RUNS).map(run).min().unwrap_or(0)
    }

    fn row(name: &str, what: &str, mut call: impl FnMut(&mut [MaybeUninit<u8>], &[u8])) {
        print!("{name:<12}{what:<8}");
        for size in SIZES {
            let src = vec![0x5a; size];
            let mut dst = vec![MaybeUninit::uninit(); size];
            print!("{:>7}", cycles(|| call(black_box(&mut dst), black_box(&src))));
        }
        println!();
    }

    pub fn run() {
        print!("{:<20}", "bytes");
        SIZES.iter().for_each(|size| print!("{size:>7}"));
        println!();
        for crc in Crc::usable() {
            row(crc.name(), "update", |_, src| {
                black_box(crc.update(black_box(!0), src));
            });
            let mut state = !0;
            row(crc.name(), "chain", |_, src| state = crc.update(state, src));
            black_box(state);
            row(crc.name(), "copy", |dst, src| {
                black_box(crc.copy_crc(black_box(!0), dst, src));
            });
        }
        row("crc32fast", "update", |_, src| {
            black_box(crc32fast::hash(src));
        });
        row("memcpy", "copy", |dst, src| {
            // SAFETY: `row` makes both of the same length.
            unsafe {
                dst.as_mut_ptr()
                    .cast::<u8>()
                    .copy_from_nonoverlapping(src.as_ptr(), src.len())
            };
        });
    }
}

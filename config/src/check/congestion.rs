//! Checks of a port's `congestion`.

use super::Checks;
use crate::diagnostic::KeyPath;
use crate::schema::{Congestion, Dcqcn};
use crate::value::{BitRate, ByteSize, TimeSpan};

/// One byte a second.
const LEAST: BitRate = BitRate::bps(8);
/// Of all links.
const FASTEST: BitRate = BitRate::mbps(8_000_000);

pub(super) fn check(checks: &mut Checks<'_>, key: &KeyPath, congestion: &Congestion) {
    match congestion {
        Congestion::Off => {}
        Congestion::Fixed(rate) => checks.within(key.key("fixed"), *rate, LEAST..=FASTEST),
        Congestion::Dcqcn(dcqcn) => check_dcqcn(checks, &key.key("dcqcn"), dcqcn),
    }
}

fn check_dcqcn(checks: &mut Checks<'_>, key: &KeyPath, dcqcn: &Dcqcn) {
    if let Some(rate) = dcqcn.line_rate {
        checks.within(key.key("line_rate"), rate, BitRate::mbps(1)..=FASTEST);
    }
    let most = dcqcn.line_rate.unwrap_or(FASTEST);
    for (name, rate) in [
        ("min_rate", dcqcn.min_rate),
        ("additive_increase", dcqcn.additive_increase),
        ("hyper_increase", dcqcn.hyper_increase),
    ] {
        if let Some(rate) = rate {
            checks.within(key.key(name), rate, LEAST..=most);
        }
    }
    if let Some(bytes) = dcqcn.byte_counter {
        checks.within(
            key.key("byte_counter"),
            bytes,
            ByteSize::kib(1)..=ByteSize::mib(4_095),
        );
    }
    for (name, time) in [
        ("increase_timer", dcqcn.increase_timer),
        ("alpha_timer", dcqcn.alpha_timer),
        ("decrease_interval", dcqcn.decrease_interval),
        ("cnp_interval", dcqcn.cnp_interval),
    ] {
        if let Some(time) = time {
            checks.within(
                key.key(name),
                time,
                TimeSpan::micros(1)..=TimeSpan::micros(4_000_000),
            );
        }
    }
}

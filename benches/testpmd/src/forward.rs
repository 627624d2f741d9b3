//! Forward statistics as DPDK's testpmd prints them: each port every second, then all of it. Its lines about what no port
//! here counts (RX-errors, RX-nombuf) are left out.
use std::fmt::{self, Write as _};

use rnic_engine::port::PortStats;

use crate::report::{Sample, cycles_of, rate, total};

const PORTS: usize = 2;

/// What each port did in a second, then what the cores did.
pub fn second(from: &[Sample], to: &[Sample], hz: u64) -> String {
    let mut text = String::new();
    for port in 0..PORTS {
        // Writing to a string does not fail.
        let _ = throughput(&mut text, port, from, to, hz);
    }
    let messages = total(from, to, |s| s.messages);
    let _ = writeln!(
        text,
        "\n  messages: {messages:>12}  frames: {:>12}  cycles/message: {:>8.1}",
        total(from, to, |s| s.frames),
        cycles_of(from, to) as f64 / messages.max(1) as f64,
    );
    text
}

fn throughput(
    out: &mut String,
    port: usize,
    from: &[Sample],
    to: &[Sample],
    hz: u64,
) -> Result<(), fmt::Error> {
    let now = sum(to.iter().map(|sample| sample.ports[port]));
    let per_second = |what: fn(&PortStats) -> u64| rate(from, to, hz, |s| what(&s.ports[port])) as u64;
    let border = "#".repeat(24);
    writeln!(out, "\n  {border} NIC statistics for port {port:<2} {border}")?;
    writeln!(
        out,
        "  RX-packets: {:<10} RX-missed: {:<10} RX-bytes:  {}",
        now.rx_frames, now.rx_dropped, now.rx_bytes
    )?;
    writeln!(
        out,
        "  TX-packets: {:<10} TX-errors: {:<10} TX-bytes:  {}",
        now.tx_frames, now.tx_dropped, now.tx_bytes
    )?;
    writeln!(out, "\n  Throughput (since last show)")?;
    for (name, frames, bits) in [
        ("Rx", per_second(|p| p.rx_frames), per_second(|p| 8 * p.rx_bytes)),
        ("Tx", per_second(|p| p.tx_frames), per_second(|p| 8 * p.tx_bytes)),
    ] {
        writeln!(out, "  {name}-pps: {frames:>12}          {name}-bps: {bits:>12}")?;
    }
    writeln!(out, "  {border}{}{border}", "#".repeat(28))
}

/// What the ports did in all.
pub fn totals(from: &[Sample], to: &[Sample]) -> String {
    let mut text = String::new();
    let ports: Vec<PortStats> = (0..PORTS).map(|port| between(port, from, to)).collect();
    let (dashes, pluses) = ("-".repeat(22), "+".repeat(15));
    for (port, stats) in ports.iter().enumerate() {
        let title = format!("{dashes} Forward statistics for port {port:<2} {dashes}");
        // Writing to a string does not fail.
        let _ = forwarded(
            &mut text,
            &title,
            stats,
            &format!("{dashes}{}{dashes}", "-".repeat(32)),
        );
    }
    let title = format!("{pluses} Accumulated forward statistics for all ports{pluses}");
    let _ = forwarded(&mut text, &title, &sum(ports.iter().copied()), &"+".repeat(76));
    text
}

fn forwarded(out: &mut String, title: &str, stats: &PortStats, end: &str) -> Result<(), fmt::Error> {
    writeln!(out, "\n  {title}")?;
    for (name, frames, dropped) in [
        ("RX", stats.rx_frames, stats.rx_dropped),
        ("TX", stats.tx_frames, stats.tx_dropped),
    ] {
        writeln!(
            out,
            "  {name}-packets: {frames:<14} {name}-dropped: {dropped:<14} {name}-total: {}",
            frames + dropped
        )?;
    }
    writeln!(out, "  {end}")
}

/// Of all cores' queues of a port, between two moments.
fn between(port: usize, from: &[Sample], to: &[Sample]) -> PortStats {
    let of = |what: fn(&PortStats) -> u64| total(from, to, |s| what(&s.ports[port]));
    PortStats {
        rx_frames: of(|p| p.rx_frames),
        rx_bytes: of(|p| p.rx_bytes),
        rx_dropped: of(|p| p.rx_dropped),
        tx_frames: of(|p| p.tx_frames),
        tx_bytes: of(|p| p.tx_bytes),
        tx_dropped: of(|p| p.tx_dropped),
    }
}

fn sum(stats: impl Iterator<Item = PortStats>) -> PortStats {
    stats.fold(PortStats::default(), PortStats::and)
}
